"""A study with trunks whose runs are killed again and again, at random instants and at forks."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

from isoflop.data.prepare import prepare
from isoflop.launch.job import DONE, Job
from isoflop.launch.pending import Pending
from isoflop.launch.run_folder import RunFolder
from isoflop.launch.trunks import trunk_jobs, waits_for
from isoflop.launch.weights import final_weights
from isoflop.placement import Placement
from isoflop.plan.planner import Plan
from made_kills import MAX_LIFE_S, start

NUM_WORKERS = 2
_POLL_S = 0.002

AIMS = ("any", "half a fork", "a fork just left", "a checkpoint after it")


@dataclass
class StudyFigures:
    kills: Counter[str] = field(default_factory=Counter)
    """Sessions that were killed, by what they were killed at."""
    num_processes: int = 0
    """Processes killed: one or two a session."""
    num_halves: int = 0
    """Sessions that left a half-written fork."""
    ends: dict[str, tuple[object, ...]] = field(default_factory=dict)
    """By run id, what must not depend on kills."""
    num_begun_at_forks: int = 0
    left_over: list[str] = field(default_factory=list)
    """What lies in folders of forks at the end."""
    seconds: float = 0.0


def disturb_study(folder: Path, plan: Plan, num_kills: int, seed: int) -> StudyFigures:
    """Trains a study in sessions of two processes, of which ``num_kills`` are killed whole."""
    figures, dice, begin_s = StudyFigures(), random.Random(seed), time.monotonic()
    jobs = _jobs(folder, plan, every_step=num_kills > 0)
    while left := [job for job in jobs if RunFolder(folder, job.run_id).result() is None]:
        is_last = sum(figures.kills.values()) == num_kills
        _Session(folder, left).run(None if is_last else dice.choice(AIMS), dice, figures)
    for run in plan.unique_runs:
        run_folder = RunFolder(folder, run.run_id)
        result, weights = run_folder.result(), final_weights(run_folder)
        assert result is not None
        assert weights is not None
        exact = (result.loss, result.loss_se, result.bits_per_byte, result.num_steps)
        figures.ends[run.run_id] = (*exact, weights.read_bytes())
        figures.num_begun_at_forks += result.trunk_steps > 0
    figures.left_over = [str(path) for path in folder.glob("runs/*/forks/*")]
    figures.seconds = time.monotonic() - begin_s
    return figures


def _jobs(folder: Path, plan: Plan, *, every_step: bool) -> list[Job]:
    data, trunks = str(prepare("sotu-embedded", "byte")), trunk_jobs(plan)
    for run in plan.unique_runs:
        RunFolder(folder, run.run_id).write_spec(run.spec)
    return [
        Job(
            study_folder=str(folder),
            run_id=run.run_id,
            data_folder=data,
            keep_weights="all",
            placement=Placement(checkpoint_every_s=0.0) if every_step else Placement(),
            trunk=trunks.get(run.run_id),
        )
        for run in sorted(plan.unique_runs, key=lambda run: -run.flops)
    ]


class _Session:
    """What `isoflop run` does, without its seconds of imports."""

    def __init__(self, folder: Path, jobs: list[Job]) -> None:
        self._folder = folder
        self._pending = Pending(jobs)
        self._at_work: dict[str, tuple[Job, BaseProcess]] = {}
        self._forks = self._left()
        # Where no run is going to leave a fork, none is aimed at.
        self._may_aim = any(_is_to_begin_at_a_fork(folder, job) for job in jobs)
        self._begin_s: float | None = None

    def run(self, aim: str | None, dice: random.Random, figures: StudyFigures) -> None:
        life_s = dice.uniform(0, MAX_LIFE_S)
        is_time = None if aim is None else self._hits(aim, life_s)
        while self._pending or self._at_work:
            self._give()
            self._reap()
            if is_time is not None and (struck := is_time()) is not None:
                self._kill(figures)
                figures.kills[struck] += 1
                return
            time.sleep(_POLL_S)

    def _give(self) -> None:
        while len(self._at_work) < NUM_WORKERS:
            job = self._pending.next()
            if job is None:
                self._pending.look_again()
                job = self._pending.next()
            if job is None:
                return
            self._at_work[job.run_id] = (job, start(job))

    def _reap(self) -> None:
        for run_id, (_, process) in list(self._at_work.items()):
            if not process.is_alive():
                assert process.exitcode == DONE
                del self._at_work[run_id]
                self._pending.end(run_id)

    def _kill(self, figures: StudyFigures) -> None:
        for _, process in self._at_work.values():
            process.kill()
        for _, process in self._at_work.values():
            process.join()
            figures.num_processes += process.exitcode == -9
        figures.num_halves += any(self._folder.glob("runs/*/forks/.*.tmp"))

    def _hits(self, aim: str, life_s: float) -> Callable[[], str | None]:
        """Return a function that says what a kill strikes now; None: it is not time yet."""

        def is_time() -> str | None:
            if self._begin_s is None:
                self._begin_s = time.monotonic() if self._is_training() else None
                return None
            new = self._left() - self._forks
            if aim == "any" or not self._may_aim:
                return "any" if time.monotonic() - self._begin_s > life_s else None
            if aim == "half a fork":
                return aim if any(self._folder.glob("runs/*/forks/.*.tmp")) else None
            if aim == "a fork just left":
                return aim if new else None
            return aim if any(_is_past(fork) for fork in new) else None

        return is_time

    def _is_training(self) -> bool:
        for run_id in self._at_work:
            folder = RunFolder(self._folder, run_id)
            attempt, lease = folder.attempt_at_work(), folder.lease()
            if attempt is not None and lease is not None and lease.attempt == attempt.number:
                return True
        return False

    def _left(self) -> set[Path]:
        return set(self._folder.glob("runs/*/forks/[0-9]*"))


def _is_to_begin_at_a_fork(folder: Path, job: Job) -> bool:
    if job.trunk is None:
        return False
    return waits_for(folder, job.run_id, job.trunk, lambda run_id: True) is not None


def _is_past(fork: Path) -> bool:
    """Return whether the run that left a fork has a checkpoint of a later step."""
    steps = (fork.parents[1] / "ckpt").glob("[0-9]*")
    return any(int(path.name) > int(fork.name) for path in steps)

"""Short runs of a study's own command, timed: a step and start-up told apart, memory beside them.

Each run is one of a study that has nothing else, executed as any run is: in the copy of the planned
code, with the same environment and placeholders. Its folder lies beside the study's runs and is
removed when it has ended.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import secrets
import shutil
import statistics
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from isoflop.errors import UserError
from isoflop.launch.command.environment import Surroundings
from isoflop.launch.command.memory import PeakMemory, gpu_name
from isoflop.launch.command.rows import json_lines
from isoflop.launch.command.wrapper import end_of_log, execute_command
from isoflop.launch.job import Job, JobResult, check_gpus
from isoflop.launch.local import check_code, given_placement, trainer_job
from isoflop.launch.run_folder import RunFolder
from isoflop.launch.trainer_code import ensure_snapshot
from isoflop.placement import Placement, placement_from
from isoflop.plan.estimate.hardware import processor_name
from isoflop.plan.estimate.measured import MeasuredCommand, TimedRun, command_key
from isoflop.plan.own import OwnRuns
from isoflop.plan.planner import Plan
from isoflop.plan.runs import PlannedRun
from isoflop.spec import TrainerSpec, run_id
from isoflop.study.trainer import Trainer
from isoflop.trainer import CURVE_FILE

WARM_UP_STEPS = 3
"""Least steps of the shorter run; the longer one has as many more as are to be timed."""

# So much longer than the shorter run the longer one has to be, else start-up's scatter is too near.
_LEAST_SHARE = 0.3
# More runs that have more steps for that. A difference below this share may be chance, and says
# nothing of how many more: none of them is to take much longer than that.
_MORE_RUNS = 3
_CHANCE_SHARE = 0.1

# A command that was told to stop has nothing to save here.
_GRACE_S = 5.0
TIMED_OUT = "timed out"


@dataclass(frozen=True, kw_only=True, slots=True)
class Rung:
    """One arch at one size of a plan."""

    run: PlannedRun
    """Any run of it."""
    most_steps: int
    """Of its runs."""


def rungs_of(plan: Plan, sizes: Collection[int] = ()) -> list[Rung]:
    """Return what is to be measured of a plan, by arch.

    Args:
        plan: of a study with a trainer.
        sizes: rungs of the ladder; none: the smallest and the largest that each arch has.

    Raises:
        UserError: a size that no arch has.
    """
    found: dict[str, dict[int, Rung]] = {}
    for run in plan.runs:
        if isinstance(run.spec, TrainerSpec):
            of_arch = found.setdefault(run.arch, {})
            before = of_arch[run.size].most_steps if run.size in of_arch else 0
            most = max(before, run.spec.steps)
            of_arch[run.size] = Rung(run=run, most_steps=most)
    planned = sorted({size for of_arch in found.values() for size in of_arch})
    for size in sizes:
        if size not in planned:
            allowed = f"planned rungs of the ladder ({', '.join(map(str, planned))})"
            raise UserError("--rungs", size, allowed, "correct it")
    return [
        of_arch[size]
        for of_arch in found.values()
        for size in sorted(of_arch)
        if size in (sizes or (min(of_arch), max(of_arch)))
    ]


def machine_name(placement: Placement) -> str:
    """Return what the commands of a placement run on, in the system's words."""
    return gpu_name() if placement.device.startswith("cuda") else processor_name()


class CommandCalibration:
    """Measures rungs of a plan, one after the other.

    Args:
        plan: of a study with a trainer.
        folder: its folder; the copy of the trainer's code is made there, as for runs.
        steps: that a longer run has more than a shorter one.
        timeout_s: for each run.
        device: cpu or cuda; None: the study's.

    Raises:
        UserError: a wrong number, code that is not what was planned, too few GPUs.
    """

    def __init__(
        self, plan: Plan, folder: Path, *, steps: int, timeout_s: float, device: str | None
    ) -> None:
        if steps < 1:
            raise UserError("--steps", steps, "1 or more", "correct it")
        if not 0 < timeout_s < math.inf:
            raise UserError("--timeout", timeout_s, "a positive number of seconds", "correct it")
        assert plan.study.trainer is not None
        self._plan = plan
        self._folder = folder.absolute()
        self._trainer: Trainer = plan.study.trainer
        self._steps = steps
        self._timeout_s = timeout_s
        self.placement: Placement = placement_from(given_placement(plan.study, {"device": device}))
        """Where the commands run."""
        check_gpus(self.placement)
        check_code(folder, plan)
        assert plan.code is not None
        code = Path(self._trainer.code).absolute()
        ensure_snapshot(plan.code, code, folder, self._trainer.code_files)

    def measure(self, rung: Rung) -> MeasuredCommand:
        """Return what the command of a rung takes.

        Raises:
            UserError: a run of it failed, timed out or left no result, with the end of its log.
        """
        timed = [self._timed(rung, steps) for steps in self._first_steps(rung)]
        for _ in range(_MORE_RUNS):
            more = self._more_steps([run for run, _ in timed], rung)
            if more is not None:
                timed.append(self._timed(rung, more))
        runs = tuple(run for run, _ in timed)
        step_s, start_s = step_and_start(runs)
        memory = [peak for _, peak in timed if peak is not None]
        run, table = rung.run, self._plan.study.trainer_arch(rung.run.arch)
        assert isinstance(run.spec, TrainerSpec)
        count = next(
            each.count
            for each in self._plan.counts
            if (each.arch, each.size) == (run.arch, run.size)
        )
        return MeasuredCommand(
            arch=run.arch,
            rung=run.spec.rung,
            command_key=command_key(self._trainer, table),
            code=run.spec.code,
            step_flops=count.training_flops * self._trainer.batch_tokens,
            num_ranks=self.placement.num_ranks,
            step_s=step_s,
            start_s=start_s,
            runs=runs,
            peak_mem_bytes=max(memory) if memory else None,
        )

    def _first_steps(self, rung: Rung) -> list[int]:
        """Return the steps of the two first runs; one run where none is planned with more."""
        # With many steps to time, not so few in the shorter run that its command reports nothing.
        warmup = max(WARM_UP_STEPS, self._steps // 4)
        longer = min(warmup + self._steps, rung.most_steps)
        shorter = min(warmup, max(1, longer // 2))
        return sorted({shorter, longer})

    def _more_steps(self, runs: Sequence[TimedRun], rung: Rung) -> int | None:
        """Return the steps of another run, as many as tell the step's time; None: they did."""
        first, last = runs[0], runs[-1]
        longer_s = last.wall_s - first.wall_s
        is_clear = last.step_s is not None or longer_s >= _LEAST_SHARE * first.wall_s
        if is_clear or last.steps == rung.most_steps:
            return None
        surely_s = max(longer_s, _CHANCE_SHARE * first.wall_s)
        times = 2 * _LEAST_SHARE * first.wall_s / surely_s
        added = math.ceil(times * (last.steps - first.steps))
        return min(first.steps + added, rung.most_steps)

    def _timed(self, rung: Rung, steps: int) -> tuple[TimedRun, int | None]:
        """Return the seconds of a run of so many steps, and its peak memory per rank."""
        planned = self._short_run(rung, steps)
        end_s = time.monotonic() + self._timeout_s
        with _study_folder(self._folder) as study, PeakMemory(with_gpu=self._on_gpu) as memory:
            folder = RunFolder(study, planned.run_id)
            folder.write_spec(planned.spec)
            result = execute_command(
                Job(
                    study_folder=str(study),
                    run_id=planned.run_id,
                    data_folder="",
                    placement=self.placement,
                    trainer=trainer_job(self._folder, self._plan, planned),
                ),
                should_stop=lambda: TIMED_OUT if time.monotonic() >= end_s else None,
                surroundings=Surroundings(environ=dict(os.environ), grace_s=lambda _: _GRACE_S),
            )
            self._check(result, rung, steps, folder)
            step_s = reported_step_s(folder.reported(1) / CURVE_FILE, steps)
            told = folder.result()
        assert result.wall_s is not None
        timed = TimedRun(steps=steps, wall_s=result.wall_s, step_s=step_s)
        if self._on_gpu:
            reported = None if told is None else told.peak_mem_bytes
            return timed, memory.gpu_bytes if reported is None else reported
        peak = memory.cpu_bytes
        return timed, None if peak is None else peak // self.placement.num_ranks

    def _short_run(self, rung: Rung, steps: int) -> PlannedRun:
        """Return the rung's run as it were planned with so many steps."""
        plan, warmup = self._plan, self._trainer.warmup_steps
        if warmup is not None:
            trainer = dataclasses.replace(self._trainer, warmup_steps=min(warmup, steps - 1))
            plan = dataclasses.replace(plan, study=dataclasses.replace(plan.study, trainer=trainer))
        run = rung.run
        assert isinstance(run.spec, TrainerSpec)
        runs = OwnRuns(plan.study, plan.counts, run.spec.code)
        spec = runs.spec(run.arch, run.size, run.spec.seed, steps)
        return dataclasses.replace(run, spec=spec, run_id=run_id(spec))

    @property
    def _on_gpu(self) -> bool:
        return self.placement.device.startswith("cuda")

    def _check(self, result: JobResult, rung: Rung, steps: int, folder: RunFolder) -> None:
        if result.status == "done":
            return
        words = result.reason or result.status
        if words == TIMED_OUT:
            last = end_of_log(folder.command_log(1))
            words = f"no end within {self._timeout_s:g} s; {last}"
        what = f"{rung.run.arch} size {rung.run.size}, {steps} steps"
        do = "correct it; if these are too few steps for a result, take more --steps"
        raise UserError("run", what, f"one that ends with a result ({words})", do)


@contextlib.contextmanager
def _study_folder(beside: Path) -> Iterator[Path]:
    """Make a folder in a study's folder, and remove it whatever happens."""
    # What a kill leaves is known by this name to `isoflop clean`.
    study = beside / f".calibrate.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    study.mkdir()
    try:
        yield study
    finally:
        shutil.rmtree(study, ignore_errors=True)


def step_and_start(runs: Sequence[TimedRun]) -> tuple[float, float]:
    """Return seconds of a step and of all else of a run, from runs of ever more steps.

    A step takes as long as the longest run reports that it did; else both are by the straight line
    of the runs' seconds over their steps.
    """
    steps, seconds = [run.steps for run in runs], [run.wall_s for run in runs]
    step_s = runs[-1].step_s
    if step_s is None:
        is_one = steps[0] == steps[-1]
        step_s = 0.0 if is_one else max(0.0, statistics.linear_regression(steps, seconds).slope)
    start_s = statistics.fmean(seconds) - step_s * statistics.fmean(steps)
    return step_s, max(0.0, start_s)


def reported_step_s(curve: Path, steps: int) -> float | None:
    """Return seconds per step by the times of a run's reports, the first ones left out.

    None: there are too few.

    Args:
        curve: the file that isoflop.trainer.report appends to.
        steps: of the run, of which the reports have to span half.
    """
    by_step: dict[int, float] = {}
    with contextlib.suppress(OSError):
        for row in json_lines(curve).new_rows(()):
            step, time_s = row.get("step"), row.get("time_s")
            if isinstance(step, int) and isinstance(time_s, int | float):
                by_step[step] = float(time_s)
    points = sorted(by_step.items())
    points = points[max(0, min(WARM_UP_STEPS, len(points) - 2)) :]
    if len(points) < 2:
        return None
    (first, begin_s), (last, end_s) = points[0], points[-1]
    step_s = (end_s - begin_s) / (last - first)
    return step_s if 2 * (last - first) >= steps and 0 <= step_s < math.inf else None

"""A real run, killed again and again at random instants until it is left alone."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import sys
import time
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from isoflop.data.prepare import prepare
from isoflop.launch.job import Job
from isoflop.launch.run_folder import RunFolder
from isoflop.launch.run_records import RunResult
from isoflop.launch.train_job import train_job
from isoflop.launch.weights import final_weights
from isoflop.placement import Placement
from isoflop.plan.planner import make_plan
from made_studies import micro

# Longest life of an attempt after it began to train, seconds: some steps, each with a checkpoint.
MAX_LIFE_S = 0.5
END_S = 120.0


@dataclass
class Figures:
    num_kills: int = 0
    num_in_a_write: int = 0
    """Kills that left a half-written checkpoint."""
    steps_at_kills: list[int] = field(default_factory=list)
    """The newest checkpoint there was at each kill."""
    result: RunResult | None = None
    weights: bytes = b""
    num_attempts: int = 0
    num_damaged: int = 0
    """Checkpoints that an attempt passed over."""
    num_redone: int = 0
    """Steps that were done more than once."""
    seconds: float = 0.0


def train(job: dict[str, Any]) -> None:
    """What a child does: the run, as a worker would."""
    sys.exit(train_job(Job.from_json(job)).exit_code)


def job_in(
    folder: Path, family: str, placement: Placement, *, budget_flops: int = 5 * 10**8
) -> Job:
    """A run of a study of one size, ready to be trained."""
    study = micro(budgets=(budget_flops,), archs=(family,), sizes=(1,), keep_weights="all")
    (run,) = make_plan(study).unique_runs
    RunFolder(folder, run.run_id).write_spec(run.spec)
    return Job(
        study_folder=str(folder),
        run_id=run.run_id,
        data_folder=str(prepare("sotu-embedded", "byte")),
        keep_weights="all",
        placement=placement,
    )


def disturb(job: Job, num_kills: int, seed: int) -> Figures:
    """Trains a run whose process is killed ``num_kills`` times, then left to end.

    Every other kill comes at a random instant, the rest while a checkpoint is being written (which
    may be complete before the kill arrives).
    """
    folder = RunFolder(Path(job.study_folder), job.run_id)
    dice = random.Random(seed)
    figures = Figures()
    begin_s = time.monotonic()
    while figures.num_kills < num_kills:
        process = start(job)
        _wait_for_its_first_beat(folder, process, figures.num_kills + 1)
        if figures.num_kills % 2:
            _wait_for_a_write(folder, process)
        else:
            time.sleep(dice.uniform(0, MAX_LIFE_S))
        process.kill()
        process.join()
        assert process.exitcode == -9, f"it ended before kill {figures.num_kills + 1}"
        figures.num_kills += 1
        figures.num_in_a_write += any(folder.checkpoints.glob(".*.tmp"))
        steps = [int(path.name) for path in folder.checkpoints.glob("[0-9]*")]
        figures.steps_at_kills.append(max(steps, default=0))
    process = start(job)
    process.join(END_S)
    assert process.exitcode == 0
    figures.seconds = time.monotonic() - begin_s
    return _with_what_is_there(figures, folder)


def disturb_command(job: Job, num_kills: int, seed: int) -> list[tuple[str, ...]]:
    """Runs a command that is killed at random instants, as is whatever keeps it; then not.

    Returns what was killed each time: the wrapper, its guard, the command itself, or several.
    """
    folder = RunFolder(Path(job.study_folder), job.run_id)
    dice = random.Random(seed)
    killed = []
    for number in range(1, num_kills + 1):
        process = start(job)
        _wait_for_its_first_beat(folder, process, number)
        time.sleep(dice.uniform(0, MAX_LIFE_S))
        assert process.pid is not None
        there = {"wrapper": process.pid}
        for name, of in (("guard", "wrapper"), ("command", "guard")):
            # In its first moments there may be less.
            children = _children(there.get(of, 0))
            there |= {name: children[0]} if children else {}
        names = tuple(name for name in there if dice.random() < 0.5) or ("wrapper",)
        for name in dice.sample(names, len(names)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(there[name], signal.SIGKILL)
        process.join(END_S)
        assert process.exitcode != 0, "it ended before it was killed"
        killed.append(names)
    process = start(job)
    process.join(END_S)
    assert process.exitcode == 0
    return killed


def _children(pid: int) -> list[int]:
    try:
        return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    except FileNotFoundError:
        return []


def start(job: Job) -> BaseProcess:
    # Forked from a server that has imported everything: no 3 seconds of imports for each kill.
    context = multiprocessing.get_context("forkserver")
    needed = ["isoflop.train.loop", "isoflop.train.memory", "isoflop.launch.command.wrapper"]
    context.set_forkserver_preload([*needed, "pydantic", "pyarrow.parquet", __name__])
    process = context.Process(target=train, args=(job.to_json(),), daemon=True)
    process.start()
    return process


def _wait_for_its_first_beat(folder: RunFolder, process: BaseProcess, number: int) -> None:
    while True:
        assert process.is_alive()
        lease = folder.lease()
        if lease is not None and lease.attempt == number:
            return
        time.sleep(0.002)


def _wait_for_a_write(folder: RunFolder, process: BaseProcess) -> None:
    """Until a checkpoint is begun where a complete one lies already."""
    store = folder.checkpoints
    while not (any(store.glob("[0-9]*")) and any(store.glob(".*.tmp"))):
        assert process.is_alive()


def _with_what_is_there(figures: Figures, folder: RunFolder) -> Figures:
    result = folder.result()
    path = final_weights(folder)
    assert result is not None
    assert path is not None
    figures.result, figures.weights = result, path.read_bytes()
    figures.num_attempts = len(folder.attempts())
    rows = list(folder.metrics())
    figures.num_damaged = sum(row.get("event") == "checkpoint_damaged" for row in rows)
    steps = [row["step"] for row in rows if "grad_norm" in row]
    figures.num_redone = len(steps) - len(set(steps))
    return figures


def shorten_leases(site: Path, monkeypatch: pytest.MonkeyPatch, *, timeout_s: float) -> None:
    """Makes heartbeats quick, and leases short, in every process that is started from here on."""
    customize(
        site,
        monkeypatch,
        "from isoflop.launch import attempt, run_folder\n"
        "attempt.HEARTBEAT_S = 0.3\n"
        f"run_folder.LEASE_TIMEOUT_S = {timeout_s}\n"
        "run_folder._WATCH_POLL_S = 0.2\n",
    )


def customize(site: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Has every process that is started from here on run some code first, workers and jobs too.

    Code that was given before for the same folder is kept.
    """
    # Python runs sitecustomize in every process, but only the first that it finds.
    site.mkdir(exist_ok=True)
    with (site / "sitecustomize.py").open("a") as file:
        file.write(code)
    paths = [str(site), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in paths if path))

"""One run, start to end, in the calling process: claim, train, record. A function of strings."""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop import __version__
from isoflop.launch.attempt import RunningAttempt, checked_spec
from isoflop.launch.job import Ending, Job
from isoflop.launch.store import Attempt, RunFolder

if TYPE_CHECKING:
    from isoflop.data.windows import TokenData
    from isoflop.train.loop import StepMetrics
    from isoflop.train.ranks import Ranks


def execute(
    job: Job,
    data: TokenData,
    *,
    on_step: Callable[[StepMetrics, int], None] = lambda metrics, steps: None,
    should_stop: Callable[[], str | None] = lambda: None,
    ranks: Ranks | None = None,
) -> Ending:
    """Train one run unless it is complete or held, and records what came of it.

    Args:
        job: which run, and where.
        data: the opened training data.
        on_step: told of every step's metrics and the run's number of steps.
        should_stop: asked between steps; a reason (a signal's name) ends the attempt there, after
            a checkpoint.
        ranks: the processes that train the run together; None: this one alone. All of them call
            this; the main rank claims, beats and writes, the others only train.

    A diverged run gets a result (it would diverge again); a failed or interrupted one only its
    attempt's record, so that the next attempt goes on from the newest checkpoint.
    """
    if ranks is None:
        from isoflop.train.ranks import SINGLE

        ranks = SINGLE
    folder = RunFolder(Path(job.study_folder), job.run_id)
    if not ranks.is_main:
        return _follow(job, data, folder, ranks, should_stop)
    attempt = None
    try:
        ending, attempt = _begin(job, folder)
    finally:
        ranks.broadcast(float(attempt is not None))
    if attempt is None:
        return ending
    return RunningAttempt(job, folder, attempt, on_step, should_stop).run(data, ranks)


def _begin(job: Job, folder: RunFolder) -> tuple[Ending, Attempt | None]:
    """Return the claim on a run, or None and how it stands."""
    finished = folder.result()
    if finished is not None:
        return Ending.of(finished), None
    attempt = folder.claim(_provenance(job))
    if attempt is None:
        return Ending(status="held"), None
    # The run may have been finished between the first look and the claim.
    finished = folder.result()
    if finished is None:
        return Ending(status="held"), attempt
    folder.end_attempt(attempt, "already complete")
    return Ending.of(finished), None


def _follow(
    job: Job,
    data: TokenData,
    folder: RunFolder,
    ranks: Ranks,
    should_stop: Callable[[], str | None],
) -> Ending:
    """Return what a rank that is not main does; the main rank alone records how it went."""
    from isoflop.train.checkpoint import CheckpointStore
    from isoflop.train.loop import train_run

    if not ranks.broadcast(0.0):
        return Ending(status="held")
    outcome = train_run(
        checked_spec(folder, data),
        data,
        placement=job.placement,
        ranks=ranks,
        checkpoints=CheckpointStore(folder.checkpoints, run_id=job.run_id),
        keep_weights=job.keep_weights != "none",
        should_stop=should_stop,
    )
    return Ending.of(dataclasses.asdict(outcome))


def _provenance(job: Job) -> dict[str, Any]:
    import torch

    return {
        "device": job.placement.device,
        "placement": dataclasses.asdict(job.placement),
        "isoflop": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        **_slurm_details(os.environ),
    }


def _slurm_details(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return which job runs this, where, and for which time; nothing outside SLURM."""
    names = {
        "job_id": "SLURM_JOB_ID",
        "array_job_id": "SLURM_ARRAY_JOB_ID",
        "array_task_id": "SLURM_ARRAY_TASK_ID",
        "node": "SLURMD_NODENAME",
        "restart_count": "SLURM_RESTART_COUNT",
    }
    found = {key: environ[name] for key, name in names.items() if name in environ}
    return {"slurm": found} if "job_id" in found else {}

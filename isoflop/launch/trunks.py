"""What runs of one trunk leave for each other in their folders, and who waits for whom.

    runs/LONGER/forks/STEP/    the state at the fork of a shorter run, as a sealed checkpoint

The longest run of a trunk that has no result writes the forks of the shorter ones as it passes
them, while their runs have no result. A shorter run begins at its fork as if it had come there
itself, or at an earlier one. It trains from its first step where no longer run is going to reach
its fork, and has the same result. Whether it waits is decided by files alone, whoever trains the
longer run and wherever: each run waits for longer ones only, so that none waits for itself.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from isoflop.errors import UserError
from isoflop.launch.job import Sibling, TrunkJob
from isoflop.launch.run_folder import RunFolder
from isoflop.launch.run_records import RunResult
from isoflop.plan.planner import Plan
from isoflop.plan.trunks import trunks_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Fork:
    """A state at which a run may begin, as it lies on the disk; it is not verified."""

    run_id: str
    """Of the run that left it."""
    step: int
    """Completed steps."""
    path: Path


def trunk_jobs(plan: Plan) -> dict[str, TrunkJob]:
    """Return what each run of a plan shares, by run id; nothing of runs that share nothing."""
    jobs = {}
    for trunk in trunks_of(plan):
        every = [
            Sibling(run_id=run.run_id, steps=run.spec.steps, fork=fork)
            for run, fork in zip(trunk.runs, trunk.forks, strict=True)
        ]
        for own in every:
            jobs[own.run_id] = TrunkJob(
                steps=own.steps,
                fork=own.fork,
                siblings=tuple(other for other in every if other is not own),
                keeps=plan.study.keep_trunks and own is every[-1],
            )
    return jobs


def forks_in(folder: RunFolder) -> list[Fork]:
    """Return the forks that a run has left, ascending."""
    if not folder.forks.is_dir():
        return []
    steps = sorted(int(path.name) for path in folder.forks.iterdir() if path.name.isdecimal())
    return [Fork(run_id=folder.run_id, step=step, path=folder.forks / str(step)) for step in steps]


def usable_forks(study_folder: Path, job: TrunkJob) -> list[Fork]:
    """Return the forks of siblings at which a run may begin, the latest first."""
    found = [
        fork
        for other in job.siblings
        for fork in forks_in(RunFolder(study_folder, other.run_id))
        if fork.step <= job.fork
    ]
    return sorted(found, key=lambda fork: -fork.step)


def inherited(study_folder: Path, job: TrunkJob) -> RunResult | None:
    """Return the result of a sibling that diverged in what both have in common; else None.

    Raises:
        UserError: a damaged record of a sibling.
    """
    for other in job.siblings:
        result = RunFolder(study_folder, other.run_id).result()
        # It completed so many steps, and the gradients of the next were not finite.
        in_common = min(job.fork, other.fork)
        if result is not None and result.status == "diverged" and result.num_steps < in_common:
            return result
    return None


def is_needed(study_folder: Path, job: TrunkJob, step: int) -> bool:
    """Return whether a run is to leave a fork at ``step``: a run without a result begins there.

    Raises:
        UserError: a damaged record of a sibling.
    """
    if job.keeps and step == job.fork:
        return True
    return any(
        other.fork == step and RunFolder(study_folder, other.run_id).result() is None
        for other in job.shorter
    )


def superfluous_forks(study_folder: Path, jobs: Mapping[str, TrunkJob]) -> Iterator[Path]:
    """Yield the forks in a study's folder at which no run without a result begins.

    Args:
        study_folder: the study's folder.
        jobs: as :func:`trunk_jobs` returns them.
    """
    for run_id, job in jobs.items():
        for fork in forks_in(RunFolder(study_folder, run_id)):
            # Of damaged records nothing is known: the fork stays.
            with contextlib.suppress(UserError):
                if not is_needed(study_folder, job, fork.step):
                    yield fork.path


def remove_fork(path: Path) -> None:
    """Remove a fork; one that is gone already is none."""
    shutil.rmtree(path, ignore_errors=True)

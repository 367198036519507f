"""What runs of one trunk leave for each other in their folders, and who waits for whom.

    runs/LONGER/forks/STEP/    the state at the fork of a shorter run, as a sealed checkpoint

The longest run of a trunk that has no result writes the forks of the shorter ones as it passes
them, while their runs have no result. A shorter run begins at its fork as if it had come there
itself, or at an earlier one. It trains from its first step where no longer run is going to reach
its fork, and has the same result. Whether it waits is decided by files alone, whoever trains the
longer run and wherever: each run waits for longer ones only, so that none waits for itself.

A damaged record of a sibling stops nobody: nothing is expected of that run, and what lies there
for it stays.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from isoflop.errors import UserError
from isoflop.launch.job import Sibling, TrunkJob
from isoflop.launch.run_folder import RunFolder
from isoflop.launch.run_records import RunResult
from isoflop.plan.planner import Plan
from isoflop.plan.trunks import trunks_of
from isoflop.spec import shown_id


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
    jobs: dict[str, TrunkJob] = {}
    # What is kept of a run that has no other yet serves those that are planned later.
    for trunk in trunks_of(plan, with_single=plan.study.keep_trunks):
        every = [
            Sibling(run_id=run.run_id, steps=run.spec.steps, fork=fork)
            for run, fork in zip(trunk.runs, trunk.forks, strict=True)
        ]
        jobs |= _jobs_of(every, keeps=plan.study.keep_trunks)
    return jobs


def _jobs_of(every: Sequence[Sibling], *, keeps: bool) -> dict[str, TrunkJob]:
    """Return what each run of a trunk shares, by run id.

    Args:
        every: its runs, the shortest first.
        keeps: whether the last one keeps the state at its own fork.
    """
    return {
        own.run_id: TrunkJob(
            steps=own.steps,
            fork=own.fork,
            siblings=tuple(other for other in every if other is not own),
            keeps=keeps and own is every[-1],
        )
        for own in every
    }


def forks_in(folder: RunFolder) -> list[Fork]:
    """Return the forks that a run has left, ascending."""
    return [
        Fork(run_id=folder.run_id, step=step, path=folder.forks / str(step))
        for step in _steps_in(folder.forks)
    ]


def _steps_in(folder: Path) -> list[int]:
    """Return the steps of the states in a folder, ascending; temporary names and links are none."""
    found: list[int] = []
    # Another process may remove the folder between any two looks; what cannot be read is no state.
    with contextlib.suppress(OSError):
        if not folder.is_symlink():
            with os.scandir(folder) as entries:
                found = [int(e.name) for e in entries if _is_step(e.name) and _is_folder(e)]
    return sorted(found)


def _is_step(name: str) -> bool:
    return name.isascii() and name.isdecimal() and (name == "0" or name[0] != "0")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False)


def usable_forks(study_folder: Path, job: TrunkJob) -> list[Fork]:
    """Return the forks of siblings at which a run may begin, the latest first.

    No link in a sibling's folder is followed.
    """
    found: list[Fork] = []
    for other in job.siblings:
        folder = RunFolder(study_folder, other.run_id)
        with contextlib.suppress(UserError, OSError):
            folder.refuse_links()
            found += [fork for fork in forks_in(folder) if fork.step <= job.fork]
    return sorted(found, key=lambda fork: -fork.step)


def _forks_of_siblings(study_folder: Path, job: TrunkJob) -> list[Fork]:
    folders = (RunFolder(study_folder, other.run_id) for other in job.siblings)
    return [fork for folder in folders for fork in forks_in(folder)]


def inherited(study_folder: Path, job: TrunkJob) -> RunResult | None:
    """Return the result of a sibling that diverged in what both have in common; else None."""
    for other in job.siblings:
        result = _result_of(study_folder, other.run_id)
        # It completed so many steps, and the gradients of the next were not finite.
        in_common = min(job.fork, other.fork)
        if result is not None and result.status == "diverged" and result.num_steps < in_common:
            return result
    return None


def waits_for(
    study_folder: Path,
    run_id: str,
    job: TrunkJob,
    is_coming: Callable[[str], bool],
    *,
    retries: bool = False,
) -> Sibling | None:
    """Return the longer run that a run waits for, as the files are now; None: it may begin.

    It waits for the longest one that is going to pass its fork, until the fork is there. It waits
    for nobody if it has its result, if it can go on from a state of its own, if a longer run left
    the fork already, or if a divergence is inherited.

    Args:
        study_folder: the study's folder.
        run_id: of the run.
        job: what it shares.
        is_coming: whether a longer run, by its id, is being trained or is going to be, as far as
            whoever asks can see. It is asked only of runs that have no result and may yet pass the
            fork.
        retries: whether that holds for a run whose newest attempt failed, too: whoever asks is to
            try it again. Otherwise nobody waits for a run that failed.
    """
    own = RunFolder(study_folder, run_id)
    if not job.longer or has_begun(own) or inherited(study_folder, job) is not None:
        return None
    if not _is_unfinished(study_folder, run_id):
        return None
    forks = [fork.step for fork in _forks_of_siblings(study_folder, job)]
    if job.fork in forks:
        return None
    for other in job.longer:
        begins_at = max((step for step in forks if step <= other.fork), default=0)
        done = _completed(RunFolder(study_folder, other.run_id), begins_at, retries=retries)
        if done is not None and done <= job.fork and is_coming(other.run_id):
            return other
    return None


def waits_text(longer: str, fork: int) -> str:
    """Return in words that a run waits for a longer one, by its id, to complete some steps."""
    return f"waits for {shown_id(longer)} to pass step {fork:,}"


def is_trained(study_folder: Path, run_id: str) -> bool:
    """Return whether a live process seems to be at a run; of damaged records nothing is known."""
    with contextlib.suppress(UserError):
        return RunFolder(study_folder, run_id).attempt_at_work() is not None
    return False


def has_begun(folder: RunFolder) -> bool:
    """Return whether a run left a state that its next attempt goes on from."""
    if newest_step(folder):
        return True
    with contextlib.suppress(OSError):
        return any(folder.trainer.iterdir())
    return False


def _completed(folder: RunFolder, begins_at: int, *, retries: bool) -> int | None:
    """Return the steps that a run has completed, or goes on from; None: it does not go on.

    Args:
        folder: the run's.
        begins_at: the latest fork at which it could begin.
        retries: whether it goes on where its newest attempt failed.
    """
    try:
        attempts = folder.attempts()
        if folder.result() is not None or (attempts and attempts[-1].failed and not retries):
            return None
        done = max(_steps_in(folder.checkpoints), default=begins_at)
        lease = folder.lease()
        if attempts and lease is not None and lease.attempt == attempts[-1].number:
            # At the first beat of an attempt the step is 0, wherever it goes on from.
            return max(done, lease.step + 1) if folder.is_held(attempts[-1]) else done
    except (UserError, OSError):
        return None
    return done


def is_needed(study_folder: Path, job: TrunkJob, step: int) -> bool:
    """Return whether a run is to leave a fork at ``step``: a run without a result begins there."""
    if job.keeps and step == job.fork:
        return True
    return any(
        other.fork == step and _is_unfinished(study_folder, other.run_id) for other in job.shorter
    )


def _is_unfinished(study_folder: Path, run_id: str) -> bool:
    """Return whether a run has no result, or one that cannot be read."""
    return _result_of(study_folder, run_id) is None


def _result_of(study_folder: Path, run_id: str) -> RunResult | None:
    """Return a run's result; None: there is none, or it cannot be read."""
    with contextlib.suppress(UserError, OSError):
        return RunFolder(study_folder, run_id).result()
    return None


def superfluous_forks(study_folder: Path, jobs: Mapping[str, TrunkJob]) -> Iterator[Path]:
    """Yield what the runs of a study left for each other and no run without a result needs.

    A run that has its result keeps its folder of forks while one of them is needed, or its records
    of the common part may be.

    Args:
        study_folder: the study's folder.
        jobs: as :func:`trunk_jobs` returns them.
    """
    for run_id, job in jobs.items():
        folder = RunFolder(study_folder, run_id)
        if not folder.forks.is_dir():
            continue
        # Nothing is removed through a link, or of a run whose records are damaged. Another process
        # may remove the same.
        with contextlib.suppress(UserError, OSError):
            result, forks = folder.result(), forks_in(folder)
            unused = [fork for fork in forks if not _is_used(study_folder, job, fork.step)]
            if result is not None and len(unused) == len(forks):
                # A divergence is inherited with the records of what led to it.
                readers = job.siblings if result.status == "diverged" else job.shorter
                if not any(_is_unfinished(study_folder, other.run_id) for other in readers):
                    yield folder.forks
                    continue
            yield from (fork.path for fork in unused)
            if result is not None:
                # Of writers that were killed.
                yield from sorted(folder.forks.glob(".*.tmp"))


def _is_used(study_folder: Path, job: TrunkJob, step: int) -> bool:
    """Return whether a fork that lies in a run's folder is needed.

    The state at a run's own fork is what was kept for longer ones, which were planned since.
    """
    if is_needed(study_folder, job, step):
        return True
    return step == job.fork and any(
        _is_unfinished(study_folder, other.run_id) for other in job.longer
    )


def prune_forks(study_folder: Path, run_id: str, job: TrunkJob) -> None:
    """Remove what a run and its siblings left for each other and none of them needs any more.

    To be called when a run has its result; it may be cut off, repeated, and done by several
    processes at once.

    Args:
        study_folder: the study's folder.
        run_id: of the run.
        job: what it shares.
    """
    own = Sibling(run_id=run_id, steps=job.steps, fork=job.fork)
    every = sorted((own, *job.siblings), key=lambda sibling: sibling.steps)
    # Whether the longest keeps its own is told to no other.
    jobs = _jobs_of(every, keeps=job.keeps or own is not every[-1])
    for path in list(superfluous_forks(study_folder, jobs)):
        remove_fork(path)


def remove_fork(path: Path) -> None:
    """Remove a fork; one that is gone already is none."""
    shutil.rmtree(path, ignore_errors=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """Where a run without a result is going to begin, as far as the files of its study tell."""

    steps: int
    """Of the run."""
    step: int
    """Completed steps when it begins; all of them where it inherits a divergence."""
    sibling: str | None = None
    """Run id of another run of the trunk, at whose state it begins; None: at its own, or none."""
    is_there: bool = False
    """Whether that sibling has passed it already; else it is yet to be trained so far."""

    @property
    def num_left(self) -> int:
        """Steps that are yet to be executed."""
        return self.steps - self.step


def steps_to_train(
    study_folder: Path,
    plan: Plan,
    trained: Collection[str] | None = None,
    results: Mapping[str, RunResult] | None = None,
) -> dict[str, int]:
    """Return the steps that are yet to be executed of each run without a result, by run id.

    See :func:`starts` for the arguments.
    """
    found = starts(study_folder, plan, trained, results)
    return {run_id: start.num_left for run_id, start in found.items()}


def starts(
    study_folder: Path,
    plan: Plan,
    trained: Collection[str] | None = None,
    results: Mapping[str, RunResult] | None = None,
) -> dict[str, Start]:
    """Return where each run without a result is going to begin, by run id; nothing is verified.

    A run whose records cannot be read is left out. One with a checkpoint of its own goes on there.
    Checkpoints that a command of the user's own keeps are not known.

    Args:
        study_folder: the study's folder.
        plan: its plan, or one that it may grow into.
        trained: ids of the runs that are going to be trained; None: all without a result.
        results: those that were read already, by run id; the others are read.
    """
    ends: dict[str, RunResult | None] = dict(results or {})
    steps = {run.run_id: run.spec.steps for run in plan.unique_runs}
    for run_id in steps.keys() - ends.keys():
        result, error = RunFolder(study_folder, run_id).checked()
        if error is None:
            ends[run_id] = result
    found = {
        run_id: Start(steps=steps[run_id], step=newest_step(RunFolder(study_folder, run_id)))
        for run_id in steps
        if run_id in ends and ends[run_id] is None
    }
    for trunk in trunks_of(plan):
        forks = {run.run_id: n for run, n in zip(trunk.runs, trunk.forks, strict=True)}
        if any(run_id in found for run_id in forks):
            _start_at_forks(study_folder, forks, ends, found, trained)
    return found


def _start_at_forks(
    study_folder: Path,
    forks: Mapping[str, int],
    ends: Mapping[str, RunResult | None],
    found: dict[str, Start],
    trained: Collection[str] | None,
) -> None:
    """Set where the runs of a trunk begin that have not begun.

    Args:
        study_folder: the study's folder.
        forks: by run id, the shortest first.
        ends: results by run id, None where there is none; without runs that cannot be read.
        found: where runs without a result begin without a trunk; it is changed.
        trained: as of :func:`starts`.
    """
    diverged = {
        run_id: end.num_steps
        for run_id in forks
        if (end := ends.get(run_id)) is not None and end.status == "diverged"
    }
    left = [fork for run_id in forks for fork in forks_in(RunFolder(study_folder, run_id))]
    passing: list[str] = []
    for run_id, own_fork in reversed(list(forks.items())):
        start = found.get(run_id)
        if start is None:
            continue
        inherits = [i for i, step in diverged.items() if step < min(own_fork, forks[i])]
        if inherits:
            begins = dataclasses.replace(
                start, step=start.steps, sibling=inherits[0], is_there=True
            )
        elif start.step == 0:
            coming = [other for other in passing if found[other].step <= own_fork]
            begins = _best(start, own_fork, left, coming)
        else:
            begins = start
        found[run_id] = begins
        if not inherits and _is_coming(study_folder, run_id, trained):
            passing.append(run_id)


def _best(start: Start, own_fork: int, left: Sequence[Fork], coming: Sequence[str]) -> Start:
    """Return where a run begins that has not begun: as late as it can."""
    usable = [fork for fork in left if fork.step <= own_fork]
    latest = max(usable, key=lambda fork: fork.step, default=None)
    if latest is not None and (latest.step == own_fork or not coming):
        return dataclasses.replace(start, step=latest.step, sibling=latest.run_id, is_there=True)
    return dataclasses.replace(start, step=own_fork, sibling=coming[0]) if coming else start


def newest_step(folder: RunFolder) -> int:
    """Return the completed steps of a run's newest checkpoint, which is not verified; else 0."""
    return max(_steps_in(folder.checkpoints), default=0)


def _is_coming(study_folder: Path, run_id: str, trained: Collection[str] | None) -> bool:
    """Return whether a run without a result is trained or going to be, by one look."""
    folder = RunFolder(study_folder, run_id)
    attempts = folder.attempts()
    newest = attempts[-1] if attempts else None
    # No other one waits for a run that failed.
    if newest is not None and newest.failed:
        return False
    return trained is None or run_id in trained or folder.is_held(newest)

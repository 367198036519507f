"""`isoflop clean`: what a study's folder holds and nothing needs any more.

Symlinks are never followed, and nothing outside the folder is looked at. Results, metrics,
attempts, logs and records stay, and so do the weights that the study keeps.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import stat
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from isoflop.errors import UserError, shown
from isoflop.launch.code_copy import CODE_FOLDER
from isoflop.launch.run_folder import RunFolder
from isoflop.launch.slurm.queue import Queue, SentTask, query_queue
from isoflop.launch.slurm.records import (
    LAUNCH_FOLDER,
    Submission,
    read_submissions,
    submission_folder,
    submit_lock,
)
from isoflop.launch.slurm.scheduler import SchedulerError
from isoflop.launch.slurm.snapshot import is_partial
from isoflop.launch.trainer_code import is_of_trainer
from isoflop.launch.trunks import superfluous_forks, trunk_jobs
from isoflop.launch.weights import superfluous_weights
from isoflop.plan.planner import Plan

STALE_S = 3600.0
"""A temporary file that is older than this has no writer any more: writing one takes seconds."""

_MAX_DEPTH = 100

# As isoflop.files and isoflop.train.checkpoint name what they rename when it is whole.
_TEMPORARY = re.compile(r"\..+\.[0-9]+-[0-9a-f]{8}(\.old)?\.tmp")


@dataclass(frozen=True, kw_only=True, slots=True)
class Leftover:
    """A file or folder that nothing needs."""

    path: Path
    why: str
    size_bytes: int
    """Of all its files."""


def leftovers(folder: Path, plan: Plan) -> list[Leftover]:
    """Return what :func:`remove` may remove, in the order of their paths; nothing is changed.

    Raises:
        SchedulerError: jobs were sent, and the scheduler does not say which of them there are.
        UserError: a damaged record.
    """
    queue = query_queue(folder)
    if queue.answer.unreachable is not None:
        raise SchedulerError("squeue", queue.answer.unreachable)
    root = folder.resolve()
    at_work = _at_work(root, plan)
    live = _live_submissions(queue, at_work)
    submissions = read_submissions(root)
    found = {
        **dict.fromkeys(_stale_files(root), "a temporary file whose writer is gone"),
        **dict.fromkeys(superfluous_weights(root, plan), "of a run that has its result"),
        **dict.fromkeys(
            superfluous_forks(root, trunk_jobs(plan)), "no run begins there that has no result"
        ),
        **dict.fromkeys(_pickles(root, submissions, live), "of jobs that are over"),
        **_unused_code(root, submissions, live),
        **_unused_trainers(root, is_needed=bool(live or at_work) or _is_trainer_needed(root, plan)),
    }
    outermost = [path for path in found if not any(p in found for p in path.parents)]
    return [
        Leftover(path=path, why=found[path], size_bytes=_size_bytes(path))
        for path in sorted(outermost)
        if _is_inside(path, root)
    ]


def remove(folder: Path, plan: Plan, shown: Sequence[Leftover]) -> list[Leftover]:
    """Remove what was shown, as far as nothing has come to need it since; return what went.

    Raises:
        SchedulerError: the scheduler does not answer; then nothing was removed.
        UserError: a submission is at work, or a damaged record.
    """
    # A submission takes a snapshot for granted between its look and its sbatch.
    with submit_lock(folder):
        still = {leftover.path for leftover in leftovers(folder, plan)}
        gone = [leftover for leftover in shown if leftover.path in still]
        for leftover in gone:
            if leftover.path.is_dir():
                shutil.rmtree(leftover.path)
            else:
                leftover.path.unlink(missing_ok=True)
    return gone


def _at_work(root: Path, plan: Plan) -> set[str]:
    """Return the runs that a live process trains: a job may be over before its last process."""
    ids = (run.run_id for run in plan.unique_runs)
    return {run_id for run_id in ids if RunFolder(root, run_id).attempt_at_work() is not None}


def _live_submissions(queue: Queue, at_work: set[str]) -> set[str]:
    """Return ids of the submissions with a job in the queue, a process, or a run at work."""
    live = set()
    for task in itertools.chain(queue.fits, *queue.tasks.values()):
        job = queue.job(task)
        is_live = job is not None and not job.is_final
        # Its jobs may come yet, or are about to be found by their comment.
        is_open = task.job_id is None and task.rejected is None and _is_new(task)
        if is_live or is_open or task.hidden is not None or not at_work.isdisjoint(task.run_ids):
            live.add(task.submission.submission_id)
    return live


def _is_new(task: SentTask) -> bool:
    return time.time() - task.submission.created_at < STALE_S


def _stale_files(root: Path) -> Iterator[Path]:
    """Yield temporary files and folders that were left by writers that were killed."""
    for path in _below(root):
        if _TEMPORARY.fullmatch(path.name) and time.time() - path.lstat().st_mtime > STALE_S:
            yield path


def _below(top: Path) -> Iterator[Path]:
    """Yield all that lies in a folder; links are not followed.

    Raises:
        UserError: folders are nested so deep that none of ours is, and no function that calls
            itself would come out of them.
    """
    level = [top]
    for _ in range(_MAX_DEPTH):
        found = [Path(entry.path) for folder in level for entry in _entries(folder)]
        yield from found
        # What a trainer of the user's own keeps is not ours to look through.
        level = [path for path in found if _is_folder(path) and not _is_trainers(path, top)]
        if not level:
            return
    allowed = f"not nested deeper than {_MAX_DEPTH} levels"
    raise UserError("folders below", shown(str(top)), allowed, "remove the deepest")


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _is_trainers(path: Path, top: Path) -> bool:
    """Return whether a path is runs/ID/trainer of the study's folder."""
    return path.name == "trainer" and path.parent.parent == top / "runs"


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    # What another process removes meanwhile, or nobody may read, has no leftovers.
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        return list(entries)
    return []


def _pickles(
    root: Path, submissions: Sequence[Submission], live: Collection[str]
) -> Iterator[Path]:
    """Yield what submitit wrote for jobs that are over, apart from scripts and logs."""
    for submission in submissions:
        if submission.submission_id not in live:
            yield from submission_folder(root, submission.submission_id).glob("array-*/*.pkl")


def _unused_code(
    root: Path, submissions: Sequence[Submission], live: Collection[str]
) -> dict[Path, str]:
    """Return copies of the code that no job runs, and those that were never finished."""
    used = set()
    for submission in submissions:
        if submission.submission_id in live and submission.snapshot is not None:
            # By its name: the study's folder may have moved.
            used.add(Path(submission.snapshot).name)
    found = {}
    for path in sorted((root / LAUNCH_FOLDER / CODE_FOLDER).glob("*")):
        if is_of_trainer(path):
            continue
        if is_partial(path):
            found[path] = "a copy of the code that was never finished"
        elif path.name not in used:
            found[path] = "code that no job runs"
    return found


def _unused_trainers(root: Path, *, is_needed: bool) -> dict[Path, str]:
    """Return whole copies of a trainer's code; one that is being made is a temporary folder."""
    found = (root / LAUNCH_FOLDER / CODE_FOLDER).glob("*")
    whole = sorted(p for p in found if is_of_trainer(p) and not p.name.startswith("."))
    return {} if is_needed else dict.fromkeys(whole, "a trainer's code that no run needs")


def _is_trainer_needed(root: Path, plan: Plan) -> bool:
    """Return whether a run without a result may start from the copy: its source may be edited."""
    if plan.study.trainer is None:
        return False
    for run in plan.unique_runs:
        try:
            if RunFolder(root, run.run_id).result() is None:
                return True
        except UserError:
            return True
    return False


def _is_inside(path: Path, root: Path) -> bool:
    """Return whether no part of a path below the study's folder is a link."""
    below = [path, *path.parents]
    return not any(part.is_symlink() for part in below[: below.index(root)])


def _size_bytes(path: Path) -> int:
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    inside = (found.lstat() for found in _below(path))
    return sum(about.st_size for about in inside if not stat.S_ISDIR(about.st_mode))

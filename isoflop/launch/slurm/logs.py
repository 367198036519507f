"""What a run's attempts wrote: their records, their tracebacks, and their jobs' output."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from isoflop.errors import UserError, shown
from isoflop.files import is_plain_file, open_regular
from isoflop.launch.run_folder import RunFolder
from isoflop.launch.run_records import Attempt
from isoflop.launch.slurm.queue import SentTask

_POLL_S = 0.5


# Enough for the last lines of any traceback, and for some rows of metrics.
TAIL_BYTES = 16_384


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptLog:
    """One attempt and its files."""

    attempt: Attempt
    traceback: Path | None
    command: Path | None
    """What the run's own command printed; None: isoflop trained it, or it never began."""
    outputs: tuple[Path, ...]
    """Of its job; a job that was requeued goes on in the same files, and runs that share a task
    share them."""


def attempt_logs(
    study_folder: Path, folder: RunFolder, tasks: Sequence[SentTask]
) -> list[AttemptLog]:
    """Return all attempts of a run, oldest first.

    Args:
        study_folder: the study's folder.
        folder: the run's.
        tasks: what the run was sent as.
    """
    found = []
    for attempt in folder.attempts():
        task = _task_of(attempt, tasks)
        traceback = folder.traceback_file(attempt)
        found.append(
            AttemptLog(
                attempt=attempt,
                traceback=traceback if is_plain_file(traceback) else None,
                command=command_log(folder, attempt),
                outputs=() if task is None else tuple(task.logs(study_folder)),
            )
        )
    return found


def command_log(folder: RunFolder, attempt: Attempt) -> Path | None:
    """Return the file with what the run's own command printed in an attempt; None: there is none.

    No link is followed: the folder may come from somebody else.
    """
    path = folder.command_log(attempt.number)
    is_below_a_link = any(parent.is_symlink() for parent in list(path.parents)[:2])
    return None if is_below_a_link or not is_plain_file(path) else path


def _task_of(attempt: Attempt, tasks: Sequence[SentTask]) -> SentTask | None:
    if attempt.job_id is not None:
        return next((task for task in tasks if task.job_id == attempt.job_id), None)
    # Processes of this machine have no job; it is the newest that was sent before the attempt.
    local = [t for t in tasks if t.is_local and t.submission.created_at <= attempt.start_s]
    return local[-1] if local else None


def task_without_attempt(attempts: Sequence[Attempt], tasks: Sequence[SentTask]) -> SentTask | None:
    """Return what a run was last sent as, if no attempt has come of it (yet)."""
    newest = tasks[-1] if tasks else None
    if newest is None or newest.rejected is not None or newest.job_id is None:
        return None
    return None if any(newest.is_before(attempt) for attempt in attempts) else newest


def choose(logs: Sequence[AttemptLog], number: int | None) -> AttemptLog:
    """Return the attempt of a number, or the newest.

    Raises:
        UserError: there is no such attempt, or none at all.
    """
    if not logs:
        raise UserError(
            "attempts of the run",
            shown("none"),
            "1 or more for it to have logs",
            "`isoflop status` says where it is, `isoflop run` or `submit` starts it",
        )
    numbers = [log.attempt.number for log in logs]
    if number is None:
        return logs[-1]
    if number not in numbers:
        raise UserError("--attempt", number, f"one of {', '.join(map(str, numbers))}", "correct it")
    return logs[numbers.index(number)]


def last_lines(folder: RunFolder, attempt: Attempt | None, outputs: Sequence[Path]) -> list[str]:
    """Return the last lines of an attempt.

    That is of its traceback, or else of what its own command printed, or else of its job's output.
    """
    # Errors before what was printed.
    paths = sorted(outputs, key=lambda path: path.suffix != ".err")
    if attempt is not None:
        own = command_log(folder, attempt)
        paths = [folder.traceback_file(attempt), *([] if own is None else [own]), *paths]
    for path in paths:
        lines = _non_empty(tail(path))
        if lines:
            return lines
    return []


def follow(paths: Sequence[Path], is_over: Callable[[], bool]) -> Iterator[str]:
    """Yield new text of files as it comes, until ``is_over`` is true; a file may appear late."""
    offsets = {path: path.stat().st_size if is_plain_file(path) else 0 for path in paths}
    over = False
    while not over:
        # Called before the files are read, so that the last lines are not missed.
        over = is_over()
        for path in paths:
            if is_plain_file(path):
                with open_regular(path) as file:
                    file.seek(offsets[path])
                    data = file.read()
                offsets[path] += len(data)
                if data:
                    yield data.decode(errors="replace")
        if not over:
            time.sleep(_POLL_S)


def _non_empty(lines: Sequence[str]) -> list[str]:
    return [line.rstrip() for line in lines if line.strip()]


def tail(path: Path, max_bytes: int = TAIL_BYTES) -> list[str]:
    """Return the last whole lines of a file that so many bytes hold; none if it is not there."""
    if path.is_symlink():
        return []
    try:
        with open_regular(path) as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - max_bytes))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    return lines[1:] if size > max_bytes else lines

"""What a run's attempts wrote: their records, their tracebacks, and their jobs' output."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isoflop.errors import UserError, shown
from isoflop.files import read_json
from isoflop.launch.slurm.sent import SentTask
from isoflop.launch.store import Attempt, RunFolder

# Enough for the last lines of any traceback.
TAIL_BYTES = 16_384
_POLL_S = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptLog:
    """One attempt, and the files that tell of it."""

    attempt: Attempt
    job_id: str | None
    """123_4 or 123; None: no job of a scheduler."""
    node: str | None
    restarts: int | None
    traceback: Path | None
    outputs: tuple[Path, ...]
    """Of its job; a job that was requeued goes on in the same files, and runs that share a task
    share them."""


def tail(path: Path, max_bytes: int = TAIL_BYTES) -> list[str]:
    """The last whole lines of a file that so many bytes hold; none if it is not there."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - max_bytes))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    return lines[1:] if size > max_bytes else lines


def details(folder: RunFolder, attempt: Attempt) -> dict[str, Any]:
    """What an attempt recorded of its machine, job and placement."""
    values = read_json(folder.path / "attempts" / f"{attempt.number:04d}.json", "attempt")
    return dict(values.get("details", {}))


def slurm_of(recorded: Mapping[str, Any]) -> Mapping[str, str]:
    """What an attempt's details say of its job; nothing outside SLURM."""
    found: Mapping[str, str] = recorded.get("slurm", {})
    return found


def job_of(recorded: Mapping[str, Any]) -> str | None:
    """The id of the job that an attempt ran in, from its details: 123_4 or 123."""
    known = slurm_of(recorded)
    if "array_job_id" in known and "array_task_id" in known:
        return f"{known['array_job_id']}_{known['array_task_id']}"
    return known.get("job_id")


def attempt_logs(
    study_folder: Path, folder: RunFolder, tasks: Sequence[SentTask]
) -> list[AttemptLog]:
    """All attempts of a run, oldest first.

    Args:
        study_folder: the study's folder.
        folder: the run's.
        tasks: what the run was sent as.
    """
    found = []
    for attempt in folder.attempts():
        recorded = details(folder, attempt)
        job_id = job_of(recorded)
        task = _task_of(attempt, job_id, tasks)
        restarts = slurm_of(recorded).get("restart_count")
        traceback = folder.path / f"error-{attempt.number:04d}.txt"
        found.append(
            AttemptLog(
                attempt=attempt,
                job_id=job_id,
                node=slurm_of(recorded).get("node"),
                restarts=None if restarts is None else int(restarts),
                traceback=traceback if traceback.exists() else None,
                outputs=() if task is None else tuple(task.logs(study_folder)),
            )
        )
    return found


def _task_of(attempt: Attempt, job_id: str | None, tasks: Sequence[SentTask]) -> SentTask | None:
    if job_id is not None:
        return next((task for task in tasks if task.job_id == job_id), None)
    # Processes of this machine have no job; it is the newest that was sent before the attempt.
    local = [t for t in tasks if t.is_local and t.submission.created_at <= attempt.start_s]
    return local[-1] if local else None


def choose(logs: Sequence[AttemptLog], number: int | None) -> AttemptLog:
    """The attempt of a number, or the newest.

    Raises:
        UserError: there is no such attempt, or none at all.
    """
    if not logs:
        raise UserError("run", shown("no attempts"), "begun", "`isoflop status` says where it is")
    numbers = [log.attempt.number for log in logs]
    if number is None:
        return logs[-1]
    if number not in numbers:
        raise UserError("--attempt", number, f"one of {', '.join(map(str, numbers))}", "correct it")
    return logs[numbers.index(number)]


def last_words(folder: RunFolder, attempt: Attempt | None, outputs: Sequence[Path]) -> list[str]:
    """Lines that say how an attempt ended: of its traceback, or else of its job's output."""
    if attempt is not None:
        lines = _told(tail(folder.path / f"error-{attempt.number:04d}.txt"))
        if lines:
            return lines
    # Errors before what was printed.
    errors = [path for path in outputs if path.suffix == ".err"]
    for path in [*errors, *(path for path in outputs if path not in errors)]:
        lines = _told(tail(path))
        if lines:
            return lines
    return []


def follow(paths: Sequence[Path], is_over: Callable[[], bool]) -> Iterator[str]:
    """New text of files as it comes, until ``is_over`` says so; a file may appear late."""
    offsets = {path: path.stat().st_size if path.exists() else 0 for path in paths}
    over = False
    while not over:
        # Asked before the files are read, so that the last words are not missed.
        over = is_over()
        for path in paths:
            if path.exists():
                with path.open("rb") as file:
                    file.seek(offsets[path])
                    data = file.read()
                offsets[path] += len(data)
                if data:
                    yield data.decode(errors="replace")
        if not over:
            time.sleep(_POLL_S)


def _told(lines: Sequence[str]) -> list[str]:
    return [line.rstrip() for line in lines if line.strip()]

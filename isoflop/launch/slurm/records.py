"""What was sent to the cluster, as the study's folder has it; nothing here asks a scheduler.

    .launch/SUBMISSION_ID/submission.json  written before anything is sent, and again after every
                                           answer of the scheduler
    .launch/SUBMISSION_ID/jobs.json        how each of its runs is to be executed
    .launch/SUBMISSION_ID/array-000/       submitit's scripts, pickles and logs of one array
    .launch/SUBMISSION_ID/not-requeued-JOB.json  that a task could not requeue itself
    .launch/code/DIGEST/                   the code that its tasks run
    .launch/options.json                   what `isoflop retry` decided, by run id
    .launch/cancelled.json                 ids of all jobs that `isoflop cancel` ended

An array whose job id is unknown and that was not rejected either was cut off between the two: its
jobs may exist. :func:`comment_of` names them, so that the scheduler can be asked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from isoflop.errors import UserError
from isoflop.files import read_json, write_json_atomic
from isoflop.launch.process import ProcessIdentity
from isoflop.validate import read_record

LAUNCH_FOLDER = ".launch"
SUBMISSION_FILE = "submission.json"
JOBS_FILE = "jobs.json"
OPTIONS_FILE = "options.json"
CANCELLED_FILE = "cancelled.json"
SUBMISSION_SCHEMA_VERSION = 1

Cluster = Literal["slurm", "local"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SentArray:
    """One job of the scheduler: an array of tasks, or a single task."""

    job_id: str | None
    """None until the scheduler answered."""
    tasks: tuple[tuple[str, ...], ...]
    """Run ids by array index; a task trains its runs one after the other."""
    rejected: str | None
    """The scheduler's message, where it refused; None: it did not."""
    is_array: bool
    process: ProcessIdentity | None = None
    """The process that its only task is on this machine; None: a scheduler has it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """What one `isoflop submit` sent, or was about to."""

    submission_id: str
    created_at: float
    """Unix time."""
    profile: dict[str, Any]
    """The cluster profile, as its TOML file has it."""
    snapshot: str | None
    """Folder of the code that its tasks run; None: the installed one."""
    cluster: Cluster
    arrays: tuple[SentArray, ...]
    options: dict[str, Any] = field(default_factory=dict)
    """Entries of a [placement] table that were given on its command line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NotRequeued:
    """That a task could not requeue itself, by its last try so far; gone once it starts again."""

    at_s: float
    """Unix time of that try."""
    num_tries: int
    message: str
    """The scheduler's."""


def submission_folder(study_folder: Path, submission_id: str) -> Path:
    """Return where a submission's record, scripts and logs are."""
    return study_folder / LAUNCH_FOLDER / submission_id


def array_folder(study_folder: Path, submission_id: str, array: int) -> Path:
    """Return the folder that submitit has for one array: scripts, and logs named by its job ids."""
    return submission_folder(study_folder, submission_id) / f"array-{array:03d}"


def jobs_file(study_folder: Path, submission_id: str) -> Path:
    """Return the file of what tasks need of their runs: isoflop.launch.job.Job by run id."""
    return submission_folder(study_folder, submission_id) / JOBS_FILE


def comment_of(submission_id: str, array: int) -> str:
    """Return the comment (`squeue -o %k`) of all jobs of an array."""
    return f"isoflop:{submission_id}:{array}"


def slurm_task_id(array: SentArray, index: int) -> str | None:
    """Return the scheduler's id of a task: `123_4`, or `123` where it is alone; None: not known."""
    if array.job_id is None:
        return None
    return f"{array.job_id}_{index}" if array.is_array else array.job_id


def not_requeued_file(study_folder: Path, submission_id: str, job_id: str) -> Path:
    """Return where the task of a job leaves a :class:`NotRequeued`."""
    return submission_folder(study_folder, submission_id) / f"not-requeued-{job_id}.json"


def read_not_requeued(path: Path) -> NotRequeued | None:
    """Return what a task left there; None: nothing.

    Raises:
        UserError: the record is damaged.
    """
    return read_record(NotRequeued, path, "requeue", "remove the file") if path.exists() else None


def write_submission(study_folder: Path, submission: Submission) -> None:
    """Write a submission's record, in the place of an earlier one of the same id."""
    folder = submission_folder(study_folder, submission.submission_id)
    values = {"schema_version": SUBMISSION_SCHEMA_VERSION, **asdict(submission)}
    write_json_atomic(folder / SUBMISSION_FILE, values)


def read_submissions(study_folder: Path) -> list[Submission]:
    """Return all submissions, oldest first; folders without a record (nothing sent) are skipped.

    Raises:
        UserError: a record is damaged or of another version.
    """
    files = (study_folder / LAUNCH_FOLDER).glob(f"*/{SUBMISSION_FILE}")
    found = [_submission(path) for path in files]
    return sorted(found, key=lambda s: (s.created_at, s.submission_id))


def _submission(path: Path) -> Submission:
    values = read_json(path, "submission")
    with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError):
        if values.pop("schema_version") == SUBMISSION_SCHEMA_VERSION:
            arrays = tuple(_array(array) for array in values.pop("arrays"))
            return Submission(**values, arrays=arrays)
    raise UserError(
        "submission",
        str(path),
        f"a record in version {SUBMISSION_SCHEMA_VERSION}",
        "restore the file; or remove it once none of its jobs is in the queue",
    )


def _array(values: Mapping[str, Any]) -> SentArray:
    process = values.get("process")
    return SentArray(
        **{
            **values,
            "tasks": tuple(tuple(task) for task in values["tasks"]),
            "process": None if process is None else ProcessIdentity.from_json(process),
        }
    )


def read_options(study_folder: Path) -> dict[str, dict[str, Any]]:
    """Return what was decided for single runs, by run id.

    `placement`: entries of a study's [placement] table; `exclude_nodes`: names of nodes;
    `attempts_forgiven`: failed attempts that no longer count.

    Raises:
        UserError: the file is damaged.
    """
    path = study_folder / LAUNCH_FOLDER / OPTIONS_FILE
    return read_json(path, "launch options") if path.exists() else {}


def write_options(study_folder: Path, options: Mapping[str, Mapping[str, Any]]) -> None:
    """Replace what :func:`read_options` reads."""
    write_json_atomic(study_folder / LAUNCH_FOLDER / OPTIONS_FILE, dict(options))


def cancelled_jobs(study_folder: Path) -> set[str]:
    """Return ids of all jobs that `isoflop cancel` ended.

    Raises:
        UserError: the record is damaged.
    """
    path = study_folder / LAUNCH_FOLDER / CANCELLED_FILE
    return set(read_json(path, "cancelled jobs")) if path.exists() else set()


def record_cancelled(study_folder: Path, job_ids: Iterable[str]) -> None:
    """Add jobs to those that :func:`cancelled_jobs` returns."""
    path = study_folder / LAUNCH_FOLDER / CANCELLED_FILE
    write_json_atomic(path, sorted({*cancelled_jobs(study_folder), *job_ids}))

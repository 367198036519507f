"""What was sent to the cluster, as the study's folder has it; nothing here asks a scheduler.

    .launch/SUBMISSION_ID/submission.json  written before anything is sent, and again after every
                                           answer of the scheduler; its tasks read it, too
    .launch/SUBMISSION_ID/jobs.json        how each of its runs is to be executed
    .launch/SUBMISSION_ID/array-000/       scripts and logs of one array
    .launch/SUBMISSION_ID/not-requeued-JOB.json  that a task could not requeue itself
    .launch/SUBMISSION_ID/waited-JOB.json  how far longer runs were that a task's runs wait for
    .launch/code/DIGEST/                   the code that its tasks run
    .launch/options.json                   what `isoflop retry` decided, by run id
    .launch/cancelled.json                 what `isoflop cancel` ended: ids of jobs, and the names
                                           (:func:`comment_of`) of processes of this machine

An array whose job id is unknown and that was not rejected either was cut off between the two: its
jobs may exist. :func:`comment_of` names them, so that the scheduler can be asked.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from filelock import FileLock, Timeout
from typing_extensions import TypedDict

from isoflop.disk import fault_of, naming
from isoflop.errors import UserError
from isoflop.files import make_own_folder, refuse_links, write_json_atomic
from isoflop.launch.job import Job
from isoflop.launch.process import ProcessIdentity
from isoflop.launch.slurm.profile import DEFAULT_MAX_FAILURES, DEFAULT_THROTTLE
from isoflop.placement import PlacementTable, placement_from
from isoflop.validate import (
    CLOSED,
    Count,
    Digest,
    Pattern,
    UnixTime,
    Whole,
    read_record,
    wrong_in_file,
)

LAUNCH_FOLDER = ".launch"
SUBMISSION_FILE = "submission.json"
JOBS_FILE = "jobs.json"
OPTIONS_FILE = "options.json"
CANCELLED_FILE = "cancelled.json"
FIT_FILE = "fit.json"
LOCK_FILE = "submit.lock"
LOCK_WAIT_S = 60.0
_LOCK_POLL_S = 0.1
SUBMISSION_SCHEMA_VERSION = 1

Cluster = Literal["slurm", "local"]

_RUN_ID = re.compile("[0-9a-f]{64}")
_DO_SUBMISSION = "restore the file; or remove it once none of its jobs is in the queue"
_DO_OPTIONS = "correct it"
# They become parts of paths and arguments of the scheduler's commands.
_Name = Annotated[str, Pattern(regex="^[0-9A-Za-z][0-9A-Za-z_-]*$")]
_JobNumber = Annotated[str, Pattern(regex="^[0-9]{1,19}$")]
_Cancelled = Annotated[
    str,
    Pattern(regex="^([0-9]{1,19}(_[0-9]{1,19})?|isoflop:[0-9A-Za-z][0-9A-Za-z_-]*:[0-9]{1,19})$"),
]
_Printable = Annotated[str, Pattern(regex=r"^[^\x00-\x1f\x7f-\x9f]{1,255}$")]
_Nodes = Annotated[str, Pattern(regex=r"^[0-9A-Za-z][0-9A-Za-z.,_\[\]-]*$")]


@dataclass(frozen=True, kw_only=True, slots=True)
class SentArray:
    """One job of the scheduler: an array of tasks, or a single task."""

    job_id: _JobNumber | None
    """None until the scheduler answered."""
    tasks: tuple[tuple[Digest, ...], ...]
    """Run ids by array index; a task trains its runs one after the other."""
    rejected: str | None
    """The scheduler's message, where it refused; None: it did not."""
    is_array: bool
    process: ProcessIdentity | None = None
    """The process that its only task is on this machine; None: a scheduler has it."""
    at_a_time: Count | None = None
    """Most of its tasks that run together; None (up to version 0.1.0): the profile's throttle."""
    is_fit: bool = False
    """Whether it is the job of isoflop.launch.slurm.then_fit; its task has no runs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """What one `isoflop submit` sent, or was about to."""

    submission_id: _Name
    created_at: UnixTime
    profile: dict[str, Any]
    """The cluster profile, as its TOML file has it."""
    snapshot: str | None
    """Folder of the code that its tasks run; None: the installed one."""
    cluster: Cluster
    arrays: tuple[SentArray, ...]
    options: PlacementTable = field(default_factory=lambda: PlacementTable())
    """What was given on its command line."""
    cluster_name: _Printable | None = None
    """SLURM's ClusterName where it was sent; None: this machine, or sent by 0.1.0, as the next."""
    user: _Printable | None = None
    """Who submitted it."""
    job_name: _Printable | None = None

    def __post_init__(self) -> None:
        placement_from(self.options)
        for key in ("max_failures", "throttle"):
            value = getattr(self, key)
            if type(value) is not int or value < 1:
                raise UserError(f"profile.{key}", value, "a whole number from 1", _DO_SUBMISSION)

    @property
    def max_failures(self) -> int:
        """Failed attempts after which a run of it is parked."""
        found: int = self.profile.get("max_failures", DEFAULT_MAX_FAILURES)
        return found

    @property
    def throttle(self) -> int:
        """Most tasks of the study at a time."""
        found: int = self.profile.get("throttle", DEFAULT_THROTTLE)
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class _SubmissionFile(Submission):
    __pydantic_config__: ClassVar = CLOSED

    schema_version: Literal[1]


class RunOptions(TypedDict, total=False):
    """What was decided for a run."""

    __pydantic_config__ = CLOSED  # type: ignore[misc]  # for pydantic, no key

    placement: PlacementTable
    exclude_nodes: list[_Nodes]
    attempts_forgiven: Whole
    """Failed attempts that no longer count."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NotRequeued:
    """That a task could not requeue itself, by its last try so far; gone once it starts again."""

    at_s: UnixTime
    """Unix time of that try."""
    num_tries: Whole
    message: str
    """The scheduler's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Waited:
    """How a task has waited for longer runs so far; see isoflop.launch.slurm.waiting."""

    since_s: UnixTime
    """Unix time at which one of them was last seen to have got on."""
    steps: Mapping[Digest, Whole] = field(default_factory=dict)
    """The most that each was seen to have completed, by run id."""
    num_times: Whole = 0
    """How often the task gave its node back since then."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FitOutcome:
    """What the job that fits when all is over did."""

    num_missing: Whole
    """Runs without a result, for which it did not fit."""
    exit_code: int | None
    """Of `isoflop fit`; None: it did not fit."""


def submission_folder(study_folder: Path, submission_id: str) -> Path:
    """Return where a submission's record, scripts and logs are."""
    return study_folder / LAUNCH_FOLDER / submission_id


def submission_file(study_folder: Path, submission_id: str) -> Path:
    """Return the file of a submission's record."""
    return submission_folder(study_folder, submission_id) / SUBMISSION_FILE


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


def waited_file(study_folder: Path, submission_id: str, job_id: str) -> Path:
    """Return where the task of a job leaves a :class:`Waited`."""
    return submission_folder(study_folder, submission_id) / f"waited-{job_id}.json"


def read_waited(path: Path) -> Waited | None:
    """Return what a task left there; None: nothing.

    Raises:
        UserError: the record is damaged.
    """
    return read_record(Waited, path, "wait", "remove the file") if path.exists() else None


def read_fit(study_folder: Path, submission_id: str) -> FitOutcome | None:
    """Return what the last job of a submission did; None: nothing yet.

    Raises:
        UserError: the record is damaged.
    """
    path = submission_folder(study_folder, submission_id) / FIT_FILE
    return read_record(FitOutcome, path, "fit", "remove the file") if path.exists() else None


def write_fit(study_folder: Path, submission_id: str, outcome: FitOutcome) -> None:
    """Write what :func:`read_fit` returns."""
    path = submission_folder(study_folder, submission_id) / FIT_FILE
    write_json_atomic(path, asdict(outcome))


def write_submission(study_folder: Path, submission: Submission) -> None:
    """Write a submission's record, in the place of an earlier one of the same id."""
    values = {"schema_version": SUBMISSION_SCHEMA_VERSION, **asdict(submission)}
    write_json_atomic(submission_file(study_folder, submission.submission_id), values)


def read_submissions(study_folder: Path) -> list[Submission]:
    """Return all submissions, oldest first; folders without a record (nothing sent) are skipped.

    Raises:
        UserError: a record is damaged or of another version.
    """
    found, damaged = readable_submissions(study_folder)
    for error in damaged:
        raise error
    return found


def readable_submissions(study_folder: Path) -> tuple[list[Submission], list[UserError]]:
    """Return what :func:`read_submissions` does, and the mistakes of records that are damaged."""
    found: list[Submission] = []
    damaged: list[UserError] = []
    launch = study_folder / LAUNCH_FOLDER
    try:
        refuse_links(launch, 1)
    except UserError as error:
        return found, [error]
    for path in sorted(launch.glob(f"*/{SUBMISSION_FILE}")):
        try:
            refuse_links(path.parent, 1)
            found.append(_submission(path))
        except UserError as error:
            damaged.append(error)
    return sorted(found, key=lambda s: (s.created_at, s.submission_id)), damaged


def read_submission(study_folder: Path, submission_id: str) -> Submission:
    """Return the record of one submission.

    Raises:
        UserError: it is missing, damaged or of another version.
    """
    return _submission(submission_file(study_folder, submission_id))


def _submission(path: Path) -> Submission:
    found = read_record(_SubmissionFile, path, "submission", _DO_SUBMISSION)
    name = path.parent.name
    if found.submission_id != name:
        given = found.submission_id
        raise wrong_in_file(path, "submission_id", given, f"{name!r}", _DO_SUBMISSION)
    return Submission(**{f.name: getattr(found, f.name) for f in fields(Submission)})


def read_jobs(study_folder: Path, submission_id: str) -> dict[str, Job]:
    """Return how the runs of a submission are to be executed, by run id.

    Raises:
        UserError: the file is missing or damaged.
    """
    path = jobs_file(study_folder, submission_id)
    jobs = read_record(dict[Digest, Job], path, "jobs of a submission", "submit again")
    for run_id, job in jobs.items():
        wanted = {"run_id": run_id, "study_folder": str(study_folder)}
        for name, value in wanted.items():
            if getattr(job, name) != value:
                given = getattr(job, name)
                raise wrong_in_file(path, f"{run_id}.{name}", given, value, "submit again")
    return jobs


def read_options(study_folder: Path, known: Collection[str] | None = None) -> dict[str, RunOptions]:
    """Return what was decided for single runs, by run id.

    Args:
        study_folder: the study's folder.
        known: the runs of the plan; None: not asked.

    Raises:
        UserError: a wrong key or value, which a person may have written.
    """
    path = study_folder / LAUNCH_FOLDER / OPTIONS_FILE
    refuse_links(path.parent, 1)
    if not path.exists():
        return {}
    found = read_record(dict[str, RunOptions], path, "launch options", _DO_OPTIONS)
    for run_id, options in found.items():
        try:
            _check_run_id(run_id, known)
            placement_from(options.get("placement", {}))
        except UserError as error:
            name = error.field if error.field == "run id" else f"{run_id}.placement.{error.field}"
            raise wrong_in_file(path, name, error.value, error.allowed, error.do) from None
    return found


def _check_run_id(run_id: str, known: Collection[str] | None) -> None:
    if not _RUN_ID.fullmatch(run_id):
        do = "write the whole id; `isoflop show FOLDER RUN` has it"
        raise UserError("run id", run_id, "all 64 digits of a run's id", do)
    if known is not None and run_id not in known:
        raise UserError("run id", run_id, "that of a run of the plan", "correct or remove it")


def write_options(study_folder: Path, options: Mapping[str, Mapping[str, Any]]) -> None:
    """Replace what :func:`read_options` reads."""
    write_json_atomic(study_folder / LAUNCH_FOLDER / OPTIONS_FILE, dict(options))


def cancelled_jobs(study_folder: Path) -> set[str]:
    """Return what `isoflop cancel` ended: ids of jobs, and names of processes of this machine.

    Raises:
        UserError: the record is damaged.
    """
    path = study_folder / LAUNCH_FOLDER / CANCELLED_FILE
    refuse_links(path.parent, 1)
    if not path.exists():
        return set()
    return set(read_record(list[_Cancelled], path, "cancelled jobs", "remove the file"))


def record_cancelled(study_folder: Path, names: Iterable[str]) -> None:
    """Add jobs and processes to those that :func:`cancelled_jobs` returns."""
    path = study_folder / LAUNCH_FOLDER / CANCELLED_FILE
    write_json_atomic(path, sorted({*cancelled_jobs(study_folder), *names}))


@contextlib.contextmanager
def submit_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a study's submissions; wait for another one for up to LOCK_WAIT_S.

    The system releases it when this process ends, however it ends.

    Raises:
        UserError: another process holds it longer, or it is no file that we may lock.
    """
    path = folder / LAUNCH_FOLDER / LOCK_FILE
    make_own_folder(path.parent)
    # No other kind of lock where the file system has none: a process that was killed would keep it.
    lock = FileLock(path, LOCK_WAIT_S, poll_interval=_LOCK_POLL_S, fallback_to_soft=False)
    try:
        held = lock.acquire()
    except Timeout:
        holder = path.read_text(encoding="utf-8").strip() or "another process"
        raise UserError(
            "submit lock", str(path), f"free ({holder} is submitting)", "try again later"
        ) from None
    except OSError as error:
        if fault_of(error) is not None:
            raise
        allowed = f"a file of yours, and no link ({error.strerror})"
        raise UserError("submit lock", str(path), allowed, "remove it") from None
    with held:
        with naming(path):
            path.write_text(f"process {os.getpid()} of {os.uname().nodename}\n", encoding="utf-8")
        yield

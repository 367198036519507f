"""SLURM's own commands and their output. The only module that starts them, sbatch apart.

Errors carry the scheduler's own message. squeue is asked once for all jobs, finished ones included:
it needs no accounting database, forgets a job MinJobAge seconds (300 by default) after its end, and
has a requeued job's new state where sacct still has the old one.
"""

from __future__ import annotations

import functools
import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from isoflop.errors import UserError, shown

# A client that finds no controller gives up after MessageTimeout (10 s), one that finds no
# configuration after a minute.
TIMEOUT_S = 25.0

# Variables that name the cluster.
CLUSTER_VARIABLES = frozenset(("SLURM_CONF", "SLURM_CONF_SERVER"))

# What a job may end as; in any other state it waits, runs or is about to.
_FINAL = frozenset(
    (
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "REVOKED",
        "TIMEOUT",
    )
)
_PAUSED = frozenset(("SUSPENDED", "STOPPED"))
_RUNNING = _PAUSED | frozenset(("RUNNING", "COMPLETING", "RESIZING", "SIGNALING", "STAGE_OUT"))
# What the states say that do not say it by themselves.
_MEANINGS = {
    "SUSPENDED": "it goes on when it is resumed",
    "STOPPED": "it goes on when it is continued",
    "COMPLETING": "its processes are ending",
    "RESIZING": "its nodes are being changed",
    "SIGNALING": "it is being sent a signal",
    "STAGE_OUT": "it has ended, and its files are being copied",
    "CONFIGURING": "its nodes are being made ready",
    "SPECIAL_EXIT": "it is held",
}

# A comment may hold the separator, so it comes last.
_SQUEUE_FIELDS = ("JobArrayID", "State", "RestartCnt", "exit_code", "NodeList", "Reason", "Comment")
_SACCT_FIELDS = (
    *("JobID", "State", "ExitCode", "NodeList"),
    *("User", "Submit", "JobName", "Comment"),
)
# Names and comments may hold any sign that people type.
_SACCT_DELIMITER = "\x1f"

# The error of squeue for one job that it has forgotten, or never had.
_UNKNOWN_JOB = "Invalid job id specified"

# A message of scancel about one job.
_NOT_CANCELLED = re.compile(r"Kill job error on job id (\S+): (.*\S)")

ENDING_ALREADY = "Job/step already completing or completed"
"""What scancel says of a job that needs no cancelling."""

_ASK_SINFO = "try again once `sinfo` answers"
# A requeue sends TERM to all processes of the job: to scontrol, too, where the job itself asks.
_WITHOUT_TERM = ("/bin/sh", "-c", 'trap "" TERM; exec "$0" "$@"')
_NO_SLURM = "go where SLURM's commands are, or load their module; `--cluster local` needs none"


class SchedulerError(UserError):
    """A command of the scheduler that failed; ``words`` is its message, ``do`` what helps."""

    def __init__(self, command: str, words: str, do: str = _ASK_SINFO) -> None:
        message = words if words.startswith(command.partition(" ")[0]) else f"{command}: {words}"
        super().__init__("scheduler", shown(message), "one that answers without an error", do)
        self.command = command
        self.words = words

    def __reduce__(self) -> tuple[object, ...]:
        return (SchedulerError, (self.command, self.words, self.do))


@dataclass(frozen=True, kw_only=True, slots=True)
class JobState:
    """State of a job or a task of an array, by the scheduler."""

    job_id: str
    """123, or 123_4 for a task of an array."""
    state: str
    """SLURM's name of it, in capitals."""
    reason: str | None = None
    """Why it waits, or why it ended."""
    node: str | None = None
    restarts: int = 0
    """How often it was requeued."""
    exit_code: str | None = None
    """CODE:SIGNAL once it has ended."""
    comment: str | None = None
    job_name: str | None = None
    """This and the next two are accounting's only."""
    user: str | None = None
    submit_s: float | None = None
    """Unix time at which it was submitted, or last requeued."""
    is_process: bool = False
    """Whether it is a process of this machine instead, and ``job_id`` its number."""

    @property
    def name(self) -> str:
        """As shown to people: `job 123_4`, or `process 123`."""
        return f"{'process' if self.is_process else 'job'} {self.job_id}"

    @property
    def is_final(self) -> bool:
        """Whether it has ended and will not be requeued."""
        return self.state in _FINAL

    @property
    def is_running(self) -> bool:
        """Whether it has a node."""
        return self.state in _RUNNING

    @property
    def is_paused(self) -> bool:
        """Whether its processes stand still."""
        return self.state in _PAUSED

    @property
    def meaning(self) -> str | None:
        """What its state says; None: it says it by itself, or is not known."""
        return _MEANINGS.get(self.state)

    @property
    def text(self) -> str:
        """Its name, state and node: `job 123_4 RUNNING on n1`."""
        return f"{self.name} {self.state}" + (f" on {self.node}" if self.node else "")


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """Answer of the scheduler to one query."""

    jobs: Mapping[str, JobState] = field(default_factory=dict)
    """By id; jobs that the scheduler has forgotten are missing."""
    unreachable: str | None = None
    """The scheduler's message, where it did not answer; None: it did."""
    calls: int = 0
    """Commands that were started."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """The cluster that SLURM's commands speak to, and what it shows to this user."""

    name: str
    hides_jobs: bool
    """Whether jobs of other users are not visible."""
    has_accounting: bool
    """Whether it keeps an accounting database."""

    @staticmethod
    def of_config(values: Mapping[str, str]) -> Cluster:
        """Return what :func:`config` says."""
        private = {word.strip() for word in values.get("PrivateData", "").lower().split(",")}
        slurm_user = values.get("SlurmUser", "").partition("(")[0]
        sees_all = os.getuid() == 0 or user_name() == slurm_user
        return Cluster(
            name=values.get("ClusterName", ""),
            hides_jobs=bool(private & {"jobs", "all"}) and not sees_all,
            has_accounting=values.get("AccountingStorageType", "").endswith("slurmdbd"),
        )


def user_name() -> str:
    """Return this user's name, or the number where it has none."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def query(
    job_ids: Sequence[str], *, all_of_user: bool = False, others: Collection[str] = ()
) -> Answer:
    """Return the state of jobs by one squeue call, however many there are.

    Args:
        job_ids: jobs or tasks of arrays; of an array all tasks are returned.
        all_of_user: query all jobs of this user instead; those whose ids no record has are found
            by their comments.
        others: names of further users whose jobs are queried then.
    """
    if not job_ids and not all_of_user:
        return Answer()
    arguments = ["squeue", "-h", "-r", "-t", "all", "-O", _fields(_SQUEUE_FIELDS)]
    if all_of_user:
        arguments += _of_users(others)
    else:
        bases = _bases(job_ids)
        # Asked for one unknown job squeue fails, asked for several it leaves it out.
        arguments += ["-j", ",".join(bases if len(bases) > 1 else bases * 2)]
    try:
        text = call(arguments)
    except SchedulerError as error:
        if _UNKNOWN_JOB in error.words:
            return Answer(calls=1)
        return Answer(unreachable=error.words, calls=1)
    return Answer(jobs=_parse(text, _SQUEUE_FIELDS), calls=1)


def job_with_comment(comment: str) -> str | None:
    """Return the id of this user's array or job with a comment; None: there is none.

    Raises:
        SchedulerError: the scheduler does not answer.
    """
    answer = query([], all_of_user=True)
    if answer.unreachable is not None:
        raise SchedulerError("squeue", answer.unreachable)
    ids = (job.job_id for job in answer.jobs.values() if job.comment == comment)
    return next((job_id.partition("_")[0] for job_id in ids), None)


def _of_users(others: Iterable[str]) -> list[str]:
    """Return squeue's option for this user's jobs and those of others."""
    numbers = [os.getuid()]
    try:
        numbers += [pwd.getpwnam(name).pw_uid for name in others]
    except KeyError:
        # squeue fails at a user that it does not know; without the option it shows all.
        return []
    return ["-u", ",".join(dict.fromkeys(map(str, numbers)))]


def history(job_ids: Sequence[str]) -> Answer:
    """Return what the accounting database has of jobs that squeue has forgotten, by one sacct call.

    Its states lag behind squeue's: query it for nothing that squeue still has.
    """
    if not job_ids:
        return Answer()
    fields = ",".join(_SACCT_FIELDS)
    arguments = ["sacct", "-n", "-X", "-P", f"--delimiter={_SACCT_DELIMITER}", "-o", fields]
    arguments += ["-j", ",".join(job_ids)]
    try:
        text = call(arguments)
    except SchedulerError as error:
        return Answer(unreachable=error.words, calls=1)
    return Answer(jobs=_parse(text, _SACCT_FIELDS, _SACCT_DELIMITER), calls=1)


def config() -> dict[str, str]:
    """Return the cluster's configuration, as `scontrol show config` prints it.

    Raises:
        SchedulerError: the controller cannot be reached.
    """
    pairs = (line.partition("=") for line in call(["scontrol", "show", "config"]).splitlines())
    return {key.strip(): value.strip() for key, found, value in pairs if found}


def cluster() -> Cluster:
    """Return which cluster this is; asked once per cluster and process.

    Raises:
        SchedulerError: the controller cannot be reached.
    """
    return _cluster(os.environ.get("SLURM_CONF", ""))


# By the configuration's path: it is another cluster under another.
@functools.cache
def _cluster(slurm_conf: str) -> Cluster:
    return Cluster.of_config(config())


def requeue(slurm_task_id: str, *, delay_s: int = 0) -> None:
    """Requeue a running job or task of an array, to begin so many seconds later at the earliest.

    Raises:
        SchedulerError: the scheduler refused.
    """
    call(["scontrol", "requeue", slurm_task_id], by=_WITHOUT_TERM)
    if delay_s:
        # A running job's cannot be changed; from here on it counts as pending.
        start = f"StartTime=now+{delay_s}"
        call(["scontrol", "update", f"JobId={slurm_task_id}", start], by=_WITHOUT_TERM)


def cancel(ids: Iterable[str]) -> dict[str, str]:
    """Cancel jobs or tasks of arrays by one scancel.

    Returns the scheduler's message for each that it did not cancel, by its id: another user's, one
    that it does not know, one that was ending already (:data:`ENDING_ALREADY`).

    Raises:
        SchedulerError: scancel failed without a word about a job.
    """
    wanted = list(ids)
    if not wanted:
        return {}
    # Without -v it is silent about jobs that it does not know. Its exit code tells of some only.
    done = _run(["scancel", "-v", *wanted])
    refused = dict(_NOT_CANCELLED.findall(done.stderr))
    if done.returncode != 0 and not refused:
        raise _failed("scancel", done)
    return refused


def call(arguments: Sequence[str], *, by: Sequence[str] = ()) -> str:
    """Run one of SLURM's commands and return what it printed.

    Args:
        arguments: the command.
        by: a command that executes another, which follows it.

    Raises:
        SchedulerError: it is not there, failed, or gave no answer in TIMEOUT_S.
    """
    if by and shutil.which(arguments[0], path=_environment().get("PATH")) is None:
        raise _not_there(arguments)
    done = _run(arguments, by)
    if done.returncode != 0:
        raise _failed(_shown(arguments), done)
    return done.stdout


def _shown(arguments: Sequence[str]) -> str:
    return " ".join(arguments[:3] if arguments[0] == "scontrol" else arguments[:1])


def _failed(command: str, done: subprocess.CompletedProcess[str]) -> SchedulerError:
    words = one_line(done.stderr) or one_line(done.stdout)
    return SchedulerError(command, words or f"exit code {done.returncode}")


def _not_there(arguments: Sequence[str]) -> SchedulerError:
    words = f"{arguments[0]} is not on the PATH"
    return SchedulerError(_shown(arguments), words, _NO_SLURM)


def _run(arguments: Sequence[str], by: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run one of SLURM's commands, however it ends.

    Raises:
        SchedulerError: it is not there, or gave no answer in TIMEOUT_S.
    """
    command = _shown(arguments)
    try:
        return subprocess.run(
            [*by, *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
            env=_environment(),
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError:
        raise _not_there(arguments) from None
    except PermissionError as error:
        raise SchedulerError(command, str(error)) from None
    except subprocess.TimeoutExpired as error:
        printed = one_line(error.stderr.decode(errors="replace") if error.stderr else "")
        words = f"no answer in {TIMEOUT_S:g} s" + (f": {printed}" if printed else "")
        raise SchedulerError(command, words) from None


def _environment() -> dict[str, str]:
    """Return the environment without what changes the output or the cluster of SLURM's commands."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SQUEUE_", "SACCT_", "SCANCEL_", "SLURM_"))
        or name in CLUSTER_VARIABLES
    }
    # Unix times.
    return {**kept, "SLURM_TIME_FORMAT": "%s"}


def one_line(text: str) -> str:
    """Return the distinct lines of a command's output in one line."""
    return "; ".join(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))


def _fields(names: Sequence[str]) -> str:
    return ",".join(f"{name}:|" for name in names)


def _bases(job_ids: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(job_id.partition("_")[0] for job_id in job_ids))


def _parse(text: str, names: Sequence[str], separator: str = "|") -> dict[str, JobState]:
    """Return the lines of squeue or sacct by job id; of a job that occurs twice, the last."""
    rows = (line.split(separator, len(names) - 1) for line in text.splitlines())
    jobs = (_job(dict(zip(names, row, strict=True))) for row in rows if len(row) == len(names))
    return {job.job_id: job for job in jobs}


def _job(row: Mapping[str, str]) -> JobState:
    restarts = row.get("RestartCnt", "")
    submitted = row.get("Submit", "")
    return JobState(
        job_id=(row.get("JobArrayID") or row["JobID"]).strip(),
        # "CANCELLED by 0" in sacct.
        state=row["State"].split()[0],
        reason=_known(row.get("Reason", "")),
        node=_known(row["NodeList"]),
        restarts=int(restarts) if restarts.isdigit() else 0,
        exit_code=_exit_code(row.get("exit_code") or row["ExitCode"]),
        comment=_known(row.get("Comment", "").removesuffix("|")),
        job_name=_known(row.get("JobName", "")),
        user=_known(row.get("User", "")),
        submit_s=float(submitted) if submitted.isdigit() else None,
    )


def _known(text: str) -> str | None:
    return None if text in ("", "None", "(null)", "None assigned", "n/a") else text


def _exit_code(text: str) -> str | None:
    """Return CODE:SIGNAL as sacct writes it; squeue prints the wait status as one number."""
    if text.isdigit():
        status = int(text)
        return f"{status >> 8}:{status & 127}"
    return text or None

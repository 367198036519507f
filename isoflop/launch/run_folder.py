"""The folder of one run: who may write in it, and what is true of it after any crash.

    spec.json           what the run is, written before its first attempt
    attempts/0001.json  one per attempt, created exclusively: its number is the claim
    lease.json          the holder's attempt number and heartbeat
    metrics.jsonl       as it goes; every row names its attempt
    error-0001.txt      the traceback of an attempt that failed
    ckpt/STEP/          checkpoints (isoflop.train.checkpoint), gone once there is a result; the
                        final weights stay where the study keeps them (isoflop.launch.weights)
    result.json         once; the first writer wins; never overwritten

Only the holder of the newest attempt may write the result. A holder is dead when its process is
gone (same machine) or its heartbeat is old (another machine); then the next attempt may begin.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Le

from isoflop.errors import UserError
from isoflop.files import dump_json, read_json, write_json_atomic, write_once
from isoflop.launch.metrics import LINES_FILE, read_rows
from isoflop.placement import Placement
from isoflop.spec import RunSpec, run_id, shown_id
from isoflop.validate import (
    Count,
    Digest,
    Pattern,
    Seconds,
    UnixTime,
    Whole,
    in_file,
    read_record,
    validated,
)

# A heartbeat older than this on another machine means that its holder is gone. Heartbeats come
# every few seconds; the margin allows for a stalled shared file system.
LEASE_TIMEOUT_S = 120.0

RESULT_SCHEMA_VERSION = 1

_ATTEMPT_FILE = re.compile("[0-9]{4,}")
# The most that Linux numbers a process by.
_LARGEST_PID = 2**22
_TRAIN_AGAIN = "remove the file to train the run again"

_Digits = Annotated[str, Pattern(regex="^[0-9]{1,19}$")]


@dataclass(frozen=True, kw_only=True, slots=True)
class SlurmDetails:
    """The job that an attempt ran in, as SLURM's variables have it."""

    job_id: _Digits
    array_job_id: _Digits | None = None
    array_task_id: _Digits | None = None
    node: str | None = None
    restart_count: _Digits = "0"


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptDetails:
    """What is used of an attempt's provenance; versions and the like are for people."""

    placement: Placement | None = None
    """None: attempts of an earlier version do not record it."""
    slurm: SlurmDetails | None = None
    """None: it was in no job."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """One attempt at a run, as its file has it."""

    number: Count
    holder: ProcessIdentity
    start_s: UnixTime
    """Unix time at which it began."""
    end_s: UnixTime | None
    exit_reason: str | None
    """done, diverged, failed: …, interrupted: SIGNAL, superseded, already complete; None while
    running or after a kill."""
    step_range: tuple[Whole, Whole] | None
    """First and last step that it completed; None: none, or it was killed."""
    wall_s: Seconds | None = None
    """Seconds of training; None: none, it was killed, or it is of an earlier version."""
    details: AttemptDetails = field(default_factory=AttemptDetails)

    @property
    def job_id(self) -> str | None:
        """The scheduler's name of the job that it ran in: 123_4 or 123; None: it was in none."""
        job = self.details.slurm
        if job is None:
            return None
        if job.array_job_id is not None and job.array_task_id is not None:
            return f"{job.array_job_id}_{job.array_task_id}"
        return job.job_id

    @property
    def node(self) -> str | None:
        """The node of that job."""
        return None if self.details.slurm is None else self.details.slurm.node

    @property
    def restarts(self) -> int:
        """How often that job had been requeued before."""
        return 0 if self.details.slurm is None else int(self.details.slurm.restart_count)

    @property
    def ended(self) -> bool:
        """Whether the attempt recorded its own end."""
        return self.end_s is not None

    @property
    def failed(self) -> bool:
        """Whether it ended by an error of the code or the machine."""
        return self.exit_reason is not None and self.exit_reason.startswith("failed")


@dataclass(frozen=True, kw_only=True, slots=True)
class Lease:
    """The newest heartbeat of a run."""

    attempt: Count
    heartbeat_s: UnixTime
    step: Whole
    steps: Whole


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResult:
    """What came of a run; see isoflop.train.hooks.RunOutcome for the figures."""

    schema_version: Literal[1]
    run_id: Digest
    attempt: Count
    """The attempt that wrote it."""
    status: Literal["done", "diverged"]
    status_reason: str | None
    loss: float | None
    """A number where the run is done."""
    num_steps: Whole
    loss_se: float | None = None
    perplexity: float | None = None
    bits_per_byte: float | None = None
    bits_per_byte_se: float | None = None
    reference_perplexity: float | None = None
    wall_s: Seconds | None = None
    step_s_median: Seconds | None = None
    tokens_per_s: float | None = None
    peak_mem_bytes: Whole | None = None

    def __post_init__(self) -> None:
        if self.status == "done" and self.loss is None:
            raise UserError("loss", None, "a number where the run is done", _TRAIN_AGAIN)


class RunFolder:
    """Reads and writes one run's folder."""

    def __init__(self, study_folder: Path, full_run_id: str) -> None:
        self.run_id = full_run_id
        self.path = study_folder / "runs" / shown_id(full_run_id)
        self.checkpoints = self.path / "ckpt"

    def write_spec(self, spec: RunSpec) -> None:
        """Write spec.json once; a spec that is there already must be this one."""
        assert run_id(spec) == self.run_id
        if not write_once(self.path / "spec.json", dump_json(spec.to_json()).encode()):
            self.read_spec()

    def read_spec(self) -> RunSpec:
        """Return the run's identity.

        Raises:
            UserError: missing, damaged, or not the spec that the folder is named after.
        """
        path = self.path / "spec.json"
        values = read_json(path, "run spec")
        try:
            spec = RunSpec.from_json(values)
        except UserError as error:
            raise in_file(error, path, error.do) from None
        if run_id(spec) != self.run_id:
            raise UserError(
                "run spec", str(path), f"the spec of run {self.path.name}", "remove the run folder"
            )
        return spec

    def attempts(self) -> list[Attempt]:
        """Return all attempts, oldest first.

        Raises:
            UserError: an attempt file is damaged.
        """
        files = (self.path / "attempts").glob("[0-9]*.json")
        numbered = {int(f.stem): f for f in files if _ATTEMPT_FILE.fullmatch(f.stem)}
        return [_attempt(numbered[number], number) for number in sorted(numbered)]

    def lease(self) -> Lease | None:
        """Return the newest heartbeat, or None before the first.

        Raises:
            UserError: the file is damaged.
        """
        path = self.path / "lease.json"
        if not path.exists():
            return None
        return read_record(Lease, path, "lease", "remove the file")

    def result(self) -> RunResult | None:
        """Return the result, or None where there is none yet.

        Raises:
            UserError: damaged, of another version or run, or of other steps than the run's spec.
        """
        path = self.path / "result.json"
        if not path.exists():
            return None
        found = read_record(RunResult, path, "result", _TRAIN_AGAIN)
        if found.run_id != self.run_id:
            raise in_file(
                UserError("run_id", found.run_id, f"that of run {self.path.name}", _TRAIN_AGAIN),
                path,
                _TRAIN_AGAIN,
            )
        self._check_steps(found, path)
        return found

    def _check_steps(self, found: RunResult, path: Path) -> None:
        """Check that a run did the steps of its spec, or at most these where it diverged."""
        steps = self.read_spec().steps
        if found.num_steps == steps or (found.status == "diverged" and found.num_steps < steps):
            return
        error = UserError("num_steps", found.num_steps, f"{steps}, the run's steps", _TRAIN_AGAIN)
        raise in_file(error, path, _TRAIN_AGAIN)

    def is_held(self, newest: Attempt | None) -> bool:
        """Return whether the newest attempt is still at work."""
        if newest is None or newest.ended:
            return False
        if newest.holder.on_this_machine:
            return newest.holder.is_alive()
        lease = self.lease()
        beat = newest.start_s
        if lease is not None and lease.attempt == newest.number:
            beat = max(beat, lease.heartbeat_s)
        return time.time() - beat < LEASE_TIMEOUT_S

    def attempt_at_work(self) -> Attempt | None:
        """Return the newest attempt, if a live process is at it."""
        attempts = self.attempts()
        return attempts[-1] if attempts and self.is_held(attempts[-1]) else None

    def claim(self, details: Mapping[str, Any]) -> Attempt | None:
        """Begin the next attempt; None if another process holds the run or wins the race.

        Args:
            details: provenance for the attempt's record (device, versions); never identity.
        """
        attempts = self.attempts()
        newest = attempts[-1] if attempts else None
        if self.is_held(newest):
            return None
        attempt = Attempt(
            number=1 if newest is None else newest.number + 1,
            holder=ProcessIdentity.of_this_process(),
            start_s=time.time(),
            end_s=None,
            exit_reason=None,
            step_range=None,
        )
        record = dump_json(_record(attempt, details)).encode()
        if not write_once(self._attempt_path(attempt.number), record):
            return None
        return dataclasses.replace(attempt, details=_details(details))

    def beat(self, attempt: Attempt, step: int, steps: int) -> None:
        """Write the heartbeat of an attempt."""
        write_json_atomic(
            self.path / "lease.json",
            {
                "attempt": attempt.number,
                "heartbeat_s": time.time(),
                "step": step,
                "steps": steps,
            },
        )

    def traceback_file(self, attempt: Attempt) -> Path:
        """Return where an attempt that failed leaves its traceback."""
        return self.path / f"error-{attempt.number:04d}.txt"

    def is_newest(self, attempt: Attempt) -> bool:
        """Return whether no later attempt has begun."""
        return not self._attempt_path(attempt.number + 1).exists()

    def end_attempt(
        self,
        attempt: Attempt,
        exit_reason: str,
        *,
        step_range: tuple[int, int] | None = None,
        wall_s: float | None = None,
    ) -> None:
        """Record how an attempt ended, which steps it did and the seconds of training."""
        path = self._attempt_path(attempt.number)
        _attempt(path, attempt.number)
        record = read_json(path, "attempt") | {
            "end_s": time.time(),
            "exit_reason": exit_reason,
            "step_range": None if step_range is None else list(step_range),
            "wall_s": wall_s,
        }
        write_json_atomic(path, record)

    def write_result(self, attempt: Attempt, values: Mapping[str, Any]) -> bool:
        """Write the result if this attempt is the newest and there is no result yet."""
        if not self.is_newest(attempt):
            return False
        record = {
            "schema_version": RESULT_SCHEMA_VERSION,
            "run_id": self.run_id,
            "attempt": attempt.number,
            **values,
        }
        return write_once(self.path / "result.json", dump_json(record).encode())

    def previous_wall_s(self, attempt: Attempt) -> float:
        """Return training seconds that earlier attempts spent, work that was lost included.

        Of an attempt that was killed, only the seconds up to its last row of metrics.
        """
        spent: dict[int, float] = {}
        for row in self.metrics():
            if row["attempt"] < attempt.number and "wall_s" in row:
                spent[row["attempt"]] = row["wall_s"]
        for earlier in self.attempts():
            if earlier.number < attempt.number and earlier.wall_s is not None:
                spent[earlier.number] = earlier.wall_s
        return sum(spent.values())

    def metrics(self) -> Iterator[dict[str, Any]]:
        """Yield rows of metrics.jsonl; a line cut off by a crash is skipped."""
        return read_rows(self.path / LINES_FILE)

    def _attempt_path(self, number: int) -> Path:
        return self.path / "attempts" / f"{number:04d}.json"


def _record(attempt: Attempt, details: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "number": attempt.number,
        "holder": attempt.holder.to_json(),
        "start_s": attempt.start_s,
        "end_s": attempt.end_s,
        "exit_reason": attempt.exit_reason,
        "step_range": None,
        "wall_s": None,
        "details": dict(details),
    }


def _details(values: Mapping[str, Any]) -> AttemptDetails:
    return validated(AttemptDetails, dict(values))


def _attempt(path: Path, number: int) -> Attempt:
    found = read_record(Attempt, path, "attempt", "remove the file")
    if found.number != number:
        error = UserError("number", found.number, "as the file is called", "remove the file")
        raise in_file(error, path, error.do)
    return found


# Field 22 of /proc/PID/stat, counted from the state letter that follows the command's name.
_START_TIME_AFTER_NAME = 19


def _boot_id() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else ""


def _start_ticks(pid: int) -> int | None:
    """Return when a process started, in ticks since boot; None: gone, a zombie or unknowable."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    after_name = text.rpartition(")")[2].split()
    return None if after_name[0] == "Z" else int(after_name[_START_TIME_AFTER_NAME])


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessIdentity:
    """A process, distinct from any other that may get its number later."""

    host: str
    boot_id: str
    """Empty where the system has none."""
    pid: Annotated[Count, Le(_LARGEST_PID)]
    start_ticks: Whole | None

    @staticmethod
    def of_this_process() -> ProcessIdentity:
        """Return the identity of the calling process."""
        return ProcessIdentity(
            host=platform.node(),
            boot_id=_boot_id(),
            pid=os.getpid(),
            start_ticks=_start_ticks(os.getpid()),
        )

    @property
    def on_this_machine(self) -> bool:
        """Whether the process belongs to this machine (perhaps before its last boot)."""
        return self.host == platform.node()

    def is_alive(self) -> bool:
        """Return whether a process of this machine still runs."""
        if self.boot_id != _boot_id():
            return False
        if self.start_ticks is not None:
            return _start_ticks(self.pid) == self.start_ticks
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    @staticmethod
    def from_json(values: Any) -> ProcessIdentity:
        """Return the inverse of :meth:`to_json`."""
        return validated(ProcessIdentity, values)

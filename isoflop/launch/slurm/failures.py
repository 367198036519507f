"""Why a run failed, as one of a few kinds, from what it recorded, its job's end and its output."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from isoflop.disk import SYSTEM_WORDS, is_recorded
from isoflop.launch.job import DISK_FAILED
from isoflop.launch.run_folder import RunFolder
from isoflop.launch.run_records import Attempt
from isoflop.launch.slurm.environment import SETUP_FAILED
from isoflop.launch.slurm.scheduler import JobState

KINDS = {
    "oom": "out of memory",
    "node": "bad node",
    "time": "time limit",
    "rank": "lost contact with another rank",
    "code": "code error",
    "disk": "file system full, read-only or not answering",
    "requeue": "stopped, and not taken back into the queue",
    "lost": "gone without a result",
}
"""What `isoflop retry --failed` takes, and what it means. A diverged run is none of them: it has a
result, and would diverge again."""

# Only these are recognised in any line of the output; other errors are the code's.
_OUT_OF_MEMORY = re.compile(
    r"out of memory|out-of-memory|oom[-_ ]kill|exceeded memory limit|CUBLAS_STATUS_ALLOC_FAILED"
    r"|can't allocate memory|cannot allocate memory|MemoryError",
    re.IGNORECASE,
)
# What the CUDA driver and runtime, the kernel and srun say of a node's own devices. A driver that
# is too old for torch, or a kernel launch with wrong sizes, is not the node's fault.
_BAD_NODE = re.compile(
    r"NODE FAILURE|uncorrectable (?:NVLink|ECC) error|double[- ]bit (?:ECC )?error"
    r"|No (?:CUDA|HIP) GPUs are available|no (?:CUDA|ROCm)-capable device is detected"
    r"|Found no NVIDIA driver on your system|CUDA driver initialization failed"
    r"|CUDA unknown error|system not yet initialized|all CUDA-capable devices are busy"
    r"|device\(s\) is/are busy|GPU is lost|fallen off the bus|Failed to initialize NVML"
    r"|task launch for .* failed on node|\b(?:task|job|application) launch failed",
    re.IGNORECASE,
)
_LOST_RANK = re.compile(r"lost contact with another rank")
# The last line of a task whose study's folder is elsewhere now: its runs go on there.
_MOVED = re.compile(r"was moved or removed: it is not made again")

# The signal that SLURM makes up for a job whose log or folder it could not open. squeue has another
# code before it than sacct.
_NO_LOG = ":53"

# What ends the output of a job that failed, and of one that was cancelled or preempted.
_SAYS_SO = re.compile(
    r"^(?:srun|slurmstepd): error|^Traceback|^\w*(?:Error|Exception)\b", re.MULTILINE
)
_ENDED_FROM_OUTSIDE = re.compile(r"CANCELLED AT \S+ (?:DUE TO PREEMPTION )?\*\*\*")

# How an exception of the system gives its number, also in records of earlier versions.
_NUMBERED = re.compile(
    rf"\[Errno \d+\] (?:{SYSTEM_WORDS.pattern})|(?:{SYSTEM_WORDS.pattern}) \(os error \d+\)"
)

# What CODE:SIGNAL of a job says by itself, whatever it could write.
_BY_EXIT_CODE = {f"{DISK_FAILED}:0": "disk", f"{SETUP_FAILED}:0": "code"}
_MEANINGS = {
    f"{DISK_FAILED}:0": "a file system that cannot be used",
    f"{SETUP_FAILED}:0": "its modules or setup",
}

NOT_COUNTED = frozenset(("disk",))
"""Kinds of failures that are not the run's or its node's, and that no parking counts."""

_BY_JOB_STATE = {
    "OUT_OF_MEMORY": "oom",
    "NODE_FAIL": "node",
    "BOOT_FAIL": "node",
    "TIMEOUT": "time",
    "DEADLINE": "time",
    "PREEMPTED": "lost",
}


def kind_of_attempt(attempt: Attempt) -> str:
    """Return the kind of a failed attempt, by the reason that it recorded."""
    assert attempt.exit_reason is not None
    reason = attempt.exit_reason.removeprefix("failed: ")
    if is_recorded(reason) or _NUMBERED.search(reason):
        return "disk"
    return _kind_of_text(reason)


def kind_of_job(job: JobState, last_lines: Sequence[str]) -> str:
    """Return the kind of a death without a record.

    Args:
        job: how its job ended, by the scheduler.
        last_lines: the end of what it wrote. A job killed for its memory is FAILED where no cgroup
            watches over it, and only its output shows why.
    """
    known = _BY_JOB_STATE.get(job.state)
    if known is not None:
        return known
    if job.state == "COMPLETED":
        return "lost"
    text = "\n".join(last_lines)
    if _has_no_log(job) or _MOVED.search(text):
        return "lost"
    if job.exit_code in _BY_EXIT_CODE:
        return _BY_EXIT_CODE[job.exit_code]
    return _kind_of_output(text)


def kind_of_output(last_lines: Sequence[str]) -> str | None:
    """Return the kind of a death that only the job's output tells of; None: it tells of none."""
    text = "\n".join(last_lines)
    if "DUE TO TIME LIMIT" in text:
        return "time"
    if _ENDED_FROM_OUTSIDE.search(text) or not _SAYS_SO.search(text):
        return None
    return _kind_of_output(text)


def _kind_of_output(text: str) -> str:
    kind = _kind_of_text(text)
    return "disk" if kind == "code" and SYSTEM_WORDS.search(text) else kind


def _has_no_log(job: JobState) -> bool:
    return job.exit_code is not None and job.exit_code.endswith(_NO_LOG)


def describe_job(job: JobState) -> str:
    """Return how a job ended, in the scheduler's terms."""
    parts = [f"{job.name} ended {job.state}"]
    if job.node is not None:
        parts.append(f"on {job.node}")
    if _has_no_log(job):
        parts.append("since SLURM could not open its log or its folder (was it moved?)")
    elif job.exit_code not in (None, "0:0"):
        code, _, signal = str(job.exit_code).partition(":")
        parts.append(f"by signal {signal}" if signal not in ("", "0") else f"with exit code {code}")
    if job.exit_code in _MEANINGS:
        parts.append(f"({_MEANINGS[job.exit_code]})")
    return " ".join(parts)


def num_failures(folder: RunFolder, options: Mapping[str, Mapping[str, Any]]) -> int:
    """Return the failed attempts that count towards parking and were not forgiven.

    Args:
        folder: the run's.
        options: as isoflop.launch.slurm.records keeps them: what `isoflop retry` forgave.
    """
    forgiven = options.get(folder.run_id, {}).get("attempts_forgiven", 0)
    return max(0, num_counted(folder) - forgiven)


def num_counted(folder: RunFolder) -> int:
    """Return the failed attempts that count; preemptions, time limits and disks do not."""
    failed = (attempt for attempt in folder.attempts() if attempt.failed)
    return sum(kind_of_attempt(attempt) not in NOT_COUNTED for attempt in failed)


def _kind_of_text(text: str) -> str:
    if _OUT_OF_MEMORY.search(text):
        return "oom"
    if _LOST_RANK.search(text):
        return "rank"
    return "node" if _BAD_NODE.search(text) else "code"

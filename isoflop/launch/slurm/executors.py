"""Sends arrays through submitit: to SLURM by sbatch, or to this machine.

submitit writes the script and starts sbatch; the script starts isoflop.launch.slurm.task, which
reads the submission's record. So nothing is pickled, and a job needs no file that is written or
renamed after sbatch took it.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from isoflop.disk import fault_of, naming
from isoflop.launch.job import Job, num_gpus
from isoflop.launch.slurm.arrays import ArrayPlan
from isoflop.launch.slurm.environment import (
    VISIBLE_DEVICES,
    python_command,
    scrubbed_environment,
    setup_lines,
)
from isoflop.launch.slurm.profile import ClusterProfile
from isoflop.launch.slurm.scheduler import SchedulerError, job_with_comment, one_line

_TASK = "isoflop.launch.slurm.task"

# submitit ends a local task then, which is never meant to happen.
_NO_LIMIT_MIN = 60 * 24 * 365


# sbatch prints these where no answer of the controller arrived: it may have taken the array.
_NO_ANSWER = re.compile(
    r"timed out|unable to contact|zero bytes|connection|connect failure|not connected|broken pipe"
    r"|no route|unreachable|communication|not responding|standby|send/recv|message receive",
    re.IGNORECASE,
)
# The queue is asked so often for an array without an answer, with so many seconds between.
_LOOKS = 3
_LOOK_EVERY_S = 2.0


class Rejected(Exception):
    """The scheduler refused an array; the message is the scheduler's."""


class Unanswered(Exception):
    """sbatch ended without the controller's answer: the array may have been taken, or not."""


def sbatch_parameters(
    plan: ArrayPlan,
    profile: ClusterProfile,
    *,
    job_name: str,
    comment: str,
    variables: Mapping[str, str],
    after: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the parameters of an array for submitit's SlurmExecutor.

    Args:
        plan: the array.
        profile: where it goes.
        job_name: its name.
        comment: its comment.
        variables: environment of its tasks.
        after: ids of the jobs that end before it starts, however they end.
    """
    resources = plan.resources
    further: dict[str, Any] = {"requeue": True, **profile.sbatch}
    dependencies = [f"afterany:{':'.join(after)}"] if after else []
    if "dependency" in further and after:
        dependencies.insert(0, str(further.pop("dependency")))
    parameters: dict[str, Any] = {
        "job_name": job_name,
        "comment": comment,
        "partition": profile.partition,
        "account": profile.account,
        "qos": profile.qos,
        "time": resources.time_min,
        "nodes": resources.num_nodes,
        "ntasks_per_node": resources.tasks_per_node,
        "cpus_per_task": profile.cpus_per_device
        * (resources.ranks_per_node // resources.tasks_per_node),
        "exclude": ",".join(resources.exclude_nodes) or None,
        "signal_delay_s": profile.signal_s,
        "array_parallelism": plan.at_a_time,
        "dependency": ",".join(dependencies) or None,
        "setup": setup_lines(profile, variables) or None,
        # Some clusters refuse submitit's own.
        "wckey": None,
        "additional_parameters": further,
    }
    if resources.num_nodes * resources.tasks_per_node > 1:
        # Ranks cannot go on without one that died, and would wait for it.
        parameters["srun_args"] = ["--kill-on-bad-exit=1"]
    if resources.memory_mb_per_node is not None:
        parameters["mem"] = f"{resources.memory_mb_per_node}M"
    if plan.is_fit:
        # It takes no GPU of those that train.
        return parameters
    if profile.gpus_per_node and profile.gpu_type is not None:
        parameters["gres"] = f"gpu:{profile.gpu_type}:{resources.ranks_per_node}"
    elif profile.gpus_per_node:
        parameters["gpus_per_node"] = resources.ranks_per_node
    return parameters


def sbatch_text(
    plan: ArrayPlan,
    profile: ClusterProfile,
    folder: Path,
    parameters: Mapping[str, Any],
    arguments: Sequence[str],
) -> str:
    """Return the script that sbatch is to be given, as submitit writes it; needs no SLURM here."""
    from submitit.slurm.slurm import _make_sbatch_string

    num_tasks = len(plan.tasks)
    return _make_sbatch_string(
        command=_task_command(profile, arguments),
        folder=folder,
        map_count=num_tasks if num_tasks > 1 else None,
        **parameters,
    )


def send_to_slurm(
    plan: ArrayPlan,
    profile: ClusterProfile,
    folder: Path,
    parameters: Mapping[str, Any],
    arguments: Sequence[str],
) -> str:
    """Send an array, or a single job where there is one task; return the job's id.

    Args:
        plan: the array.
        profile: where to.
        folder: submitit's folder for it.
        parameters: those of :func:`sbatch_parameters`.
        arguments: those of isoflop.launch.slurm.task on its command line.

    Raises:
        Rejected: the scheduler refused; nothing of the array is left.
        Unanswered: it is not known whether the scheduler took the array.
    """
    from submitit.core.utils import FailedJobError, FailedSubmissionError
    from submitit.slurm.slurm import SlurmExecutor

    for needed in ("sbatch", "srun"):
        if shutil.which(needed) is None:
            raise Rejected(f"{needed} is not on the PATH")
    folder.mkdir(parents=True, exist_ok=True)
    executor = SlurmExecutor(folder)
    executor.update_parameters(**parameters)
    if len(plan.tasks) > 1:
        executor.parameters["map_count"] = len(plan.tasks)
    try:
        # submitit prints the output of sbatch, which the errors here carry.
        quiet = contextlib.redirect_stderr(io.StringIO())
        with naming(folder), scrubbed_environment(), quiet:
            job = executor._submit_command(_task_command(profile, arguments))
    except (FailedJobError, FailedSubmissionError, OSError) as error:
        return _job_in_spite_of(error, folder, parameters["comment"])
    return str(job.job_id)


def _job_in_spite_of(error: Exception, folder: Path, comment: str) -> str:
    """Return the id of an array that was taken although sbatch failed, by its comment.

    Raises:
        Rejected: the queue does not have it, and sbatch gave the scheduler's reason.
        Unanswered: neither sbatch nor the queue says what became of it.
        OSError: the file system's error, where the queue does not have it.
    """
    words = one_line(str(error)) or "sbatch ended without a word"
    was_answered = _is_answer(error, words)
    for look in range(1 if was_answered else _LOOKS):
        if look:
            time.sleep(_LOOK_EVERY_S)
        try:
            job_id = job_with_comment(comment)
        except SchedulerError:
            raise Unanswered(words) from None
        if job_id is not None:
            return job_id
    if not was_answered:
        raise Unanswered(words)
    if fault_of(error) is not None:
        raise error
    for path in folder.glob(".submission_file_*"):
        path.unlink()
    raise Rejected(words)


def _is_answer(error: Exception, words: str) -> bool:
    """Return whether an array that the queue does not have was refused, for sure."""
    if isinstance(error, OSError):
        # Of a file or of starting sbatch: no answer was waited for.
        return True
    status = getattr(error.__cause__, "returncode", 0)
    return status > 0 and _NO_ANSWER.search(words) is None


def send_to_this_machine(
    folder: Path, variables: Mapping[str, str], arguments: Sequence[str], gpus: Sequence[int]
) -> str:
    """Start one task as a process of this machine that outlives this one; return its id."""
    from submitit.local.local import LocalExecutor, LocalJob

    folder.mkdir(parents=True, exist_ok=True)
    executor = LocalExecutor(folder)
    executor.update_parameters(
        timeout_min=_NO_LIMIT_MIN, gpus_per_node=len(gpus), visible_gpus=tuple(gpus)
    )
    with naming(folder), _detached(), scrubbed_environment(variables):
        command = _command(shlex.quote(sys.executable), arguments)
        job: LocalJob[str] = executor._submit_command(command)
    assert job._process is not None
    # Only to collect the process, should this one outlive it.
    threading.Thread(target=job._process.wait, daemon=True).start()
    return str(job.job_id)


def local_gpus(jobs: Iterable[Job]) -> list[int]:
    """Return numbers of the GPUs that tasks of this machine share; empty: they use the CPU."""
    placement = next((job.placement for job in jobs), None)
    if placement is None or not placement.device.startswith("cuda"):
        return []
    # Tasks inherit none of them, and each is told its own.
    visible = next(filter(None, map(os.environ.get, VISIBLE_DEVICES)), "")
    named = [int(number) for number in visible.split(",") if number.isdecimal()]
    return named or list(range(num_gpus(placement)))


def _task_command(profile: ClusterProfile, arguments: Sequence[str]) -> str:
    return _command(python_command(profile) or shlex.quote(sys.executable), arguments)


def _command(python: str, arguments: Sequence[str]) -> str:
    """Return the shell that starts a task."""
    return f"{python} -u -m {_TASK} {shlex.join(arguments)}"


@contextmanager
def _detached() -> Iterator[None]:
    """Redirect the standard streams to the null device, so that a process holds no pipe open."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(stream) for stream in range(3)]
    null = os.open(os.devnull, os.O_RDWR)
    try:
        for stream in range(3):
            os.dup2(null, stream)
        yield
    finally:
        for stream, before in enumerate(saved):
            os.dup2(before, stream)
            os.close(before)
        os.close(null)

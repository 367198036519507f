"""Sends arrays through submitit: to SLURM by sbatch, or to this machine."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop.disk import fault_of, naming
from isoflop.launch.slurm.arrays import ArrayPlan
from isoflop.launch.slurm.environment import python_command, scrubbed_environment, setup_lines
from isoflop.launch.slurm.profile import ClusterProfile
from isoflop.launch.slurm.scheduler import one_line
from isoflop.launch.slurm.task import run_task

if TYPE_CHECKING:
    from submitit.core.core import Executor


# submitit ends a local task then, which is never meant to happen.
_NO_LIMIT_MIN = 60 * 24 * 365


class Rejected(Exception):
    """The scheduler refused an array; the message is the scheduler's."""


def sbatch_parameters(
    plan: ArrayPlan,
    profile: ClusterProfile,
    *,
    job_name: str,
    comment: str,
    variables: Mapping[str, str],
) -> dict[str, Any]:
    """Return the parameters of an array for submitit's SlurmExecutor."""
    resources = plan.resources
    further: dict[str, Any] = {"requeue": True, **profile.sbatch}
    parameters: dict[str, Any] = {
        "job_name": job_name,
        "comment": comment,
        "partition": profile.partition,
        "account": profile.account,
        "qos": profile.qos,
        "time": resources.time_min,
        "nodes": resources.num_nodes,
        "ntasks_per_node": resources.ranks_per_node,
        "cpus_per_task": profile.cpus_per_device,
        "exclude": ",".join(resources.exclude_nodes) or None,
        "signal_delay_s": profile.signal_s,
        "array_parallelism": profile.throttle,
        "setup": setup_lines(profile, variables) or None,
        # Some clusters refuse submitit's own.
        "wckey": None,
        "additional_parameters": further,
    }
    if resources.num_ranks > 1:
        # Ranks cannot go on without one that died, and would wait for it.
        parameters["srun_args"] = ["--kill-on-bad-exit=1"]
    if resources.memory_mb_per_node is not None:
        parameters["mem"] = f"{resources.memory_mb_per_node}M"
    if profile.gpus_per_node and profile.gpu_type is not None:
        parameters["gres"] = f"gpu:{profile.gpu_type}:{resources.ranks_per_node}"
    elif profile.gpus_per_node:
        parameters["gpus_per_node"] = resources.ranks_per_node
    return parameters


def sbatch_text(
    plan: ArrayPlan, profile: ClusterProfile, folder: Path, parameters: Mapping[str, Any]
) -> str:
    """Return the script that sbatch is to be given, as submitit writes it; needs no SLURM here."""
    from submitit.slurm.slurm import _make_sbatch_string

    python = python_command(profile) or shlex.quote(sys.executable)
    command = f"{python} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    num_tasks = len(plan.tasks)
    return _make_sbatch_string(
        command=command,
        folder=folder,
        map_count=num_tasks if num_tasks > 1 else None,
        **parameters,
    )


def send_to_slurm(
    profile: ClusterProfile,
    folder: Path,
    parameters: Mapping[str, Any],
    arguments: Sequence[Sequence[str]],
) -> str:
    """Send an array, or a single job where there is one task; return the job's id.

    Args:
        profile: where to.
        folder: submitit's folder for it.
        parameters: those of :func:`sbatch_parameters`.
        arguments: of :func:`isoflop.launch.slurm.task.run_task`, by task.

    Raises:
        Rejected: the scheduler refused; nothing of the array is left.
    """
    from submitit.core.utils import FailedJobError, FailedSubmissionError
    from submitit.slurm.slurm import SlurmExecutor

    for needed in ("sbatch", "srun"):
        if shutil.which(needed) is None:
            raise Rejected(f"{needed} is not on the PATH")
    folder.mkdir(parents=True, exist_ok=True)
    executor = SlurmExecutor(folder, python=python_command(profile))
    executor.update_parameters(**parameters)
    try:
        # submitit prints the output of sbatch, which Rejected carries.
        quiet = contextlib.redirect_stderr(io.StringIO())
        with naming(folder), scrubbed_environment(), quiet:
            jobs = executor.map_array(run_task, *zip(*arguments, strict=True))
    except (FailedJobError, FailedSubmissionError, OSError) as error:
        if fault_of(error) is not None:
            # Nothing was sent before this file was there; later, jobs may need their pickles.
            if not any(folder.glob(".submission_file_*")):
                _remove_orphans(folder)
            raise
        _remove_orphans(folder)
        raise Rejected(one_line(str(error)) or type(error).__name__) from None
    return jobs[0].job_id.partition("_")[0]


def send_to_this_machine(
    folder: Path, variables: Mapping[str, str], arguments: Sequence[str], gpus: Sequence[int]
) -> str:
    """Start one task as a process of this machine that outlives this one; return its id."""
    from submitit.local.local import LocalExecutor, LocalJob

    folder.mkdir(parents=True, exist_ok=True)
    executor: Executor = LocalExecutor(folder)
    executor.update_parameters(
        timeout_min=_NO_LIMIT_MIN, gpus_per_node=len(gpus), visible_gpus=tuple(gpus)
    )
    with naming(folder), _detached(), scrubbed_environment(variables):
        job = executor.submit(run_task, *arguments)
    assert isinstance(job, LocalJob)
    assert job._process is not None
    # Only to collect the process, should this one outlive it.
    threading.Thread(target=job._process.wait, daemon=True).start()
    return str(job.job_id)


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


def _remove_orphans(folder: Path) -> None:
    """Remove what submitit wrote for jobs that were refused."""
    for pattern in ("*.pkl", ".submission_file_*"):
        for path in folder.glob(pattern):
            path.unlink()

"""What a job has before Python starts: the shell that it inherits, its modules and setup.

A job inherits the environment of the shell that submits it, without the variables of an outer job
or launcher. Of sbatch's own variables in that shell, some take the place of keys that the profile
leaves open.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from isoflop.environ import environment_with
from isoflop.launch.slurm.profile import ClusterProfile
from isoflop.launch.slurm.scheduler import CLUSTER_VARIABLES

SETUP_FAILED = 78
"""Exit code of a job whose modules or setup failed (EX_CONFIG of sysexits.h)."""

# sbatch passes on the whole environment. What an outer job or a launcher set in it would bind a
# task to that job's cores, devices, ranks or pickles.
_INHERITED_PREFIXES = (
    # SLURM, submitit, and the key-value servers that ranks are started with.
    *("SLURM_", "SLURMD_", "SBATCH_", "SALLOC_", "SRUN_", "SUBMITIT_", "PMI_", "PMIX_"),
    # torchrun.
    *("TORCHELASTIC_", "ROLE_"),
    # Ranks by mpirun: Open MPI, its runtime, MVAPICH, MPICH's and Intel's process manager.
    *("OMPI_", "ORTE_", "PRTE_", "MV2_COMM_WORLD_", "MPI_LOCAL", "HYDI_"),
)
VISIBLE_DEVICES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
"""Numbers of the GPUs that a process sees, NVIDIA's and AMD's."""
_INHERITED = frozenset(
    (
        *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "NODE_RANK"),
        *("GROUP_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
        # Devices of the outer job, which its scheduler numbered; the last two AMD's and Intel's.
        *(*VISIBLE_DEVICES, "GPU_DEVICE_ORDINAL", "ZE_AFFINITY_MASK"),
        # Cores of this machine, by number.
        *("GOMP_CPU_AFFINITY", "KMP_AFFINITY", "OMP_PLACES"),
        # Kernels interpreted on the CPU, as one debugs them: thousands of times slower.
        "TRITON_INTERPRET",
    )
)

# Variables of sbatch that name what a profile may leave open, and the profile's key.
_SHELL_KEYS = {"SBATCH_PARTITION": "partition", "SBATCH_ACCOUNT": "account", "SBATCH_QOS": "qos"}
# Likewise, and the option of sbatch that the profile has under [sbatch].
_SHELL_OPTIONS = {"SBATCH_CONSTRAINT": "constraint", "SBATCH_RESERVATION": "reservation"}


def scrubbed(environ: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without the variables of an outer job or launcher."""
    return {
        name: value
        for name, value in environ.items()
        if name in CLUSTER_VARIABLES
        or not (name in _INHERITED or name.startswith(_INHERITED_PREFIXES))
    }


@contextmanager
def scrubbed_environment(more: Mapping[str, str] | None = None) -> Iterator[None]:
    """Scrub this process's environment and add ``more`` variables, within the context."""
    removed = dict.fromkeys(os.environ.keys() - scrubbed(os.environ).keys())
    with environment_with({**removed, **(more or {})}):
        yield


def profile_in_shell(
    profile: ClusterProfile, environ: Mapping[str, str]
) -> tuple[ClusterProfile, tuple[str, ...]]:
    """Return the profile with what the shell's variables of sbatch fill in, and lines about them.

    What the profile says wins, since sbatch's own variables would win over a script.
    """
    given = {name: value for name, value in environ.items() if name.startswith("SBATCH_") and value}
    if profile.is_local or not given:
        return profile, ()
    keys: dict[str, Any] = {
        key: given[name]
        for name, key in _SHELL_KEYS.items()
        if name in given and getattr(profile, key) is None
    }
    options = {
        option: given[name]
        for name, option in _SHELL_OPTIONS.items()
        if name in given and option not in profile.sbatch
    }
    used = [n for n, key in {**_SHELL_KEYS, **_SHELL_OPTIONS}.items() if key in {**keys, **options}]
    lines = []
    if used:
        lines.append(f"from the shell: {', '.join(f'{name}={given[name]}' for name in used)}")
    if unused := sorted(given.keys() - set(used)):
        lines.append(f"in the shell and not used, since the profile decides: {', '.join(unused)}")
    filled = dataclasses.replace(profile, **keys, sbatch={**options, **profile.sbatch})
    return filled, tuple(lines)


def setup_lines(profile: ClusterProfile, variables: Mapping[str, str]) -> list[str]:
    """Return the shell before a task: modules, the variables, then the profile's own lines.

    What fails ends the job with :data:`SETUP_FAILED` and a line that names it.
    """
    lines = [_load(module) for module in profile.modules]
    if profile.venv is not None:
        # As its `activate` does: this names the libraries of another Python.
        lines.append("unset PYTHONHOME")
    lines += (f"export {name}={shlex.quote(value)}" for name, value in variables.items())
    if profile.setup:
        lines += [*_CHECKED, *profile.setup, "trap - ERR"]
    return lines


def _load(module: str) -> str:
    name = shlex.quote(module)
    failed = shlex.quote(f"isoflop: module load {module} failed")
    return f"module load {name} || {{ echo {failed} >&2; exit {SETUP_FAILED}; }}"


# The trap sees a command of the script itself that fails outside of conditions, however many lines
# it has; not those of a file that is sourced, which may fail on the way as long as its last one
# does not.
_CHECKED = (
    "isoflop_depth=${#BASH_SOURCE[@]}",
    "isoflop_setup_failed() {",
    '  [ "$2" -gt "$isoflop_depth" ] && return',
    '  echo "isoflop: setup failed (exit code $1): $3" >&2',
    f"  exit {SETUP_FAILED}",
    "}",
    """trap 'isoflop_setup_failed "$?" "${#BASH_SOURCE[@]}" "$BASH_COMMAND"' ERR""",
)


def python_command(profile: ClusterProfile) -> str | None:
    """Return how a task starts Python, as shell; None: by the Python that submits."""
    return None if profile.venv is None else shlex.quote(f"{profile.venv}/bin/python")

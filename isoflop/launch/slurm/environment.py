"""What a job inherits from the shell that submits it, and the shell that comes before it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from isoflop.launch.slurm.profile import ClusterProfile

# sbatch hands on the whole environment. What an outer job or a launcher set in it would bind a task
# to that job's cores, devices, ranks or pickles.
_INHERITED_PREFIXES = ("SLURM_", "SLURMD_", "SBATCH_", "SRUN_", "SUBMITIT_", "PMI_", "PMIX_")
_INHERITED = frozenset(
    ("CUDA_VISIBLE_DEVICES", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
)
# Which cluster is meant.
_KEPT = frozenset(("SLURM_CONF", "SLURM_CONF_SERVER"))


def scrubbed(environ: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without the variables of an outer job or launcher."""
    return {
        name: value
        for name, value in environ.items()
        if name in _KEPT or not (name in _INHERITED or name.startswith(_INHERITED_PREFIXES))
    }


@contextmanager
def scrubbed_environment(more: Mapping[str, str] | None = None) -> Iterator[None]:
    """This process with a scrubbed environment, and ``more`` variables, for as long as it lasts."""
    before = dict(os.environ)
    try:
        _replace_environment({**scrubbed(before), **(more or {})})
        yield
    finally:
        _replace_environment(before)


def _replace_environment(environ: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environ)


def setup_lines(profile: ClusterProfile, variables: Mapping[str, str]) -> list[str]:
    """Shell before a task: modules, the variables, then the profile's own lines."""
    return [
        *(f"module load {shlex.quote(module)}" for module in profile.modules),
        *(f"export {name}={shlex.quote(value)}" for name, value in variables.items()),
        *profile.setup,
    ]


def python_command(profile: ClusterProfile) -> str | None:
    """Return how a task starts Python, as shell; None: by the Python that submits."""
    return None if profile.venv is None else shlex.quote(f"{profile.venv}/bin/python")

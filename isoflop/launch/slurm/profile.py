"""Cluster profiles: where and how jobs run, from slurm/NAME.toml or any TOML file."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from isoflop.errors import UserError
from isoflop.plan.estimate import Hardware, load_hardware
from isoflop.resources import builtin_names, read_profile
from isoflop.validate import CLOSED, Ge, Gt, MinLen, validated

LOCAL = "local"
_HARDWARE_PREFIX = "hardware_"
_DO = "correct the profile"
# Options of sbatch that isoflop or submitit sets itself.
_OWN_OPTIONS = frozenset(
    (
        *("account", "array", "comment", "cpus-per-task", "error", "gpus-per-node", "gres"),
        *("job-name", "mem", "mem-per-cpu", "no-requeue", "nodes", "ntasks", "ntasks-per-node"),
        *("open-mode", "output", "partition", "qos", "requeue", "signal", "time", "wait", "wrap"),
    )
)
# Options of sbatch that a job or its submission cannot do with, and why.
_REFUSED_OPTIONS = {
    **dict.fromkeys(
        ("export", "export-file", "get-user-env"),
        "left out: a job inherits the environment of the shell that submits it",
    ),
    **dict.fromkeys(
        ("parsable", "quiet", "test-only"), "left out: the answer of sbatch is read by isoflop"
    ),
}

DEFAULT_MAX_FAILURES = 3
DEFAULT_THROTTLE = 64

_Text = Annotated[str, MinLen(1)]
_Positive = Annotated[int, Ge(1)]
_Amount = Annotated[float, Gt(0)]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterProfile:
    """One kind of node of a cluster, and how a study uses it. A device is a GPU, or a CPU core."""

    __pydantic_config__: ClassVar = {**CLOSED, "allow_inf_nan": False}

    name: _Text
    hardware: _Text
    """A hardware profile (slurm/hardware_NAME.toml), which times and memory are estimated for."""
    description: str = ""
    partition: _Text | None = None
    """None: the cluster's default; likewise account and qos."""
    account: _Text | None = None
    qos: _Text | None = None
    gpus_per_node: Annotated[int, Ge(0)] = 0
    """Most GPUs that one node gives; 0: the CPU."""
    gpu_type: _Text | None = None
    """As the cluster's gres names it (`--gres=gpu:TYPE:N`); None: any (`--gpus-per-node=N`)."""
    ranks_per_node: _Positive | None = None
    """Most processes of a run on one node; None: as many as GPUs, on the CPU all."""
    cpus_per_device: _Positive = 1
    memory_gb_per_device: _Amount | None = None
    """Host memory; None: on CPUs the estimate with a margin, with GPUs the cluster's default."""
    time_limit_min: _Positive = 1440
    """Longest that one job may run. Longer runs save, requeue themselves and go on."""
    time_floor_min: _Positive = 20
    """Shortest limit that is asked for."""
    time_margin: Annotated[float, Ge(1)] = 2.0
    """Factor on the estimated time."""
    signal_s: _Positive = 120
    """Seconds before the limit at which a run saves and requeues itself."""
    throttle: _Positive = DEFAULT_THROTTLE
    """Most tasks of a study at a time, over all its arrays."""
    max_submit: _Positive | None = None
    """Most tasks that may wait or run at a time, where the cluster has a limit; None: its own."""
    runs_per_task: _Positive = 1
    """Runs of one device that share a task, one after the other."""
    max_failures: _Positive = DEFAULT_MAX_FAILURES
    """Failed attempts after which a run is parked."""
    price_per_hour: _Amount | None = None
    """Of one device; None: the hardware profile's."""
    modules: tuple[_Text, ...] = ()
    """`module load` them before a task starts."""
    venv: _Text | None = None
    """Folder of a virtual environment on the nodes; None: the Python that submits."""
    setup: tuple[_Text, ...] = ()
    """Further lines of shell before a task starts."""
    sbatch: Mapping[str, str | int | bool] = field(default_factory=dict)
    """Further options of sbatch by their long names, without dashes; true for one without value."""

    def __post_init__(self) -> None:
        if self.gpus_per_node == 0 and self.gpu_type is not None:
            raise _mistake("gpu_type", self.gpu_type, "left out where gpus_per_node is 0")
        if self.time_floor_min > self.time_limit_min:
            raise _mistake("time_floor_min", self.time_floor_min, "at most time_limit_min")
        if 60 * self.time_limit_min <= self.signal_s:
            raise _mistake("signal_s", self.signal_s, "shorter than time_limit_min")
        for option, value in self.sbatch.items():
            if option in _REFUSED_OPTIONS:
                raise _mistake(f"sbatch.{option}", value, _REFUSED_OPTIONS[option])
            if option in _OWN_OPTIONS or not re.fullmatch("[a-z][a-z-]*", option):
                raise _mistake(f"sbatch.{option}", value, "an option that no other key sets")

    @property
    def is_local(self) -> bool:
        """Whether jobs run on this machine, without a scheduler."""
        return self.name == LOCAL

    @property
    def device(self) -> str:
        """The device of every run, as torch names it."""
        return "cuda" if self.gpus_per_node else "cpu"

    def load_hardware(self) -> Hardware:
        """Return the hardware profile.

        Raises:
            UserError: there is none of that name, or it is of another kind of device.
        """
        hardware = load_hardware(self.hardware)
        if hardware.kind != self.device:
            raise _mistake(
                "hardware",
                self.hardware,
                f"of kind {self.device} where gpus_per_node is {self.gpus_per_node}",
            )
        return hardware

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, as the TOML file has them."""
        values = dataclasses.asdict(self)
        return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}


def profile_names() -> list[str]:
    """Return names of the built-in profiles, sorted; `local` needs none."""
    names = (name.removesuffix(".toml") for name in builtin_names("slurm"))
    return [name for name in names if not name.startswith(_HARDWARE_PREFIX)]


def load_profile(name_or_path: str | Path) -> ClusterProfile:
    """Return a built-in profile by name (`h100`), any by the path of its .toml file, or `local`.

    Raises:
        UserError: no such profile, not TOML, an unknown or missing key, or an impossible value.
    """
    if str(name_or_path) == LOCAL:
        return ClusterProfile(name=LOCAL, hardware="cpu2", description="this machine's CPU cores")
    names = [LOCAL, *profile_names()]
    return profile_from_mapping(read_profile("cluster", name_or_path, names))


def profile_from_mapping(values: Mapping[str, Any]) -> ClusterProfile:
    """Return a profile from the values of its TOML file, or from :meth:`ClusterProfile.to_json`.

    Raises:
        UserError: an unknown or missing key, a wrong type or an impossible value.
    """
    return validated(ClusterProfile, values, what="cluster", do=_DO, do_missing=_DO, do_unknown=_DO)


def _mistake(key: str, value: object, allowed: str) -> UserError:
    return UserError(f"cluster.{key}", value, allowed, _DO)

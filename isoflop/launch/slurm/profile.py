"""Cluster profiles: where and how jobs run, from slurm/NAME.toml or any TOML file."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from isoflop.errors import UserError
from isoflop.plan.estimate import Hardware, load_hardware
from isoflop.resources import builtin_names, read_profile

LOCAL = "local"
_HARDWARE_PREFIX = "hardware_"
# Options of sbatch that isoflop or submitit sets itself.
_OWN_OPTIONS = frozenset(
    (
        *("account", "array", "comment", "cpus-per-task", "error", "gpus-per-node", "gres"),
        *("job-name", "mem", "mem-per-cpu", "no-requeue", "nodes", "ntasks", "ntasks-per-node"),
        *("open-mode", "output", "partition", "qos", "requeue", "signal", "time", "wait", "wrap"),
    )
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterProfile:
    """One kind of node of a cluster, and how a study uses it. A device is a GPU, or a CPU core."""

    name: str
    hardware: str
    """A hardware profile (slurm/hardware_NAME.toml), which times and memory are estimated for."""
    description: str = ""
    partition: str | None = None
    """None: the cluster's default; likewise account and qos."""
    account: str | None = None
    qos: str | None = None
    gpus_per_node: int = 0
    """Most GPUs that one node gives; 0: the CPU."""
    gpu_type: str | None = None
    """As the cluster's gres names it (`--gres=gpu:TYPE:N`); None: any (`--gpus-per-node=N`)."""
    ranks_per_node: int | None = None
    """Most processes of a run on one node; None: as many as GPUs, on the CPU all."""
    cpus_per_device: int = 1
    memory_gb_per_device: float | None = None
    """Host memory; None: on CPUs the estimate with a margin, with GPUs the cluster's default."""
    time_limit_min: int = 1440
    """Longest that one job may run. Longer runs save, requeue themselves and go on."""
    time_floor_min: int = 20
    """Shortest limit that is asked for."""
    time_margin: float = 2.0
    """Factor on the estimated time."""
    signal_s: int = 120
    """Seconds before the limit at which a run saves and requeues itself."""
    throttle: int = 64
    """Most tasks of an array at a time."""
    max_submit: int | None = None
    """Most tasks that may wait or run at a time, where the cluster has a limit; None: its own."""
    runs_per_task: int = 1
    """Runs of one device that share a task, one after the other."""
    max_failures: int = 3
    """Failed attempts after which a run is parked."""
    price_per_hour: float | None = None
    """Of one device; None: the hardware profile's."""
    modules: tuple[str, ...] = ()
    """`module load` them before a task starts."""
    venv: str | None = None
    """Folder of a virtual environment on the nodes; None: the Python that submits."""
    setup: tuple[str, ...] = ()
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
    # Imported here: pydantic takes its time, and not every command reads a profile.
    from pydantic import ValidationError

    from isoflop.launch.slurm.profile_file import ProfileFile

    try:
        read = ProfileFile.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"] if part not in ("str", "int", "bool"))
        if first["type"] == "extra_forbidden":
            known = ", ".join(ProfileFile.model_fields)
            raise _mistake(key, first["input"], f"a known key ({known})") from None
        if first["type"] == "missing":
            raise _mistake(key, None, "given") from None
        message = first["msg"][0].lower() + first["msg"][1:]
        raise _mistake(key, first["input"], f"valid ({message})") from None
    given: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in read.model_dump(exclude_unset=True).items()
    }
    return ClusterProfile(**given)


def _mistake(key: str, value: object, allowed: str) -> UserError:
    return UserError(f"cluster.{key}", value, allowed, "correct the profile")

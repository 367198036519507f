"""Hardware profiles: what an estimate needs to know of a device, from a TOML file."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isoflop.errors import UserError
from isoflop.resources import builtin_names, read_profile

PRECISIONS = ("bf16", "fp32")
KINDS = ("cpu", "cuda")

_PREFIX = "hardware_"
_TEXT = ("name", "description", "kind", "source")
_SHARES = ("matmul_efficiency", "memory_efficiency")
_COUNTS = ("memory_bytes", "l2_bytes", "devices_per_node", "process_bytes")
_MAY_BE_ZERO = ("process_bytes",)
_OPTIONAL = ("price_per_hour",)


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardware:
    """One device and its links. Rates are per second, sizes in bytes."""

    name: str
    description: str
    kind: str
    """`cpu` (a device is one core) or `cuda`, as torch names it."""
    source: str
    """Where each number is from, and which are assumed."""
    matmul_flops_per_s: Mapping[str, float]
    """Peak of dense matrix products by precision: bf16, fp32."""
    matmul_efficiency: float
    """Share of the peak that training reaches."""
    memory_bytes: int
    memory_bytes_per_s: float
    memory_efficiency: float
    """Share of the memory bandwidth that streams reach."""
    l2_bytes: int
    """Size of the last cache that all of the device shares."""
    l2_bytes_per_s: float
    interconnect_bytes_per_s: float
    """Between the devices of a node, one way."""
    network_bytes_per_s: float
    """Between nodes, per device, one way."""
    devices_per_node: int
    process_bytes: int
    """What a process holds before it has a model, where that is in the peaks that are reported."""
    operator_overhead_s: float
    """Host seconds that one operator costs whatever its size."""
    price_per_hour: float | None = None
    """Of one device; None: not known."""

    def matmul_rate(self, precision: str) -> float:
        """Return FLOP/s that matrix products of a precision are assumed to reach."""
        return self.matmul_flops_per_s[precision] * self.matmul_efficiency

    @property
    def stream_bytes_per_s(self) -> float:
        """Bytes per second that streams from memory are assumed to reach."""
        return self.memory_bytes_per_s * self.memory_efficiency


def hardware_names() -> list[str]:
    """Return names of the built-in profiles, sorted."""
    files = (name.removesuffix(".toml") for name in builtin_names("slurm"))
    return [name.removeprefix(_PREFIX) for name in files if name.startswith(_PREFIX)]


def load_hardware(name_or_path: str | Path) -> Hardware:
    """Return a built-in profile by name (`h100`), or any profile by the path of its .toml file.

    Raises:
        UserError: no such profile, not TOML, an unknown or missing key, or an impossible value.
    """
    values = read_profile("hardware", name_or_path, hardware_names(), _PREFIX)
    return hardware_from_mapping(values)


def hardware_from_mapping(values: Mapping[str, Any]) -> Hardware:
    """Return a profile from the values of its TOML file.

    Raises:
        UserError: an unknown or missing key, a wrong type or an impossible value.
    """
    fields = [f.name for f in dataclasses.fields(Hardware)]
    for key, value in values.items():
        if key not in fields:
            raise _mistake(key, value, f"a known key ({', '.join(fields)})")
    for key in fields:
        if key in values:
            _check_field(key, values[key])
        elif key not in _OPTIONAL:
            raise _mistake(key, None, "given")
    return Hardware(**values)


def _check_field(key: str, value: Any) -> None:
    if key in _TEXT:
        if type(value) is not str or not value.strip():
            raise _mistake(key, value, "a text")
        if key == "kind" and value not in KINDS:
            raise _mistake(key, value, " or ".join(KINDS))
    elif key == "matmul_flops_per_s":
        if not isinstance(value, Mapping) or sorted(value) != sorted(PRECISIONS):
            raise _mistake(key, value, f"a table with exactly {' and '.join(PRECISIONS)}")
        for precision, rate in value.items():
            _check_number(f"{key}.{precision}", rate)
    else:
        _check_number(key, value)
        if key in _COUNTS and type(value) is not int:
            raise _mistake(key, value, "a whole number")
        if key in _SHARES and value > 1:
            raise _mistake(key, value, "a share, at most 1")


def _check_number(key: str, value: Any) -> None:
    is_number = type(value) in (int, float) and math.isfinite(value)
    if not is_number or value < 0 or (value == 0 and key not in _MAY_BE_ZERO):
        raise _mistake(key, value, "a positive number")


def _mistake(key: str, value: Any, allowed: str) -> UserError:
    return UserError(f"hardware.{key}", value, allowed, "correct the profile")

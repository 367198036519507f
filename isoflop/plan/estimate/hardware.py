"""What an estimate needs to know of a device: its profile, and step times measured on it.

Profiles are TOML files. A calibration, which isoflop/train/calibrate.py measures, takes the
place of the roofline where it has the shape of a run. Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isoflop.errors import UserError
from isoflop.files import read_json, write_json_atomic
from isoflop.resources import builtin_names, read_profile
from isoflop.spec import RunSpec

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


CALIBRATION_SCHEMA_VERSION = 1
CALIBRATION_FILE = "calibration.json"

_SHAPE_TYPES = {
    "family": str,
    "config": dict,
    "d_model": int,
    "n_layers": int,
    "n_heads": int,
    "vocab_size": int,
    "seq_len": int,
    "batch_size": int,
    "precision": str,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredStep:
    """One shape's optimizer step on one device."""

    shape: Mapping[str, Any]
    """The fields of a RunSpec that its step time depends on."""
    step_s: float
    """Median, seconds."""
    step_s_min: float
    step_s_max: float
    num_steps: int
    """Timed steps, after the warm-up."""
    peak_mem_bytes: int | None
    """Of the process on the CPU, allocated on a GPU; None where the system does not tell."""

    @property
    def key(self) -> Hashable:
        """Equal to shape_key of the runs that it is a measurement of."""
        values = [self.shape[name] for name in _SHAPE_TYPES]
        values[1] = tuple(sorted(self.shape["config"].items()))
        return tuple(values)


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """Step times measured on one machine."""

    kind: str
    """cpu or cuda."""
    machine: str
    """Processor or GPU, in the system's words."""
    torch: str
    """Version."""
    date: str
    """UTC day, ISO 8601."""
    num_threads: int
    entries: tuple[MeasuredStep, ...]

    def by_shape(self) -> dict[Hashable, MeasuredStep]:
        """Return entries by shape_key."""
        return {entry.key: entry for entry in self.entries}

    def describe(self) -> str:
        """In a phrase: where and when."""
        return f"measured on {self.machine} ({self.kind}), torch {self.torch}, {self.date}"


def shape_fields(spec: RunSpec) -> dict[str, Any]:
    """Return what a calibration entry stores of a run's spec."""
    values = {name: getattr(spec, name) for name in _SHAPE_TYPES}
    values["config"] = dict(spec.config)
    return values


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Write the file, atomically."""
    values = dataclasses.asdict(calibration)
    write_json_atomic(path, {"schema_version": CALIBRATION_SCHEMA_VERSION} | values)


def load_calibration(path: Path) -> Calibration:
    """Return the calibration in a file, or in a study folder.

    Raises:
        UserError: no such file, another schema version, or a field that is missing or impossible.
    """
    if path.is_dir():
        path = path / CALIBRATION_FILE
    if not path.exists():
        do = "run `isoflop calibrate FOLDER`, which writes one"
        raise UserError("calibration", str(path), "an existing file", do)
    values = read_json(path, "calibration")
    if not isinstance(values, dict) or values.get("schema_version") != CALIBRATION_SCHEMA_VERSION:
        raise _damaged(path, f"of schema version {CALIBRATION_SCHEMA_VERSION}")
    _check_keys(path, values, {"schema_version", *_names(Calibration)}, "the file")
    if values["kind"] not in ("cpu", "cuda") or not isinstance(values["entries"], list):
        raise _damaged(path, "with a kind (cpu or cuda) and a list of entries")
    entries = tuple(
        _entry(path, entry, f"entries[{index}]") for index, entry in enumerate(values["entries"])
    )
    rest = {name: values[name] for name in _names(Calibration) if name != "entries"}
    return Calibration(**rest, entries=entries)


def _entry(path: Path, values: Any, where: str) -> MeasuredStep:
    _check_keys(path, values, set(_names(MeasuredStep)), where)
    _check_keys(path, values["shape"], set(_SHAPE_TYPES), f"{where}.shape")
    for name, expected in _SHAPE_TYPES.items():
        if type(values["shape"][name]) is not expected:
            raise _damaged(path, f"with a {expected.__name__} in {where}.shape.{name}")
    for name in ("step_s", "step_s_min", "step_s_max"):
        seconds = values[name]
        if type(seconds) not in (int, float) or not math.isfinite(seconds) or seconds <= 0:
            raise _damaged(path, f"with a positive number in {where}.{name}")
    return MeasuredStep(**values)


def _names(kind: type[Any]) -> list[str]:
    return [f.name for f in dataclasses.fields(kind)]


def _check_keys(path: Path, values: Any, expected: set[str], where: str) -> None:
    if not isinstance(values, dict) or set(values) != expected:
        raise _damaged(path, f"with exactly {', '.join(sorted(expected))} in {where}")


def _damaged(path: Path, allowed: str) -> UserError:
    return UserError(
        "calibration", str(path), f"a calibration {allowed}", "run `isoflop calibrate` again"
    )


def check_same_kind(calibration: Calibration, kind: str) -> None:
    """Refuse measurements of a CPU as estimates for a GPU, and the reverse.

    Raises:
        UserError: they differ.
    """
    if calibration.kind != kind:
        raise UserError(
            "calibration",
            calibration.describe(),
            f"measured on the kind of device that is planned for ({kind})",
            "choose another --hardware or calibrate there",
        )

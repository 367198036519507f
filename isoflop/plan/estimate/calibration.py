"""Measured step times, which take the roofline's place where they exist: the file and its reader.

`isoflop calibrate` (isoflop/train/calibrate.py) measures; nothing here imports torch.
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
from isoflop.spec import RunSpec

CALIBRATION_SCHEMA_VERSION = 1
FILE_NAME = "calibration.json"

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
        path = path / FILE_NAME
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

"""What an estimate needs to know of a device: its profile, and step times measured on it.

Profiles are TOML files. A calibration, which isoflop/train/calibrate.py measures, takes the
place of the roofline where it has the shape of a run. Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import math
import platform
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from isoflop.errors import UserError
from isoflop.files import read_json, write_json_atomic
from isoflop.plan.estimate.measured import MeasuredCommand
from isoflop.resources import builtin_names, read_profile
from isoflop.spec import RunSpec
from isoflop.validate import CLOSED, Count, Ge, Gt, Le, Lt, in_file, validated

PRECISIONS = ("bf16", "fp32")

CALIBRATION_FILE = "calibration.json"
CALIBRATION_SCHEMA_VERSION = 1

_PREFIX = "hardware_"

Kind = Literal["cpu", "cuda"]
"""Of a device, as torch names it; a device of a CPU is one core."""

Positive = Annotated[float, Gt(0), Lt(math.inf)]
Share = Annotated[float, Gt(0), Le(1)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardware:
    """One device and its links. Rates are per second, sizes in bytes.

    Raises:
        UserError: an empty text, or not the precisions there are.
    """

    __pydantic_config__: ClassVar = CLOSED

    name: str
    description: str
    kind: Kind
    source: str
    """Where each number is from, and which are assumed."""
    matmul_flops_per_s: Mapping[str, Positive]
    """Peak of dense matrix products by precision: bf16, fp32, and tf32 where there is such a
    mode; without it float32 is multiplied as fp32."""
    matmul_efficiency: Share
    """Share of the peak that training reaches."""
    memory_bytes: Count
    memory_bytes_per_s: Positive
    memory_efficiency: Share
    """Share of the memory bandwidth that streams reach."""
    l2_bytes: Count
    """Size of the last cache that all of the device shares."""
    l2_bytes_per_s: Positive
    interconnect_bytes_per_s: Positive
    """Between the devices of a node, one way."""
    network_bytes_per_s: Positive
    """Between nodes, per device, one way."""
    devices_per_node: Count
    process_bytes: Annotated[int, Ge(0)]
    """What a process holds before it has a model, where that is in the peaks that are reported."""
    operator_overhead_s: Positive
    """Host seconds that one operator costs whatever its size."""
    price_per_hour: Positive | None = None
    """Of one device; None: not known."""

    def __post_init__(self) -> None:
        for name in ("name", "description", "source"):
            if not getattr(self, name).strip():
                raise UserError(
                    f"hardware.{name}", getattr(self, name), "a text", "correct the profile"
                )
        if set(self.matmul_flops_per_s) - {"tf32"} != set(PRECISIONS):
            raise UserError(
                "hardware.matmul_flops_per_s",
                dict(self.matmul_flops_per_s),
                f"a table with {' and '.join(PRECISIONS)}, and tf32 or not",
                "correct the profile",
            )

    def matmul_rate(self, precision: str) -> float:
        """Return FLOP/s that matrix products of a precision are assumed to reach."""
        return self.matmul_flops_per_s[precision] * self.matmul_efficiency

    @property
    def float32_products(self) -> str:
        """How float32 is multiplied where nothing else is asked for: the head's, and fp32 runs'."""
        return "tf32" if "tf32" in self.matmul_flops_per_s else "fp32"

    @property
    def operation_rate(self) -> float:
        """Operations per second on the vector units, which count a multiply-add as two FLOPs."""
        return self.matmul_rate("fp32") / 2

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
    return validated(
        Hardware,
        values,
        what="hardware",
        do="correct the profile",
        do_missing="correct the profile",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class StepShape:
    """What the time of a step depends on: all of a run's spec but steps, seed, data and recipe."""

    __pydantic_config__: ClassVar = CLOSED

    family: str
    config: Mapping[str, int | str]
    d_model: Count
    n_layers: Count
    n_heads: Count
    vocab_size: Count
    seq_len: Count
    batch_size: Count
    precision: str

    @staticmethod
    def of(spec: RunSpec) -> StepShape:
        """Return the shape of a run's step."""
        values = {f.name: getattr(spec, f.name) for f in dataclasses.fields(StepShape)}
        return StepShape(**(values | {"config": dict(spec.config)}))

    def as_spec(self) -> RunSpec:
        """Return a run of this shape: one step, of no data."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return RunSpec(**values, steps=1, data_id="", tokenizer_hash="", seed=0, recipe="")

    @property
    def key(self) -> Hashable:
        """Equal for equal shapes."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return tuple((values | {"config": tuple(sorted(self.config.items()))}).values())


def shape_key(spec: RunSpec) -> Hashable:
    """Return what is equal for runs whose steps take the same time."""
    return StepShape.of(spec).key


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredStep:
    """One shape's optimizer step on one device."""

    __pydantic_config__: ClassVar = CLOSED

    shape: StepShape
    step_s: Positive
    """Median, seconds."""
    step_s_min: Positive
    step_s_max: Positive
    num_steps: int
    """Timed steps, after the warm-up."""
    peak_mem_bytes: int | None
    """Of the process on the CPU, allocated on a GPU; None where the system does not tell."""
    micro_batch: int | None = None
    """Sequences that were taken through the model at a time; None: the whole batch."""
    checkpointing: bool = False
    """Whether activations were recomputed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """Step times measured on one machine."""

    __pydantic_config__: ClassVar = CLOSED

    kind: Kind
    machine: str
    """Processor or GPU, in the system's words."""
    torch: str | None
    """Version; None: isoflop trained nothing itself."""
    date: str
    """UTC day, ISO 8601."""
    num_threads: int
    entries: tuple[MeasuredStep, ...]
    """Of built-in families."""
    commands: tuple[MeasuredCommand, ...] = ()
    """Of a trainer of the user's own."""

    def by_shape(self) -> dict[Hashable, MeasuredStep]:
        """Return entries by shape_key."""
        return {entry.shape.key: entry for entry in self.entries}

    def describe(self) -> str:
        """Return where and when, in a phrase."""
        torch = "" if self.torch is None else f", torch {self.torch}"
        return f"measured on {self.machine} ({self.kind}){torch}, {self.date}"


def processor_name() -> str:
    """Return the processor of this machine, in the system's words."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Write the file, atomically."""
    values = dataclasses.asdict(calibration)
    if not calibration.commands:
        del values["commands"]
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
    do = "run `isoflop calibrate` again"
    if not isinstance(values, dict) or values.get("schema_version") != CALIBRATION_SCHEMA_VERSION:
        allowed = f"a calibration of schema version {CALIBRATION_SCHEMA_VERSION}"
        raise UserError("calibration", str(path), allowed, do)
    rest = {key: value for key, value in values.items() if key != "schema_version"}
    try:
        return validated(Calibration, rest)
    except UserError as error:
        raise in_file(error, path, do) from None


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

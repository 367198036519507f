"""Results, one per operator, shape, contender and mode: as a file and as text."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from isoflop_kernels.bench.cases import RIVALS, Shape
from isoflop_kernels.bench.traffic import kernels


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A measurement; None where nothing was measured or no model exists, never 0.

    The fields are the columns of the parquet file, in this order.
    """

    operator: str
    shape: str
    # Sizes T, D, C, K, N and E of the shape.
    tokens: int
    width: int
    channels: int
    chosen: int
    sub_keys: int
    experts: int
    dtype: str
    # An implementation, or a rival: "mlp", "two topk", "topk".
    contender: str
    # "forward", "backward" or "both".
    mode: str
    # Why nothing was measured.
    skipped: str | None = None
    repeats: int | None = None
    # CPU time of one thread, or time on the GPU: median, fastest and slowest repeat.
    milliseconds: float | None = None
    min_milliseconds: float | None = None
    max_milliseconds: float | None = None
    # Median by the clock on the wall; CPU only.
    wall_milliseconds: float | None = None
    # Above the inputs, of one forward and backward pass; in mode "both" of gathered_linear only.
    peak_bytes: int | None = None
    flops: int | None = None
    # By the model of `traffic.py`: all kernels, the chosen rows, arguments and results once.
    moved_bytes: int | None = None
    gathered_bytes: int | None = None
    least_bytes: int | None = None
    # The machine's limits in this run.
    bytes_per_second: float | None = None
    flops_per_second: float | None = None
    # Time that the chosen rows would take at the memory's bandwidth, over the time taken: above 1
    # where they come from caches.
    gather_fraction: float | None = None
    # Time of the roofline, from least_bytes and flops, over the time taken.
    roofline_fraction: float | None = None


_TYPES = {"str": "string", "int": "int64", "float": "float64"}


def schema() -> list[tuple[str, str, bool]]:
    """Name, Arrow type and nullability of every column."""
    columns = []
    for field in dataclasses.fields(Row):
        kind, _, rest = str(field.type).partition(" | ")
        columns.append((field.name, _TYPES[kind], rest == "None"))
    return columns


def write_parquet(path: Path, rows: list[Row], environment: dict[str, str]) -> None:
    """Write the rows, the environment as the file's metadata; a file there is replaced at once.

    Raises:
        ImportError: pyarrow is not installed.
        OSError: the file cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    fields: list[Any] = [pa.field(n, kind, nullable=null) for n, kind, null in schema()]
    table = pa.Table.from_pylist(
        [dataclasses.asdict(row) for row in rows], pa.schema(fields, metadata=environment)
    )
    part = path.with_name(f".{path.name}.part")
    pq.write_table(table, part)
    part.replace(path)


def append_jsonl(path: Path, rows: Sequence[Row], environment: dict[str, str]) -> None:
    """Append a line of JSON per row, with the environment; on the disk when this returns.

    A run that is cut keeps what it had measured; neither pyarrow nor another package is needed.

    Raises:
        OSError: the file cannot be written.
    """
    with path.open("a", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(dataclasses.asdict(row) | {"environment": environment}) + "\n")
        file.flush()
        os.fsync(file.fileno())


NAME = 10
TIMES = """\
ms is {clock}, the median; both is forward and backward in one, with its range.
x eager: how many times faster than the reference. x {rival}: how many times the time of {rival}."""
ROOF = "roof %: time of the roofline (arguments and results once, all FLOPs), over the time."
LAYER = """\
peak: memory above the inputs, and its share of the reference's. moved: bytes by the model.
rows %: time of the gathered rows at the measured bandwidth, over the time; over 100 from caches."""


def legend(operator: str, device_type: str) -> str:
    """Return what the columns mean."""
    clock = "time on the GPU" if device_type == "cuda" else "CPU time of one thread"
    times = TIMES.format(clock=clock, rival=RIVALS[operator])
    return "\n".join([times, *([LAYER] if operator == "gathered_linear" else []), ROOF])


def block(operator: str, rows: Sequence[Row]) -> str:
    """Return one shape's table: a line per contender, the modes beside each other."""
    by_key = {(row.contender, row.mode): row for row in rows}
    names = list(dict.fromkeys(row.contender for row in rows))
    rival = f"x {RIVALS[operator]}".replace("two ", "")
    columns = [
        (8, "forward"),
        (9, "backward"),
        (8, "both"),
        (17, "(min - max)"),
        (8, "x eager"),
        (8, rival),
        (8, "wall"),
        *([(8, "peak MB"), (6, "share"), (9, "moved MB")] if _is_layer(operator) else []),
        *([(7, "rows %")] if _is_layer(operator) else []),
        (7, "roof %"),
    ]
    lines = [_joined("", columns)]
    for name in names:
        reason = next(row.skipped for row in rows if row.contender == name)
        if reason is None:
            cells = _cells(name, operator, by_key)
            widths = [width for width, _ in columns]
            lines.append(_joined(name, list(zip(widths, cells, strict=True))))
        else:
            lines.append(f"{name:{NAME}} skipped: {reason}")
    return "\n".join(lines)


def _cells(name: str, operator: str, by_key: dict[tuple[str, str], Row]) -> list[str]:
    found = {mode: row for (contender, mode), row in by_key.items() if contender == name}
    # The most complete mode that was measured carries the comparisons.
    row = next(found[mode] for mode in ("both", "backward", "forward") if mode in found)
    forward, backward, both = (
        found[mode].milliseconds if mode in found else None
        for mode in ("forward", "backward", "both")
    )
    eager, rival = (by_key.get((who, row.mode)) for who in ("reference", RIVALS[operator]))
    cells = [
        _number(forward),
        _number(backward),
        _number(both),
        f"({_number(row.min_milliseconds)} - {_number(row.max_milliseconds)})",
        _number(_ratio(eager.milliseconds if eager else None, row.milliseconds)),
        _number(_ratio(row.milliseconds, rival.milliseconds if rival else None)),
        _number(row.wall_milliseconds),
    ]
    if _is_layer(operator):
        cells += [
            _number(_scaled(row.peak_bytes, 1e-6)),
            _number(_ratio(row.peak_bytes, eager.peak_bytes if eager else None)),
            _number(_scaled(row.moved_bytes, 1e-6)),
            _number(_scaled(row.gather_fraction, 100)),
        ]
    return [*cells, _number(_scaled(row.roofline_fraction, 100))]


def _is_layer(operator: str) -> bool:
    """Return whether memory and gathered rows are known."""
    return operator == "gathered_linear"


def _joined(name: str, cells: Sequence[tuple[int, str]]) -> str:
    return f"{name:{NAME}}" + "".join(f"{text:>{width}}" for width, text in cells)


def kernel_bytes(shape: Shape, b: int, contenders: Sequence[str], mode: str) -> str:
    """Return bytes per token of every kernel against the rows it gathers, by the model."""
    lines = [f"{'':{NAME}}{'kernel':26}{'reads':>12}{'writes':>12}{'rows':>12}{'moved / rows':>14}"]
    for contender in contenders:
        for kernel in kernels(contender, shape, b, mode) or []:
            reads, writes, rows = (
                value / shape.T for value in (kernel.reads, kernel.writes, kernel.gathered)
            )
            ratio = f"{kernel.moved / kernel.gathered:.2f}" if kernel.gathered else "-"
            lines.append(
                f"{contender:{NAME}}{kernel.name:26}{reads:12,.0f}{writes:12,.0f}{rows:12,.0f}"
                f"{ratio:>14}"
            )
    return "\n".join(lines)


def _ratio(above: float | None, below: float | None) -> float | None:
    return None if above is None or below is None else above / below


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _number(value: float | None) -> str:
    """Return three digits, or all before the point."""
    if value is None:
        return "-"
    magnitude = abs(value)
    return f"{value:.{0 if magnitude >= 100 else 1 if magnitude >= 10 else 2}f}"

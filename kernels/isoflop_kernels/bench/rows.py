"""One result per operator, shape, contender and mode, and the parquet file of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any


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

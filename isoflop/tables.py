"""Tables as parquet files: schemas from dataclasses, the tables of plans and of runs.

A table is a dataclass, its row; results/README.md explains the columns, and is where
:func:`column_of` reads what they mean. Schemas are plain tuples,
so that importing this module stays cheap; pyarrow is imported when a table is read or written.
FLOPs are float64, other counts int64. Missing is null.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop.disk import fault_of
from isoflop.errors import UserError
from isoflop.files import write_bytes_atomic
from isoflop.resources import builtin
from isoflop.units import NATS, read_unit

if TYPE_CHECKING:
    import pyarrow as pa
    from _typeshed import DataclassInstance

FIRST_VERSION = 3
VERSION_KEY = b"isoflop_schema_version"
UNIT_KEY = b"isoflop_loss_unit"
OWN_TRAINER = "trainer"
"""In place of a family: a run of a trainer of one's own."""
METRIC = "metric_"
"""What the columns of further numbers that runs reported begin with."""

_HEADING = re.compile(r"^### (\w+)\.parquet\b")
_ROW = re.compile(r"^\| `(\w+)` \|([^|]*)\|([^|]*)\|(.*)\|$")
_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
# Of a metric there is one row for all names.
_ANY_METRIC = f"{METRIC}NAME"
# A table whose columns are another's and its own.
_BEGINS_AS = {"runs": "plan"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Schema:
    """Name of a table and its columns: (column, type), types being pyarrow's names."""

    table: str
    columns: tuple[tuple[str, str], ...]
    version: int = FIRST_VERSION
    """The schema version since which the table means what it does now."""
    later: frozenset[str] = frozenset()
    """Columns that are only written where a row has a value, and are null where they are absent."""
    unit: str = NATS
    """Of the losses in it; only another one than nats per token is written down."""

    @property
    def names(self) -> tuple[str, ...]:
        """Column names in order."""
        return tuple(name for name, _ in self.columns)

    def row(self, **values: Any) -> dict[str, Any]:
        """Return a row with these values and null in every other column."""
        assert set(values) <= set(self.names), set(values) - set(self.names)
        return {name: values.get(name) for name in self.names}

    def arrow(self) -> pa.Schema:
        """Return the pyarrow schema, with schema version and unit of losses in its metadata."""
        import pyarrow as pa

        kinds = {"list<string>": pa.list_(pa.string())}
        fields = [
            (name, kinds[kind] if kind in kinds else pa.type_for_alias(kind))
            for name, kind in self.columns
        ]
        metadata = {VERSION_KEY: str(self.version).encode()}
        if self.unit != NATS:
            metadata[UNIT_KEY] = self.unit.encode()
        return pa.schema(fields, metadata=metadata)

    def with_columns(self, columns: Iterable[tuple[str, str]]) -> Schema:
        """Return the schema with more columns, which are only written where a row has a value."""
        more = tuple(columns)
        return dataclasses.replace(
            self,
            columns=(*self.columns, *more),
            later=self.later.union(name for name, _ in more),
        )


def schema_of(table: str, row: type, *, version: int = FIRST_VERSION) -> Schema:
    """Return the schema of the table whose rows are instances of a dataclass.

    Its fields are the columns, in order, but for those with the metadata `NOT_A_COLUMN`. Types come
    from the annotations; any column may be null.
    """
    kinds = typing.get_type_hints(row)
    return Schema(
        table=table,
        version=version,
        columns=tuple(
            (field.name, _kind(kinds[field.name]))
            for field in dataclasses.fields(row)
            if not NOT_A_COLUMN.items() <= field.metadata.items()
        ),
        later=frozenset(
            field.name
            for field in dataclasses.fields(row)
            if LATER_COLUMN.items() <= field.metadata.items()
        ),
    )


NOT_A_COLUMN = {"column": False}
LATER_COLUMN = {"later": True}
"""Of a column that tables of earlier versions lack; see :class:`Schema`."""

_KINDS = {str: "string", float: "float64", int: "int64", bool: "bool"}


def _kind(annotation: Any) -> str:
    """Return the column type of an annotation, `| None` aside."""
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        (annotation,) = set(typing.get_args(annotation)) - {type(None)}
    if typing.get_origin(annotation) is typing.Literal:
        (annotation,) = {type(value) for value in typing.get_args(annotation)}
    return "list<string>" if annotation == tuple[str, ...] else _KINDS[annotation]


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanRow:
    """One row of plan.parquet; results/README.md says what each column is."""

    run_id: str
    arch: str
    family: str
    size: int
    budget_flops: float
    flops: float
    residual: float
    match_residual: float | None
    n_params: int
    n_active: int
    n_nonembed: int
    n_tokens: int
    steps: int
    batch_size: int
    seq_len: int
    seed: int
    d_model: int | None
    n_layers: int | None
    n_heads: int | None
    epochs: float | None
    flops_attn_proj: float | None
    flops_attn_scores: float | None
    flops_experts: float | None
    flops_router: float | None
    flops_head: float | None
    est_step_s: float | None
    est_gpu_hours: float | None
    est_peak_mem_bytes: float | None
    warnings: tuple[str, ...]
    flops_other: float | None = field(default=None, metadata=LATER_COLUMN)
    declared: bool | None = field(default=None, metadata=LATER_COLUMN)


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredRow(PlanRow):
    """What the plan says of a run, and what was measured of it."""

    loss: float | None
    loss_se: float | None
    perplexity: float | None
    bits_per_byte: float | None
    wall_s: float | None
    step_s_median: float | None
    peak_mem_bytes: int | None
    tokens_per_s: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRow(MeasuredRow):
    """One row of runs.parquet."""

    n_attempts: int
    status: str
    status_reason: str | None
    excluded_reason: str | None
    flops_spent: float | None = field(default=None, metadata=LATER_COLUMN)
    wall_s_spent: float | None = field(default=None, metadata=LATER_COLUMN)


PLAN = schema_of("plan", PlanRow)
RUNS = schema_of("runs", RunRow)
MEASURED = schema_of("measured", MeasuredRow).names[len(PLAN.names) :]
"""The columns of runs.parquet that a run's result file holds."""


def runs_schema(rows: Iterable[Mapping[str, Any]], unit: str) -> Schema:
    """Return the schema of runs.parquet for some rows, with a column for each of their metrics.

    Args:
        rows: those of the table; metrics by the name of their column.
        unit: of the losses.
    """
    found = dict.fromkeys(name for row in rows for name in row if name.startswith(METRIC))
    schema = dataclasses.replace(RUNS, unit=unit)
    return schema.with_columns((name, "float64") for name in sorted(found))


def _values(row: Mapping[str, Any] | DataclassInstance, schema: Schema) -> Mapping[str, Any]:
    if not isinstance(row, Mapping):
        return {name: getattr(row, name) for name in schema.names}
    assert set(row) - schema.later == set(schema.names) - schema.later
    return {name: row.get(name) for name in schema.names}


def _null_if_not_finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_table(
    path: Path,
    rows: Sequence[Mapping[str, Any] | DataclassInstance],
    schema: Schema,
    *,
    make_folder: bool = True,
) -> None:
    """Write rows as parquet, atomically; a NaN or infinity becomes null.

    A row is an instance of the schema's dataclass, or a mapping of exactly the schema's columns.
    """
    values = [_values(row, schema) for row in rows]
    unused = {name for name in schema.later if all(row[name] is None for row in values)}
    columns = tuple(column for column in schema.columns if column[0] not in unused)
    schema = dataclasses.replace(schema, columns=columns)
    data = parquet_bytes(_arrow_table(values, schema.arrow()))
    write_bytes_atomic(path, data, make_folder=make_folder)


def parquet_bytes(table: pa.Table) -> bytes:
    """Return an Arrow table as a parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    data: bytes = sink.getvalue().to_pybytes()
    return data


def write_runs(path: Path, rows: Sequence[Mapping[str, Any]], unit: str) -> None:
    """Write runs.parquet; losses are in ``unit``."""
    write_table(path, rows, runs_schema(rows, unit))


def _arrow_table(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Return rows as an Arrow table, by way of JSON lines.

    Building arrays from Python lists makes pyarrow import pandas where it is installed, which
    takes longer than all the rest of `isoflop plan`. JSON carries every float64 exactly.
    """
    import pyarrow as pa
    import pyarrow.json

    if not rows:
        return schema.empty_table()
    lines = (
        json.dumps({name: _null_if_not_finite(row[name]) for name in schema.names}) for row in rows
    )
    parsed = pyarrow.json.read_json(
        pa.BufferReader("\n".join(lines).encode()),
        parse_options=pyarrow.json.ParseOptions(
            explicit_schema=schema, unexpected_field_behavior="error"
        ),
    )
    return parsed.replace_schema_metadata(schema.metadata)


def open_parquet(path: Path, what: str) -> pa.Table:
    """Return any parquet file; ``what`` names its role in the error.

    Raises:
        UserError: it cannot be read, or not to its end.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        if fault_of(error) is not None:
            raise
        reason = str(error).splitlines()[0]
        raise UserError(
            what, str(path), f"a whole parquet file ({reason})", "make it again"
        ) from None


def is_parquet(path: Path) -> bool:
    """Return whether a file begins as parquet, or is called so."""
    with path.open("rb") as file:
        return file.read(4) == b"PAR1" or path.suffix == ".parquet"


def loss_unit(path: Path) -> str:
    """Return the unit of the losses in a table, by its metadata; nats per token without any."""
    return stated_unit(path) or NATS


def stated_unit(path: Path) -> str | None:
    """Return the unit that a table's metadata name; None of a table that isoflop did not write."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not is_parquet(path):
        return None
    try:
        metadata = pq.read_schema(path).metadata or {}
        written = NATS.encode() if VERSION_KEY in metadata else b""
        return metadata.get(UNIT_KEY, written).decode() or None
    except (pa.ArrowException, OSError, UnicodeDecodeError):
        # Whoever reads its rows says what is wrong with it.
        return None


def unit_of(stated: str | None, asked: str | None, where: str, option: str = "--loss-unit") -> str:
    """Return the unit of a table's losses: that which it states, else the one asked for, else nats.

    Args:
        stated: by the table's metadata or its study; None where neither says.
        asked: what the user says (see `read_unit`); None: nothing.
        where: the table, for a message.
        option: what a message calls what was asked.

    Raises:
        UserError: the table states another unit than the user, or no unit is called so.
    """
    wanted = None if asked is None else read_unit(asked, option)
    if stated is not None and wanted is not None and wanted != stated:
        allowed = f"{stated}, which {where} states"
        raise UserError(option, asked, allowed, "leave it out, or name a table without a unit")
    return stated or wanted or NATS


def read_table(
    path: Path, schema: Schema, *, more: str | None = None, also: Iterable[str] = ()
) -> list[dict[str, Any]]:
    """Return the rows of a parquet table written by :func:`write_table`.

    Args:
        path: the file.
        schema: the table's.
        more: what the names of further columns of numbers begin with, which are read, too.
        also: further columns of numbers that must be there.

    Raises:
        UserError: the file is missing, damaged, of another schema version or lacks columns.
    """
    import pyarrow as pa

    what = f"{schema.table} table"
    if not path.is_file():
        raise UserError(what, str(path), "an existing file", "make it again")
    table = open_parquet(path, what)
    version = (table.schema.metadata or {}).get(VERSION_KEY, b"none").decode()
    if version != str(schema.version):
        raise UserError(
            what, str(path), f"schema version {schema.version} (it is {version})", "make it again"
        )
    if more is not None:
        names = (name for name in table.column_names if name.startswith(more))
        schema = schema.with_columns((name, "float64") for name in names)
    further = [(name, "float64") for name in also if name not in schema.names]
    schema = dataclasses.replace(schema, columns=(*schema.columns, *further))
    for name in schema.later.difference(table.column_names):
        table = table.append_column(name, pa.nulls(table.num_rows))
    missing = [name for name in schema.names if name not in table.column_names]
    if missing:
        raise UserError(what, str(path), f"with column {missing[0]}", "make it again")
    try:
        return table.select(list(schema.names)).cast(schema.arrow()).to_pylist()
    # pyarrow's errors of values and types are Python's, too.
    except (ValueError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            what, str(path), f"with the types of its columns ({reason})", "make it again"
        ) from None


@dataclass(frozen=True, kw_only=True, slots=True)
class ColumnMeaning:
    """What a column of a table is."""

    kind: str
    """Its type, in words: string, float64, list of string."""
    unit: str
    """Empty where there is none."""
    meaning: str
    """Empty where the name says it."""


def column_of(table: str, name: str) -> ColumnMeaning | None:
    """Return what a column of a table is; None where it is not one of isoflop's."""
    columns = _meanings().get(table, {})
    if name.startswith(METRIC):
        name = _ANY_METRIC
    return columns.get(name)


def described_tables() -> tuple[str, ...]:
    """Return the names of the tables whose columns are described."""
    return tuple(_meanings())


@functools.cache
def _meanings() -> Mapping[str, Mapping[str, ColumnMeaning]]:
    """Return the columns by table, in the order of the document."""
    tables: dict[str, dict[str, ColumnMeaning]] = {}
    current: dict[str, ColumnMeaning] = {}
    for line in builtin("results", "README.md").read_text(encoding="utf-8").splitlines():
        if heading := _HEADING.match(line):
            name = heading[1]
            current = tables.setdefault(name, dict(tables.get(_BEGINS_AS.get(name, ""), {})))
        elif line.startswith("#"):
            current = {}
        elif row := _ROW.match(line):
            name, kind, unit, meaning = (part.strip() for part in row.groups())
            words = _LINK.sub(r"\1", meaning).replace("`", "")
            current[name] = ColumnMeaning(kind=kind, unit=unit, meaning=words)
    return {name: columns for name, columns in tables.items() if columns}

"""From any table of runs to rows: a study folder's, a file or files of others, a data frame.

Needed columns are ``REQUIRED``; any other column of runs.parquet, and n_experts, is read where it
is there, the rest is ignored. Counts may be fractional and of any size: numbers become float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop.analysis.points import Point
from isoflop.errors import UserError, shown
from isoflop.files import sha256_file, sha256_json
from isoflop.ingest.files import found_files, has_files, read_files
from isoflop.ingest.frames import (
    NUMBERS,
    TEXTS,
    as_frame,
    check_archs,
    read_reason,
    read_text,
    rows_of,
)
from isoflop.tables import (
    METRIC,
    RUNS,
    VERSION_KEY,
    is_parquet,
    open_parquet,
    read_table,
    stated_unit,
)
from isoflop.units import NATS

if TYPE_CHECKING:
    import pyarrow as pa

REQUIRED = ("arch", "budget_flops", "n_params", "n_tokens", "flops", "loss")
_OF_TRUNKS = ("batch_size", "seq_len")
# Of a point: what a table needs, what only isoflop's own tables have, and what tells trunks apart.
_NOT_NAMED = ("run_id", *REQUIRED, "declared", "metrics", "sizes", *_OF_TRUNKS)
OPTIONAL = (
    *(field.name for field in fields(Point) if field.name not in _NOT_NAMED),
    "status",
    "excluded_reason",
)

_COUNTS = tuple(name for name in OPTIONAL if name not in TEXTS)
_WHAT = "runs table"
_TABLE = "runs.parquet"


def table_of(path: Path) -> Path:
    """Return the table that a study folder, the path of a table or a pattern of paths names.

    Raises:
        UserError: there is none.
    """
    if path.is_file():
        return path
    if path.is_dir() and (path / _TABLE).is_file():
        return path / _TABLE
    if path.is_dir():
        allowed, do = f"a folder with plan.json or {_TABLE}", "plan a study into it, or name a file"
    elif has_files(str(path)):
        return path
    else:
        allowed = "an existing study folder, a csv, parquet, json or jsonl file, or such files"
        do = "check the path"
    raise UserError(_WHAT, str(path), allowed, do)


def table_unit(path: Path) -> str | None:
    """Return the unit that a table, or all files of a pattern, state; None where none does.

    Raises:
        UserError: files of a pattern differ.
    """
    stated = {file.name: stated_unit(file) for file in _files_of(path)}
    if len({unit or NATS for unit in stated.values()}) > 1:
        told = ", ".join(f"{unit or NATS} ({name})" for name, unit in stated.items())
        do = "fit those of each unit by themselves"
        raise UserError("losses", shown(told), "of one unit in all files", do)
    return next((unit for unit in stated.values() if unit is not None), None)


def digest_of(path: Path) -> str:
    """Return hex sha256 of a table's file; of several files, that of their names and digests."""
    files = _files_of(path)
    if files == [path]:
        return sha256_file(path)
    return sha256_json({str(file): sha256_file(file) for file in files})


def _files_of(path: Path) -> list[Path]:
    return [path] if path.is_file() else found_files(str(path))


def load_rows(
    source: Path | Any, required: Sequence[str] = REQUIRED, *, more: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Return the rows of runs of any table.

    A csv file is UTF-8 with a header. Empty cells, ``NA`` and ``null`` are missing values; numbers
    may be written as 125M or 16,517,336, statuses as others write them. Columns that are not
    ``required`` may be absent. A row with a cell that is no number stays, with the reason why it
    enters no fit, or without that value where a fit needs none.

    Args:
        source: a study's folder; a csv, parquet, json or jsonl file, also compressed; a pattern of
            such files; a data frame of any kind.
        required: columns that must be there.
        more: further columns of numbers that must be there.

    Raises:
        UserError: no such file, not a table, columns missing or named twice, a needed column that
            holds no number.
    """
    if not isinstance(source, Path | str):
        return rows_of(as_frame(source), "the frame", required, more, optional=OPTIONAL)
    path = table_of(Path(source))
    own = _own_rows(path, more) if path.is_file() and is_parquet(path) else None
    if own is not None:
        return own
    frame = read_files(str(path)).frame
    return rows_of(frame, str(path), required, more, optional=OPTIONAL)


def typed_rows(
    rows: Any, required: Sequence[str] = REQUIRED, *, more: Sequence[str] = ()
) -> Sequence[Mapping[str, Any]]:
    """Return rows as :func:`load_rows` does; of those that it returned before, as they are.

    Args:
        rows: a data frame of any kind, or mappings.
        required: columns that a frame must have; those of mappings may be absent.
        more: further columns of numbers that are used.

    Raises:
        UserError: as :func:`load_rows`.
    """
    if hasattr(rows, "__arrow_c_stream__") or hasattr(rows, "__dataframe__"):
        return load_rows(rows, required, more=more)
    found = list(rows)
    if not found or all(_is_typed(row, more) for row in found):
        return found
    frame = as_frame(found)
    there = [name for name in (*required, *more) if name in frame.columns]
    return rows_of(frame, "the rows", there, optional=(*OPTIONAL, *more))


def _is_typed(row: Mapping[str, Any], more: Sequence[str]) -> bool:
    """Return whether the cells that a fit uses have the types that `load_rows` gives them."""
    numbers = (row.get(name) for name in (*REQUIRED[1:], *_COUNTS, *more))
    texts = (row.get(name) for name in ("arch", "status", "excluded_reason"))
    return all(
        cell is None or (isinstance(cell, int | float) and not isinstance(cell, bool))
        for cell in numbers
    ) and all(cell is None or isinstance(cell, str) for cell in texts)


def _own_rows(path: Path, more: Sequence[str]) -> list[dict[str, Any]] | None:
    """Return the rows of a table that isoflop wrote; None: others did."""
    table = open_parquet(path, _WHAT)
    if VERSION_KEY not in (table.schema.metadata or {}):
        return None
    if "loss" not in table.column_names:
        raise UserError(_WHAT, str(path), f"a table of runs, not {path.stem}", f"name {_TABLE}")
    _check_further(path, table.schema, more)
    # Of imported tables, which alone have it.
    further = {"n_experts"} & set(table.column_names)
    rows = read_table(path, RUNS, more=METRIC, also=(*more, *further.difference(more)))
    if not rows:
        raise UserError(_WHAT, str(path), "a table with at least one row", "add runs to it")
    check_archs([row["arch"] for row in rows], lambda row: f"data row {row + 1} of {path}")
    return [_own_row(row, more) for row in rows]


def _check_further(path: Path, schema: pa.Schema, names: Sequence[str]) -> None:
    from pyarrow import types

    counts = [
        field.name
        for field in schema
        if types.is_integer(field.type) or types.is_floating(field.type)
    ]
    for name in names:
        if name not in counts:
            near = get_close_matches(name, counts, n=3)
            allowed = f"a column of numbers of {path}" + f" (nearest: {', '.join(near)})" * bool(
                near
            )
            raise UserError("column", name, allowed, "correct the name, or add it to the table")


def _own_row(row: Mapping[str, Any], more: Sequence[str]) -> dict[str, Any]:
    """Return a row as `isoflop.ingest.frames.rows_of` does, whose columns have their types."""
    typed: dict[str, Any] = {}
    for name, cell in row.items():
        if name == "excluded_reason":
            typed[name] = read_reason(cell)
        elif name in TEXTS:
            typed[name] = read_text(cell)
        elif name in ("seed", "declared"):
            typed[name] = cell
        elif name in NUMBERS or name in more or name.startswith(METRIC):
            typed[name] = None if cell is None else float(cell)
    return typed

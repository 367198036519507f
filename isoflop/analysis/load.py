"""From any table of runs to rows: a study folder's, or any csv or parquet file.

Needed columns are ``REQUIRED``; any other column of runs.parquet, and n_experts, is read where it
is there, the rest is ignored. Counts may be fractional and of any size: numbers become float64.
What no fit could use as it stands (a missing column, text in a number) is the user's mistake, in
one line.
"""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import fields
from decimal import Decimal
from pathlib import Path
from typing import Any

from isoflop.analysis.points import Point
from isoflop.errors import UserError, shown
from isoflop.tables import METRIC, RUNS, VERSION_KEY, is_parquet, open_parquet, read_table
from isoflop.texts import has_control

REQUIRED = ("arch", "budget_flops", "n_params", "n_tokens", "flops", "loss")
# Of a point: what a table needs, and what only isoflop's own tables have.
_NOT_NAMED = ("run_id", *REQUIRED, "declared", "metrics")
OPTIONAL = (
    *(field.name for field in fields(Point) if field.name not in _NOT_NAMED),
    "status",
    "excluded_reason",
)

_NUMBERS = {"n_experts"} | {name for name, kind in RUNS.columns if kind in ("int64", "float64")}
_TEXTS = frozenset(name for name, kind in RUNS.columns if kind == "string")
_KNOWN = _NUMBERS | _TEXTS
_MISSING = frozenset({"", "na", "n/a", "null", "none"})
_FALSE = frozenset({"false", "no", "0", "nan", *_MISSING})
_WHAT = "runs table"
_TABLE = "runs.parquet"


def table_of(path: Path) -> Path:
    """Return the table that a study folder or the path of a table names.

    Raises:
        UserError: there is none.
    """
    if path.is_file():
        return path
    if path.is_dir() and (path / _TABLE).is_file():
        return path / _TABLE
    if path.is_dir():
        allowed, do = f"a folder with plan.json or {_TABLE}", "plan a study into it, or name a file"
    else:
        allowed, do = "an existing study folder, csv or parquet file", "check the path"
    raise UserError(_WHAT, str(path), allowed, do)


def load_rows(path: Path, required: Sequence[str] = REQUIRED) -> list[dict[str, Any]]:
    """Return the rows of a study folder's runs.parquet or of a csv or parquet file.

    A csv file is UTF-8 (with or without a byte-order mark), comma-separated, with a header; empty
    cells, ``NA`` and ``null`` are missing values. Columns that are not ``required`` may be absent.

    Raises:
        UserError: no such file, not a table, columns missing or named twice, text in a number.
    """
    path = table_of(path)
    names, rows = _read_parquet(path) if is_parquet(path) else _read_csv(path)
    _check_columns(path, names, required)
    converted = [_row(path, names, number, row) for number, row in enumerate(rows, start=1)]
    if not converted:
        raise UserError(_WHAT, str(path), "a table with at least one row", "add runs to it")
    return converted


def _read_parquet(path: Path) -> tuple[list[str], Iterable[Sequence[Any]]]:
    table = open_parquet(path, _WHAT)
    if VERSION_KEY in (table.schema.metadata or {}):
        if "loss" not in table.column_names:
            raise UserError(_WHAT, str(path), f"a table of runs, not {path.stem}", f"name {_TABLE}")
        rows = read_table(path, RUNS, more=METRIC)
        return list(rows[0] if rows else RUNS.names), [tuple(row.values()) for row in rows]
    columns = [column.to_pylist() for column in table.columns]
    return list(table.column_names), list(zip(*columns, strict=True))


def _read_csv(path: Path) -> tuple[list[str], Iterable[Sequence[Any]]]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
        lines = [line for line in csv.reader(io.StringIO(text, newline=""), strict=True) if line]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            _WHAT, str(path), f"a csv file in UTF-8 or a parquet file ({error})", "convert it"
        ) from None
    if not lines:
        raise UserError(_WHAT, str(path), "a table with a header", "write it again")
    names = [name.strip() for name in lines[0]]
    if len(names) == 1 and (mark := next((m for m in ";\t|" if m in names[0]), None)):
        raise UserError(_WHAT, str(path), f"comma-separated (not by {mark!r})", "convert it")
    for number, line in enumerate(lines[1:], start=1):
        if len(line) != len(names):
            raise UserError(
                f"data row {number} of {path}",
                shown(f"{len(line)} cells"),
                f"{len(names)} cells, as the header",
                "correct the table",
            )
    return names, lines[1:]


def _check_columns(path: Path, names: Sequence[str], required: Sequence[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1 and name in _KNOWN]
    if twice:
        raise UserError(
            f"column {twice[0]} of {path}", shown("twice"), "there once", "rename or drop one"
        )
    missing = [name for name in required if name not in names]
    if missing:
        raise UserError(
            f"columns of {path}",
            ", ".join(names) or "none",
            f"{', '.join(required)}, and any others",
            f"add {', '.join(missing)}, or rename what holds them (also read: "
            f"{', '.join(name for name in (*REQUIRED, *OPTIONAL) if name not in required)})",
        )


def _row(path: Path, names: Sequence[str], number: int, cells: Sequence[Any]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, cell in zip(names, cells, strict=True):
        if name == "excluded_reason":
            row[name] = _reason(cell)
        elif name in _TEXTS:
            row[name] = None if is_missing(cell) else str(cell)
            if name == "arch" and has_control(row[name] or ""):
                # Figures cannot show it, and nobody sees how it differs from the name without.
                allowed = "a name without control characters"
                raise UserError(f"arch in data row {number} of {path}", cell, allowed, "rename it")
        elif name in _NUMBERS:
            row[name] = _number(path, name, number, cell)
        elif name == "declared":
            row[name] = cell if isinstance(cell, bool) else None
        elif name.startswith(METRIC) and isinstance(cell, float):
            row[name] = cell
    return row


def _number(path: Path, name: str, number: int, cell: Any) -> float | int | None:
    if is_missing(cell) and not isinstance(cell, float):
        return None
    try:
        if not isinstance(cell, str | int | float | Decimal) or isinstance(cell, bool):
            raise ValueError
        value = float(cell)
        if name == "seed":
            return _seed(value)
    except (ValueError, OverflowError):
        raise UserError(
            f"{name} in data row {number} of {path}",
            cell,
            "a whole number" if name == "seed" else "a number",
            "correct it, or leave the cell empty",
        ) from None
    return value


def _seed(value: float) -> int | None:
    if math.isnan(value):
        return None
    if not value.is_integer():
        raise ValueError
    return int(value)


def _reason(cell: Any) -> str | None:
    """Return a reason in words; of a column of booleans, a reason where it is true."""
    if is_missing(cell) or str(cell).strip().lower() in _FALSE:
        return None
    is_true = str(cell).strip().lower() in ("true", "yes", "1", "1.0")
    return "marked as excluded" if is_true else str(cell)


def is_missing(cell: Any) -> bool:
    """Return whether a cell of a table holds no value."""
    if isinstance(cell, float):
        return math.isnan(cell)
    return cell is None or (isinstance(cell, str) and cell.strip().lower() in _MISSING)

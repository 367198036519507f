"""Frames of any kind as rows of runs: numbers, statuses and reasons as other people write them.

Only columns that are used are read. A cell that cannot be read costs its own row, with the reason;
a column of which no cell can be read is refused.
"""

from __future__ import annotations

import difflib
import math
import numbers
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np

from isoflop.arrays import Bools, Floats
from isoflop.errors import UserError, shown
from isoflop.ingest.files import SOURCE_FILE, frame_of_arrow
from isoflop.ingest.known import plain as plain_name
from isoflop.ingest.records import flat, frame_of_records
from isoflop.numbers import read_number
from isoflop.tables import METRIC, RUNS
from isoflop.texts import has_control, printable

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from numpy.typing import NDArray

_WHAT = "table"
NUMBERS = {"n_experts"} | {name for name, kind in RUNS.columns if kind in ("int64", "float64")}
TEXTS = {name for name, kind in RUNS.columns if kind == "string"}
_KNOWN = NUMBERS | TEXTS | {"declared"}
_MISSING = frozenset({"", "na", "n/a", "#n/a", "<na>", "null", "none"})
_MISSING_NUMBERS = sorted(_MISSING | {"-", "--", "–", "—"})
_FALSE = frozenset({"false", "no", "0", "0.0", "nan", *_MISSING})
_TRUE = frozenset({"true", "yes", "1", "1.0"})
_STATUSES = {
    **dict.fromkeys(("done", "finished", "completed", "complete", "success", "succeeded"), "done"),
    **dict.fromkeys(("diverged", "nan", "inf", "exploded"), "diverged"),
    **dict.fromkeys(("failed", "failure", "crashed", "crash", "error", "killed"), "failed"),
    **dict.fromkeys(("cancelled", "canceled", "timeout", "preempted", "preempting"), "failed"),
    **dict.fromkeys(("out_of_memory", "oom", "node_fail"), "failed"),
    **dict.fromkeys(("missing", "running", "pending", "queued", "not started"), "missing"),
}
_MAX_NAMES = 12

UNREAD = "unread"
"""Of a row: cells of columns that a fit can do without and that are no numbers, by their column."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Numbers:
    """A column read as numbers."""

    values: Floats
    """NaN where a cell is missing or was not read, and where its text is ``nan``."""
    missing: Bools
    unread: Bools
    """Cells that are given and no numbers."""


def as_frame(table: Any) -> pd.DataFrame:
    """Return any table as a pandas frame with names of columns that are text.

    Taken are pandas, polars and Arrow (by their protocols), lists of mappings and mappings of
    columns. An index with names becomes columns; the levels of a column's name are joined by dots.

    Raises:
        UserError: it is none of these.
    """
    import pandas as pd

    try:
        if isinstance(table, pd.DataFrame):
            return _plain(table)
        if hasattr(table, "__arrow_c_stream__"):
            import pyarrow as pa

            return frame_of_arrow(pa.table(table))
        if hasattr(table, "__dataframe__"):
            from pyarrow.interchange import from_dataframe

            return frame_of_arrow(from_dataframe(table))
        if isinstance(table, Mapping):
            return _plain(pd.DataFrame({str(name): cells for name, cells in table.items()}))
        if isinstance(table, Sequence) and all(isinstance(row, Mapping) for row in table):
            return frame_of_records([flat(row) for row in table])
    # What libraries raise of a table that is not in order.
    except (ValueError, TypeError, NotImplementedError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        told = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(_WHAT, shown(type(table).__name__), _FRAMES, f"see: {told}") from None
    raise UserError(_WHAT, shown(type(table).__name__), _FRAMES, "convert it")


_FRAMES = "a data frame (pandas, polars, Arrow), a list of dictionaries, or a dictionary of columns"


def _plain(frame: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    names = [
        ".".join(str(part) for part in name if part != "") if isinstance(name, tuple) else str(name)
        for name in frame.columns
    ]
    plain = frame.set_axis(names, axis="columns").reset_index(drop=True)
    added = [name for name in frame.index.names if name is not None and name not in names]
    if not added:
        return plain
    index = frame.index.to_frame(index=False)[added]
    return pd.concat([index.set_axis([str(name) for name in added], axis="columns"), plain], axis=1)


def read_numbers(column: pd.Series) -> Numbers:
    """Return a column of any type as numbers, as `isoflop.numbers.read_number` reads text."""
    import pandas as pd

    kind = column.dtype
    if isinstance(kind, pd.CategoricalDtype):
        read = read_numbers(pd.Series(kind.categories))
        codes = column.cat.codes.to_numpy()
        return _taken(read, codes, codes < 0)
    # A copy: pandas' own may be read-only.
    missing = column.isna().to_numpy(dtype=bool, copy=True)
    is_number = pd.api.types.is_integer_dtype(kind) or pd.api.types.is_float_dtype(kind)
    if is_number and not pd.api.types.is_bool_dtype(kind):
        values = column.to_numpy(dtype=np.float64, na_value=math.nan)
        return Numbers(values=values, missing=missing, unread=np.zeros(len(column), bool))
    cells = column.to_list()
    if (texts := _as_texts(cells)) is not None:
        return _numbers_of_texts(texts)
    values = np.full(len(cells), math.nan)
    unread = np.zeros(len(cells), bool)
    for i, cell in enumerate(cells):
        try:
            value = None if missing[i] else _number(cell)
        except (ValueError, OverflowError):
            unread[i] = True
        else:
            missing[i] = value is None
            values[i] = math.nan if value is None else value
    return Numbers(values=values, missing=missing, unread=unread)


def _taken(read: Numbers, places: NDArray[Any], missing: Bools) -> Numbers:
    """Return the entries of ``read`` at some places, and missing ones."""
    if not len(read.values):
        none = np.zeros(len(places), bool)
        return Numbers(values=np.full(len(places), math.nan), missing=~none, unread=none)
    return Numbers(
        values=np.where(missing, math.nan, read.values[places]),
        missing=missing | read.missing[places],
        unread=~missing & read.unread[places],
    )


def _as_texts(cells: Sequence[Any]) -> pa.Array | None:
    """Return cells that are text or missing as an Arrow array; None: there are others."""
    import pyarrow as pa

    if not any(isinstance(cell, str) for cell in cells):
        return None
    try:
        return pa.array(cells, pa.string(), from_pandas=True)
    except (pa.ArrowException, TypeError, ValueError):
        return None


def _numbers_of_texts(texts: pa.Array) -> Numbers:
    import pyarrow as pa
    import pyarrow.compute as pc

    plain = pc.utf8_trim_whitespace(texts)
    absent = pc.is_in(pc.utf8_lower(plain), value_set=pa.array(_MISSING_NUMBERS))
    missing = pc.or_kleene(absent, texts.is_null()).to_numpy(zero_copy_only=False).astype(bool)
    plain = pc.if_else(pa.array(missing), pa.scalar(None, pa.string()), plain)
    try:
        values = pc.cast(plain, pa.float64()).to_numpy(zero_copy_only=False)
        return Numbers(
            values=values.astype(np.float64), missing=missing, unread=np.zeros(len(texts), bool)
        )
    # Also what Arrow does not read and people write, so each distinct text by itself.
    except pa.ArrowInvalid:
        encoded = plain.dictionary_encode()
    distinct = [_number_or_none(text) for text in encoded.dictionary.to_pylist()]
    unread = np.array([value is None for value in distinct], bool)
    read = Numbers(
        values=np.array([math.nan if v is None else v for v in distinct], np.float64),
        missing=np.zeros(len(distinct), bool),
        unread=unread,
    )
    places = encoded.indices.fill_null(0).to_numpy(zero_copy_only=False)
    return _taken(read, places, missing)


def _number_or_none(text: str) -> float | None:
    try:
        return read_number(text)
    except ValueError:
        return None


def _number(cell: Any) -> float | None:
    """Return one cell of a column of mixed types as a number; None: it is missing.

    Raises:
        ValueError: it is no number.
    """
    if isinstance(cell, str):
        return None if cell.strip().lower() in _MISSING_NUMBERS else read_number(cell)
    if isinstance(cell, bool | np.bool_) or not isinstance(cell, numbers.Real | Decimal):
        raise ValueError(f"a {type(cell).__name__} is no number")
    return float(cell)


def read_status(text: str) -> str:
    """Return a status in isoflop's words: done, diverged, failed, missing; else as it stands."""
    return _STATUSES.get(text.strip().lower(), text)


def is_missing(cell: Any) -> bool:
    """Return whether a cell of a table holds no value."""
    if isinstance(cell, str):
        return cell.strip().lower() in _MISSING
    if isinstance(cell, float):
        return math.isnan(cell)
    # pandas' own are told by name, so that it need not be imported.
    return cell is None or type(cell).__name__ in ("NAType", "NaTType")


def rows_of(
    frame: pd.DataFrame,
    what: str,
    required: Sequence[str],
    more: Sequence[str] = (),
    *,
    optional: Collection[str] = (),
) -> list[dict[str, Any]]:
    """Return the rows of a frame as `isoflop.analysis.points.select_points` takes them.

    A row with a cell that is no number stays, without the value: with an ``excluded_reason`` where
    it is needed, and named under `UNREAD` where a fit can do without.

    Args:
        frame: as :func:`as_frame` returns it.
        what: the table's name, for messages.
        required: columns that must be there.
        more: further columns of numbers that must be there.
        optional: columns of numbers that are used where they are there. Other columns of
            runs.parquet are read as far as they can be.

    Raises:
        UserError: columns missing or named twice, no rows, a needed column without a number.
    """
    known = _KNOWN.union(required, more)
    _check_columns(frame, what, required, more, optional)
    if not len(frame):
        raise UserError(_WHAT, what, "a table with at least one row", "add runs to it")
    columns: dict[str, list[Any]] = {}
    reasons: dict[int, str] = {}
    doubts: dict[int, dict[str, str]] = {}
    # Without its seed a run would look like another of its cell.
    needed = {*required, *more, "seed"}
    for name in frame.columns:
        column = frame[name] if name in known or name.startswith(METRIC) else None
        if column is None:
            continue
        if name == "excluded_reason":
            columns[name] = [read_reason(cell) for cell in column.to_list()]
        elif name in TEXTS and name not in more:
            columns[name] = [read_text(cell) for cell in column.to_list()]
        elif name == "declared":
            columns[name] = [_truth(cell) for cell in column.to_list()]
        else:
            columns[name], unread = _number_cells(column, is_whole=name == "seed")
            if name in needed and unread.any():
                _refuse_unread(frame, what, name, columns[name], unread)
                _note_unread(column, unread, reasons)
            elif name in optional:
                for i in np.flatnonzero(unread).tolist():
                    doubts.setdefault(i, {})[name] = _told(column.iloc[i])
    check_archs(columns.get("arch", ()), lambda row: _place(frame, what, row))
    _name_statuses(columns)
    _add_reasons(columns, reasons, len(frame))
    if doubts:
        columns[UNREAD] = [doubts.get(i) for i in range(len(frame))]
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def _check_columns(
    frame: pd.DataFrame,
    what: str,
    required: Sequence[str],
    more: Sequence[str],
    optional: Collection[str],
) -> None:
    names = list(frame.columns)
    needed = [*required, *(name for name in more if name not in required)]
    known = _KNOWN.union(needed)
    counts = Counter(name for name in names if name in known or name.startswith(METRIC))
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise UserError(
            f"column {printable(twice[0], '')} of {what}",
            shown("twice"),
            "there once",
            "rename or drop one",
        )
    missing = [name for name in needed if name not in names]
    if missing:
        held = ", ".join(names[:_MAX_NAMES]) or "none"
        held += f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
        raise UserError(
            f"columns of {what}",
            shown(repr(held)),
            f"{', '.join(needed)}, and any others",
            f"add {', '.join(missing)}, or rename what holds them"
            f"{_nearest_note(missing, [n for n in names if n not in needed])}, or map them with "
            "isoflop import, in Python with isoflop.load(TABLE, map={}) (also read: "
            f"{', '.join(n for n in optional if n not in needed)})",
        )


def _nearest_note(missing: Iterable[str], names: Sequence[str]) -> str:
    """Return which columns may be the ones missing, by their names; "" where none is near."""
    plain = {plain_name(name): name for name in names}
    found = []
    for name in missing:
        wanted = plain_name(name)
        near = difflib.get_close_matches(wanted, plain, n=1, cutoff=0.6)
        # As loss is in val/loss.
        near = near or [key for key in plain if len(wanted) > 3 and wanted in key][:1]
        found += [f"{printable(plain[key], '')} for {name}" for key in near]
    return f" (nearest: {', '.join(found)})" if found else ""


def _number_cells(column: pd.Series, *, is_whole: bool) -> tuple[list[Any], Bools]:
    """Return a column's numbers, None where there is none, and which cells are no numbers."""
    read = read_numbers(column)
    absent, unread, values = read.missing | read.unread, read.unread, read.values
    if is_whole:
        absent = absent | np.isnan(values)
        unread = unread | (~absent & (values != np.floor(values))) | np.isinf(values)
        absent = absent | unread
    kind = int if is_whole else float
    pairs = zip(absent.tolist(), values.tolist(), strict=True)
    return [None if gone else kind(value) for gone, value in pairs], unread


def _refuse_unread(
    frame: pd.DataFrame, what: str, name: str, cells: Sequence[Any], unread: Bools
) -> None:
    """Refuse a column in which nothing can be read."""
    if any(cell is not None for cell in cells):
        return
    first = int(np.argmax(unread))
    told, do = _told(frame[name].iloc[first]), "correct it, or leave the cell empty"
    if "," in told:
        do = "write a point before decimals, and commas between groups of three digits alone"
    raise UserError(f"{name} in {_place(frame, what, first)}", shown(told), f"a {_kind(name)}", do)


def _note_unread(column: pd.Series, unread: Bools, reasons: dict[int, str]) -> None:
    """Add why rows are left out whose cell in this column is no number."""
    for i in np.flatnonzero(unread).tolist():
        told = _told(column.iloc[i])
        reasons.setdefault(i, f"{column.name} is {told}, which is no {_kind(str(column.name))}")


def _kind(name: str) -> str:
    return "whole number" if name == "seed" else "number"


def _place(frame: pd.DataFrame, what: str, row: int) -> str:
    """Return where a row stands: counted from 1, in its own file where there are several."""
    if SOURCE_FILE in frame.columns and frame[SOURCE_FILE].nunique() > 1:
        file = frame[SOURCE_FILE].iloc[row]
        start = int(np.argmax((frame[SOURCE_FILE] == file).to_numpy()))
        return f"data row {row - start + 1} of {printable(str(file), '')}"
    return f"data row {row + 1} of {what}"


def _told(cell: Any) -> str:
    text = repr(cell if isinstance(cell, str) else str(cell))
    return text if len(text) <= 60 else f"{text[:57]}...'"


def read_text(cell: Any) -> str | None:
    """Return a cell as text; None where it holds no value."""
    return None if is_missing(cell) else str(cell).strip()


def _truth(cell: Any) -> bool | None:
    """Return a truth value; None where the cell is none."""
    if isinstance(cell, bool | np.bool_):
        return bool(cell)
    return {"true": True, "false": False}.get(str(cell).strip().lower())


def read_reason(cell: Any) -> str | None:
    """Return a reason in words; of a column of truth values, a reason where it is true."""
    if is_missing(cell) or (word := str(cell).strip()).lower() in _FALSE:
        return None
    return "marked as excluded" if word.lower() in _TRUE else word


def check_archs(archs: Sequence[str | None], place: Callable[[int], str]) -> None:
    """Refuse names that figures cannot show: nobody sees how they differ from others.

    Args:
        archs: of the rows.
        place: returns where a row stands.
    """
    wrong = {arch for arch in archs if arch is not None and has_control(arch)}
    if wrong:
        row = next(i for i, arch in enumerate(archs) if arch in wrong)
        allowed = "a name without control characters"
        raise UserError(f"arch in {place(row)}", archs[row], allowed, "rename it")


def _name_statuses(columns: dict[str, list[Any]]) -> None:
    """Put isoflop's words for the statuses of others; a blank one leaves it to the loss."""
    if "status" not in columns:
        return
    given = columns["status"]
    named = ["done" if status is None else read_status(status) for status in given]
    reasons = columns.get("status_reason", [None] * len(given))
    columns["status"] = named
    columns["status_reason"] = [
        f"status is {old!r}" if reason is None and new != "done" and new != old else reason
        for old, new, reason in zip(given, named, reasons, strict=True)
    ]


def _add_reasons(columns: dict[str, list[Any]], reasons: Mapping[int, str], num_rows: int) -> None:
    if reasons:
        given = columns.setdefault("excluded_reason", [None] * num_rows)
        for i, reason in reasons.items():
            given[i] = given[i] or reason

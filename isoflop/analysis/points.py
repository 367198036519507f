"""From any table of runs to points: what may enter a fit, why a row may not, profiles by size.

A table is a study folder's, or any csv or parquet file. Needed columns are ``REQUIRED``; any other
column of runs.parquet, and n_experts, is read where it is there, the rest is ignored. Counts may
be fractional and of any size: numbers become float64. What no fit could use as it stands (a missing
column, text in a number) is the user's mistake, in one line; a row that a fit must leave out (no
loss, an infinite one, 0 FLOPs) is read, and select_points gives the reason.
"""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import numpy as np

from isoflop.analysis.screening import Repeats, screen
from isoflop.arrays import Floats
from isoflop.errors import UserError, shown
from isoflop.tables import RUNS, VERSION_KEY, open_parquet, read_table, schema_of
from isoflop.texts import has_control

Axis = Literal["n_params", "n_tokens", "n_active"]
AXES: tuple[Axis, ...] = ("n_params", "n_tokens", "n_active")

GroupKey = tuple[str, float]
"""(arch, budget in training FLOPs)."""

# exp(709.8) is the largest float64; a loss beyond this has no perplexity and means nothing.
MAX_LOSS_NATS = 700.0

_UNFINISHED = ("diverged", "failed", "missing")


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One finished run, as a fit sees it."""

    run_id: str | None
    arch: str
    budget_flops: float
    """Nominal training FLOPs of the budget the run belongs to; without one, what the run spent."""
    n_params: float
    n_tokens: float
    flops: float | None = None
    """Training FLOPs achieved, under the table's convention."""
    loss: float
    """Nats per token, or the unit of the table; all points of a table share it."""
    seed: int | None = None
    n_active: float | None
    """Parameters used per token; None where the table does not say."""
    n_nonembed: float | None = None
    n_experts: float | None = None
    """Experts that a token is routed among; 1 of a dense run."""
    wall_s: float | None = None
    """Training time in seconds."""
    peak_mem_bytes: float | None = None
    loss_se: float | None = None
    """Standard error of the loss from its evaluation set; no seed noise."""

    @property
    def size_key(self) -> tuple[float, float]:
        """(n_params, n_tokens): points of one group that share it repeat one cell."""
        return self.n_params, self.n_tokens

    def on(self, axis: Axis) -> float | None:
        """Return the point's value on an axis, None where it is unknown."""
        value: float | None = getattr(self, axis)
        return value


@dataclass(frozen=True, kw_only=True, slots=True)
class Excluded:
    """One row that enters no fit, with the reason as a word and, where known, in words."""

    run_id: str | None
    arch: str | None
    budget_flops: float | None
    n_params: float | None
    loss: float | None
    """The row's loss where it is a usable number, for drawing only."""
    reason: str
    """diverged | failed | missing | unknown_status | excluded_in_table | no_arch | no_budget |
    no_loss | bad_loss | no_params | no_tokens | no_flops | exact_dup | near_dup |
    unexplained_repeat | not_best | off_budget | outlier."""
    detail: str | None = None


EXCLUDED = schema_of("excluded", Excluded)


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """Points by (arch, budget) in sorted order, and the rows left out."""

    groups: dict[GroupKey, tuple[Point, ...]]
    """A group whose rows are all excluded is kept, empty, so that the fit reports it."""
    excluded: tuple[Excluded, ...]
    loose: tuple[Point, ...] = ()
    """Points without a budget: of no isoFLOP group, and in the laws through all points. Their
    ``budget_flops`` is what they spent (6 · N · D where the table does not say)."""
    notes: tuple[str, ...] = ()
    """What screening leaves to the user, a sentence each."""

    def excluded_counts(self) -> dict[str, int]:
        """Return the number of excluded rows per reason, most frequent first."""
        counts = Counter(row.reason for row in self.excluded)
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


REQUIRED = ("arch", "budget_flops", "n_params", "n_tokens", "flops", "loss")
OPTIONAL = (
    *(field.name for field in fields(Point) if field.name not in ("run_id", *REQUIRED)),
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
    with path.open("rb") as file:
        is_parquet = file.read(4) == b"PAR1" or path.suffix == ".parquet"
    names, rows = _read_parquet(path) if is_parquet else _read_csv(path)
    _check_columns(path, names, required)
    converted = [_row(path, names, number, row) for number, row in enumerate(rows, start=1)]
    if not converted:
        raise UserError(_WHAT, str(path), "a table with at least one row", "add runs to it")
    return converted


def select_points(
    rows: Iterable[Mapping[str, Any]], repeats: Repeats | None = None, *, screened: bool = True
) -> Selection:
    """Split the rows of runs.parquet, or of a table like it, into points and excluded rows.

    A row is a point when its status is ``done`` (or the table has no statuses), its
    ``excluded_reason`` is null, its loss is a finite number in (0, 700] and its parameters and
    tokens are positive; a table that has FLOPs must have positive ones. A second row that repeats
    a run is excluded as ``exact_dup``, so that a table read twice gives the fit of a table read
    once: the same arch, budget, run id and loss, or without run ids the same arch, budget,
    parameters, tokens, seed and loss. Other seeds of one size all count. A point whose row has no
    budget is loose. The others are screened as `screen` says; unless ``screened``, outliers and
    runs off their budget stay. The result does not depend on the order of the rows.
    """
    return _split(rows, repeats, screened)[0]


def entering_rows(
    rows: Iterable[Mapping[str, Any]], repeats: Repeats | None = None, *, screened: bool = True
) -> list[Mapping[str, Any]]:
    """Return the rows that become points of groups in `select_points`."""
    return _split(rows, repeats, screened)[1]


def _split(
    rows: Iterable[Mapping[str, Any]], repeats: Repeats | None, screened: bool
) -> tuple[Selection, list[Mapping[str, Any]]]:
    groups: dict[GroupKey, list[Point]] = {}
    pairs: list[tuple[Mapping[str, Any], Point]] = []
    loose: list[Point] = []
    excluded: list[Excluded] = []
    seen: set[tuple[object, ...]] = set()
    # Rows without a budget last: one that repeats a run of a budget is the one left out.
    for row in sorted(rows, key=lambda row: _is_absent(row.get("budget_flops"))):
        refusal = _refusal(row)
        if refusal is not None:
            entry = _excluded(row, *refusal)
            if entry.arch is not None and entry.budget_flops is not None:
                groups.setdefault((entry.arch, entry.budget_flops), [])
            excluded.append(entry)
            continue
        point = _point(row)
        identity = _identity(point)
        has_budget = not _is_absent(row.get("budget_flops"))
        if (identity if has_budget else (None, *identity[1:])) in seen:
            excluded.append(_excluded(row, "exact_dup", "the same run is in the table twice"))
            continue
        seen.update((identity, (None, *identity[1:])))
        if has_budget:
            groups.setdefault((point.arch, point.budget_flops), [])
            pairs.append((row, point))
        else:
            loose.append(point)
    found = screen([point for _, point in pairs], repeats, finds_odd=screened)
    excluded += [_excluded(pairs[i][0], *why) for i, why in found.refused.items()]
    entering = [pair for i, pair in enumerate(pairs) if i not in found.refused]
    for _, point in entering:
        groups[point.arch, point.budget_flops].append(point)
    selection = Selection(
        groups={k: tuple(sorted(groups[k], key=_point_order)) for k in sorted(groups)},
        excluded=tuple(sorted(excluded, key=_excluded_order)),
        loose=tuple(sorted(loose, key=lambda point: (point.arch, *_point_order(point)))),
        notes=found.notes,
    )
    return selection, [row for row, _ in entering]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Profile:
    """The points of one family at one budget along one axis, in ascending x."""

    points: tuple[Point, ...]
    """Those whose x is known; of equal x in their order in the group (size, then seed)."""
    x: Floats
    log_x: Floats
    loss: Floats

    @property
    def num_sizes(self) -> int:
        """Distinct sizes, as far as the logarithm tells them apart."""
        return len(np.unique(self.log_x))


def profile_of(points: Sequence[Point], axis: Axis) -> Profile:
    """Return the profile of a group; points whose x is unknown are left out."""
    known = [(x, point) for point in points if (x := point.on(axis)) is not None]
    known.sort(key=lambda pair: pair[0])
    xs = np.array([x for x, _ in known], dtype=np.float64)
    return Profile(
        points=tuple(point for _, point in known),
        x=xs,
        log_x=np.log(xs),
        loss=np.array([point.loss for _, point in known], dtype=np.float64),
    )


def _read_parquet(path: Path) -> tuple[list[str], Iterable[Sequence[Any]]]:
    table = open_parquet(path, _WHAT)
    if VERSION_KEY in (table.schema.metadata or {}):
        if "loss" not in table.column_names:
            raise UserError(_WHAT, str(path), f"a table of runs, not {path.stem}", f"name {_TABLE}")
        rows = read_table(path, RUNS)
        return list(RUNS.names), [tuple(row.values()) for row in rows]
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


def _identity(point: Point) -> tuple[object, ...]:
    run: tuple[object, ...] = (point.run_id,)
    if point.run_id is None:
        run = (None, point.n_params, point.n_tokens, point.seed)
    return point.budget_flops, point.arch, *run, point.loss


def _refusal(row: Mapping[str, Any]) -> tuple[str, str | None] | None:
    """Return (reason, detail) when the row is no point, None when it is one."""
    if not row.get("arch"):
        return "no_arch", None
    budget = row.get("budget_flops")
    if not _is_absent(budget) and positive(budget) is None:
        return "no_budget", _given(row, "budget_flops")
    refusal = loss_refusal(row)
    if refusal is not None:
        return refusal
    if positive(row.get("n_params")) is None:
        return "no_params", _given(row, "n_params")
    if positive(row.get("n_tokens")) is None:
        return "no_tokens", _given(row, "n_tokens")
    if row.get("flops") is not None and positive(row["flops"]) is None:
        return "no_flops", f"flops is {row['flops']!r}"
    return None


def loss_refusal(row: Mapping[str, Any]) -> tuple[str, str | None] | None:
    """Return (reason, detail) where a row has no loss that can be used, None where it has."""
    status = row.get("status", "done")
    if status in _UNFINISHED:
        return str(status), row.get("status_reason")
    if status != "done":
        return "unknown_status", f"status is {status!r}"
    if _is_given(row.get("excluded_reason")):
        return "excluded_in_table", str(row["excluded_reason"])
    if row.get("loss") is None:
        return "no_loss", None
    if _usable_loss(row["loss"]) is None:
        return "bad_loss", f"loss is {row['loss']!r}"
    return None


def _point(row: Mapping[str, Any]) -> Point:
    budget: Any = row.get("budget_flops")
    if _is_absent(budget):
        budget = row.get("flops") or 6.0 * float(row["n_params"]) * float(row["n_tokens"])
    return Point(
        run_id=row.get("run_id"),
        arch=row["arch"],
        budget_flops=float(budget),
        n_params=float(row["n_params"]),
        n_tokens=float(row["n_tokens"]),
        n_active=positive(row.get("n_active")),
        loss=float(row["loss"]),
        flops=positive(row.get("flops")),
        seed=_whole(row.get("seed")),
        n_nonembed=positive(row.get("n_nonembed")),
        n_experts=positive(row.get("n_experts")),
        wall_s=positive(row.get("wall_s")),
        peak_mem_bytes=positive(row.get("peak_mem_bytes")),
        loss_se=positive(row.get("loss_se")),
    )


def _excluded(row: Mapping[str, Any], reason: str, detail: str | None) -> Excluded:
    return Excluded(
        run_id=row.get("run_id"),
        arch=row.get("arch") or None,
        budget_flops=positive(row.get("budget_flops")),
        n_params=positive(row.get("n_params")),
        loss=_usable_loss(row.get("loss")),
        reason=reason,
        detail=detail,
    )


def _given(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    return f"{name} is missing" if value is None else f"{name} is {value!r}"


def _is_given(value: Any) -> bool:
    """Return whether an excluded_reason excludes; False and a data frame's NaN do not."""
    return value is not None and value is not False and value != "" and value == value


def _is_absent(value: Any) -> bool:
    """Return whether there is no number at all, a data frame's NaN included."""
    return value is None or value != value


def positive(value: Any) -> float | None:
    """Return the value as a float when it is finite and positive, None otherwise."""
    if value is None:
        return None
    number = float(value)
    return number if math.isfinite(number) and number > 0.0 else None


def _whole(value: Any) -> int | None:
    """Return the value as an int; None where it is missing."""
    return None if _is_absent(value) else int(value)


def _usable_loss(value: Any) -> float | None:
    number = positive(value)
    return number if number is not None and number <= MAX_LOSS_NATS else None


def _point_order(point: Point) -> tuple[float, float, float, float, str]:
    """Return the order by size, then seed, which pairs the cells of two families of one design."""
    seed = -1.0 if point.seed is None else float(point.seed)
    return point.n_params, point.n_tokens, seed, point.loss, point.run_id or ""


def _excluded_order(row: Excluded) -> tuple[object, ...]:
    return (
        row.arch or "",
        row.budget_flops or 0.0,
        row.n_params or 0.0,
        row.run_id or "",
        row.reason,
        row.loss or 0.0,
    )

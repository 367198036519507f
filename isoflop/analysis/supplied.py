"""Laws through optima that a table supplies: published ones, or those of another tool.

A row per family and budget: `arch`, `budget_flops`, and at least one of `n_params_opt`,
`n_tokens_opt`, `n_active_opt`, `loss_opt` or another count with that ending. Each may have its
standard error (`n_params_opt_se`) or its 95 % interval (`n_params_opt_lo`, `n_params_opt_hi`). A
law y = coefficient · C^exponent is least squares of ln y on ln C. Its interval follows from the
errors where all of its optima have one, taken as independent; else it is Student's, from the
residuals of three optima or more.
"""

from __future__ import annotations

import contextlib
import csv
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from isoflop.analysis.laws import LawAxis, LawRow, fit_known_lines, law_axes
from isoflop.analysis.optima import Optimum
from isoflop.analysis.optima_methods import DEFAULT_METHOD
from isoflop.analysis.parametric import fit_frontier
from isoflop.arrays import Floats, exp_or_none
from isoflop.errors import UserError
from isoflop.ingest.files import read_files
from isoflop.ingest.frames import is_missing
from isoflop.numbers import read_number

_OPT = "_opt"
# A column that runs have, and no table of optima.
_OF_RUNS = "n_params"
# Far more than any table of optima.
_MAX_BYTES = 2**22
# A 95 % interval spans this many standard errors.
_SPAN_OF_95 = 3.919928


@dataclass(frozen=True, kw_only=True, slots=True)
class SuppliedOptimum:
    """What a table says of one family's optimum at one budget, along one axis."""

    arch: str
    axis: LawAxis
    budget_flops: float
    value: float
    log_sd: float | None
    """Standard error of ln(value); None where the table has none."""


def supplied_optima(rows: Iterable[Mapping[str, Any]]) -> tuple[SuppliedOptimum, ...]:
    """Return the optima of a table by arch, axis and budget; cells that are no optimum are not."""
    found = []
    for row in rows:
        budget = _positive(row.get("budget_flops"))
        arch = row.get("arch")
        for axis in _axes_of(row):
            value = _positive(row.get(f"{axis}_opt"))
            if value is None or budget is None or not arch:
                continue
            found.append(
                SuppliedOptimum(
                    arch=str(arch),
                    axis=axis,
                    budget_flops=budget,
                    value=value,
                    log_sd=_log_sd(row, f"{axis}_opt", value),
                )
            )
    order = law_axes(o.axis for o in found if o.axis != "loss")
    return tuple(sorted(found, key=lambda o: (o.arch, order.index(o.axis), o.budget_flops)))


def unusable_rows(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the rows, counted from 1, of which something that is given cannot be used."""
    return [
        number
        for number, row in enumerate(rows, start=1)
        if len(supplied_optima([row])) < _num(row)
    ]


def _num(row: Mapping[str, Any]) -> int:
    """Return how many optima a row gives, sound or not; an empty row gives one that is not."""
    cells = [row.get(f"{axis}_opt") for axis in _axes_of(row)]
    return max(1, sum(not is_missing(cell) for cell in cells))


def fit_supplied_optima(
    rows: Iterable[Mapping[str, Any]], *, confidence: float = 0.95
) -> tuple[LawRow, ...]:
    """Return the rows of fits.parquet: power laws, and the frontier where there are losses.

    A law through fewer than two budgets, and a frontier through fewer than three, has null values.
    """
    by_law: dict[tuple[str, LawAxis], list[SuppliedOptimum]] = {}
    for optimum in supplied_optima(rows):
        by_law.setdefault((optimum.arch, optimum.axis), []).append(optimum)
    found: list[LawRow] = []
    for (arch, axis), optima in by_law.items():
        found += _law_rows(arch, axis, optima, confidence)
        if axis == "loss":
            found += _frontier_rows(arch, optima)
    return tuple(found)


def read_optima(path: Path) -> list[dict[str, Any]] | None:
    """Return the rows of a file that has optima and no runs; None for any other."""
    from isoflop.tables import open_parquet

    with path.open("rb") as file:
        is_parquet = file.read(4) == b"PAR1"
    if is_parquet:
        arrow = open_parquet(path, "table")
        # Most files hold runs, which are read as such: many, and slow to take as Python's.
        has_optima = arrow.num_rows > 0 and _has_optima(arrow.column_names)
        return _as_supplied(arrow.to_pylist()) if has_optima else None
    # A ragged csv file gives what can be read of it.
    with (
        contextlib.suppress(csv.Error),
        path.open(encoding="utf-8-sig", errors="replace", newline="") as text,
    ):
        lines = csv.DictReader(text)
        columns = lines.fieldnames or ()
        if _has_optima(columns):
            return _as_supplied(list(lines))
        if _OF_RUNS in columns:
            return None
    if path.stat().st_size > _MAX_BYTES:
        return None
    try:
        frame = read_files(str(path)).frame
    except UserError:
        # Whoever reads its rows says what is wrong with it.
        return None
    if frame.columns.duplicated().any() or not _has_optima(frame.columns):
        return None
    return _as_supplied(frame.to_dict("records"))


def _has_optima(columns: Collection[Any]) -> bool:
    return (
        {"arch", "budget_flops"} <= set(columns)
        and _OF_RUNS not in columns
        and ("x_opt" in columns or bool(_axes_of(columns)))
    )


def _axes_of(columns: Iterable[Any]) -> list[LawAxis]:
    """Return what a table has optima of: the columns `..._opt`, in its order."""
    return [name.removesuffix(_OPT) for name in columns if str(name).endswith(_OPT)]


def _as_supplied(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return rows with an optimum per axis, also of optima.parquet.

    Of that table the optima that are no bounds count, by the default method or, without it, by the
    first one named; losses are those over parameters.
    """
    methods = [str(row["method"]) for row in rows if row.get("method")]
    chosen = DEFAULT_METHOD if DEFAULT_METHOD in methods else next(iter(methods), None)
    return [
        _one_axis(row) if "x_opt" in row else dict(row)
        for row in rows
        if "x_opt" not in row
        or (row.get("status", "interior") == "interior" and row.get("method") in (chosen, None))
    ]


def _one_axis(row: Mapping[str, Any]) -> dict[str, Any]:
    axis = str(row.get("axis"))
    names = {f"{axis}_opt": "x_opt", f"{axis}_opt_lo": "ci_lo", f"{axis}_opt_hi": "ci_hi"}
    if axis == "n_params":
        names |= {"loss_opt": "loss_opt", "loss_opt_lo": "loss_ci_lo", "loss_opt_hi": "loss_ci_hi"}
    named = {name: row.get(column) for name, column in names.items()}
    return {"arch": row["arch"], "budget_flops": row["budget_flops"], **named}


def _frontier_rows(arch: str, optima: Sequence[SuppliedOptimum]) -> list[LawRow]:
    points = [
        Optimum(
            arch=arch,
            budget_flops=optimum.budget_flops,
            axis="n_params",
            x_opt=None,
            loss_opt=optimum.value,
            curvature=None,
            status="interior",
            n_points=1,
            grid_lo=None,
            grid_hi=None,
        )
        for optimum in optima
    ]
    fit = fit_frontier(points, arch=arch, method=DEFAULT_METHOD)
    return [replace(row, method="supplied") for row in fit.rows()]


def _law_rows(
    arch: str, axis: LawAxis, optima: Sequence[SuppliedOptimum], confidence: float
) -> list[LawRow]:
    x = np.log([optimum.budget_flops for optimum in optima])
    y = np.log([optimum.value for optimum in optima])
    slope, intercept = (float(found[0]) for found in fit_known_lines(x, y[None]))
    has_law = math.isfinite(slope)
    residuals = y - intercept - slope * x
    ends, kind = _half_widths(x, residuals, optima, confidence) if has_law else (None, None)
    rmse = float(np.sqrt(np.mean(residuals**2))) if has_law and len(x) > 2 else None
    estimates = {"exponent": slope, "coefficient": intercept}
    rows = []
    for place, (parameter, value) in enumerate(estimates.items()):
        half = None if ends is None else ends[place]
        named = [value, *([] if half is None else [value - half, value + half])]
        shown = [exp_or_none(v) if parameter == "coefficient" else v for v in named]
        rows.append(
            LawRow(
                arch=arch,
                form="power_law",
                axis=axis,
                method="supplied",
                parameter=parameter,
                value=shown[0] if has_law else None,
                ci_lo=None if half is None else shown[1],
                ci_hi=None if half is None else shown[2],
                n_points=len(optima),
                bootstrap_kind=None,
                n_boot=None,
                n_failed=None,
                rmse=rmse,
                confidence=None if half is None else confidence,
                budget_lo=optima[0].budget_flops,
                budget_hi=optima[-1].budget_flops,
                settings=f"least squares of ln y on ln C; interval {kind or 'none'}",
                status="ok" if has_law else "too_few",
            )
        )
    return rows


def _half_widths(
    x: Floats, residuals: Floats, optima: Sequence[SuppliedOptimum], confidence: float
) -> tuple[tuple[float, float] | None, str | None]:
    """Return half of the intervals of slope and intercept, and where they come from."""
    from scipy.special import ndtri, stdtrit

    num, off = len(x), x - x.mean()
    along = off / (off @ off)
    level = np.stack([along, 1 / num - x.mean() * along])
    sds = [optimum.log_sd for optimum in optima if optimum.log_sd is not None]
    if len(sds) == num:
        half = ndtri((1 + confidence) / 2) * np.sqrt(level**2 @ np.square(sds))
        return (float(half[0]), float(half[1])), "by the errors supplied"
    if num < 3:
        return None, None
    sd = math.sqrt(float(residuals @ residuals) / (num - 2))
    half = stdtrit(num - 2, (1 + confidence) / 2) * sd * np.sqrt((level**2).sum(axis=1))
    return (float(half[0]), float(half[1])), "Student's, by the residuals"


def _log_sd(row: Mapping[str, Any], name: str, value: float) -> float | None:
    error = _positive(row.get(f"{name}_se"))
    if error is not None:
        return error / value
    low, high = _positive(row.get(f"{name}_lo")), _positive(row.get(f"{name}_hi"))
    if low is None or high is None or not low < high:
        return None
    return math.log(high / low) / _SPAN_OF_95


def _positive(cell: Any) -> float | None:
    try:
        value = read_number(cell) if isinstance(cell, str) else float(cell)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) and value > 0 else None

"""The tables of a fit that a folder holds, where they are of the very runs that it holds now.

Reading them takes a second, fitting again up to a minute. They are believed only where fitting the
runs without draws gives their estimates again: the same rows left out, the same optima and laws,
the same multipliers along every resource.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from isoflop.analysis.axes import fitted_axes, has_axis
from isoflop.analysis.compare.differences import EXPONENTS, ExponentDifference
from isoflop.analysis.compare.multipliers import COMPARE, Comparison, compare_archs
from isoflop.analysis.fit import select_runs
from isoflop.analysis.laws import BUDGETS, FITS, PowerLaw, fit_laws
from isoflop.analysis.optima import OPTIMA, Optimum, find_optima
from isoflop.analysis.parametric.fitting import settings_of
from isoflop.analysis.points import EXCLUDED, Excluded, Selection
from isoflop.analysis.result import FitOptions, Fits
from isoflop.analysis.validity import VALIDITY, Finding, Validity
from isoflop.errors import UserError
from isoflop.ingest.budgets import Labelled
from isoflop.tables import Schema, loss_unit, read_table

SCHEMAS = (OPTIMA, FITS, COMPARE, EXPONENTS, VALIDITY, EXCLUDED)
# Another machine's arithmetic may differ in the last digits.
_TOLERANCE = 1e-6
# Verdicts on optima that the draws may bring.
_BY_DRAWS = ("flat", "below_data")
_COMPARED = ("arch", "budget_flops", "resource", "reference", "status", "multiplier", "local_slope")

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """The tables of a folder, and as much of a fit as they tell."""

    tables: Mapping[str, tuple[list[dict[str, Any]], Schema]]
    """Rows and schema by the name of the table."""
    labelled: Labelled
    """The runs at the budgets of the options."""
    fits: Fits
    """Without draws, parametric laws and the intervals that hypotheses are judged by."""


def stored_fit(folder: Path, rows: Sequence[Row], options: FitOptions, unit: str) -> Stored | None:
    """Return what a folder's tables hold of the fit of some runs; None where they are of others.

    Method, axis, reference, confidence and number of draws are as the tables have them; all else
    that may be chosen has to be as in the options.
    """
    try:
        tables = {schema.table: _read(folder, schema, unit) for schema in SCHEMAS}
        found = {name: table for name, (table, _) in tables.items()}
        chosen = _as_stored(options, found)
        labelled, selection = select_runs(rows, chosen, unit=unit)
        if not has_axis(selection, chosen.axis):
            return None
        if not _same(found["excluded"], selection.excluded, [f.name for f in fields(Excluded)]):
            return None
        fits = _fits_of(found, selection, chosen)
    except UserError:
        return None
    return None if fits is None else Stored(tables=tables, labelled=labelled, fits=fits)


def _read(folder: Path, schema: Schema, unit: str) -> tuple[list[dict[str, Any]], Schema]:
    path = folder / f"{schema.table}.parquet"
    marked = replace(schema, unit=unit).with_columns([("declared", "bool")])
    rows = read_table(path, marked)
    if loss_unit(path) != unit:
        raise UserError(schema.table, str(path), f"in {unit}", "fit again")
    return rows, marked


def _as_stored(options: FitOptions, tables: Mapping[str, Sequence[Row]]) -> FitOptions:
    compared = next(iter(tables["compare"]), {})
    named = {name: compared[name] for name in ("method", "axis", "reference") if name in compared}
    for row in tables["optima"]:
        if row["n_boot"] is not None:
            named["n_boot"] = row["n_boot"]
            break
    if "confidence" in compared:
        named["confidence"] = compared["confidence"]
    return replace(options, **named)


def _fits_of(
    tables: Mapping[str, list[dict[str, Any]]], selection: Selection, options: FitOptions
) -> Fits | None:
    """Return the fit that the tables hold; None where the runs give other estimates."""
    optima = tuple(Optimum(**row) for row in _without_mark(tables["optima"]))
    again = find_optima(selection.groups, fitted_axes(options.axis))
    if not _same_optima(optima, again) or not all(map(_has_ends, optima)):
        return None
    laws = _laws(optima, tables["fits"])
    if laws is None or not _same_surfaces(tables["fits"], options):
        return None
    fits = Fits(selection=selection, options=options, optima=optima, laws=laws)
    compare = tuple(
        Comparison(**row, strict=(None, None)) for row in _without_mark(tables["compare"])
    )
    if not _same(compare, compare_archs(fits), _COMPARED):
        return None
    return replace(
        fits,
        compare=compare,
        exponents=tuple(
            ExponentDifference(**row, strict=(None, None))
            for row in _without_mark(tables["exponents"])
        ),
        validity=Validity(
            findings=tuple(Finding(**row) for row in _without_mark(tables["validity"]))
        ),
    )


def _laws(optima: Sequence[Optimum], rows: Sequence[Row]) -> tuple[PowerLaw, ...] | None:
    """Return the laws through stored optima with stored intervals; None if the laws differ."""
    stored = {
        (row["method"], row["arch"], row["axis"], row["budget"], row["parameter"]): row
        for row in rows
        if row["form"] == "power_law"
    }
    laws = [law for budget in BUDGETS for law in fit_laws(optima, budget=budget)]
    if 2 * len(laws) != len(stored):
        return None
    found = []
    for law in laws:
        key = (law.method, law.arch, law.axis, law.budget)
        pair = [stored.get((*key, name)) for name in ("exponent", "coefficient")]
        exponent, coefficient = pair
        if exponent is None or coefficient is None:
            return None
        if not (
            _near(exponent["value"], law.exponent) and _near(coefficient["value"], law.coefficient)
        ):
            return None
        found.append(
            replace(
                law,
                exponent_ci=_interval(exponent),
                log_coefficient_ci=_log_interval(coefficient),
                **{name: exponent[name] for name in ("confidence", "bootstrap_kind")},
                **{name: exponent[name] for name in ("n_boot", "n_failed")},
            )
        )
    return tuple(found)


def _interval(row: Row) -> tuple[float, float] | None:
    return None if row["ci_lo"] is None or row["ci_hi"] is None else (row["ci_lo"], row["ci_hi"])


def _log_interval(row: Row) -> tuple[float, float] | None:
    ends = _interval(row)
    return None if ends is None or min(ends) <= 0 else (math.log(ends[0]), math.log(ends[1]))


def _same_surfaces(rows: Sequence[Row], options: FitOptions) -> bool:
    """Return whether surfaces were fitted as the options say."""
    surfaces = {(row["method"], row["settings"]) for row in rows if row["form"] == "chinchilla"}
    return all(settings == settings_of(how, options.constraints) for how, settings in surfaces)


def _has_ends(optimum: Optimum) -> bool:
    """Return whether intervals end where a logarithm does."""
    ends = (optimum.ci_lo, optimum.ci_hi, optimum.loss_ci_lo, optimum.loss_ci_hi)
    return all(end is None or 0 < end < math.inf for end in ends)


def _same_optima(stored: Sequence[Optimum], again: Sequence[Optimum]) -> bool:
    """Return whether optima are the same, but for what only draws tell: that a profile is flat."""
    if len(stored) != len(again):
        return False
    always = ("arch", "budget_flops", "axis", "method", "n_points", "grid_lo", "grid_hi")
    if not _same(stored, again, (*always, "mean_flops")):
        return False
    without = [old for old in stored if old.status in _BY_DRAWS]
    if any(old.x_opt is not None or old.loss_opt is not None for old in without):
        return False
    pairs = [pair for pair in zip(stored, again, strict=True) if pair[0].status not in _BY_DRAWS]
    olds, news = [old for old, _ in pairs], [new for _, new in pairs]
    return _same(olds, news, ("status", "x_opt", "loss_opt"))


def _same(stored: Sequence[Any], again: Sequence[Any], names: Sequence[str]) -> bool:
    """Return whether rows agree in some columns, in whatever order they are."""

    def values(row: Any) -> list[Any]:
        return [row[name] if isinstance(row, Mapping) else getattr(row, name) for name in names]

    olds, news = (sorted(map(values, rows), key=_sortable) for rows in (stored, again))
    return len(olds) == len(news) and all(
        _near(a, b)
        for old, new in zip(olds, news, strict=True)
        for a, b in zip(old, new, strict=True)
    )


def _sortable(values: Sequence[Any]) -> list[tuple[bool, str]]:
    return [(value is None, str(value)) for value in values]


def _near(old: Any, new: Any) -> bool:
    if isinstance(old, float) and isinstance(new, float):
        return math.isclose(old, new, rel_tol=_TOLERANCE, abs_tol=1e-12)
    return bool(old == new)


def _without_mark(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return rows without the mark of declared FLOPs, which is in no dataclass of a row."""
    return [{name: value for name, value in row.items() if name != "declared"} for row in rows]

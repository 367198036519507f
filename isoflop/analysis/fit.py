"""Fit a table of runs: optima per budget, laws across budgets, intervals, comparisons, tables."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop.analysis.axes import fitted_axes, further_columns, require_axis
from isoflop.analysis.bootstrap import Draws, draw_optima, kind_for_optima
from isoflop.analysis.figures import write_plots
from isoflop.analysis.laws import BUDGETS, FITS, LawRow, fit_laws, weighed
from isoflop.analysis.load import load_rows, table_of, table_unit, typed_rows
from isoflop.analysis.optima import OPTIMA, find_optima, with_intervals
from isoflop.analysis.optima_methods import METHODS, Method
from isoflop.analysis.points import EXCLUDED, Axis, Selection, select_points
from isoflop.analysis.result import FitOptions, Fits, pick_reference, write_fitted
from isoflop.ingest.budgets import Labelled, label_budgets
from isoflop.tables import Schema, unit_of
from isoflop.units import NATS

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = [
    "FitOptions",
    "FitReport",
    "Fits",
    "compare_fit",
    "complete_fit",
    "fit_optima",
    "fit_rows",
    "fit_table",
    "fitted_tables",
    "select_runs",
    "write_tables",
]

_DEFAULTS = FitOptions()


@dataclass(frozen=True, kw_only=True, slots=True)
class FitReport:
    """What `fit_table` wrote."""

    fits: Fits
    table_paths: tuple[Path, ...]
    plot_paths: tuple[Path, ...]

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files written."""
        return (*self.table_paths, *self.plot_paths)


def fit_optima(
    selection: Selection,
    options: FitOptions = _DEFAULTS,
    *,
    methods: Collection[Method] = METHODS,
    axes: Sequence[Axis] | None = None,
) -> Fits:
    """Fit optima and power laws with their intervals, and nothing that compares or validates.

    ``axes`` None: those of every fit, and that of the options.

    Raises:
        UserError: no run has the axis of the options.
    """
    require_axis(selection, options.axis)
    if axes is None:
        axes = fitted_axes(options.axis)
    draws: dict[tuple[Axis, Method], Draws] = {}
    if options.n_boot:
        kind = kind_for_optima(options.bootstrap)
        draws = {
            (axis, method): draw_optima(
                selection,
                axis=axis,
                method=method,
                kind=kind,
                n_boot=options.n_boot,
                seed=options.seed,
            )
            for axis in axes
            for method in methods
        }
    optima = find_optima(selection.groups, axes, methods)
    optima = weighed(with_intervals(optima, draws, options.confidence), draws)
    laws = [
        law
        for budget in BUDGETS
        for law in fit_laws(optima, draws, confidence=options.confidence, budget=budget)
    ]
    return Fits(selection=selection, options=options, optima=optima, laws=tuple(laws), draws=draws)


def select_runs(
    rows: Iterable[Mapping[str, Any]], options: FitOptions = _DEFAULTS, *, unit: str = NATS
) -> tuple[Labelled, Selection]:
    """Return rows at the budgets that the options ask for, and the points of them.

    Raises:
        UserError: the FLOPs spent gather at no budgets, where these were to be the budgets.
    """
    labelled = label_budgets(rows, options.budgets)
    points = select_points(
        labelled.rows, options.repeats, screened=options.screen, unit=unit, axis=options.axis
    )
    return labelled, points


def fit_rows(
    rows: Iterable[Mapping[str, Any]] | Any, options: FitOptions = _DEFAULTS, *, unit: str = NATS
) -> Fits:
    """Fit the rows of runs.parquet, or of a table like it, in whatever order.

    Optima and power laws, the parametric laws, comparisons between archs and checks of validity.
    A data frame, and rows with cells of other types than `load_rows` gives, are read as a file is.

    Raises:
        UserError: the reference of the options is not in the table, or it cannot be read.
    """
    typed = typed_rows(rows, more=further_columns(options.axis))
    labelled, selection = select_runs(typed, options, unit=unit)
    # Before any fit, which takes seconds.
    archs = selection.archs or [point.arch for point in selection.loose]
    pick_reference(archs, options.reference)
    fits = replace(fit_optima(selection, options), clusters=labelled.clusters)
    return complete_fit(labelled.rows, compare_fit(fits))


def compare_fit(fits: Fits) -> Fits:
    """Return a fit of optima with the comparisons of archs, which wait for no law through points.

    Args:
        fits: what `fit_optima` made, by all methods and along all axes.
    """
    from isoflop.analysis.compare.differences import exponent_differences
    from isoflop.analysis.compare.multipliers import compare_archs
    from isoflop.analysis.envelope import compare_envelopes, fit_envelopes

    fits = replace(fits, parametric=fit_envelopes(fits))
    return replace(
        fits,
        compare=compare_archs(fits),
        exponents=exponent_differences(fits),
        envelopes=compare_envelopes(fits),
    )


def complete_fit(rows: Sequence[Mapping[str, Any]], fits: Fits) -> Fits:
    """Return a fit with comparisons, with the laws through points and the checks of validity, too.

    Args:
        rows: all that the optima were selected from at their budgets, excluded ones included.
        fits: what `compare_fit` made.
    """
    from isoflop.analysis.parametric import fit_parametric
    from isoflop.analysis.validity import validity

    options = fits.options
    laws = fit_parametric(
        fits.selection,
        n_boot=options.n_boot,
        seed=options.seed,
        bootstrap=options.bootstrap,
        confidence=options.confidence,
        optima=fits.optima,
        draws=fits.draws_of("n_params"),
        method=options.method,
        constraints=options.constraints,
    )
    fits = replace(fits, parametric=(*laws, *fits.parametric))
    return replace(fits, validity=validity(rows, fits))


def fit_table(
    runs: Path | Sequence[Mapping[str, Any]],
    out_dir: Path,
    options: FitOptions = _DEFAULTS,
    *,
    unit: str | None = None,
) -> FitReport:
    """Fit a table of runs (its path or its rows); write the tables and plots/ into a folder.

    The losses are in ``unit``; None: in that which the table names, else nats per token.

    Raises UserError when the file is missing, corrupt, lacks columns or names another unit.
    Existing files in ``out_dir`` of the same names are replaced, each atomically.
    """
    if isinstance(runs, Path):
        path = table_of(runs)
        unit = unit_of(table_unit(path), unit, str(path), "unit")
        runs = load_rows(path, more=further_columns(options.axis))
    fits = fit_rows(runs, options, unit=unit or NATS)
    return FitReport(
        fits=fits,
        table_paths=write_tables(fits, out_dir),
        plot_paths=write_plots(fits, out_dir / "plots"),
    )


def write_tables(fits: Fits, out_dir: Path) -> tuple[Path, ...]:
    """Write optima, fits, compare, exponents, validity and excluded.parquet; return their paths."""
    out_dir.mkdir(parents=True, exist_ok=True)
    paths = []
    for schema, rows in fitted_tables(fits).items():
        paths.append(out_dir / f"{schema.table}.parquet")
        write_fitted(paths[-1], rows, schema, fits)
    return tuple(paths)


def fitted_tables(fits: Fits) -> dict[Schema, Sequence[DataclassInstance]]:
    """Return the rows of each table of a fit, by its schema."""
    from isoflop.analysis.compare.differences import EXPONENTS
    from isoflop.analysis.compare.multipliers import COMPARE
    from isoflop.analysis.validity import VALIDITY

    laws = [row for law in fits.laws for row in law.rows()]
    laws += [row for law in fits.parametric for row in law.rows()]
    return {
        OPTIMA: fits.optima,
        FITS: _with_heldout(laws, fits),
        COMPARE: (*fits.compare, *fits.envelopes),
        EXPONENTS: fits.exponents,
        VALIDITY: () if fits.validity is None else fits.validity.findings,
        EXCLUDED: fits.excluded,
    }


def _with_heldout(rows: Sequence[LawRow], fits: Fits) -> list[LawRow]:
    """Fill heldout_error in the rows of the laws that the checks of validity held out."""
    from isoflop.analysis.validity.held_out import SURFACE_METHOD

    validity = fits.validity
    if validity is None:
        return list(rows)
    checked = {
        "power_law": (fits.options.method, fits.law_budget),
        "chinchilla": (SURFACE_METHOD, None),
    }
    return [
        replace(row, heldout_error=validity.heldout_error(row.arch, row.axis))
        if row.status == "ok" and (row.method, row.budget) == checked.get(row.form)
        else row
        for row in rows
    ]

"""Fit a table of runs: optima per budget, laws across budgets, intervals, comparisons, tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop.analysis.intervals import with_intervals
from isoflop.analysis.laws import LawAxis, LawDraws, PowerLaw, fit_laws, law_draws
from isoflop.analysis.optima import METHODS, Method, Optimum, find_optima
from isoflop.analysis.points import AXES, Axis, Excluded, GroupKey, Point, Selection, select_points
from isoflop.analysis.resample import Draws, Requested, choose_kind, draw_optima
from isoflop.tables import COMPARE, EXPONENTS, FITS, OPTIMA, VALIDITY, Schema, write_table

if TYPE_CHECKING:
    from isoflop.analysis.compare import Comparison
    from isoflop.analysis.compare_exponents import ExponentDifference
    from isoflop.analysis.parametric import ParametricFit
    from isoflop.analysis.validity import Validity


@dataclass(frozen=True, kw_only=True, slots=True)
class FitOptions:
    """What the user may choose; everything has a default."""

    n_boot: int = 1000
    """Bootstrap draws; 0 makes no intervals."""
    method: Method = "parabola"
    """The method of optima that laws, comparisons and plots show first; all are fitted."""
    axis: Axis = "n_params"
    """The x axis that comparisons and plots use."""
    reference: str | None = None
    """The arch that others are compared with; None: chosen by the comparison."""
    bootstrap: Requested = "auto"
    confidence: float = 0.95
    seed: int = 0


_DEFAULTS = FitOptions()


@dataclass(frozen=True, kw_only=True, slots=True)
class Fits:
    """All that one table of runs yields."""

    selection: Selection
    options: FitOptions
    optima: tuple[Optimum, ...]
    """Sorted by arch and budget; all axes and methods each."""
    laws: tuple[PowerLaw, ...]
    """Sorted by method, arch and axis; a law without values says that it is missing."""
    draws: dict[tuple[Axis, Method], Draws] = field(compare=False)
    """By (axis, method); empty where n_boot is 0."""
    parametric: tuple[ParametricFit, ...] = ()
    compare: tuple[Comparison, ...] = ()
    exponents: tuple[ExponentDifference, ...] = ()
    """Differences to the reference of the comparisons."""
    validity: Validity | None = None

    @property
    def excluded(self) -> tuple[Excluded, ...]:
        """The rows that entered no fit, each with its reason."""
        return self.selection.excluded

    @property
    def groups(self) -> dict[GroupKey, tuple[Point, ...]]:
        """The points of each (arch, budget)."""
        return self.selection.groups

    @property
    def archs(self) -> list[str]:
        """Sorted labels of all families in the table."""
        return sorted({arch for arch, _ in self.groups})

    @property
    def budgets(self) -> list[float]:
        """Sorted budgets in training FLOPs."""
        return sorted({budget for _, budget in self.groups})

    def optima_of(
        self, arch: str, axis: Axis | None = None, method: Method | None = None
    ) -> list[Optimum]:
        """Return the arch's optima, smallest budget first; axis and method as in the options."""
        axis, method = axis or self.options.axis, method or self.options.method
        return [o for o in self.optima if o.arch == arch and o.axis == axis and o.method == method]

    def optima_of_all(
        self, axis: Axis | None = None, method: Method | None = None
    ) -> list[Optimum]:
        """Return the optima of all archs; axis and method as in the options."""
        return [optimum for arch in self.archs for optimum in self.optima_of(arch, axis, method)]

    def law(self, arch: str, axis: LawAxis, method: Method | None = None) -> PowerLaw:
        """Return the arch's law; KeyError for an arch that is not in the table."""
        method = method or self.options.method
        for law in self.laws:
            if (law.arch, law.axis, law.method) == (arch, axis, method):
                return law
        raise KeyError((arch, axis, method))

    def draws_of(self, axis: Axis | None = None, method: Method | None = None) -> Draws | None:
        """Return the draws of an axis and method (as in the options); None without any."""
        return self.draws.get((axis or self.options.axis, method or self.options.method))

    def law_draws(self, arch: str, axis: LawAxis, method: Method | None = None) -> LawDraws | None:
        """Return an arch's law in every draw; None where it has no interval."""
        drawn = self.draws_of("n_params" if axis == "loss" else axis, method)
        return None if drawn is None else law_draws(self.optima, drawn, arch, axis)


@dataclass(frozen=True, kw_only=True, slots=True)
class FitReport:
    """What `fit_table` wrote."""

    fits: Fits
    optima_path: Path
    fits_path: Path
    table_paths: tuple[Path, ...]
    """All tables, those two included."""
    plot_paths: tuple[Path, ...]

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files written."""
        return (*self.table_paths, *self.plot_paths)


def fit_optima(
    selection: Selection,
    options: FitOptions = _DEFAULTS,
    *,
    methods: Sequence[Method] = METHODS,
    axes: Sequence[Axis] = AXES,
) -> Fits:
    """Fit optima and power laws with their intervals, and nothing that compares or validates."""
    draws: dict[tuple[Axis, Method], Draws] = {}
    if options.n_boot:
        kind = choose_kind(selection, options.bootstrap)
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
    optima = with_intervals(optima, draws, options.confidence)
    laws = fit_laws(optima, draws, confidence=options.confidence)
    return Fits(selection=selection, options=options, optima=optima, laws=laws, draws=draws)


def fit_rows(rows: Iterable[Mapping[str, Any]], options: FitOptions = _DEFAULTS) -> Fits:
    """Fit the rows of runs.parquet, or of a table like it; independent of the order of the rows.

    Optima and power laws, the parametric laws, comparisons between archs and checks of validity.

    Raises:
        UserError: the reference of the options is not in the table.
    """
    from isoflop.analysis.compare import pick_reference

    table = list(rows)
    selection = select_points(table)
    # Before any fit, which takes seconds.
    pick_reference([arch for arch, _ in selection.groups], options.reference)
    fits = fit_optima(selection, options)
    return _with_checks(_with_comparisons(_with_parametric(fits)), table)


def _with_parametric(fits: Fits) -> Fits:
    from isoflop.analysis.parametric import fit_parametric

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
    )
    return replace(fits, parametric=laws)


def _with_comparisons(fits: Fits) -> Fits:
    from isoflop.analysis.compare import compare_archs
    from isoflop.analysis.compare_exponents import exponent_differences

    options = fits.options
    multipliers = compare_archs(
        fits,
        reference=options.reference,
        axis=options.axis,
        method=options.method,
        confidence=options.confidence,
    )
    differences = exponent_differences(
        fits,
        reference=options.reference,
        method=options.method,
        confidence=options.confidence,
    )
    return replace(fits, compare=multipliers, exponents=differences)


def _with_checks(fits: Fits, rows: Sequence[Mapping[str, Any]]) -> Fits:
    from isoflop.analysis.validity import validity

    options = fits.options
    checks = validity(
        rows,
        fits,
        reference=options.reference,
        axis=options.axis,
        method=options.method,
        confidence=options.confidence,
    )
    return replace(fits, validity=checks)


def fit_table(
    runs: Path | Sequence[Mapping[str, Any]], out_dir: Path, options: FitOptions = _DEFAULTS
) -> FitReport:
    """Fit a table of runs (its path or its rows); write the tables and plots/ into a folder.

    Raises UserError when the file is missing, corrupt or lacks columns. Existing files in
    ``out_dir`` of the same names are replaced, each atomically.
    """
    from isoflop.analysis.inputs import load_rows
    from isoflop.analysis.plots import write_plots

    fits = fit_rows(load_rows(runs) if isinstance(runs, Path) else runs, options)
    out_dir.mkdir(parents=True, exist_ok=True)
    tables = _tables(fits)
    for schema, rows in tables:
        write_table(out_dir / f"{schema.table}.parquet", rows, schema)
    return FitReport(
        fits=fits,
        optima_path=out_dir / "optima.parquet",
        fits_path=out_dir / "fits.parquet",
        table_paths=tuple(out_dir / f"{schema.table}.parquet" for schema, _ in tables),
        plot_paths=write_plots(fits, out_dir / "plots"),
    )


def _tables(fits: Fits) -> list[tuple[Schema, list[dict[str, Any]]]]:
    laws = [_with_heldout(row, fits) for law in fits.laws for row in law.rows()]
    laws += [_with_heldout(row, fits) for law in fits.parametric for row in law.rows()]
    return [
        (OPTIMA, [asdict(optimum) for optimum in fits.optima]),
        (FITS, laws),
        (COMPARE, [comparison.row() for comparison in fits.compare]),
        (EXPONENTS, [difference.row() for difference in fits.exponents]),
        (VALIDITY, [] if fits.validity is None else fits.validity.rows()),
    ]


def _with_heldout(row: dict[str, Any], fits: Fits) -> dict[str, Any]:
    """Fill heldout_error in the rows of the laws that the checks of validity held out."""
    from isoflop.analysis.validity.held_out import SURFACE_METHOD

    if fits.validity is None or row["status"] != "ok":
        return row
    checked = {"power_law": fits.options.method, "chinchilla": SURFACE_METHOD}
    if row["method"] != checked.get(row["form"]):
        return row
    return {**row, "heldout_error": fits.validity.heldout_error(row["arch"], row["axis"])}

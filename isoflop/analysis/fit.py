"""Fit a table of runs: optima per budget, power laws across budgets, tables and plots."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from isoflop.analysis.laws import LawAxis, PowerLaw, fit_laws
from isoflop.analysis.optima import Optimum, find_optima
from isoflop.analysis.points import Axis, Excluded, GroupKey, Point, Selection, select_points
from isoflop.tables import FITS, OPTIMA, RUNS, read_table, write_table


@dataclass(frozen=True, kw_only=True, slots=True)
class Fits:
    """All that one table of runs yields."""

    selection: Selection
    optima: tuple[Optimum, ...]
    """Sorted by arch and budget, three axes each."""
    laws: tuple[PowerLaw, ...]
    """Sorted by arch, four axes each; a law without values says that it is missing."""

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

    def optima_of(self, arch: str, axis: Axis) -> list[Optimum]:
        """Return the arch's optima along an axis, smallest budget first."""
        return [o for o in self.optima if o.arch == arch and o.axis == axis]

    def law(self, arch: str, axis: LawAxis) -> PowerLaw:
        """Return the arch's law; KeyError for an arch that is not in the table."""
        for law in self.laws:
            if law.arch == arch and law.axis == axis:
                return law
        raise KeyError((arch, axis))


@dataclass(frozen=True, kw_only=True, slots=True)
class FitReport:
    """What `fit_table` wrote."""

    fits: Fits
    optima_path: Path
    fits_path: Path
    plot_paths: tuple[Path, ...]

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files written."""
        return (self.optima_path, self.fits_path, *self.plot_paths)


def fit_rows(rows: Iterable[Mapping[str, Any]]) -> Fits:
    """Fit the rows of runs.parquet; pure, and independent of the order of the rows."""
    selection = select_points(rows)
    optima = find_optima(selection.groups)
    return Fits(selection=selection, optima=optima, laws=fit_laws(optima))


def fit_table(runs: Path | Sequence[Mapping[str, Any]], out_dir: Path) -> FitReport:
    """Fit runs.parquet (its path or its rows); write optima.parquet, fits.parquet and plots/.

    Raises UserError when the file is missing, corrupt or lacks columns. Existing files in
    ``out_dir`` of the same names are replaced, each atomically.
    """
    from isoflop.analysis.plots import write_plots

    rows = read_table(runs, RUNS) if isinstance(runs, Path) else runs
    fits = fit_rows(rows)
    out_dir.mkdir(parents=True, exist_ok=True)
    optima_path, fits_path = out_dir / "optima.parquet", out_dir / "fits.parquet"
    write_table(optima_path, [asdict(optimum) for optimum in fits.optima], OPTIMA)
    write_table(fits_path, [row for law in fits.laws for row in law.rows()], FITS)
    return FitReport(
        fits=fits,
        optima_path=optima_path,
        fits_path=fits_path,
        plot_paths=write_plots(fits, out_dir / "plots"),
    )

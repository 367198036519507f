"""Analysis of finished runs: reads tables, fits optima and power laws, draws them.

It reads results only and imports neither torch nor anything that plans, launches or trains.
"""

from __future__ import annotations

from isoflop.analysis.fit import FitReport, Fits, fit_rows, fit_table
from isoflop.analysis.laws import PowerLaw, fit_laws
from isoflop.analysis.optima import Optimum, find_optima, find_optimum
from isoflop.analysis.points import Excluded, Point, Selection, select_points
from isoflop.analysis.summary import excluded_note, optima_rows_for_display

__all__ = [
    "Excluded",
    "FitReport",
    "Fits",
    "Optimum",
    "Point",
    "PowerLaw",
    "Selection",
    "excluded_note",
    "find_optima",
    "find_optimum",
    "fit_laws",
    "fit_rows",
    "fit_table",
    "optima_rows_for_display",
    "select_points",
]

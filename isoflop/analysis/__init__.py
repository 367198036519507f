"""Analysis of finished runs: reads any table of runs, fits optima and laws, compares, draws.

It reads results only and imports neither torch nor anything that launches or trains. Importing the
package is cheap: a name brings its module when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isoflop.analysis.fit import FitOptions, FitReport, Fits, fit_optima, fit_rows, fit_table
    from isoflop.analysis.inputs import load_rows
    from isoflop.analysis.laws import PowerLaw, fit_laws
    from isoflop.analysis.noise import seed_noise
    from isoflop.analysis.optima import Optimum, find_optima, find_optimum
    from isoflop.analysis.optima_methods import METHODS
    from isoflop.analysis.points import Excluded, Point, Selection, select_points
    from isoflop.analysis.resample import Draws, draw_optima
    from isoflop.analysis.summary import excluded_note, optima_rows_for_display

_HOME = {
    "METHODS": "optima_methods",
    "Draws": "resample",
    "Excluded": "points",
    "FitOptions": "fit",
    "FitReport": "fit",
    "Fits": "fit",
    "Optimum": "optima",
    "Point": "points",
    "PowerLaw": "laws",
    "Selection": "points",
    "draw_optima": "resample",
    "excluded_note": "summary",
    "find_optima": "optima",
    "find_optimum": "optima",
    "fit_laws": "laws",
    "fit_optima": "fit",
    "fit_rows": "fit",
    "fit_table": "fit",
    "load_rows": "inputs",
    "optima_rows_for_display": "summary",
    "seed_noise": "noise",
    "select_points": "points",
}

__all__ = [
    "METHODS",
    "Draws",
    "Excluded",
    "FitOptions",
    "FitReport",
    "Fits",
    "Optimum",
    "Point",
    "PowerLaw",
    "Selection",
    "draw_optima",
    "excluded_note",
    "find_optima",
    "find_optimum",
    "fit_laws",
    "fit_optima",
    "fit_rows",
    "fit_table",
    "load_rows",
    "optima_rows_for_display",
    "seed_noise",
    "select_points",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)

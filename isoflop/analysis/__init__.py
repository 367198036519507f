"""Analysis of finished runs: reads any table of runs, fits optima and laws, compares, draws.

It reads results only and imports neither torch nor anything that launches or trains. Importing the
package is cheap: a name brings its module when it is first used. README.md here tells what each
module does and how to add to it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isoflop.analysis.fit import fit_optima, fit_rows, fit_table
    from isoflop.analysis.load import load_rows
    from isoflop.analysis.optima import Optimum
    from isoflop.analysis.optima_methods import METHODS
    from isoflop.analysis.points import select_points
    from isoflop.analysis.result import FitOptions, Fits, excluded_note

_HOME = {
    "METHODS": "optima_methods",
    "FitOptions": "result",
    "Fits": "result",
    "Optimum": "optima",
    "excluded_note": "result",
    "fit_optima": "fit",
    "fit_rows": "fit",
    "fit_table": "fit",
    "load_rows": "load",
    "select_points": "points",
}

__all__ = [
    "METHODS",
    "FitOptions",
    "Fits",
    "Optimum",
    "excluded_note",
    "fit_optima",
    "fit_rows",
    "fit_table",
    "load_rows",
    "select_points",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)

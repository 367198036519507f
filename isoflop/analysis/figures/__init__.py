"""The figures of a fit: functions that draw into pyplot's figures, or into what they are given.

matplotlib is imported when a figure is drawn; pyplot only where neither a figure nor an axes is
given.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop import plot_style
from isoflop.analysis.compare.one_size import is_one_size, is_scattered
from isoflop.analysis.figures.canvas import page_figure
from isoflop.analysis.figures.comparison import multipliers
from isoflop.analysis.figures.laws import frontier, optimum_size, optimum_tokens
from isoflop.analysis.figures.profiles import profiles
from isoflop.analysis.figures.residuals import residuals
from isoflop.analysis.figures.resources import resources, sparsity
from isoflop.analysis.figures.seed_means import seed_means
from isoflop.analysis.figures.sensitivity import sensitivity
from isoflop.analysis.result import Fits
from isoflop.files import make_own_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES: dict[str, Callable[..., Any]] = {
    "isoflop_profiles": profiles,
    "frontier": frontier,
    "optimum_size": optimum_size,
    "optimum_tokens": optimum_tokens,
    "multipliers": multipliers,
    "resources": resources,
    "sparsity": sparsity,
    "residuals": residuals,
    "sensitivity": sensitivity,
    "seed_means": seed_means,
}
"""By the stem of the files that the report writes."""


def draw_page(fits: Fits, stem: str) -> Figure:
    """Return a figure by its stem, in a figure that belongs to no window."""
    figure = page_figure()
    FIGURES[stem](fits, figure=figure)
    return figure


def write_plots(fits: Fits, folder: Path) -> tuple[Path, ...]:
    """Write isoflop_profiles, frontier and optimum_size as PNG and SVG; return the six paths.

    Where families have one size each, which none of them could show, write seed_means instead, and
    where most runs have a budget of their own, or none, resources. A table from which nothing can
    be drawn gives figures that say so. The report draws more (isoflop.analysis.report.figures).
    """
    stems: tuple[str, ...] = ("isoflop_profiles", "frontier", "optimum_size")
    if is_one_size(fits.selection):
        stems = ("resources",) if is_scattered(fits.selection) else ("seed_means",)
    elif fits.selection.loose and not fits.groups:
        stems = ("resources",)
    make_own_folder(folder)
    paths: list[Path] = []
    for stem in stems:
        with plot_style.style():
            paths.extend(plot_style.save(draw_page(fits, stem), folder, stem))
    return tuple(paths)

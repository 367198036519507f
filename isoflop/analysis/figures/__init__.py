"""The figures of a fit, by name: each is drawn from the fit alone and returned as a Figure.

matplotlib is imported when a figure is drawn, through its object interface: no pyplot, no window,
no global figure list.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from isoflop import plot_style
from isoflop.analysis.compare.one_size import is_one_size, is_scattered
from isoflop.analysis.figures.comparison import draw_multipliers, draw_seed_means
from isoflop.analysis.figures.laws import (
    draw_frontier,
    draw_optimum_size,
    draw_optimum_tokens,
    draw_sensitivity,
)
from isoflop.analysis.figures.profiles import draw_profiles, draw_residuals
from isoflop.analysis.figures.resources import draw_resources, draw_sparsity
from isoflop.analysis.result import Fits
from isoflop.files import make_own_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DRAWINGS: dict[str, Callable[[Fits], Figure]] = {
    "isoflop_profiles": draw_profiles,
    "frontier": draw_frontier,
    "optimum_size": draw_optimum_size,
    "optimum_tokens": draw_optimum_tokens,
    "multipliers": draw_multipliers,
    "resources": draw_resources,
    "sparsity": draw_sparsity,
    "residuals": draw_residuals,
    "sensitivity": draw_sensitivity,
    "seed_means": draw_seed_means,
}
"""All figures, as the report names them."""


def write_plots(fits: Fits, folder: Path) -> tuple[Path, ...]:
    """Write isoflop_profiles, frontier and optimum_size as PNG and SVG; return the six paths.

    Where families have one size each, which none of them could show, write seed_means instead, and
    where most runs have a budget of their own, resources. A table from which nothing can be drawn
    gives figures that say so. The report draws more (isoflop.analysis.report.figures).
    """
    stems: tuple[str, ...] = ("isoflop_profiles", "frontier", "optimum_size")
    if is_one_size(fits.selection):
        stems = ("resources",) if is_scattered(fits.selection) else ("seed_means",)
    make_own_folder(folder)
    paths: list[Path] = []
    for stem in stems:
        with plot_style.style():
            paths.extend(plot_style.save(DRAWINGS[stem](fits), folder, stem))
    return tuple(paths)

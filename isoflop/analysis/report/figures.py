"""The figures of a report: drawn once, written as PNG, SVG and PDF, and inlined in the page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from isoflop import plot_style
from isoflop.analysis import plot_tips
from isoflop.analysis.plot_multipliers import draw_multipliers
from isoflop.analysis.plot_profiles import draw_profiles
from isoflop.analysis.plot_residuals import draw_residuals
from isoflop.analysis.plot_resources import draw_resources
from isoflop.analysis.plot_seed_means import draw_seed_means
from isoflop.analysis.plot_sensitivity import draw_sensitivity
from isoflop.analysis.plot_sparsity import draw_sparsity
from isoflop.analysis.plots import draw_frontier, draw_optimum_size, draw_optimum_tokens
from isoflop.analysis.report.document import Document, Picture
from isoflop.analysis.report.inline_svg import inline
from isoflop.analysis.result import Fits

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
_FORMATS: tuple[plot_style.Format, ...] = ("png", "svg", "pdf")


def write_figures(
    fits: Fits, document: Document, folder: Path
) -> tuple[tuple[Path, ...], dict[str, str]]:
    """Write the document's figures; return their paths, and the inlined SVG of each by stem."""
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    pictures = {}
    for stem in _stems(document):
        with plot_style.style():
            figure = DRAWINGS[stem](fits)
            tips = plot_tips.collect(figure)
            written = plot_style.save(figure, folder, stem, _FORMATS)
        paths.extend(written)
        svg = next(path for path in written if path.suffix == ".svg").read_bytes()
        pictures[stem] = inline(svg, stem, tips, plot_style.family_colours())
    return tuple(paths), pictures


def _stems(document: Document) -> list[str]:
    return [
        block.stem
        for section in document.sections
        for block in section.blocks
        if isinstance(block, Picture)
    ]

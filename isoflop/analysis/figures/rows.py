"""Axes with a named row for each of many estimates."""

from __future__ import annotations

from collections.abc import Sequence

from isoflop import plot_style, plot_texts
from isoflop.analysis.figures.canvas import Canvas

# Inches around the rows: the label of the x axis and its ticks.
_AROUND = 0.5
# Share of the width that names may take, and the most of it at 8 points in inches.
_NAME_SHARE, _NAME_INCHES = 0.4, 2.3
# Of a row's height, what its name takes where rows are lower than names.
_NAME_HEIGHT = 0.85


def set_rows(canvas: Canvas, names: Sequence[str], row_height: float) -> None:
    """Name the rows of all panels, the first one uppermost.

    A figure of ours becomes as high as the rows need; in another one their names are as small as
    they need to be.

    Args:
        canvas: without anything outside of its panels yet.
        names: of the rows, as matplotlib shows them.
        row_height: inches of a row at 8 points.
    """
    first = canvas.axes[0]
    if canvas.is_ours:
        em = plot_style.em()
        size = (plot_style.PAGE_WIDTH * em, (_AROUND + row_height * len(names)) * em)
        canvas.figure.get_figure(root=True).set_size_inches(*size)
    for axes in canvas.axes:
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
    height = first.get_window_extent().height * 72 / first.figure.dpi / len(names)
    size_points = min(plot_style.points_of("ytick.labelsize"), _NAME_HEIGHT * height)
    first.set_yticks(range(len(names)), names, fontsize=size_points)
    first.minorticks_off()


def row_names(canvas: Canvas, archs: Sequence[str]) -> list[str]:
    """Return the names of families that fit beside the rows of a panel."""
    room = canvas.axes[0] if canvas.is_axes else canvas.figure
    share = _NAME_SHARE * room.get_window_extent().width / canvas.figure.dpi
    if canvas.is_ours:
        share = _NAME_SHARE * plot_style.PAGE_WIDTH * plot_style.em()
    width = min(share, _NAME_INCHES * plot_style.em())
    distinct = list(dict.fromkeys(archs))
    size = plot_style.points_of("ytick.labelsize")
    short = plot_texts.shortened(distinct, width, size)
    shown = {arch: plot_texts.literal(name) for arch, name in zip(distinct, short, strict=True)}
    return [shown[arch] for arch in archs]

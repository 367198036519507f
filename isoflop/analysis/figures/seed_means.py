"""The losses of families of one size each: a row per family and budget, a mark per seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from isoflop import plot_style
from isoflop.analysis.compare.one_size import SeedMean, seed_means
from isoflop.analysis.figures import frame
from isoflop.analysis.points import Point
from isoflop.analysis.result import Fits
from isoflop.analysis.summary import excluded_note
from isoflop.numbers import format_flops

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TITLE = "Loss of each family at its one size"
_ROW_INCHES = 0.19


def draw_seed_means(fits: Fits) -> Figure:
    """Draw the runs of every family that has one size at a budget, and their means as bars."""
    means = seed_means(fits.selection)
    if not means:
        return plot_style.sentence_figure(
            _TITLE, f"No family has exactly one size at a budget. {excluded_note(fits)}"
        )
    groups = [fits.groups[mean.arch, mean.budget_flops] for mean in means]
    seeds = sorted({p.seed for points in groups for p in points if p.seed is not None})
    names = ", ".join(f"{seed} {_mark_name(i)}" for i, seed in enumerate(seeds))
    notes = [
        "Bar: geometric mean over the seeds. Runs of one seed read the same text, so families are "
        f"compared seed by seed{f' ({names})' if names else ''}.",
        excluded_note(fits),
    ]
    figure, axes = _axes([_label(mean, fits) for mean in means], notes)
    for place, (mean, points) in enumerate(zip(means, groups, strict=True)):
        axes.plot([mean.loss] * 2, [place - 0.35, place + 0.35], color="#606060", lw=1.4)
        for point in points:
            _draw_run(axes, place, point, seeds)
    return figure


def _axes(labels: Sequence[str], notes: Sequence[str]) -> tuple[Figure, Axes]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width = plot_style.PAGE_WIDTH
    left = 0.25 + 0.068 * max(map(len, labels))
    bottom = 0.45 + plot_style.note_height(notes, width)
    rows = _ROW_INCHES * (len(labels) + 0.2)
    height = bottom + rows + 0.35
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    axes = figure.add_axes(
        (left / width, bottom / height, (width - left - 0.2) / width, rows / height)
    )
    axes.set_ylim(len(labels) - 0.4, -0.6)
    plot_style.set_ticks(axes.yaxis, list(range(len(labels))), lambda place: labels[int(place)])
    axes.set_xlabel("Loss (nats per token)")
    figure.text(0.08 / width, 1 - 0.2 / height, _TITLE, fontweight="bold", va="center")
    plot_style.note(figure, notes)
    return figure, axes


def _label(mean: SeedMean, fits: Fits) -> str:
    budget = f", {format_flops(mean.budget_flops)}" if len(fits.budgets) > 1 else ""
    # A dollar would start math.
    return f"{mean.arch}{budget}".replace("$", r"\$")


def _draw_run(axes: Axes, place: int, point: Point, seeds: Sequence[int]) -> None:
    mark = plot_style.family_mark(0 if point.seed is None else seeds.index(point.seed))
    (line,) = axes.plot(
        [point.loss], [place], color=mark.colour, marker=mark.marker, markersize=4, ls="none"
    )
    frame.set_tips(line, [frame.run_text(point)])


def _mark_name(index: int) -> str:
    names = {"o": "circle", "s": "square", "^": "triangle", "D": "diamond", "v": "down triangle"}
    return names.get(plot_style.family_mark(index).marker, "other")

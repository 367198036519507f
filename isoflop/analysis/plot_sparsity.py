"""Perplexity against parameters per FLOP, the paper's Figure 1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from isoflop import plot_style
from isoflop.analysis import plot_frame, plot_tips
from isoflop.analysis.points import Point
from isoflop.analysis.result import Fits
from isoflop.analysis.summary import excluded_note, perplexity
from isoflop.plot_style import Mark

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TITLE = "Perplexity against parameters per FLOP"
# One panel per budget; of more budgets the largest.
_MOST_PANELS = 6


def draw_sparsity(fits: Fits) -> Figure:
    """Draw every run at its perplexity and parameters per forward FLOP of a token."""
    budgets = [
        budget for budget in fits.budgets if any(_placed(fits, arch, budget) for arch in fits.archs)
    ][-_MOST_PANELS:]
    if not budgets:
        return plot_style.sentence_figure(
            _TITLE, f"The table has no training FLOPs of finished runs. {excluded_note(fits)}"
        )
    notes = [
        "Parameters over forward FLOPs per token, which are a third of the training FLOPs per "
        "token. Line: mean over the seeds of a size. Large: the family's best run.",
        excluded_note(fits),
    ]
    figure, grid = plot_frame.panels(
        len(budgets), title=_TITLE, label="Perplexity", archs=fits.archs, notes=notes, share_y=False
    )
    for axes, budget in zip(grid, budgets, strict=True):
        _draw_budget(axes, fits, budget)
    return figure


def params_per_flop(point: Point) -> float | None:
    """Return parameters per forward FLOP of a token; None where the FLOPs are unknown."""
    if point.flops is None:
        return None
    return point.n_params / (point.flops / (3.0 * point.n_tokens))


def _placed(fits: Fits, arch: str, budget: float) -> list[tuple[float, Point]]:
    points = fits.groups.get((arch, budget), ())
    return [(x, point) for point in points if (x := params_per_flop(point)) is not None]


def _draw_budget(axes: Axes, fits: Fits, budget: float) -> None:
    axes.set(xscale="log", yscale="log")
    axes.set_title(f"{plot_style.math_flops(budget)} FLOPs", loc="left")
    axes.set_xlabel("Parameters per FLOP")
    xs, ys = [], []
    for index, arch in enumerate(fits.archs):
        placed = _placed(fits, arch, budget)
        if placed:
            _draw_family(axes, placed, plot_style.family_mark(index))
            xs += [x for x, _ in placed]
            ys += [perplexity(point.loss) for _, point in placed]
    for axis, values, form in ((axes.xaxis, xs, "{:.3g}"), (axes.yaxis, ys, "{:.4g}")):
        low, high = plot_style.padded(min(values), max(values), 0.08)
        (axes.set_xlim if axis is axes.xaxis else axes.set_ylim)(low, high)
        plot_style.set_log_ticks(axis, low, high, 4, form.format)


def _draw_family(axes: Axes, placed: Sequence[tuple[float, Point]], mark: Mark) -> None:
    placed = sorted(placed, key=lambda item: (item[0], item[1].loss))
    best = min(placed, key=lambda item: item[1].loss)
    means = _mean_by_size(placed)
    axes.plot(
        list(means),
        [math.exp(loss) for loss in means.values()],
        color=mark.colour,
        linestyle=mark.line,
        linewidth=0.9,
    )
    for group, size in ((placed, 3.0), ([best], 6.0)):
        (line,) = axes.plot(
            [x for x, _ in group],
            [math.exp(point.loss) for _, point in group],
            color=mark.colour,
            marker=mark.marker,
            markersize=size,
            linestyle="none",
        )
        plot_tips.tell(
            line,
            [f"{plot_tips.run_text(p)}\nparameters per FLOP {x:.4g}" for x, p in group],
        )


def _mean_by_size(placed: Sequence[tuple[float, Point]]) -> dict[float, float]:
    """Return the mean loss over the seeds at each place, in the order of the places."""
    losses: dict[float, list[float]] = {}
    for x, point in placed:
        losses.setdefault(x, []).append(point.loss)
    return {x: math.fsum(found) / len(found) for x, found in losses.items()}

"""Markers with hover texts, which the HTML report shows, and the bars of their intervals.

Markers carry their hover texts (isoflop.analysis.figures.artists), and in an SVG an id by which the
texts are found again.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from isoflop.analysis.axes import axis_words
from isoflop.numbers import format_count, format_flops
from isoflop.plot_style import Mark
from isoflop.units import format_loss, has_perplexity, loss_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from isoflop.analysis.figures.artists import Marks
    from isoflop.analysis.optima import Optimum
    from isoflop.analysis.points import Point

_TIP_PREFIX = "tip-"


def draw_marks(
    axes: Axes,
    points: Sequence[tuple[float, float]],
    mark: Mark,
    tips: Sequence[str],
    *,
    label: str | None = None,
    scale: float = 1.0,
    **style: Any,
) -> Marks:
    """Draw a marker at each point, with its hover text, and no line between them.

    Args:
        axes: to draw in.
        points: (x, y) of each.
        mark: their colour and marker.
        tips: hover text of each.
        label: entry of a legend; None: not in legends.
        scale: the size of the markers, in units of `lines.markersize`.
        style: what matplotlib's Line2D takes, over the mark's.
    """
    from matplotlib import rcParams

    from isoflop.analysis.figures.artists import Marks

    look = {
        "color": mark.colour,
        "marker": mark.marker,
        "linestyle": "none",
        "markersize": scale * rcParams["lines.markersize"],
        "label": label or "_nolegend_",
        **style,
    }
    marks = Marks(points, tips=tips, **look)
    axes.add_line(marks)
    lazily: Any = None
    axes.autoscale(lazily)
    return marks


def draw_bars(
    axes: Axes,
    bars: Iterable[tuple[float, float | None, float | None]],
    colour: Any,
    *,
    width: float = 0.8,
    is_across: bool = False,
) -> None:
    """Draw intervals as bars without a label; those that lack an end are left out.

    Args:
        axes: to draw in.
        bars: (place, lower end, upper end) of each.
        colour: of all.
        width: of the lines, in units of `lines.linewidth`.
        is_across: whether they lie along the x axis.
    """
    from matplotlib import rcParams

    whole = [(at, low, high) for at, low, high in bars if low is not None and high is not None]
    if whole:
        places, lows, highs = zip(*whole, strict=True)
        draw = axes.hlines if is_across else axes.vlines
        thickness = width * rcParams["lines.linewidth"]
        draw(places, lows, highs, colors=[colour], linewidth=thickness, label="_nolegend_")


def collect_tips(figure: Figure) -> dict[str, list[str]]:
    """Return the hover texts of each line by its id in the SVG, which the line gets here."""
    from isoflop.analysis.figures.artists import Marks

    tips: dict[str, list[str]] = {}
    for marks in figure.findobj(Marks):
        assert isinstance(marks, Marks)
        gid = f"{_TIP_PREFIX}{len(tips)}"
        marks.set_gid(gid)
        tips[gid] = list(marks.tips)
    return tips


def run_text(point: Point, unit: str) -> str:
    """Return the hover text of a run's marker."""
    perplexity = f", perplexity {math.exp(point.loss):.4g}" if has_perplexity(unit) else ""
    lines = [
        f"{point.arch} at {format_flops(point.budget_flops)} FLOPs",
        f"parameters {format_count(point.n_params)}, tokens {format_count(point.n_tokens)}",
        f"{loss_name(unit)} {format_loss(point.loss, unit)}{perplexity}",
    ]
    if point.seed is not None:
        lines.append(f"seed {point.seed}")
    return "\n".join(lines)


def optimum_text(optimum: Optimum, unit: str) -> str:
    """Return the hover text of an optimum: value, interval, and whether it is a bound."""
    assert optimum.x_opt is not None
    sign = {"edge_low": "below ", "edge_high": "above "}.get(optimum.status, "")
    lines = [
        f"{optimum.arch} at {format_flops(optimum.budget_flops)} FLOPs: "
        + ("bound" if sign else "optimum"),
        f"{axis_words(optimum.axis)} {sign}{format_count(optimum.x_opt)}"
        + _interval(optimum.ci_lo, optimum.ci_hi, format_count),
    ]
    form = functools.partial(format_loss, unit=unit)
    if optimum.loss_opt is not None:
        most = "at most " if sign else ""
        lines.append(
            f"{loss_name(unit)} {most}{form(optimum.loss_opt)}"
            + _interval(optimum.loss_ci_lo, optimum.loss_ci_hi, form)
        )
    return "\n".join(lines)


def _interval(low: float | None, high: float | None, form: Callable[[float], str]) -> str:
    if low is None or high is None:
        return ""
    return f" ({form(low)} to {form(high)})"

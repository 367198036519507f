"""The isoFLOP profiles: loss against parameters, one panel per family, one curve per budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from isoflop.analysis import plot_scale, plot_style
from isoflop.analysis.fit import Fits
from isoflop.analysis.optima import Optimum, fit_parabola
from isoflop.analysis.plot_style import Mark
from isoflop.analysis.points import Excluded, Point
from isoflop.analysis.summary import excluded_note
from isoflop.numbers import format_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TITLE = "IsoFLOP profiles: loss against size at equal training compute"
# More budgets than this crowd a panel, so their marks are smaller.
_FEW_BUDGETS = 4
_CURVE_SAMPLES = 80


def draw_profiles(fits: Fits) -> Figure:
    """Draw the profiles; families side by side on one loss axis.

    The loss axis spans the points and optima; an excluded run whose loss is missing or far
    outside is drawn at the upper edge.
    """
    losses = [p.loss for points in fits.groups.values() for p in points]
    losses += [o.loss_opt for o in fits.optima if o.axis == "n_params" and o.loss_opt is not None]
    if not any(fits.groups.values()):
        return plot_style.sentence_figure(
            _TITLE, f"No finished runs to draw. {excluded_note(fits)}"
        )
    figure, panels, legend = _panels(fits.archs)
    low, high = min(losses), max(losses)
    pad = 0.08 * (high - low) or 0.05 * high
    marks = [plot_style.budget_mark(i, len(fits.budgets)) for i in range(len(fits.budgets))]
    for arch, axes in zip(fits.archs, panels, strict=True):
        axes.set_ylim(low - pad, high + 1.6 * pad)
        _draw_family(axes, fits, arch, marks)
    figure.suptitle(_TITLE, fontweight="bold", fontsize=plot_style.FONT_SIZE + 1)
    _legend(legend, fits, marks)
    plot_style.note(figure, [excluded_note(fits)])
    return figure


def _panels(archs: Sequence[str]) -> tuple[Figure, list[Axes], Axes]:
    """Return the figure, one axes per arch, and one more without axes for the legend."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    places = len(archs) + 1
    columns = places if places <= 3 else math.ceil(math.sqrt(places))
    rows = math.ceil(places / columns)
    width, height = 3.5 * columns, 3.1 * rows + 0.6
    # The note at the lower edge needs a strip of its own.
    strip = 0.32 / height
    figure = Figure(
        figsize=(width, height),
        layout=ConstrainedLayoutEngine(rect=(0, strip, 1, 1 - strip)),
    )
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten().tolist()
    for axes in grid[len(archs) :]:
        axes.set_axis_off()
    for axes, arch in zip(grid, archs, strict=False):
        axes.set_title(arch, fontweight="bold", loc="left", parse_math=False)
    for axes in grid[: len(archs) : columns]:
        axes.set_ylabel("Loss (nats per token)")
    return figure, grid[: len(archs)], grid[len(archs)]


def _draw_family(axes: Axes, fits: Fits, arch: str, marks: Sequence[Mark]) -> None:
    excluded = [row for row in _drawn_excluded(fits) if row.arch == arch]
    sizes = [
        p.n_params for (name, _), points in fits.groups.items() if name == arch for p in points
    ]
    sizes += [row.n_params for row in excluded if row.n_params is not None]
    optima = {o.budget_flops: o for o in fits.optima_of(arch, "n_params")}
    axes.set_xscale("log")
    axes.set_xlabel("Parameters")
    if sizes:
        # Room for the word "bound" on the side where it stands.
        kinds = {o.status for o in optima.values()}
        low, _ = plot_scale.padded(min(sizes), max(sizes), 0.4 if "edge_low" in kinds else 0.1)
        _, high = plot_scale.padded(min(sizes), max(sizes), 0.4 if "edge_high" in kinds else 0.1)
        axes.set_xlim(low, high)
        plot_style.set_log_ticks(axes.xaxis, low, high, 5, format_count)
    scale = 1.0 if len(fits.budgets) <= _FEW_BUDGETS else 0.75
    for budget, mark in zip(fits.budgets, marks, strict=True):
        if budget in optima:
            _draw_profile(axes, fits.groups[arch, budget], mark, scale)
    for optimum in optima.values():
        _draw_optimum(axes, optimum, scale)
    _draw_excluded(axes, excluded)


def _draw_profile(axes: Axes, points: Sequence[Point], mark: Mark, scale: float) -> None:
    import numpy as np

    sizes = [point.n_params for point in points]
    axes.plot(
        sizes,
        [point.loss for point in points],
        color=mark.colour,
        marker=mark.marker,
        markersize=5.5 * scale,
        linestyle="none",
        zorder=4,
    )
    parabola = fit_parabola(points, "n_params")
    if parabola is not None:
        curve = np.geomspace(min(sizes), max(sizes), _CURVE_SAMPLES)
        axes.plot(curve, [parabola.loss_at(float(x)) for x in curve], color=mark.colour, lw=1.5)


def _draw_optimum(axes: Axes, optimum: Optimum, scale: float) -> None:
    """Draw a star at an interior optimum, an outward triangle and the word "bound" at an edge.

    Both are hollow and lie under the points, which stay visible. The word stands outside the
    sizes of its own curve; there the curves of other budgets lie higher or lower.
    """
    if optimum.x_opt is None or optimum.loss_opt is None:
        return
    at = (optimum.x_opt, optimum.loss_opt)
    common: dict[str, Any] = {"linestyle": "none", "markeredgecolor": "black", "zorder": 3}
    if optimum.is_point:
        axes.plot(*at, marker="*", markersize=16 * scale, markerfacecolor="white", **common)
        return
    low = optimum.status == "edge_low"
    axes.plot(
        *at,
        marker="<" if low else ">",
        markersize=12 * scale,
        markerfacecolor="none",
        markeredgewidth=1.4,
        **common,
    )
    axes.annotate(
        "bound",
        at,
        xytext=(-9 if low else 9, 0),
        textcoords="offset points",
        ha="right" if low else "left",
        va="center",
        fontsize=plot_style.SMALL_SIZE,
    )


def _drawn_excluded(fits: Fits) -> list[Excluded]:
    """Return the excluded rows that stand for a run with a place on the axis of parameters."""
    return [
        row
        for row in fits.excluded
        if row.n_params is not None and row.reason not in ("missing", "exact_dup")
    ]


def _draw_excluded(axes: Axes, excluded: Sequence[Excluded]) -> None:
    """Draw a cross per excluded run: at an edge when off scale, at the upper one without a loss."""
    bottom, top = axes.get_ylim()
    for row in excluded:
        assert row.n_params is not None
        loss = top if row.loss is None else min(max(row.loss, bottom), top)
        axes.plot(
            [row.n_params],
            [loss],
            marker="x",
            markersize=7,
            markeredgewidth=1.6,
            color="#606060",
            linestyle="none",
            clip_on=False,
        )


def _legend(axes: Axes, fits: Fits, marks: Sequence[Mark]) -> None:
    """Explain the marks that occur."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=mark.colour, marker=mark.marker, lw=1.5, label=label)
        for mark, label in zip(
            marks, (f"{plot_style.math_flops(b)} FLOPs" for b in fits.budgets), strict=True
        )
    ]
    hollow: dict[str, Any] = {"color": "none", "markeredgecolor": "black", "linestyle": "none"}
    kinds = {o.status for o in fits.optima if o.axis == "n_params"}
    if "interior" in kinds:
        handles.append(Line2D([], [], marker="*", ms=14, label="minimum of the parabola", **hollow))
    if kinds & {"edge_low", "edge_high"}:
        handles.append(
            Line2D([], [], marker=">", ms=10, label="bound: minimum lies beyond", **hollow)
        )
    if _drawn_excluded(fits):
        handles.append(
            Line2D(
                [],
                [],
                marker="x",
                ms=7,
                color="#606060",
                ls="none",
                label="excluded (at edge: no loss or off scale)",
            )
        )
    axes.legend(handles=handles, loc="center left", frameon=False, labelspacing=0.7)

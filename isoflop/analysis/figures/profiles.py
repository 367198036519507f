"""The isoFLOP profiles, one panel per family and one curve per budget, and their residuals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from isoflop import plot_style
from isoflop.analysis.figures import frame
from isoflop.analysis.optima import Optimum, fitted_curve
from isoflop.analysis.optima_methods import METHODS
from isoflop.analysis.points import Axis, Excluded, GroupKey, Point, profile_of
from isoflop.analysis.result import Fits, excluded_note
from isoflop.analysis.screening import STOOD_FOR
from isoflop.numbers import format_count
from isoflop.plot_style import Mark
from isoflop.units import loss_label, loss_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_PROFILES_TITLE = "IsoFLOP profiles: {} against size at equal training compute"
AXIS_LABELS: dict[Axis, str] = {
    "n_params": "Parameters",
    "n_tokens": "Training tokens",
    "n_active": "Active parameters",
}
# More budgets than this crowd a panel, so their marks are smaller.
_FEW_BUDGETS = 4
_ROW_INCHES = 2.0
# More curves hide each other; more legend entries need their lines closer.
_MOST_BUDGETS = 10
_MOST_NAMED = 8
_CURVE_SAMPLES = 80
# Below this many degrees of freedom, residuals are what a ridge leaves, or rounding.
_LEAST_FREE = 0.5
_RESIDUALS_TITLE = "Residuals of the isoFLOP curves"


def draw_profiles(fits: Fits) -> Figure:
    """Draw the profiles on the axis of the options; families side by side on one loss axis.

    The loss axis spans the points, the optima and their intervals; an excluded run whose loss is
    missing or far outside is drawn at the upper edge. Of many families or budgets some are drawn,
    and the note says how many.
    """
    if not any(fits.groups.values()):
        return plot_style.sentence_figure(
            _title(fits.unit), f"No finished runs to draw. {excluded_note(fits)}"
        )
    archs = frame.drawn_archs(fits)
    losses = [p.loss for key in _keys(fits, archs) for p in fits.groups[key]]
    losses = losses or [p.loss for points in fits.groups.values() for p in points]
    for optimum in _optima(fits):
        ends = (optimum.loss_opt, optimum.loss_ci_lo, optimum.loss_ci_hi)
        losses += [end for end in ends if end is not None]
    notes = _notes(fits)
    figure, panels, legend = _panels(archs, notes, fits.unit)
    low, high = min(losses), max(losses)
    pad = 0.08 * (high - low) or 0.05 * high
    budgets = sorted({budget for _, budget in _keys(fits, archs)})
    marks = {b: plot_style.budget_mark(i, len(budgets)) for i, b in enumerate(budgets)}
    for arch, axes in zip(archs, panels, strict=True):
        axes.set_ylim(low - pad, high + 1.6 * pad)
        _draw_family(axes, fits, arch, marks)
    plot_style.title(figure, _title(fits.unit))
    _legend(legend, fits, marks)
    plot_style.note(figure, notes)
    return figure


def _optima(fits: Fits) -> list[Optimum]:
    """Return the optima that are drawn."""
    return [o for arch in frame.drawn_archs(fits) for o in _optima_of(fits, arch)]


def _optima_of(fits: Fits, arch: str) -> list[Optimum]:
    budgets = _budgets(fits, arch)
    return [o for o in fits.optima_of(arch) if o.budget_flops in budgets]


def _budgets(fits: Fits, arch: str) -> list[float]:
    """Return the budgets of a family that are drawn; of many, those with runs come first."""
    found = [budget for name, budget in fits.groups if name == arch]
    if len(found) > _MOST_BUDGETS:
        found = [budget for budget in found if fits.groups[arch, budget]]
    return evenly(found, _MOST_BUDGETS)


def _keys(fits: Fits, archs: Sequence[str]) -> list[GroupKey]:
    """Return the groups that are drawn."""
    return [(arch, budget) for arch in archs for budget in _budgets(fits, arch)]


def evenly(values: Sequence[float], most: int) -> list[float]:
    """Return at most so many of the values, the first, the last and evenly chosen ones between."""
    num = len(values)
    if num <= most:
        return list(values)
    return [values[round(i * (num - 1) / (most - 1))] for i in range(most)]


def _notes(fits: Fits) -> list[str]:
    lines = frame.run_notes(fits)
    if any(o.ci_lo is not None for o in _optima(fits)):
        share = f"{100 * fits.options.confidence:g} %"
        lines.insert(0, f"Shaded box: {share} interval of the minimum, in size and loss.")
    most = max((sum(name == arch for name, _ in fits.groups) for arch in fits.archs), default=0)
    if most > _MOST_BUDGETS:
        lines.append(
            f"Drawn: {_MOST_BUDGETS} budgets of a family at most, evenly chosen of up to {most}."
        )
    drawn = {budget for _, budget in _keys(fits, frame.drawn_archs(fits))}
    if len(drawn) > _MOST_BUDGETS:
        lines.append(f"Named: {_MOST_NAMED} of the {len(drawn)} budgets drawn.")
    return [*lines, *frame.left_out_note(fits)]


def _title(unit: str) -> str:
    return _PROFILES_TITLE.format(loss_name(unit))


def _panels(
    archs: Sequence[str], notes: Sequence[str], unit: str
) -> tuple[Figure, list[Axes], Axes]:
    """Return the figure, one axes per arch, and one more without axes for the legend."""
    places = len(archs) + 1
    columns = min(places, 3)
    rows = math.ceil(places / columns)
    width = plot_style.PAGE_WIDTH * columns / 3
    height = _ROW_INCHES * rows + 0.15 + plot_style.title_height(_title(unit), width)
    figure = plot_style.new_figure(width, height, strip=plot_style.note_height(notes, width))
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten().tolist()
    for axes in grid[len(archs) :]:
        axes.set_axis_off()
    for axes, name in zip(grid, frame.panel_titles(archs), strict=False):
        axes.set_title(name, fontweight="bold", loc="left", parse_math=False)
    for axes in grid[: len(archs) : columns]:
        axes.set_ylabel(loss_label(unit))
    return figure, grid[: len(archs)], grid[len(archs)]


def _draw_family(axes: Axes, fits: Fits, arch: str, marks: Mapping[float, Mark]) -> None:
    axis = fits.options.axis
    excluded = [row for row in _drawn_excluded(fits) if row.arch == arch]
    sizes = [
        x
        for (name, _), points in fits.groups.items()
        if name == arch
        for p in points
        if (x := p.on(axis)) is not None
    ]
    sizes += [row.n_params for row in excluded if row.n_params is not None]
    optima = {o.budget_flops: o for o in _optima_of(fits, arch)}
    axes.set_xscale("log")
    axes.set_xlabel(AXIS_LABELS[axis])
    if sizes:
        # Room for the word "bound" on the side where it stands.
        kinds = {o.status for o in optima.values()}
        low, _ = plot_style.padded(min(sizes), max(sizes), 0.4 if "edge_low" in kinds else 0.1)
        _, high = plot_style.padded(min(sizes), max(sizes), 0.4 if "edge_high" in kinds else 0.1)
        axes.set_xlim(low, high)
        plot_style.set_log_ticks(axes.xaxis, low, high, 4, format_count)
    scale = 0.75 if len(marks) <= _FEW_BUDGETS else 0.55
    for budget, optimum in optima.items():
        points = fits.groups[arch, budget]
        _draw_profile(axes, fits, points, marks[budget], scale)
        _draw_interval(axes, optimum, marks[budget])
    for optimum in optima.values():
        _draw_optimum(axes, optimum, scale, fits.unit)
    _draw_excluded(axes, excluded)


def _draw_profile(
    axes: Axes, fits: Fits, points: Sequence[Point], mark: Mark, scale: float
) -> None:
    import numpy as np

    axis, unit = fits.options.axis, fits.unit

    placed = [(x, point) for point in points if (x := point.on(axis)) is not None]
    if not placed:
        return
    sizes = [x for x, _ in placed]
    tips = [frame.run_text(point, unit) for _, point in placed]
    marks = [(x, point.loss) for x, point in placed]
    frame.draw_marks(axes, marks, mark, tips, markersize=5.5 * scale, zorder=4)
    curve = fitted_curve(points, axis, fits.options.method)
    if curve is not None:
        across = np.geomspace(min(sizes), max(sizes), _CURVE_SAMPLES)
        axes.plot(across, curve(across), color=mark.colour, lw=1.1)


def _draw_interval(axes: Axes, optimum: Optimum, mark: Mark) -> None:
    """Shade the interval of a minimum: in size its width, in loss its height."""
    from matplotlib.patches import Rectangle

    ends = (optimum.ci_lo, optimum.ci_hi, optimum.loss_ci_lo, optimum.loss_ci_hi)
    if None in ends:
        return
    left, right, low, high = (float(end) for end in ends if end is not None)
    axes.add_patch(
        Rectangle(
            (left, low),
            right - left,
            high - low,
            facecolor=mark.colour,
            edgecolor=mark.colour,
            alpha=0.35,
            linewidth=0.8,
            zorder=2,
        )
    )


def _draw_optimum(axes: Axes, optimum: Optimum, scale: float, unit: str) -> None:
    """Draw a star at an interior optimum, an outward triangle and the word "bound" at an edge.

    Both are hollow and lie under the points, which stay visible. The word stands outside the
    sizes of its own curve; there the curves of other budgets lie higher or lower.
    """
    if optimum.x_opt is None or optimum.loss_opt is None:
        return
    at = (optimum.x_opt, optimum.loss_opt)
    low = optimum.status == "edge_low"
    star = optimum.is_point
    frame.draw_marks(
        axes,
        [at],
        Mark(colour="black", marker="*" if star else "<" if low else ">", line="none"),
        [frame.optimum_text(optimum, unit)],
        markersize=(14 if star else 11) * scale,
        markerfacecolor="white" if star else "none",
        markeredgewidth=0.8 if star else 1.1,
        zorder=3,
    )
    if star:
        return
    axes.annotate(
        "bound",
        at,
        xytext=(-6 if low else 6, 0),
        textcoords="offset points",
        ha="right" if low else "left",
        va="center",
        fontsize=plot_style.SMALL_SIZE,
    )


def _drawn_excluded(fits: Fits) -> list[Excluded]:
    """Return the excluded rows with a place in the figure; their sizes are parameters."""
    if fits.options.axis != "n_params":
        return []
    return [
        row
        for row in fits.excluded
        if row.n_params is not None and row.reason not in {"missing", *STOOD_FOR}
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
            markersize=5,
            markeredgewidth=1.2,
            color="#606060",
            linestyle="none",
            clip_on=False,
        )


def _legend(axes: Axes, fits: Fits, marks: Mapping[float, Mark]) -> None:
    """Explain the marks that occur."""
    from matplotlib.lines import Line2D

    named = list(marks)
    if len(named) > _MOST_BUDGETS:
        named = evenly(named, _MOST_NAMED)
    # Budgets of a design are round numbers; of many others three digits are enough to know them.
    digits = 5 if len(fits.budgets) <= _MOST_NAMED else 3
    handles = [
        Line2D(
            [],
            [],
            color=marks[budget].colour,
            marker=marks[budget].marker,
            ms=4.5,
            lw=1.1,
            label=f"{plot_style.math_flops(budget, digits)} FLOPs",
        )
        for budget in named
    ]
    hollow: dict[str, Any] = {"color": "none", "markeredgecolor": "black", "linestyle": "none"}
    kinds = {o.status for o in _optima(fits)}
    if "interior" in kinds:
        handles.append(Line2D([], [], marker="*", ms=10, label="minimum of the curve", **hollow))
    if kinds & {"edge_low", "edge_high"}:
        handles.append(
            Line2D([], [], marker=">", ms=7, label="bound: minimum lies beyond", **hollow)
        )
    if _drawn_excluded(fits):
        handles.append(
            Line2D(
                [],
                [],
                marker="x",
                ms=5,
                color="#606060",
                ls="none",
                label="excluded (at edge: no loss\nor off scale)",
            )
        )
    is_long = len(handles) > _MOST_NAMED
    spacing = 0.3 if is_long else 0.7
    legend = axes.legend(handles=handles, loc="center left", frameon=False, labelspacing=spacing)
    # It may be higher than a panel, which must not shrink all panels.
    legend.set_in_layout(not is_long)


def draw_residuals(fits: Fits) -> Figure:
    """Draw measured minus fitted loss, in percent of it, against size and against compute."""
    residuals = {arch: relative_residuals(fits, arch) for arch in fits.archs}
    if not any(residuals.values()):
        return plot_style.sentence_figure(
            _RESIDUALS_TITLE,
            f"No group has more points than its curve has coefficients. {excluded_note(fits)}",
        )
    notes = [
        "Above zero: the run is worse than the curve over its family's sizes at that budget.",
        *frame.run_notes(fits),
    ]
    figure, (by_size, by_compute) = frame.panels(
        2, title=_RESIDUALS_TITLE, label="Residual (% of the loss)", archs=fits.archs, notes=notes
    )
    axis = fits.options.axis
    tips = {
        id(p): f"{frame.run_text(p, fits.unit)}\nresidual {100 * r:+.3f} %"
        for found in residuals.values()
        for p, r in found
    }
    _draw_residuals(by_size, residuals, tips, lambda p: p.on(axis) or 1.0, AXIS_LABELS[axis])
    by_budget = "Training compute (FLOPs)"
    _draw_residuals(by_compute, residuals, tips, lambda p: p.budget_flops, by_budget)
    plot_style.set_budget_ticks(by_compute, fits.budgets)
    return figure


def relative_residuals(fits: Fits, arch: str) -> list[tuple[Point, float]]:
    """Return (point, (loss − fit) / fit) of the groups with a residual degree of freedom.

    The fit is the curve of the options' method; points that it leaves out are left out.
    """
    import numpy as np

    axis, method = fits.options.axis, fits.options.method
    found = []
    for (label, _), points in fits.groups.items():
        curve = fitted_curve(points, axis, method)
        if label != arch or curve is None:
            continue
        placed = profile_of(points, axis)
        fitted = curve(placed.x)
        known = np.isfinite(fitted)
        num_free = np.count_nonzero(known) - METHODS[method].num_coefficients(placed.log_x[known])
        if num_free >= _LEAST_FREE:
            residuals = placed.loss / fitted - 1
            found += [
                (point, float(residual))
                for point, residual, there in zip(placed.points, residuals, known, strict=True)
                if there
            ]
    return found


def _draw_residuals(
    axes: Axes,
    residuals: dict[str, list[tuple[Point, float]]],
    tips: Mapping[int, str],
    place: Callable[[Point], float],
    label: str,
) -> None:
    axes.set_xscale("log")
    axes.set_xlabel(label)
    axes.axhline(0.0, color="#606060", linewidth=0.8)
    places = [place(point) for found in residuals.values() for point, _ in found]
    low, high = plot_style.padded(min(places), max(places), 0.06)
    axes.set_xlim(low, high)
    plot_style.set_log_ticks(axes.xaxis, low, high, 4, format_count)
    for index, found in enumerate(residuals.values()):
        if not found:
            continue
        mark = plot_style.family_mark(index)
        marks = [(place(point), 100 * residual) for point, residual in found]
        frame.draw_marks(axes, marks, mark, [tips[id(p)] for p, _ in found], markersize=4)

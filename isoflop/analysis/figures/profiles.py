"""The isoFLOP profiles, one panel per family and one curve per budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from isoflop import plot_style
from isoflop.analysis.axes import axis_label
from isoflop.analysis.figures import marks
from isoflop.analysis.figures.canvas import Canvas, finish, open_canvas, panel_names, say
from isoflop.analysis.figures.legends import entry, handles_of
from isoflop.analysis.figures.notes import families_note, run_notes
from isoflop.analysis.figures.shown import (
    MOST_FAMILIES,
    MOST_LISTED,
    Hue,
    Palette,
    Shown,
    budget_title,
    show,
)
from isoflop.analysis.optima import Optimum, fitted_curve
from isoflop.analysis.points import Axis, Excluded, GroupKey, Point
from isoflop.analysis.result import Fits
from isoflop.analysis.screening import STOOD_FOR
from isoflop.numbers import format_count
from isoflop.plot_style import Mark
from isoflop.units import loss_label, loss_name

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure


T = TypeVar("T")

_PROFILES_TITLE = "IsoFLOP profiles: {} against size at equal training compute"
# Curves of a panel, and panels of a figure, where the caller names neither.
_MOST_CURVES = 40
_MOST_PANELS = 12
# More curves than this crowd a panel, so their marks are smaller.
_FEW_CURVES = 4
_CURVE_SAMPLES = 80


@dataclass(frozen=True, kw_only=True, slots=True)
class _Panel:
    """One panel: its groups, and what is drawn of them."""

    arch: str | None
    """None: the panel is a budget's."""
    budget: float | None
    keys: tuple[GroupKey, ...]
    optima: tuple[Optimum, ...]
    excluded: tuple[Excluded, ...]


def profiles(
    fits: Fits,
    *,
    figure: Figure | SubFigure | None = None,
    ax: Axes | None = None,
    archs: Sequence[str] | str | None = None,
    budgets: Sequence[float] | float | None = None,
    hue: str | None = None,
    palette: Palette | None = None,
    notes: bool = True,
    axis: Axis | None = None,
) -> tuple[Figure | SubFigure, np.ndarray[Any, Any]]:
    """Draw loss against size at equal compute, one curve per family and budget.

    A panel is a family and colours are budgets; with hue="arch" it is the other way round. The
    loss axis spans the points, the optima and their intervals; an excluded run whose loss is
    missing or far outside is drawn at an edge. More budgets than six have a colour bar.

    Args:
        fits: what was fitted.
        figure: to draw into; None: a new figure of pyplot, or the one of ``ax``.
        ax: to draw into, where one panel results.
        archs: families in the order wanted; None: the first 11, the reference among them.
        budgets: in FLOPs; None: those of the table, at most 40 of a family, evenly chosen.
        hue: what colours tell apart, "budget" (default) or "arch".
        palette: colours by label, a list, or the name of a colormap.
        notes: whether a note says what the marks mean and which runs are excluded.
        axis: of sizes; None: that of the options.

    Returns:
        The figure and its axes.

    Raises:
        UserError: an argument is not known to the table or to matplotlib.
    """
    fits = fits if axis is None else fits.under(axis=axis)
    default: Hue = "arch" if hue == "arch" else "budget"
    most = None if default == "arch" else MOST_FAMILIES
    seen = show(
        fits,
        archs=archs,
        budgets=budgets,
        hue=hue,
        palette=palette,
        default=default,
        shape=default,
        most=most,
    )
    panels = _panels(fits, seen, is_chosen=budgets is not None)
    title = _PROFILES_TITLE.format(loss_name(fits.unit))
    if not any(fits.groups[key] for panel in panels for key in panel.keys):
        canvas = open_canvas(1, figure=figure, ax=ax)
        return say(canvas, fits, title, "No finished runs to draw.")
    canvas = open_canvas(len(panels), figure=figure, ax=ax)
    _limit_losses(canvas, fits, panels)
    for axes, panel in zip(canvas.axes, panels, strict=True):
        _draw_panel(axes, fits, seen, panel)
    _name_panels(canvas, panels)
    return finish(
        canvas,
        title=title,
        label=loss_label(fits.unit),
        handles=[*handles_of(seen, names=False), *_kinds(panels)],
        notes=_notes(fits, seen, panels) if notes else (),
        scale=seen.scale,
        # Curves of several budgets fill a panel from corner to corner.
        is_full=len(panels[0].keys) > 1 and seen.scale is None,
    )


def _panels(fits: Fits, seen: Shown, *, is_chosen: bool) -> list[_Panel]:
    """Return the panels: families, or budgets where colours are those of families."""
    groups = seen.groups(fits)
    if seen.shape == "budget":
        return [
            _panel(fits, keys, arch=arch)
            for arch in seen.archs
            if (keys := _curves([key for key in groups if key[0] == arch], groups, is_chosen))
        ]
    shown = list(seen.budgets) if is_chosen else evenly(seen.budgets, _MOST_PANELS)
    return [
        _panel(fits, keys, budget=budget)
        for budget in shown
        if (keys := [key for key in groups if key[1] == budget])
    ]


def _curves(
    keys: list[GroupKey], groups: Mapping[GroupKey, Sequence[Point]], is_chosen: bool
) -> list[GroupKey]:
    """Return the curves of a family; of too many, those with runs come first."""
    if is_chosen or len(keys) <= _MOST_CURVES:
        return keys
    return evenly([key for key in keys if groups[key]], _MOST_CURVES)


def _panel(
    fits: Fits, keys: Sequence[GroupKey], arch: str | None = None, budget: float | None = None
) -> _Panel:
    optima = fits.optima_by_group()
    excluded = [
        row
        for row in _drawn_excluded(fits)
        if (arch is None or row.arch == arch)
        and (budget is None or (row.budget_flops == budget and (row.arch, budget) in keys))
    ]
    return _Panel(
        arch=arch,
        budget=budget,
        keys=tuple(keys),
        optima=tuple(optima[key] for key in keys if key in optima),
        excluded=tuple(excluded),
    )


def evenly(values: Sequence[T], most: int) -> list[T]:
    """Return at most so many of the values, the first, the last and evenly chosen ones between."""
    num = len(values)
    if num <= most:
        return list(values)
    return [values[round(i * (num - 1) / (most - 1))] for i in range(most)]


def _notes(fits: Fits, seen: Shown, panels: Sequence[_Panel]) -> list[str]:
    lines = run_notes(fits)
    if any(o.ci_lo is not None for panel in panels for o in panel.optima):
        share = f"{100 * fits.options.confidence:g} %"
        lines.insert(0, f"Shaded box: {share} interval of the minimum, in size and loss.")
    drawn = {key for panel in panels for key in panel.keys}
    groups = seen.groups(fits)
    absent = [key for key in groups if key not in drawn]
    if absent and seen.shape == "budget":
        most = max(Counter(arch for arch, _ in groups).values())
        lines.append(
            f"Drawn: {_MOST_CURVES} budgets of a family at most, evenly chosen of up to {most}."
        )
    elif absent:
        lines.append(f"Drawn: {len(panels)} of {len(seen.budgets)} budgets, evenly chosen.")
    return [*lines, *families_note(fits, seen)]


def _name_panels(canvas: Canvas, panels: Sequence[_Panel]) -> None:
    """Write above each panel which family or budget it shows."""
    if panels[0].arch is None:
        for axes, panel in zip(canvas.axes, panels, strict=True):
            axes.set_title(budget_title(panel.budget or 0.0))
        return
    names = panel_names([panel.arch or "" for panel in panels], canvas)
    for axes, name in zip(canvas.axes, names, strict=True):
        axes.set_title(name, parse_math=False)


def _limit_losses(canvas: Canvas, fits: Fits, panels: Sequence[_Panel]) -> None:
    losses = [point.loss for panel in panels for key in panel.keys for point in fits.groups[key]]
    for panel in panels:
        for optimum in panel.optima:
            ends = (optimum.loss_opt, optimum.loss_ci_lo, optimum.loss_ci_hi)
            losses += [end for end in ends if end is not None]
    low, high = min(losses), max(losses)
    pad = 0.08 * (high - low) or 0.05 * high
    for axes in canvas.axes:
        axes.set_ylim(low - pad, high + 1.6 * pad)


def _draw_panel(axes: Axes, fits: Fits, seen: Shown, panel: _Panel) -> None:
    axis = fits.options.axis
    sizes = [x for key in panel.keys for p in fits.groups[key] if (x := p.on(axis)) is not None]
    sizes += [row.n_params for row in panel.excluded if row.n_params is not None]
    axes.set_xscale("log")
    axes.set_xlabel(axis_label(axis), parse_math=False)
    if sizes:
        # Room for the word "bound" on the side where it stands.
        kinds = {o.status for o in panel.optima}
        low, _ = plot_style.padded(min(sizes), max(sizes), 0.4 if "edge_low" in kinds else 0.1)
        _, high = plot_style.padded(min(sizes), max(sizes), 0.4 if "edge_high" in kinds else 0.1)
        axes.set_xlim(low, high)
        plot_style.set_log_ticks(axes.xaxis, 4, format_count)
    scale = 1.0 if len(panel.keys) <= _FEW_CURVES else 0.75 if seen.scale is None else 0.5
    optima = {(o.arch, o.budget_flops): o for o in panel.optima}
    for key in panel.keys:
        mark = seen.mark(*key)
        _draw_profile(axes, fits, fits.groups[key], mark, scale, seen.label(*key))
        if key in optima:
            _draw_interval(axes, optima[key], mark)
    is_named = seen.shape == "budget" and len(panel.keys) <= MOST_LISTED
    for optimum in panel.optima:
        _draw_optimum(axes, optimum, scale, fits.unit, is_named)
    _draw_excluded(axes, panel.excluded)


def _draw_profile(
    axes: Axes, fits: Fits, points: Sequence[Point], mark: Mark, scale: float, label: str
) -> None:
    axis, unit = fits.options.axis, fits.unit
    placed = [(x, point) for point in points if (x := point.on(axis)) is not None]
    if not placed:
        return
    sizes = [x for x, _ in placed]
    tips = [marks.run_text(point, unit) for _, point in placed]
    places = [(x, point.loss) for x, point in placed]
    marks.draw_marks(axes, places, mark, tips, label=label, scale=0.8 * scale, zorder=4)
    curve = fitted_curve(points, axis, fits.options.method)
    if curve is not None:
        across = np.geomspace(min(sizes), max(sizes), _CURVE_SAMPLES)
        axes.plot(across, curve(across), color=mark.colour, ls=mark.line, label="_nolegend_")


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


def _draw_optimum(axes: Axes, optimum: Optimum, scale: float, unit: str, is_named: bool) -> None:
    """Draw a star at an interior optimum, an outward triangle and the word "bound" at an edge.

    Both are hollow and lie under the points, which stay visible. The word stands outside the
    sizes of its own curve; there the curves of other budgets lie higher or lower. Where curves are
    many, or those of families at one budget, it would lie over them, and the legend alone says so.
    """
    from matplotlib import rcParams

    if optimum.x_opt is None or optimum.loss_opt is None:
        return
    at = (optimum.x_opt, optimum.loss_opt)
    low = optimum.status == "edge_low"
    star, ink = optimum.is_point, rcParams["text.color"]
    marks.draw_marks(
        axes,
        [at],
        Mark(colour=ink, marker="*" if star else "<" if low else ">", line="none"),
        [marks.optimum_text(optimum, unit)],
        scale=(2.1 if star else 1.65) * scale,
        markerfacecolor=rcParams["axes.facecolor"] if star else "none",
        markeredgewidth=0.8 if star else 1.1,
        zorder=3,
    )
    if star or not is_named:
        return
    axes.annotate(
        "bound",
        at,
        xytext=(-6 if low else 6, 0),
        textcoords="offset points",
        ha="right" if low else "left",
        va="center",
        fontsize=plot_style.small_size(),
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
            color=plot_style.grey(),
            linestyle="none",
            label="_nolegend_",
            clip_on=False,
        )


def _kinds(panels: Sequence[_Panel]) -> list[Artist]:
    """Return the legend's entries of the marks that occur beside the runs."""
    from matplotlib import rcParams

    hollow: dict[str, Any] = {
        "color": "none",
        "markeredgecolor": rcParams["text.color"],
        "linestyle": "none",
    }
    size = rcParams["lines.markersize"]
    statuses = {o.status for panel in panels for o in panel.optima}
    found = []
    if "interior" in statuses:
        found.append(entry("minimum of the curve", marker="*", markersize=2 * size, **hollow))
    if statuses & {"edge_low", "edge_high"}:
        label = "bound: minimum lies beyond"
        found.append(entry(label, marker=">", markersize=1.4 * size, **hollow))
    if any(panel.excluded for panel in panels):
        label = "excluded (at edge: no loss or off scale)"
        found.append(entry(label, marker="x", color=plot_style.grey(), linestyle="none"))
    return found

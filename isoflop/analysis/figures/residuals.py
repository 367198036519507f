"""Residuals of the isoFLOP curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from isoflop import plot_style
from isoflop.analysis.axes import axis_label
from isoflop.analysis.figures import marks
from isoflop.analysis.figures.canvas import COMPUTE_LABEL, finish, open_canvas, say
from isoflop.analysis.figures.legends import handles_of
from isoflop.analysis.figures.notes import run_notes
from isoflop.analysis.figures.shown import Palette, Shown, show
from isoflop.analysis.optima import fitted_curve
from isoflop.analysis.optima_methods import METHODS
from isoflop.analysis.points import Point, profile_of
from isoflop.analysis.result import Fits
from isoflop.units import loss_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure


_RESIDUALS_TITLE = "Residuals of the isoFLOP curves"
# Below this many degrees of freedom, residuals are what a ridge leaves, or rounding.
_LEAST_FREE = 0.5


def residuals(
    fits: Fits,
    *,
    figure: Figure | SubFigure | None = None,
    ax: Axes | None = None,
    archs: Sequence[str] | str | None = None,
    budgets: Sequence[float] | float | None = None,
    hue: str | None = None,
    palette: Palette | None = None,
    notes: bool = True,
) -> tuple[Figure | SubFigure, np.ndarray[Any, Any]]:
    """Draw measured minus fitted loss, in percent of it, against size and against compute.

    In an axes that is given, against size alone. Arguments, results and errors are those of
    `isoflop.analysis.figures.profiles.profiles`; the hue is "arch" by default.
    """
    seen = show(fits, archs=archs, budgets=budgets, hue=hue, palette=palette)
    found = [
        (point, residual)
        for arch in seen.archs
        for point, residual in relative_residuals(fits, arch)
        if point.budget_flops in seen.budgets
    ]
    if not found:
        canvas = open_canvas(1, figure=figure, ax=ax)
        why = "No group has more points than its curve has coefficients."
        return say(canvas, fits, _RESIDUALS_TITLE, why)
    canvas = open_canvas(2 if ax is None else 1, figure=figure, ax=ax)
    axis = fits.options.axis
    sized = [(x, p, r) for p, r in found if (x := p.on(axis)) is not None]
    _draw_residuals(canvas.axes[0], sized, seen, axis_label(axis), fits.unit)
    for axes in canvas.axes[1:]:
        at_budgets = [(p.budget_flops, p, r) for p, r in found]
        _draw_residuals(axes, at_budgets, seen, COMPUTE_LABEL, fits.unit)
        plot_style.set_budget_ticks(axes, seen.budgets)
    what = "Above zero: the run is worse than the curve over its family's sizes at that budget."
    return finish(
        canvas,
        title=_RESIDUALS_TITLE,
        label=f"Residual (% of the {loss_name(fits.unit)})",
        handles=handles_of(seen),
        notes=[what, *run_notes(fits)] if notes else (),
        scale=seen.scale,
    )


def relative_residuals(fits: Fits, arch: str) -> list[tuple[Point, float]]:
    """Return (point, (loss − fit) / fit) of the groups with a residual degree of freedom.

    The fit is the curve of the options' method; points that it leaves out are left out.
    """
    axis, method = fits.options.axis, fits.options.method
    found = []
    for (label, _), points in fits.groups.items():
        if label != arch:
            continue
        curve = fitted_curve(points, axis, method)
        if curve is None:
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
    found: Sequence[tuple[float, Point, float]],
    seen: Shown,
    label: str,
    unit: str,
) -> None:
    """Draw (place, run, residual) of every run."""
    axes.axhline(0.0, color=plot_style.grey(), linewidth=0.8, label="_nolegend_")
    axes.set_xlabel(label, parse_math=False)
    plot_style.count_ticks(axes, [place for place, _, _ in found])
    for group in seen.grouped(((p.arch, p.budget_flops), (x, p, r)) for x, p, r in found):
        points = [(x, 100 * r) for x, _, r in group.members]
        tips = [
            f"{marks.run_text(p, unit)}\nresidual {100 * r:+.3f} %" for _, p, r in group.members
        ]
        marks.draw_marks(axes, points, group.mark, tips, label=group.label, scale=0.8)

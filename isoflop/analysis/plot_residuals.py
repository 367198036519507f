"""Residuals of the isoFLOP curves against size and compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from isoflop import plot_style
from isoflop.analysis import plot_frame, plot_tips
from isoflop.analysis.optima import fit_parabola
from isoflop.analysis.plot_profiles import AXIS_LABELS
from isoflop.analysis.points import Point
from isoflop.analysis.result import Fits
from isoflop.analysis.summary import excluded_note
from isoflop.numbers import format_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TITLE = "Residuals of the isoFLOP parabolas"


def draw_residuals(fits: Fits) -> Figure:
    """Draw measured minus fitted loss, in percent of it, against size and against compute."""
    residuals = {arch: relative_residuals(fits, arch) for arch in fits.archs}
    if not any(residuals.values()):
        return plot_style.sentence_figure(
            _TITLE, f"No group has more sizes than the parabola coefficients. {excluded_note(fits)}"
        )
    notes = [
        "Above zero: the run is worse than the parabola over its family's sizes at that budget.",
        excluded_note(fits),
    ]
    figure, (by_size, by_compute) = plot_frame.panels(
        2, title=_TITLE, label="Residual (% of the loss)", archs=fits.archs, notes=notes
    )
    axis = fits.options.axis
    _draw(by_size, residuals, lambda p: p.on(axis) or 1.0, AXIS_LABELS[axis])
    _draw(by_compute, residuals, lambda p: p.budget_flops, "Training compute (FLOPs)")
    plot_style.set_budget_ticks(by_compute, fits.budgets)
    return figure


def relative_residuals(fits: Fits, arch: str) -> list[tuple[Point, float]]:
    """Return (point, (loss − fit) / fit) of the groups with a residual degree of freedom."""
    found = []
    for (label, _), points in fits.groups.items():
        placed = [p for p in points if p.on(fits.options.axis) is not None]
        if label != arch or len(placed) <= 3:
            continue
        parabola = fit_parabola(points, fits.options.axis)
        if parabola is not None:
            fitted = [parabola.loss_at(p.on(fits.options.axis) or 1.0) for p in placed]
            found += [(p, (p.loss - f) / f) for p, f in zip(placed, fitted, strict=True)]
    return found


def _draw(
    axes: Axes,
    residuals: dict[str, list[tuple[Point, float]]],
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
        (line,) = axes.plot(
            [place(point) for point, _ in found],
            [100 * residual for _, residual in found],
            color=mark.colour,
            marker=mark.marker,
            markersize=4,
            linestyle="none",
        )
        plot_tips.tell(
            line,
            [f"{plot_tips.run_text(p)}\nresidual {100 * r:+.3f} %" for p, r in found],
        )

"""Frontiers by each resource: all runs, the runs that no other beats, and the optima."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from isoflop import plot_style
from isoflop.analysis import plot_frame, plot_tips
from isoflop.analysis.points import Point, Resource, profile_of, resource_at
from isoflop.analysis.result import Fits
from isoflop.analysis.summary import excluded_note
from isoflop.numbers import format_count
from isoflop.plot_style import Mark

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TITLE = "Loss against each resource"
LABELS: dict[Resource, str] = {
    "flops": "Training FLOPs",
    "wall_s": "Training time (s)",
    "n_active": "Active parameters",
    "n_params": "Parameters",
    "n_tokens": "Training tokens",
    "peak_mem_bytes": "Peak memory (bytes)",
}


def draw_resources(fits: Fits) -> Figure:
    """Draw one panel per resource that the table has; families share the loss axis."""
    measured = [name for name in LABELS if any(_placed(fits, arch, name) for arch in fits.archs)]
    if not measured:
        return plot_style.sentence_figure(_TITLE, f"No finished runs. {excluded_note(fits)}")
    absent = [LABELS[name] for name in LABELS if name not in measured]
    notes = [
        "Small: runs. Steps: runs that no run of the family beats in both loss and resource. "
        "Large: optima of the isoFLOP curves.",
        *([f"Not in the table: {', '.join(absent)}."] if absent else []),
        excluded_note(fits),
    ]
    figure, grid = plot_frame.panels(
        len(measured), title=_TITLE, label="Loss (nats per token)", archs=fits.archs, notes=notes
    )
    for axes, name in zip(grid, measured, strict=True):
        _draw_panel(axes, fits, name)
    return figure


def hull(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the (resource, loss) that no other point beats in both, cheapest first."""
    kept: list[tuple[float, float]] = []
    for resource, loss in sorted(points):
        if not kept or loss < kept[-1][1]:
            kept.append((resource, loss))
    return kept


def _placed(fits: Fits, arch: str, name: Resource) -> list[tuple[float, Point]]:
    return [
        (value, point)
        for (label, _), points in fits.groups.items()
        if label == arch
        for point in points
        if (value := getattr(point, name)) is not None and value > 0
    ]


def _draw_panel(axes: Axes, fits: Fits, name: Resource) -> None:
    axes.set_xscale("log")
    axes.set_xlabel(LABELS[name])
    everything: list[float] = []
    for index, arch in enumerate(fits.archs):
        placed = _placed(fits, arch, name)
        if placed:
            everything += [value for value, _ in placed]
            _draw_runs(axes, placed, plot_style.family_mark(index), LABELS[name])
            _draw_optima(axes, fits, arch, name, plot_style.family_mark(index))
    low, high = plot_style.padded(min(everything), max(everything), 0.06)
    axes.set_xlim(low, high)
    form = plot_style.math_flops if name == "flops" else format_count
    plot_style.set_log_ticks(axes.xaxis, low, high, 4, form)


def _draw_runs(axes: Axes, placed: Sequence[tuple[float, Point]], mark: Mark, label: str) -> None:
    (line,) = axes.plot(
        [value for value, _ in placed],
        [point.loss for _, point in placed],
        color=mark.colour,
        marker=mark.marker,
        markersize=2.5,
        alpha=0.45,
        linestyle="none",
    )
    plot_tips.tell(
        line,
        [f"{plot_tips.run_text(point)}\n{label}: {format_count(value)}" for value, point in placed],
    )
    steps = hull([(value, point.loss) for value, point in placed])
    axes.plot(
        [value for value, _ in steps],
        [loss for _, loss in steps],
        color=mark.colour,
        linestyle=mark.line,
        linewidth=0.9,
        drawstyle="steps-post",
    )


def _draw_optima(axes: Axes, fits: Fits, arch: str, name: Resource, mark: Mark) -> None:
    optima = [o for o in fits.optima_of(arch) if o.is_point]
    for optimum in optima:
        assert optimum.x_opt is not None
        assert optimum.loss_opt is not None
        points = fits.groups[arch, optimum.budget_flops]
        x = np.array([optimum.x_opt])
        found = (
            x if name == optimum.axis else resource_at(profile_of(points, optimum.axis), name, x)
        )
        if found is None or not np.isfinite(found[0]):
            continue
        value = float(found[0])
        (line,) = axes.plot(
            [value],
            [optimum.loss_opt],
            color=mark.colour,
            marker=mark.marker,
            markersize=5.5,
            markeredgecolor="black",
            markeredgewidth=0.5,
            linestyle="none",
            zorder=4,
        )
        text = f"{plot_tips.optimum_text(optimum)}\n{LABELS[name]}: {format_count(value)}"
        plot_tips.tell(line, [text])

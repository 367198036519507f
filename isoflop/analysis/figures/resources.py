"""Loss by each resource, and perplexity by parameters per FLOP (the paper's Figure 1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from isoflop import plot_style
from isoflop.analysis.figures import frame
from isoflop.analysis.points import Point, profile_of
from isoflop.analysis.resources import RESOURCES, Resource, resource_at
from isoflop.analysis.result import Fits, excluded_note
from isoflop.numbers import format_count
from isoflop.plot_style import Mark
from isoflop.units import has_perplexity, loss_label, measure_name, shown_loss

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_RESOURCES_TITLE = "Loss against each resource"
_SPARSITY_TITLE = "{} against parameters per FLOP"
# One panel per budget; of more budgets the largest.
_MOST_PANELS = 6


def draw_resources(fits: Fits) -> Figure:
    """Draw one panel per resource that the table has; families share the loss axis."""
    measured = [
        resource
        for resource in RESOURCES.values()
        if any(_with_resource(fits, arch, resource) for arch in fits.archs)
    ]
    if not measured:
        return plot_style.sentence_figure(
            _RESOURCES_TITLE, f"No finished runs. {excluded_note(fits)}"
        )
    absent = [one.axis_label for one in RESOURCES.values() if one not in measured]
    notes = [
        "Small: runs. Steps: runs that no run of the family beats in both loss and resource. "
        "Large: optima of the isoFLOP curves.",
        *([f"Not in the table: {', '.join(absent)}."] if absent else []),
        *frame.run_notes(fits),
    ]
    figure, grid = frame.panels(
        len(measured),
        title=_RESOURCES_TITLE,
        label=loss_label(fits.unit),
        archs=fits.archs,
        notes=notes,
    )
    for axes, resource in zip(grid, measured, strict=True):
        _draw_resource(axes, fits, resource)
    return figure


def hull(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the (resource, loss) that no other point beats in both, cheapest first."""
    kept: list[tuple[float, float]] = []
    for amount, loss in sorted(points):
        if not kept or loss < kept[-1][1]:
            kept.append((amount, loss))
    return kept


def _with_resource(fits: Fits, arch: str, resource: Resource) -> list[tuple[float, Point]]:
    return [
        (value, point)
        for (label, _), points in fits.groups.items()
        if label == arch
        for point in points
        if (value := resource.measure(point)) is not None and value > 0
    ]


def _draw_resource(axes: Axes, fits: Fits, resource: Resource) -> None:
    axes.set_xscale("log")
    axes.set_xlabel(resource.axis_label)
    by_arch = {arch: _with_resource(fits, arch, resource) for arch in fits.archs}
    everything = [value for placed in by_arch.values() for value, _ in placed]
    low, high = plot_style.padded(min(everything), max(everything), 0.06)
    # Before anything is drawn: matplotlib cannot find limits where all runs take the same.
    axes.set_xlim(low, high)
    for index, (arch, placed) in enumerate(by_arch.items()):
        if placed:
            mark = plot_style.family_mark(index)
            _draw_runs(axes, placed, mark, resource.axis_label, fits.unit)
            _draw_optima(axes, fits, arch, resource, mark)
    form = plot_style.math_flops if resource.is_budget else format_count
    plot_style.set_log_ticks(axes.xaxis, low, high, 4, form)


def _draw_runs(
    axes: Axes, placed: Sequence[tuple[float, Point]], mark: Mark, label: str, unit: str
) -> None:
    runs = [(value, point.loss) for value, point in placed]
    tips = [
        f"{frame.run_text(point, unit)}\n{label}: {format_count(value)}" for value, point in placed
    ]
    frame.draw_marks(axes, runs, mark, tips, markersize=2.5, alpha=0.45)
    steps = hull(runs)
    axes.plot(
        [value for value, _ in steps],
        [loss for _, loss in steps],
        color=mark.colour,
        linestyle=mark.line,
        linewidth=0.9,
        drawstyle="steps-post",
    )


def _draw_optima(axes: Axes, fits: Fits, arch: str, resource: Resource, mark: Mark) -> None:
    optima = [o for o in fits.optima_of(arch) if o.is_point]
    for optimum in optima:
        assert optimum.x_opt is not None
        assert optimum.loss_opt is not None
        points = fits.groups[arch, optimum.budget_flops]
        x = np.array([optimum.x_opt])
        found = (
            x
            if resource.name == optimum.axis
            else resource_at(profile_of(points, optimum.axis), resource.name, x)
        )
        if found is None or not np.isfinite(found[0]):
            continue
        value = float(found[0])
        text = frame.optimum_text(optimum, fits.unit)
        text += f"\n{resource.axis_label}: {format_count(value)}"
        edge = {"markeredgecolor": "black", "markeredgewidth": 0.5}
        frame.draw_marks(
            axes, [(value, optimum.loss_opt)], mark, [text], markersize=5.5, zorder=4, **edge
        )


def draw_sparsity(fits: Fits) -> Figure:
    """Draw every run at its perplexity and parameters per forward FLOP of a token.

    Of losses that have no perplexity the loss itself.
    """
    title = _SPARSITY_TITLE.format(measure_name(fits.unit))
    budgets = [
        budget
        for budget in fits.budgets
        if any(_with_sparsity(fits, arch, budget) for arch in fits.archs)
    ][-_MOST_PANELS:]
    if not budgets:
        return plot_style.sentence_figure(
            title,
            f"The table has no training FLOPs of finished runs. {excluded_note(fits)}",
        )
    notes = [
        "Parameters over forward FLOPs per token, which are a third of the training FLOPs per "
        "token. Line: mean over the seeds of a size. Large: the family's best run.",
        *frame.run_notes(fits),
    ]
    figure, grid = frame.panels(
        len(budgets),
        title=title,
        label="Perplexity" if has_perplexity(fits.unit) else loss_label(fits.unit),
        archs=fits.archs,
        notes=notes,
        share_y=False,
    )
    for axes, budget in zip(grid, budgets, strict=True):
        _draw_budget(axes, fits, budget)
    return figure


def params_per_flop(point: Point) -> float | None:
    """Return parameters per forward FLOP of a token; None where the FLOPs are unknown."""
    if point.flops is None:
        return None
    return point.n_params / (point.flops / (3.0 * point.n_tokens))


def _with_sparsity(fits: Fits, arch: str, budget: float) -> list[tuple[float, Point]]:
    points = fits.groups.get((arch, budget), ())
    return [(x, point) for point in points if (x := params_per_flop(point)) is not None]


def _draw_budget(axes: Axes, fits: Fits, budget: float) -> None:
    axes.set(xscale="log", yscale="log")
    axes.set_title(f"{plot_style.math_flops(budget)} FLOPs", loc="left")
    axes.set_xlabel("Parameters per FLOP")
    xs, ys = [], []
    for index, arch in enumerate(fits.archs):
        placed = _with_sparsity(fits, arch, budget)
        if placed:
            _draw_family(axes, placed, plot_style.family_mark(index), fits.unit)
            xs += [x for x, _ in placed]
            ys += [shown_loss(point.loss, fits.unit) for _, point in placed]
    for axis, values, form in ((axes.xaxis, xs, "{:.3g}"), (axes.yaxis, ys, "{:.4g}")):
        low, high = plot_style.padded(min(values), max(values), 0.08)
        (axes.set_xlim if axis is axes.xaxis else axes.set_ylim)(low, high)
        plot_style.set_log_ticks(axis, low, high, 4, form.format)


def _draw_family(axes: Axes, placed: Sequence[tuple[float, Point]], mark: Mark, unit: str) -> None:
    placed = sorted(placed, key=lambda item: (item[0], item[1].loss))
    best = min(placed, key=lambda item: item[1].loss)
    means = _mean_by_size(placed)
    axes.plot(
        list(means),
        [shown_loss(loss, unit) for loss in means.values()],
        color=mark.colour,
        linestyle=mark.line,
        linewidth=0.9,
    )
    for group, size in ((placed, 3.0), ([best], 6.0)):
        points = [(x, shown_loss(point.loss, unit)) for x, point in group]
        tips = [f"{frame.run_text(p, unit)}\nparameters per FLOP {x:.4g}" for x, p in group]
        frame.draw_marks(axes, points, mark, tips, markersize=size)


def _mean_by_size(placed: Sequence[tuple[float, Point]]) -> dict[float, float]:
    """Return the mean loss over the seeds at each place, in the order of the places."""
    losses: dict[float, list[float]] = {}
    for x, point in placed:
        losses.setdefault(x, []).append(point.loss)
    return {x: math.fsum(found) / len(found) for x, found in losses.items()}

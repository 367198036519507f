"""Loss by each resource, and perplexity by parameters per FLOP (the paper's Figure 1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from isoflop import plot_style
from isoflop.analysis.figures import marks
from isoflop.analysis.figures.canvas import finish, open_canvas, say
from isoflop.analysis.figures.legends import handles_of
from isoflop.analysis.figures.notes import run_notes
from isoflop.analysis.figures.shown import LOOSE, Palette, Shown, budget_title, show
from isoflop.analysis.optima import Optimum
from isoflop.analysis.points import GroupKey, Point, profile_of
from isoflop.analysis.resources import RESOURCES, Resource, resource_at
from isoflop.analysis.result import Fits
from isoflop.numbers import format_count
from isoflop.plot_style import Mark
from isoflop.units import has_perplexity, loss_label, measure_name, shown_loss

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure


_RESOURCES_TITLE = "Loss against each resource"
_SPARSITY_TITLE = "{} against parameters per FLOP"
# One panel per budget; of more budgets the largest.
_MOST_PANELS = 6
Run = tuple[GroupKey, Point]


def resources(
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
    """Draw loss against each resource that the table has, one panel each, on one loss axis.

    Runs without a budget are drawn where no budgets are named. In an axes that is given, the first
    resource is drawn, which is compute where it is known. Arguments, results and errors are those
    of `isoflop.analysis.figures.profiles.profiles`; the hue is "arch" by default.
    """
    seen = show(
        fits,
        archs=archs,
        budgets=budgets,
        hue=hue,
        palette=palette,
        with_loose=budgets is None,
    )
    runs = _runs(fits, seen, with_loose=budgets is None)
    measured = {
        name: placed for name, one in RESOURCES.items() if (placed := _with_resource(runs, one))
    }
    if not measured:
        canvas = open_canvas(1, figure=figure, ax=ax)
        return say(canvas, fits, _RESOURCES_TITLE, "No finished runs.")
    drawn = list(measured) if ax is None else list(measured)[:1]
    canvas = open_canvas(len(drawn), figure=figure, ax=ax)
    for axes, name in zip(canvas.axes, drawn, strict=True):
        _draw_resource(axes, fits, seen, measured[name], RESOURCES[name])
    absent = [one.axis_label for name, one in RESOURCES.items() if name not in measured]
    optima = any(
        o.is_point and o.budget_flops in seen.budgets for a in seen.archs for o in fits.optima_of(a)
    )
    lines = [
        "Small: runs. Steps: runs that no run of the family beats in both loss and resource."
        + (" Large: optima of the isoFLOP curves." if optima else ""),
        *([f"Not in the table: {', '.join(absent)}."] if absent else []),
        *run_notes(fits),
    ]
    return finish(
        canvas,
        title=_RESOURCES_TITLE,
        label=loss_label(fits.unit),
        handles=handles_of(seen),
        notes=lines if notes else (),
        scale=seen.scale,
    )


def hull(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the (resource, loss) that no other point beats in both, cheapest first."""
    kept: list[tuple[float, float]] = []
    for amount, loss in sorted(points):
        if not kept or loss < kept[-1][1]:
            kept.append((amount, loss))
    return kept


def _runs(fits: Fits, seen: Shown, *, with_loose: bool) -> list[Run]:
    """Return the runs that are shown; those without a budget have none."""
    runs = [(key, point) for key, points in seen.groups(fits).items() for point in points]
    if with_loose:
        runs += [((p.arch, LOOSE), p) for p in fits.selection.loose if p.arch in seen.archs]
    return runs


def _with_resource(runs: Sequence[Run], resource: Resource) -> list[tuple[float, Run]]:
    return [
        (value, run)
        for run in runs
        if (value := resource.measure(run[1])) is not None and value > 0
    ]


def _draw_resource(
    axes: Axes, fits: Fits, seen: Shown, placed: Sequence[tuple[float, Run]], resource: Resource
) -> None:
    axes.set_xlabel(resource.axis_label)
    # Before anything is drawn: matplotlib cannot find limits where all runs take the same.
    plot_style.count_ticks(axes, [value for value, _ in placed])
    if resource.is_budget:
        plot_style.set_log_ticks(axes.xaxis, 4, plot_style.math_flops)
    for arch in seen.archs:
        _draw_steps(axes, seen, arch, [(x, p.loss) for x, (_, p) in placed if p.arch == arch])
    for look in seen.grouped((key, (x, point)) for x, (key, point) in placed):
        points = [(x, point.loss) for x, point in look.members]
        tips = [
            f"{marks.run_text(point, fits.unit)}\n{resource.axis_label}: {format_count(x)}"
            for x, point in look.members
        ]
        marks.draw_marks(axes, points, look.mark, tips, label=look.label, scale=0.5, alpha=0.45)
    _draw_optima(axes, fits, seen, resource)


def _draw_steps(axes: Axes, seen: Shown, arch: str, placed: Sequence[tuple[float, float]]) -> None:
    """Join the runs of a family that none of its runs beats in both."""
    from matplotlib import rcParams

    steps = hull(placed)
    mark = seen.mark(arch, LOOSE)
    axes.plot(
        [value for value, _ in steps],
        [loss for _, loss in steps],
        color=mark.colour,
        linestyle=mark.line,
        linewidth=0.8 * rcParams["lines.linewidth"],
        drawstyle="steps-post",
        label="_nolegend_",
    )


def _draw_optima(axes: Axes, fits: Fits, seen: Shown, resource: Resource) -> None:
    from matplotlib import rcParams

    placed = [
        ((arch, optimum.budget_flops), (value, optimum))
        for arch in seen.archs
        for optimum in fits.optima_of(arch)
        if optimum.is_point and optimum.budget_flops in seen.budgets
        if (value := _amount(fits, optimum, resource)) is not None
    ]
    for look in seen.grouped(placed):
        marks.draw_marks(
            axes,
            [(value, optimum.loss_opt) for value, optimum in look.members],
            look.mark,
            [
                f"{marks.optimum_text(optimum, fits.unit)}\n"
                f"{resource.axis_label}: {format_count(value)}"
                for value, optimum in look.members
            ],
            scale=1.1,
            zorder=4,
            markeredgecolor=rcParams["text.color"],
            markeredgewidth=0.5,
        )


def _amount(fits: Fits, optimum: Optimum, resource: Resource) -> float | None:
    """Return how much of a resource a run at an optimum takes; None where that is not known."""
    assert optimum.x_opt is not None
    if resource.name == optimum.axis:
        return optimum.x_opt
    points = fits.groups[optimum.arch, optimum.budget_flops]
    at = np.array([optimum.x_opt])
    found = resource_at(profile_of(points, optimum.axis), resource.name, at)
    return None if found is None or not np.isfinite(found[0]) else float(found[0])


def sparsity(
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
    """Draw every run at its perplexity and parameters per forward FLOP, one panel per budget.

    Of losses that have no perplexity the loss itself; of more budgets than six the largest six,
    or all that are named. Arguments, results and errors are those of
    `isoflop.analysis.figures.profiles.profiles`; the hue is "arch" by default.
    """
    title = _SPARSITY_TITLE.format(measure_name(fits.unit))
    seen = show(fits, archs=archs, budgets=budgets, hue=hue, palette=palette)
    panels = [
        found
        for budget in seen.budgets
        if (found := [run for arch in seen.archs for run in _with_sparsity(fits, arch, budget)])
    ]
    num_budgets = len(panels)
    panels = panels if budgets is not None else panels[-(_MOST_PANELS if ax is None else 1) :]
    if not panels:
        canvas = open_canvas(1, figure=figure, ax=ax)
        why = "The table has no training FLOPs of finished runs."
        return say(canvas, fits, title, why)
    lines = [
        "Parameters over forward FLOPs per token, which are a third of the training FLOPs per "
        "token. Line: mean over the seeds of a size. Large: the family's best run.",
        *run_notes(fits),
    ]
    if len(panels) < num_budgets:
        lines.insert(1, f"Drawn: the largest {len(panels)} of {num_budgets} budgets.")
    canvas = open_canvas(len(panels), figure=figure, ax=ax, share_y=False)
    for axes, placed in zip(canvas.axes, panels, strict=True):
        _draw_budget(axes, fits, seen, placed)
    return finish(
        canvas,
        title=title,
        label="Perplexity" if has_perplexity(fits.unit) else loss_label(fits.unit),
        handles=handles_of(seen),
        notes=lines if notes else (),
        scale=seen.scale,
    )


def params_per_flop(point: Point) -> float | None:
    """Return parameters per forward FLOP of a token; None where the FLOPs are unknown."""
    if point.flops is None:
        return None
    return point.n_params / (point.flops / (3.0 * point.n_tokens))


def _with_sparsity(fits: Fits, arch: str, budget: float) -> list[tuple[float, Point]]:
    points = fits.groups.get((arch, budget), ())
    return [(x, point) for point in points if (x := params_per_flop(point)) is not None]


def _draw_budget(
    axes: Axes, fits: Fits, seen: Shown, placed: Sequence[tuple[float, Point]]
) -> None:
    axes.set(xscale="log", yscale="log")
    axes.set_title(budget_title(placed[0][1].budget_flops))
    axes.set_xlabel("Parameters per FLOP")
    ys = [shown_loss(point.loss, fits.unit) for _, point in placed]
    xs = [x for x, _ in placed]
    for axis, values, form in ((axes.xaxis, xs, "{:.3g}"), (axes.yaxis, ys, "{:.4g}")):
        low, high = plot_style.padded(min(values), max(values), 0.08)
        (axes.set_xlim if axis is axes.xaxis else axes.set_ylim)(low, high)
        plot_style.set_log_ticks(axis, 4, form.format)
    for look in seen.grouped(((p.arch, p.budget_flops), (x, p)) for x, p in placed):
        _draw_family(axes, look.members, look.mark, look.label, fits.unit)


def _draw_family(
    axes: Axes,
    placed: Sequence[tuple[float, Point]],
    mark: Mark,
    label: str | None,
    unit: str,
) -> None:
    from matplotlib import rcParams

    placed = sorted(placed, key=lambda item: (item[0], item[1].loss))
    best = min(placed, key=lambda item: item[1].loss)
    means = _mean_by_size(placed)
    axes.plot(
        list(means),
        [shown_loss(loss, unit) for loss in means.values()],
        color=mark.colour,
        linestyle=mark.line,
        linewidth=0.8 * rcParams["lines.linewidth"],
        label="_nolegend_",
    )
    for group, scale, name in ((placed, 0.6, label), ([best], 1.2, None)):
        points = [(x, shown_loss(point.loss, unit)) for x, point in group]
        tips = [f"{marks.run_text(p, unit)}\nparameters per FLOP {x:.4g}" for x, p in group]
        marks.draw_marks(axes, points, mark, tips, label=name, scale=scale)


def _mean_by_size(placed: Sequence[tuple[float, Point]]) -> dict[float, float]:
    """Return the mean loss over the seeds at each place, in the order of the places."""
    losses: dict[float, list[float]] = {}
    for x, point in placed:
        losses.setdefault(x, []).append(point.loss)
    return {x: math.fsum(found) / len(found) for x, found in losses.items()}

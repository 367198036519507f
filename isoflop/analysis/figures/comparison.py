"""The families against each other: multipliers at their optima, losses where each has one size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from isoflop import plot_style
from isoflop.analysis.compare.multipliers import Comparison
from isoflop.analysis.compare.one_size import seed_means
from isoflop.analysis.figures import frame
from isoflop.analysis.optima import Optimum
from isoflop.analysis.points import Point
from isoflop.analysis.result import Fits, excluded_note
from isoflop.numbers import MAX_MULTIPLIER, format_flops, format_multiplier
from isoflop.plot_style import Mark
from isoflop.units import loss_label, loss_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_MULTIPLIERS_TITLE = "Compute multipliers: loss at each family's optimum"
_SEED_MEANS_TITLE = "Loss of each family at its one size"
_ROW_INCHES = 0.19
# Rows on one page, and seeds that have a marker of their own.
_MOST_ROWS = 50
_MOST_SEEDS = 8


def draw_multipliers(fits: Fits) -> Figure:
    """Draw a panel per family: its optima, those of the reference, and arrows between them."""
    found = [c for c in estimates(fits) if c.arch in frame.drawn_archs(fits)]
    arrows = [c for c in found if 1 / MAX_MULTIPLIER <= (c.multiplier or 0.0) <= MAX_MULTIPLIER]
    beyond = f"Multipliers beyond {MAX_MULTIPLIER:g} are left out: {len(found) - len(arrows)}."
    archs = sorted({c.arch for c in arrows})
    if not archs:
        return plot_style.sentence_figure(
            _MULTIPLIERS_TITLE,
            f"No family has an estimated multiplier over another. {beyond if found else ''} "
            f"{excluded_note(fits)}".replace("  ", " "),
        )
    reference = arrows[0].reference
    notes = [
        f"Arrow: from a family's optimum to the compute at which {reference} has the same "
        f"{loss_name(fits.unit)}; the number is the multiplier. Bold: an order is claimed, all "
        f"multipliers counted; the others claim none. Dotted: beyond {reference}'s measured "
        "losses.",
        *([beyond] if len(arrows) < len(found) else []),
        *frame.left_out_note(fits),
        *frame.run_notes(fits),
    ]
    figure, grid = frame.panels(
        len(archs),
        title=_MULTIPLIERS_TITLE,
        label=loss_label(fits.unit),
        archs=fits.archs,
        notes=notes,
        panel_height=2.2,
    )
    for axes, arch, name in zip(grid, archs, frame.panel_titles(archs), strict=True):
        axes.set_title(name, loc="left", fontweight="bold", parse_math=False)
        _draw_panel(axes, fits, [c for c in arrows if c.arch == arch], index_of(fits, reference))
    _scale(grid, fits, arrows)
    return figure


def index_of(fits: Fits, arch: str) -> int:
    """Return the place of a family, which decides its mark."""
    return fits.archs.index(arch)


def estimates(fits: Fits) -> list[Comparison]:
    """Return the estimated multipliers along FLOPs of families other than the reference."""
    return [
        c
        for c in fits.compare
        if c.resource == "flops"
        and c.status == "estimate"
        and c.multiplier is not None
        and c.arch != c.reference
    ]


def _points(fits: Fits, arch: str) -> list[Optimum]:
    return [o for o in fits.optima_of(arch) if o.is_point and (o.loss_opt or 0.0) > 0.0]


def _draw_panel(axes: Axes, fits: Fits, arrows: Sequence[Comparison], reference_index: int) -> None:
    arch, reference = arrows[0].arch, arrows[0].reference
    axes.set_xlabel("Training compute (FLOPs)")
    _draw_optima(axes, fits, reference, plot_style.family_mark(reference_index))
    mark = plot_style.family_mark(index_of(fits, arch))
    _draw_optima(axes, fits, arch, mark)
    losses = {o.budget_flops: o.loss_opt or 0.0 for o in _points(fits, arch)}
    for arrow in arrows:
        _draw_arrow(axes, arrow, losses[arrow.budget_flops], mark)


def _scale(grid: Sequence[Axes], fits: Fits, arrows: Sequence[Comparison]) -> None:
    """Set one pair of scales for all panels."""
    optima = [o for c in arrows for arch in (c.arch, c.reference) for o in _points(fits, arch)]
    budgets = [o.budget_flops for o in optima]
    reached = [c.budget_flops * (c.multiplier or 1.0) for c in arrows]
    losses = [
        end
        for o in optima
        for end in (o.loss_opt, o.loss_ci_lo, o.loss_ci_hi)
        if end is not None and end > 0.0
    ]
    low, high = plot_style.padded(min(losses), max(losses), 0.1)
    for axes in grid:
        axes.set(xscale="log", yscale="log", ylim=(low, high))
        axes.set_xlim(*plot_style.padded(min(budgets + reached), max(budgets + reached), 0.32))
        plot_style.set_budget_ticks(axes, fits.budgets)
    plot_style.set_log_ticks(grid[0].yaxis, low, high, 6, "{:.4g}".format)


def _draw_optima(axes: Axes, fits: Fits, arch: str, mark: Mark) -> None:
    optima = _points(fits, arch)
    for o in optima:
        if o.loss_ci_lo is not None and o.loss_ci_hi is not None:
            ends = [o.loss_ci_lo, o.loss_ci_hi]
            axes.plot([o.budget_flops] * 2, ends, color=mark.colour, lw=0.9)
    points = [(o.budget_flops, o.loss_opt or 0.0) for o in optima]
    tips = [frame.optimum_text(o, fits.unit) for o in optima]
    frame.draw_marks(axes, points, mark, tips, markersize=4, linestyle=mark.line, linewidth=1.0)


def _draw_arrow(axes: Axes, comparison: Comparison, loss: float, mark: Mark) -> None:
    budget, multiplier = comparison.budget_flops, comparison.multiplier or 1.0
    axes.annotate(
        "",
        xy=(budget * multiplier, loss),
        xytext=(budget, loss),
        arrowprops={
            "arrowstyle": "->",
            "color": mark.colour,
            "linestyle": ":" if comparison.extrapolated else "-",
            "shrinkA": 1,
            "shrinkB": 0,
        },
    )
    right = multiplier >= 1.0
    axes.annotate(
        f"{format_multiplier(multiplier)}×",
        (budget * multiplier, loss),
        xytext=(3 if right else -3, 1),
        textcoords="offset points",
        ha="left" if right else "right",
        va="center",
        fontsize=plot_style.SMALL_SIZE,
        fontweight="normal" if comparison.order_claimed == "none" else "bold",
        color=mark.colour,
    )


def draw_seed_means(fits: Fits) -> Figure:
    """Draw the runs of every family that has one size at a budget, and their means as bars."""
    means = seed_means(fits.selection)
    if not means:
        return plot_style.sentence_figure(
            _SEED_MEANS_TITLE, f"No family has exactly one size at a budget. {excluded_note(fits)}"
        )
    num, means = len(means), means[:_MOST_ROWS]
    groups = [fits.groups[mean.arch, mean.budget_flops] for mean in means]
    seeds = sorted({p.seed for points in groups for p in points if p.seed is not None})
    names = ", ".join(f"{seed} {_mark_name(i)}" for i, seed in enumerate(seeds[:_MOST_SEEDS]))
    names += ", …" if len(seeds) > _MOST_SEEDS else ""
    why = "Runs of one seed read the same text, so "
    if fits.has_own_trainer:
        why = f"{why.removesuffix(', so ')} as far as the trainer's seed sees to it; "
    notes = [
        f"Bar: geometric mean over the seeds. {why}families are compared seed by seed"
        f"{f' ({names})' if names else ''}.",
        *([f"Drawn: the first {len(means)} of {num} rows."] if len(means) < num else []),
        *frame.run_notes(fits),
    ]
    short = frame.short_names([mean.arch for mean in means])
    labels = [_label(short[mean.arch], mean.budget_flops, fits) for mean in means]
    figure, axes = _axes(labels, notes, fits.unit)
    for place, (mean, points) in enumerate(zip(means, groups, strict=True)):
        axes.plot([mean.loss] * 2, [place - 0.35, place + 0.35], color="#606060", lw=1.4)
        for point in points:
            _draw_run(axes, place, point, seeds, fits.unit)
    return figure


def _axes(labels: Sequence[str], notes: Sequence[str], unit: str) -> tuple[Figure, Axes]:
    width = plot_style.PAGE_WIDTH
    left = 0.25 + 0.068 * max(map(len, labels))
    bottom = 0.45 + plot_style.note_height(notes, width)
    rows = _ROW_INCHES * (len(labels) + 0.2)
    height = bottom + rows + 0.35
    figure = plot_style.new_figure(width, height)
    axes = figure.add_axes(
        (left / width, bottom / height, (width - left - 0.2) / width, rows / height)
    )
    axes.set_ylim(len(labels) - 0.4, -0.6)
    plot_style.set_ticks(axes.yaxis, list(range(len(labels))), lambda place: labels[int(place)])
    axes.set_xlabel(loss_label(unit))
    figure.text(0.08 / width, 1 - 0.2 / height, _SEED_MEANS_TITLE, fontweight="bold", va="center")
    plot_style.note(figure, notes)
    return figure, axes


def _label(name: str, budget_flops: float, fits: Fits) -> str:
    budget = f", {format_flops(budget_flops)}" if len(fits.budgets) > 1 else ""
    # A dollar would start math.
    return f"{name}{budget}".replace("$", r"\$")


def _draw_run(axes: Axes, place: int, point: Point, seeds: Sequence[int], unit: str) -> None:
    mark = plot_style.family_mark(0 if point.seed is None else seeds.index(point.seed))
    tip = frame.run_text(point, unit)
    frame.draw_marks(axes, [(point.loss, place)], mark, [tip], markersize=4)


def _mark_name(index: int) -> str:
    names = {"o": "circle", "s": "square", "^": "triangle", "D": "diamond", "v": "down triangle"}
    return names.get(plot_style.family_mark(index).marker, "other")

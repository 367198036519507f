"""The families against each other: multipliers at their optima, losses where each has one size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from isoflop import plot_style, plot_texts
from isoflop.analysis.compare.multipliers import Comparison
from isoflop.analysis.figures import marks
from isoflop.analysis.figures.canvas import COMPUTE_LABEL, finish, open_canvas, panel_names, say
from isoflop.analysis.figures.legends import handles_of
from isoflop.analysis.figures.notes import run_notes
from isoflop.analysis.figures.shown import MOST_FAMILIES, Palette, Shown, show
from isoflop.analysis.optima import Optimum
from isoflop.analysis.result import Fits
from isoflop.numbers import MAX_MULTIPLIER, format_multiplier
from isoflop.units import loss_label, loss_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure


_TITLE = "Compute multipliers: loss at each family's optimum"
_ROW_HEIGHT = 2.2
# Heights of text between two numbers.
_LEAST_GAP = 1.1
# Multipliers below have a third decimal.
_SMALL = 0.1


def multipliers(
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
    """Draw a panel per family: its optima, those of the reference, and arrows between them.

    Only families with an estimated multiplier have a panel; in an axes that is given, the first of
    them. Arguments and errors are those of `isoflop.analysis.figures.profiles.profiles`.
    """
    seen = show(fits, archs=archs, budgets=budgets, hue=hue, palette=palette)
    found = [c for c in estimates(fits) if c.arch in seen.archs and c.budget_flops in seen.budgets]
    arrows = [c for c in found if 1 / MAX_MULTIPLIER <= (c.multiplier or 0.0) <= MAX_MULTIPLIER]
    drawn = [arch for arch in seen.archs if any(c.arch == arch for c in arrows)]
    beyond = f"Multipliers beyond {MAX_MULTIPLIER:g} are left out: {len(found) - len(arrows)}."
    if not drawn:
        why = "No family has an estimated multiplier over another."
        more = [beyond] if found else []
        canvas = open_canvas(1, figure=figure, ax=ax)
        return say(canvas, fits, _TITLE, " ".join([why, *more]))
    reference = arrows[0].reference
    if reference not in seen.archs:
        # Grey among colours that a palette gives to the families asked for.
        seen = replace(seen, archs=(*seen.archs, reference))
        if palette is None:
            seen = show(fits, archs=seen.archs, budgets=budgets, hue=hue)
    num = len(drawn)
    if ax is not None or archs is None:
        drawn = drawn[: 1 if ax is not None else MOST_FAMILIES - 1]
    canvas = open_canvas(len(drawn), figure=figure, ax=ax, row_height=_ROW_HEIGHT)
    _scale(canvas.axes, fits, seen, [c for c in arrows if c.arch in drawn])
    lines = _notes(fits, reference)
    num_unnumbered = 0
    for axes, arch, name in zip(canvas.axes, drawn, panel_names(drawn, canvas), strict=True):
        if not canvas.is_axes:
            axes.set_title(name, parse_math=False)
        axes.set_xlabel(COMPUTE_LABEL)
        _draw_optima(axes, fits, seen, [reference, arch])
        own = [c for c in arrows if c.arch == arch]
        num_unnumbered += _draw_arrows(axes, fits, seen, own)
    if num_unnumbered:
        lines.append(f"Arrows that lie close to others have no number: {num_unnumbered}.")
    if len(arrows) < len(found):
        lines.append(beyond)
    if len(drawn) < num:
        lines.append(f"Drawn: {len(drawn)} of {num} families.")
    return finish(
        canvas,
        title=_TITLE,
        label=loss_label(fits.unit),
        handles=handles_of(replace(seen, archs=(*drawn, reference))),
        notes=[*lines, *run_notes(fits)] if notes else (),
        scale=seen.scale,
    )


def _notes(fits: Fits, reference: str) -> list[str]:
    return [
        f"Arrow: from a family's optimum to the compute at which {reference} has the same "
        f"{loss_name(fits.unit)}; the number is the multiplier. Bold: an order is claimed, all "
        f"multipliers counted; the others claim none. Dotted: beyond {reference}'s measured "
        "losses."
    ]


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


def _optima(fits: Fits, seen: Shown, arch: str) -> list[Optimum]:
    """Return the optima of a family that are drawn."""
    return [
        o
        for o in fits.optima_of(arch)
        if o.is_point and o.budget_flops in seen.budgets and (o.loss_opt or 0.0) > 0.0
    ]


def _scale(panels: Sequence[Axes], fits: Fits, seen: Shown, arrows: Sequence[Comparison]) -> None:
    """Set one pair of scales for all panels."""
    archs = {arch for c in arrows for arch in (c.arch, c.reference)}
    optima = [o for arch in sorted(archs) for o in _optima(fits, seen, arch)]
    places = [o.budget_flops for o in optima]
    places += [c.budget_flops * (c.multiplier or 1.0) for c in arrows]
    losses = [
        end
        for o in optima
        for end in (o.loss_opt, o.loss_ci_lo, o.loss_ci_hi)
        if end is not None and end > 0.0
    ]
    low, high = plot_style.padded(min(losses), max(losses), 0.1)
    share = _number_share(panels[0], arrows)
    for axes in panels:
        axes.set(xscale="log", yscale="log", ylim=(low, high))
        axes.set_xlim(*plot_style.padded(min(places), max(places), share))
        plot_style.set_budget_ticks(axes, seen.budgets)
    plot_style.set_log_ticks(panels[0].yaxis, 6, "{:.4g}".format)


def _number_share(axes: Axes, arrows: Sequence[Comparison]) -> float:
    """Return the share of a range that its numbers need on either side of it."""
    numbers = [_number(comparison) for comparison in arrows]
    size = plot_style.small_size()
    inches = max(plot_texts.text_width(number, size, bold=True) for number in numbers)
    share = (inches + size / 72) * axes.figure.dpi / axes.get_window_extent().width
    # Of a panel that is too narrow for its numbers, a third is left to the arrows.
    share = min(share, 1 / 3)
    return share / (1 - 2 * share)


def _number(comparison: Comparison) -> str:
    multiplier = comparison.multiplier or 1.0
    return f"{format_multiplier(multiplier, 2 if multiplier >= _SMALL else 3)}×"


def _draw_optima(axes: Axes, fits: Fits, seen: Shown, archs: Sequence[str]) -> None:
    """Draw the optima of families with their intervals, joined by lines."""
    from matplotlib import rcParams

    width = rcParams["lines.linewidth"]
    by_arch = {arch: _optima(fits, seen, arch) for arch in archs}
    if seen.hue == "budget":
        for arch, optima in by_arch.items():
            axes.plot(
                [o.budget_flops for o in optima],
                [o.loss_opt or math.nan for o in optima],
                color=plot_style.grey(),
                linestyle=seen.mark(arch, math.nan).line,
                linewidth=0.9 * width,
                label="_nolegend_",
            )
    placed = [((o.arch, o.budget_flops), o) for optima in by_arch.values() for o in optima]
    for look in seen.grouped(placed):
        bars = [(o.budget_flops, o.loss_ci_lo, o.loss_ci_hi) for o in look.members]
        marks.draw_bars(axes, bars, look.mark.colour)
        marks.draw_marks(
            axes,
            [(o.budget_flops, o.loss_opt) for o in look.members],
            look.mark,
            [marks.optimum_text(o, fits.unit) for o in look.members],
            label=look.label,
            scale=0.8,
            linestyle=look.mark.line,
            linewidth=0.9 * width,
        )


def _draw_arrows(axes: Axes, fits: Fits, seen: Shown, arrows: Sequence[Comparison]) -> int:
    """Draw the multipliers of a family; return how many have no number, for want of room."""
    arch = arrows[0].arch
    losses = {o.budget_flops: o.loss_opt or 0.0 for o in _optima(fits, seen, arch)}
    placed = [(c, losses[c.budget_flops]) for c in arrows]
    numbered = _numbered(axes, placed)
    for comparison, loss in placed:
        colour = seen.mark(arch, comparison.budget_flops).colour
        _draw_arrow(axes, comparison, loss, colour)
        if comparison.budget_flops in numbered:
            _write_number(axes, comparison, loss, colour)
    return len(placed) - len(numbered)


def _numbered(axes: Axes, placed: Sequence[tuple[Comparison, float]]) -> set[float]:
    """Return the budgets whose numbers find room above each other, the largest first."""
    low, high = (math.log(end) for end in axes.get_ylim())
    height = axes.get_window_extent().height * 72 / axes.figure.dpi
    least = _LEAST_GAP * plot_style.small_size() / height
    kept: dict[float, float] = {}
    for comparison, loss in sorted(placed, key=lambda item: -item[0].budget_flops):
        y = (math.log(loss) - low) / (high - low)
        if all(abs(y - other) >= least for other in kept.values()):
            kept[comparison.budget_flops] = y
    return set(kept)


def _draw_arrow(axes: Axes, comparison: Comparison, loss: float, colour: Any) -> None:
    budget, multiplier = comparison.budget_flops, comparison.multiplier or 1.0
    axes.annotate(
        "",
        xy=(budget * multiplier, loss),
        xytext=(budget, loss),
        arrowprops={
            "arrowstyle": "->",
            "color": colour,
            "linestyle": ":" if comparison.extrapolated else "-",
            "shrinkA": 1,
            "shrinkB": 0,
        },
    )


def _write_number(axes: Axes, comparison: Comparison, loss: float, colour: Any) -> None:
    multiplier = comparison.multiplier or 1.0
    is_right = multiplier >= 1.0
    axes.annotate(
        _number(comparison),
        (comparison.budget_flops * multiplier, loss),
        xytext=(3 if is_right else -3, 1),
        textcoords="offset points",
        ha="left" if is_right else "right",
        va="center",
        fontsize=plot_style.small_size(),
        fontweight="normal" if comparison.order_claimed == "none" else "bold",
        color=colour,
    )

"""What is optimal at each budget, the laws through it, and their exponents by every method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from isoflop import plot_style, plot_texts
from isoflop.analysis.figures import marks
from isoflop.analysis.figures.canvas import Canvas, finish, open_canvas, say
from isoflop.analysis.figures.legends import handles_of
from isoflop.analysis.figures.notes import run_notes
from isoflop.analysis.figures.shown import Look, Palette, Shown, show
from isoflop.analysis.laws import Budget, LawAxis, flops_of, law_source
from isoflop.analysis.optima import Optimum
from isoflop.analysis.result import Fits
from isoflop.numbers import format_count
from isoflop.units import has_perplexity, loss_label, measure_name, shown_loss

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure


_LAW_SAMPLES = 60
_MOST_ABSENT = 5
_BUDGET_LABEL = "Training compute per run (FLOPs)"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Quantity:
    """What is drawn of the optima, and how."""

    axis: LawAxis
    budget: Budget
    """What C is, found once for all optima."""
    title: str
    label: str
    value: Callable[[Optimum], float | None]
    ends: Callable[[Optimum], tuple[float | None, float | None]]
    """The interval of what a law fits."""
    shown: Callable[[float], float]
    """From what a law fits to what is drawn."""
    form: Callable[[float], str]
    side: Callable[[Optimum], Literal[-1, 1]]
    """On which side of a bound the optimum lies: below or above."""

    def flops(self, optimum: Optimum) -> float:
        """Return the C at which an optimum is drawn."""
        return flops_of(optimum, self.budget) or optimum.budget_flops


def frontier(
    fits: Fits,
    *,
    figure: Figure | SubFigure | None = None,
    ax: Axes | None = None,
    archs: Sequence[str] | str | None = None,
    budgets: Sequence[float] | float | None = None,
    hue: str | None = None,
    palette: Palette | None = None,
    notes: bool = True,
) -> Axes:
    """Draw the perplexity of each family's optimum against compute, with its power law.

    Of losses that have no perplexity the loss itself. Arguments and errors are those of
    `isoflop.analysis.figures.profiles.profiles`.
    """
    unit = fits.unit
    quantity = _Quantity(
        axis="loss",
        budget=fits.law_budget,
        title=f"{measure_name(unit)} at each family's optimum",
        label="Perplexity, exp(nats per token)" if has_perplexity(unit) else loss_label(unit),
        value=lambda o: o.loss_opt,
        ends=lambda o: (o.loss_ci_lo, o.loss_ci_hi),
        shown=lambda loss: shown_loss(loss, unit),
        form=lambda y: f"{y:.4g}",
        side=lambda _: -1,
    )
    seen = show(fits, archs=archs, budgets=budgets, hue=hue, palette=palette)
    return _against_compute(fits, quantity, seen, open_canvas(1, figure=figure, ax=ax), notes)


def optimum_size(
    fits: Fits,
    *,
    figure: Figure | SubFigure | None = None,
    ax: Axes | None = None,
    archs: Sequence[str] | str | None = None,
    budgets: Sequence[float] | float | None = None,
    hue: str | None = None,
    palette: Palette | None = None,
    notes: bool = True,
) -> Axes:
    """Draw the compute-optimal number of parameters N* against compute, with its power law.

    Arguments and errors are those of `isoflop.analysis.figures.profiles.profiles`.
    """
    seen = show(fits, archs=archs, budgets=budgets, hue=hue, palette=palette)
    quantity = _size(fits, "n_params", "Compute-optimal parameters", "Optimal parameters N*")
    return _against_compute(fits, quantity, seen, open_canvas(1, figure=figure, ax=ax), notes)


def optimum_tokens(
    fits: Fits,
    *,
    figure: Figure | SubFigure | None = None,
    ax: Axes | None = None,
    archs: Sequence[str] | str | None = None,
    budgets: Sequence[float] | float | None = None,
    hue: str | None = None,
    palette: Palette | None = None,
    notes: bool = True,
) -> Axes:
    """Draw the compute-optimal number of tokens D* against compute, with its power law.

    Arguments and errors are those of `isoflop.analysis.figures.profiles.profiles`.
    """
    seen = show(fits, archs=archs, budgets=budgets, hue=hue, palette=palette)
    quantity = _size(fits, "n_tokens", "Compute-optimal training tokens", "Optimal tokens D*")
    return _against_compute(fits, quantity, seen, open_canvas(1, figure=figure, ax=ax), notes)


def _size(fits: Fits, axis: LawAxis, title: str, label: str) -> _Quantity:
    return _Quantity(
        axis=axis,
        budget=fits.law_budget,
        title=title,
        label=label,
        value=lambda o: o.x_opt,
        ends=lambda o: (o.ci_lo, o.ci_hi),
        shown=lambda size: size,
        form=lambda y: format_count(y, digits=4),
        side=lambda o: -1 if o.status == "edge_low" else 1,
    )


def _against_compute(
    fits: Fits, quantity: _Quantity, seen: Shown, canvas: Canvas, notes: bool
) -> Axes:
    """Draw one value of the optima against C, log-log; C as in the law that is shown.

    The loss is that of the optima over parameters.
    """
    (axes,) = canvas.axes
    optima = {arch: _optima_of(fits, quantity, seen, arch) for arch in seen.archs}
    if not any(optima.values()):
        say(canvas, fits, quantity.title, "Nothing to draw: no curve has a minimum.")
        return axes
    axes.set(xscale="log", yscale="log", xlabel=_BUDGET_LABEL)
    placed = [o for group in optima.values() for o in group]
    # Before anything is drawn: matplotlib cannot find limits where all have one value.
    flops = [quantity.flops(optimum) for optimum in placed]
    values = [quantity.shown(quantity.value(optimum) or 0.0) for optimum in placed]
    axes.set_xlim(*plot_style.padded(min(flops), max(flops), 0.08))
    axes.set_ylim(*plot_style.padded(min(values), max(values), 0.12))
    with_law = {
        arch for arch, group in optima.items() if _draw_law(axes, fits, quantity, seen, group)
    }
    for look in seen.grouped(((o.arch, o.budget_flops), o) for o in placed):
        is_named = seen.hue == "arch" and look.members[0].arch in with_law
        _draw_optima(axes, fits, quantity, look, None if is_named else look.label)
    _scale(axes, seen, quantity)
    with_optima = replace(seen, archs=tuple(arch for arch, group in optima.items() if group))
    finish(
        canvas,
        title=quantity.title,
        label=quantity.label,
        handles=handles_of(with_optima),
        notes=_notes(fits, quantity, optima) if notes else (),
        scale=seen.scale,
    )
    return axes


def _optima_of(fits: Fits, quantity: _Quantity, seen: Shown, arch: str) -> list[Optimum]:
    """Return the optima of a family that are drawn."""
    return [
        optimum
        for optimum in fits.optima_of(arch, law_source(quantity.axis))
        if optimum.budget_flops in seen.budgets and (quantity.value(optimum) or 0.0) > 0.0
    ]


def _draw_law(
    axes: Axes, fits: Fits, quantity: _Quantity, seen: Shown, optima: Sequence[Optimum]
) -> bool:
    """Draw the law between the budgets that it was fitted on and that are drawn, if any.

    The line is the family's entry in a legend, with the marker of its optima.
    """
    import numpy as np

    if not optima:
        return False
    arch = optima[0].arch
    law = fits.law(arch, quantity.axis, budget=quantity.budget)
    if law.exponent is None or law.budget_lo is None or law.budget_hi is None:
        return False
    flops = [quantity.flops(optimum) for optimum in optima]
    low, high = max(law.budget_lo, min(flops)), min(law.budget_hi, max(flops))
    if low >= high:
        return False
    budgets = np.geomspace(low, high, _LAW_SAMPLES)
    mark = seen.mark(arch, optima[0].budget_flops)
    axes.plot(
        budgets,
        [quantity.shown(law.at(float(budget))) for budget in budgets],
        color=mark.colour if seen.hue == "arch" else plot_style.grey(),
        linestyle=mark.line,
        marker=mark.marker,
        markevery=[],
        label=plot_texts.literal(arch),
    )
    return True


def _draw_optima(
    axes: Axes, fits: Fits, quantity: _Quantity, look: Look, label: str | None
) -> None:
    """Draw optima of one look with their intervals; bounds are hollow, with an arrow."""
    _draw_ends(axes, quantity, look)
    for is_bound in (False, True):
        optima = [o for o in look.members if o.is_bound == is_bound]
        if not optima:
            continue
        places = [(quantity.flops(o), quantity.shown(quantity.value(o) or 0.0)) for o in optima]
        marks.draw_marks(
            axes,
            places,
            look.mark,
            [marks.optimum_text(optimum, fits.unit) for optimum in optima],
            label=label,
            # A bound is see-through and on top, so that neither mark hides the other.
            markerfacecolor="none" if is_bound else look.mark.colour,
            zorder=4 if is_bound else 3,
        )
        label = None
        for optimum, place in zip(optima, places, strict=True):
            if is_bound:
                _draw_arrow(axes, place, quantity.side(optimum), look.mark.colour)


def _draw_ends(axes: Axes, quantity: _Quantity, look: Look) -> None:
    """Draw the intervals as thin bars."""
    bars = [
        (quantity.flops(optimum), quantity.shown(low), quantity.shown(high))
        for optimum in look.members
        for low, high in [quantity.ends(optimum)]
        if low is not None and high is not None
    ]
    marks.draw_bars(axes, bars, look.mark.colour)


def _draw_arrow(axes: Axes, place: tuple[float, float], side: int, colour: Any) -> None:
    """Draw an arrow from a bound to where the optimum lies."""
    from matplotlib import rcParams

    axes.annotate(
        "",
        xy=place,
        xytext=(0, 2.6 * rcParams["lines.markersize"] * side),
        textcoords="offset points",
        arrowprops={"arrowstyle": "<-", "color": colour, "shrinkA": 0, "shrinkB": 2},
    )


def _scale(axes: Axes, seen: Shown, quantity: _Quantity) -> None:
    """Set limits and ticks around all that the axes holds, another study's optima included."""
    box = axes.dataLim
    axes.set_xlim(*plot_style.padded(box.x0, box.x1, 0.08))
    low, high = plot_style.padded(box.y0, box.y1, 0.12)
    axes.set_ylim(low, high)
    plot_style.set_budget_ticks(axes, seen.budgets)
    plot_style.set_log_ticks(axes.yaxis, 6, quantity.form)


def _notes(fits: Fits, quantity: _Quantity, drawn: Mapping[str, Sequence[Optimum]]) -> list[str]:
    optima = [optimum for group in drawn.values() for optimum in group]
    lines = []
    if any(o.is_point for o in optima):
        lines.append("Filled: minimum of the isoFLOP curve.")
    if any(
        fits.law(arch, quantity.axis, budget=quantity.budget).exponent is not None for arch in drawn
    ):
        all_drawn = {o.budget_flops for o in optima} >= set(fits.budgets)
        of = "the filled marks" if all_drawn else "the minima of all budgets"
        lines.append(f"Line: power law through {of}.")
    if any(None not in quantity.ends(o) for o in optima):
        lines.append(f"Bar: {100 * fits.options.confidence:g} % interval.")
    lines = [" ".join(lines)] if lines else []
    if any(o.is_bound for o in optima):
        lines.append("Hollow: bound only; the minimum lies beyond, in the direction of the arrow.")
    absent = [arch for arch, group in drawn.items() if not group]
    if absent:
        more = f" and {len(absent) - _MOST_ABSENT} more" if len(absent) > _MOST_ABSENT else ""
        lines.append(f"No minimum found: {', '.join(absent[:_MOST_ABSENT])}{more}.")
    return [*lines, *run_notes(fits)]

"""What is optimal at each budget, the laws through it, and their exponents by every method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from isoflop import plot_style
from isoflop.analysis.figures import frame
from isoflop.analysis.laws import LawAxis, PowerLaw, flops_of, law_source
from isoflop.analysis.optima import Optimum
from isoflop.analysis.optima_methods import METHODS
from isoflop.analysis.points import Axis
from isoflop.analysis.result import Fits, excluded_note
from isoflop.numbers import format_count
from isoflop.plot_style import Mark
from isoflop.units import has_perplexity, loss_label, measure_name, shown_loss

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_LAW_SAMPLES = 60
_MOST_ABSENT = 5
_BUDGET_LABEL = "Training compute per run (FLOPs)"
_SENSITIVITY_TITLE = "Exponents of the optimum under each method"
# The chinchilla surface names the exponents of N* and D* a and b.
_PANELS: tuple[tuple[LawAxis, str, str], ...] = (
    ("n_params", "a", "Exponent of N* in compute"),
    ("n_tokens", "b", "Exponent of D* in compute"),
)


def draw_frontier(fits: Fits) -> Figure:
    """Draw the perplexity of each family's optimum against compute, with its power law.

    Of losses that have no perplexity the loss itself.
    """
    unit = fits.unit
    return _draw_against_compute(
        fits,
        axis="loss",
        title=f"{measure_name(unit)} at each family's optimum",
        label="Perplexity, exp(nats per token)" if has_perplexity(unit) else loss_label(unit),
        value=lambda o: None if o.loss_opt is None else shown_loss(o.loss_opt, unit),
        ends=lambda o: (o.loss_ci_lo, o.loss_ci_hi),
        law_value=lambda law, budget: shown_loss(law.at(budget), unit),
        end_value=lambda loss: shown_loss(loss, unit),
        form=lambda y: f"{y:.4g}",
        arrow=lambda _: -1,
    )


def draw_optimum_size(fits: Fits) -> Figure:
    """Draw the compute-optimal number of parameters N* against compute, with its power law."""
    return _draw_size(fits, "n_params", "Compute-optimal parameters", "Optimal parameters N*")


def draw_optimum_tokens(fits: Fits) -> Figure:
    """Draw the compute-optimal number of tokens D* against compute, with its power law."""
    return _draw_size(fits, "n_tokens", "Compute-optimal training tokens", "Optimal tokens D*")


def _draw_size(fits: Fits, axis: Axis, title: str, label: str) -> Figure:
    return _draw_against_compute(
        fits,
        axis=axis,
        title=title,
        label=label,
        value=lambda o: o.x_opt,
        ends=lambda o: (o.ci_lo, o.ci_hi),
        law_value=lambda law, budget: law.at(budget),
        end_value=lambda end: end,
        form=lambda y: format_count(y, digits=4),
        arrow=lambda o: -1 if o.status == "edge_low" else 1,
    )


def _draw_against_compute(
    fits: Fits,
    *,
    axis: LawAxis,
    title: str,
    label: str,
    value: Callable[[Optimum], float | None],
    ends: Callable[[Optimum], tuple[float | None, float | None]],
    law_value: Callable[[PowerLaw, float], float],
    end_value: Callable[[float], float],
    form: Callable[[float], str],
    arrow: Callable[[Optimum], int],
) -> Figure:
    """Draw one value of the optima against C, log-log; C as in the law that is shown.

    The loss is that of the optima over parameters. ``ends`` gives the interval of what a law
    fits, ``arrow`` says on which side of a bound the optimum lies: −1 below, 1 above.
    """
    optima = {
        arch: [o for o in fits.optima_of(arch, law_source(axis)) if (value(o) or 0.0) > 0.0]
        for arch in fits.archs
    }
    drawn = [o for group in optima.values() for o in group]
    if not drawn:
        return plot_style.sentence_figure(
            title, f"Nothing to draw: no curve has a minimum. {excluded_note(fits)}"
        )
    notes = _notes(fits, optima, axis)
    figure, axes, height = frame.compute_axes(fits.archs, title, notes)
    flops = {id(o): flops_of(o, fits.law_budget) or o.budget_flops for o in drawn}
    values = [value(o) or 0.0 for o in drawn]
    values += [end_value(end) for o in drawn for end in ends(o) if end is not None]
    frame.scale(axes, list(flops.values()), values, form)
    axes.set(xlabel=_BUDGET_LABEL, ylabel=label)
    names = frame.short_names(fits.archs)
    labels: list[tuple[str, float, Mark]] = []
    for index, arch in enumerate(fits.archs):
        mark = plot_style.family_mark(index)
        _draw_law(axes, fits.law(arch, axis), mark, law_value)
        for optimum in optima[arch]:
            place = (flops[id(optimum)], value(optimum) or 0.0)
            _draw_ends(axes, place[0], ends(optimum), end_value, mark)
            _draw_optimum(axes, optimum, place, mark, arrow(optimum), fits.unit)
        if optima[arch] and len(labels) < frame.MOST_NAMED:
            labels.append((names[arch], value(optima[arch][-1]) or 0.0, mark))
    plot_style.direct_labels(axes, labels, height)
    plot_style.note(figure, notes)
    return figure


def _draw_law(
    axes: Axes, law: PowerLaw, mark: Mark, law_value: Callable[[PowerLaw, float], float]
) -> None:
    """Draw the law between the budgets it was fitted on; nothing when there is none."""
    import numpy as np

    if law.exponent is None or law.budget_lo is None or law.budget_hi is None:
        return
    budgets = np.geomspace(law.budget_lo, law.budget_hi, _LAW_SAMPLES)
    axes.plot(
        budgets,
        [law_value(law, float(budget)) for budget in budgets],
        color=mark.colour,
        linestyle=mark.line,
        linewidth=1.1,
    )


def _draw_ends(
    axes: Axes,
    flops: float,
    ends: tuple[float | None, float | None],
    end_value: Callable[[float], float],
    mark: Mark,
) -> None:
    """Draw an interval as a thin bar; nothing without one."""
    low, high = ends
    if low is None or high is None:
        return
    axes.plot([flops, flops], [end_value(low), end_value(high)], color=mark.colour, lw=0.9)


def _draw_optimum(
    axes: Axes,
    optimum: Optimum,
    place: tuple[float, float],
    mark: Mark,
    side: int,
    unit: str,
) -> None:
    frame.draw_marks(
        axes,
        [place],
        mark,
        [frame.optimum_text(optimum, unit)],
        markersize=5,
        markerfacecolor="none" if optimum.is_bound else mark.colour,
        markeredgewidth=1.1,
        # A bound is see-through and on top, so that neither mark hides the other.
        zorder=4 if optimum.is_bound else 3,
    )
    if optimum.is_bound:
        axes.annotate(
            "",
            xy=place,
            xytext=(0, 13 * side),
            textcoords="offset points",
            arrowprops={"arrowstyle": "<-", "color": mark.colour, "shrinkA": 0, "shrinkB": 2},
        )


def _notes(fits: Fits, drawn: dict[str, list[Optimum]], axis: LawAxis) -> list[str]:
    optima = [optimum for group in drawn.values() for optimum in group]
    lines = []
    if any(o.is_point for o in optima):
        lines.append("Filled: minimum of the isoFLOP curve.")
    if any(fits.law(arch, axis).exponent is not None for arch in drawn):
        lines[-1] += " Line: power law through the filled marks."
    if any(o.ci_lo is not None for o in optima):
        lines[-1] += f" Bar: {100 * fits.options.confidence:g} % interval."
    if any(o.is_bound for o in optima):
        lines.append("Hollow: bound only; the minimum lies beyond, in the direction of the arrow.")
    absent = [arch for arch, group in drawn.items() if not group]
    if absent:
        more = f" and {len(absent) - _MOST_ABSENT} more" if len(absent) > _MOST_ABSENT else ""
        lines.append(f"No minimum found: {', '.join(absent[:_MOST_ABSENT])}{more}.")
    lines += [*frame.unnamed_note([arch for arch in drawn if drawn[arch]]), *frame.run_notes(fits)]
    return lines


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """One row of a panel."""

    arch: str
    method: str
    value: float | None
    ci_lo: float | None
    ci_hi: float | None


def draw_sensitivity(fits: Fits) -> Figure:
    """Draw the exponents of N* and D* as marks with bars, a row per family and method."""
    archs = frame.drawn_archs(fits)
    panels = [
        [one for one in exponents(fits, axis, parameter) if one.arch in archs]
        for axis, parameter, _ in _PANELS
    ]
    if all(estimate.value is None for panel in panels for estimate in panel):
        return plot_style.sentence_figure(
            _SENSITIVITY_TITLE, f"No family has optima at two budgets. {excluded_note(fits)}"
        )
    notes = [
        f"Bar: {100 * fits.options.confidence:g} % interval. No mark: too few optima.",
        *frame.left_out_note(fits),
        *frame.run_notes(fits),
    ]
    figure, grid = frame.panels(
        2,
        title=_SENSITIVITY_TITLE,
        archs=archs,
        notes=notes,
        panel_height=0.5 + 0.13 * len(panels[0]),
    )
    for axes, estimates, (_, _, label) in zip(grid, panels, _PANELS, strict=True):
        axes.set_xlabel(label)
        _draw_exponents(axes, estimates, archs)
    _name_rows(grid[0], panels[0])
    return figure


def exponents(fits: Fits, axis: LawAxis, parameter: str) -> list[Estimate]:
    """Return the exponents through optima by each method, then those of the fitted surfaces."""
    found = []
    for arch in fits.archs:
        for method in METHODS:
            law = fits.law(arch, axis, method)
            low, high = law.exponent_ci or (None, None)
            found.append(
                Estimate(arch=arch, method=method, value=law.exponent, ci_lo=low, ci_hi=high)
            )
        found += [
            Estimate(
                arch=arch,
                method=f"surface, {row.method}",
                value=row.value,
                ci_lo=row.ci_lo,
                ci_hi=row.ci_hi,
            )
            for fit in fits.parametric
            for row in fit.rows()
            if (row.arch, row.form, row.parameter) == (arch, "chinchilla", parameter)
        ]
    return found


def _draw_exponents(axes: Axes, estimates: Sequence[Estimate], archs: Sequence[str]) -> None:
    axes.grid(visible=False, axis="y")
    axes.set_ylim(len(estimates) - 0.4, -0.6)
    for place, estimate in enumerate(estimates):
        if place and estimate.arch != estimates[place - 1].arch:
            axes.axhline(place - 0.5, color="#e0e0e0", linewidth=0.6)
        if estimate.value is None:
            continue
        mark = plot_style.family_mark(list(archs).index(estimate.arch))
        text = f"{estimate.arch}, {estimate.method.replace('_', ' ')}\n{estimate.value:.4f}"
        if estimate.ci_lo is not None and estimate.ci_hi is not None:
            axes.plot([estimate.ci_lo, estimate.ci_hi], [place] * 2, color=mark.colour, lw=1.1)
            text += f" ({estimate.ci_lo:.4f} to {estimate.ci_hi:.4f})"
        frame.draw_marks(axes, [(estimate.value, place)], mark, [text], markersize=4)


def _name_rows(axes: Axes, estimates: Sequence[Estimate]) -> None:
    names = [estimate.method.replace("_", " ") for estimate in estimates]
    plot_style.set_ticks(axes.yaxis, range(len(names)), lambda place: names[place])

"""The plots of a fit: isoFLOP profiles, the frontier, and what is optimal at each budget.

matplotlib is imported when a plot is drawn, through its object interface: no pyplot, no window,
no global figure list.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from isoflop import plot_style
from isoflop.analysis import plot_frame, plot_tips
from isoflop.analysis.compare.one_size import is_one_size
from isoflop.analysis.laws import LawAxis, PowerLaw, law_source
from isoflop.analysis.optima import Optimum
from isoflop.analysis.plot_profiles import draw_profiles
from isoflop.analysis.plot_seed_means import draw_seed_means
from isoflop.analysis.points import Axis
from isoflop.analysis.result import Fits
from isoflop.analysis.summary import excluded_note, perplexity
from isoflop.numbers import format_count
from isoflop.plot_style import Mark

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LAW_SAMPLES = 60
_BUDGET_LABEL = "Training compute per run (FLOPs)"


def write_plots(fits: Fits, folder: Path) -> tuple[Path, ...]:
    """Write isoflop_profiles, frontier and optimum_size as PNG and SVG; return the six paths.

    Where families have one size each, which none of them could show, write seed_means instead. A
    table from which nothing can be drawn gives figures that say so. The report draws more
    (isoflop.analysis.report.figures).
    """
    drawings: dict[str, Callable[[Fits], Figure]] = {
        "isoflop_profiles": draw_profiles,
        "frontier": draw_frontier,
        "optimum_size": draw_optimum_size,
    }
    if is_one_size(fits.selection):
        drawings = {"seed_means": draw_seed_means}
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    for stem, draw in drawings.items():
        with plot_style.style():
            paths.extend(plot_style.save(draw(fits), folder, stem))
    return tuple(paths)


def draw_frontier(fits: Fits) -> Figure:
    """Draw the perplexity of each family's optimum against compute, with its power law."""
    return _draw_against_compute(
        fits,
        axis="loss",
        title="Perplexity at each family's optimum",
        label="Perplexity, exp(nats per token)",
        value=lambda o: None if o.loss_opt is None else perplexity(o.loss_opt),
        ends=lambda o: (o.loss_ci_lo, o.loss_ci_hi),
        law_value=lambda law, budget: perplexity(law.at(budget)),
        end_value=perplexity,
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
    """Draw one value of the optima against the budget, log-log.

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
            title, f"Nothing to draw: no parabola has a minimum. {excluded_note(fits)}"
        )
    notes = _notes(fits, optima, axis)
    figure, axes, height = plot_frame.compute_axes(fits.archs, title, notes)
    budgets = [o.budget_flops for o in drawn]
    values = [value(o) or 0.0 for o in drawn]
    values += [end_value(end) for o in drawn for end in ends(o) if end is not None]
    plot_frame.scale(axes, budgets, values, form)
    axes.set(xlabel=_BUDGET_LABEL, ylabel=label)
    labels = []
    for index, arch in enumerate(fits.archs):
        mark = plot_style.family_mark(index)
        _draw_law(axes, fits.law(arch, axis), mark, law_value)
        for optimum in optima[arch]:
            _draw_ends(axes, optimum.budget_flops, ends(optimum), end_value, mark)
            _draw_optimum(axes, optimum, value(optimum) or 0.0, mark, arrow(optimum))
        if optima[arch]:
            labels.append((arch, value(optima[arch][-1]) or 0.0, mark))
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
    budget: float,
    ends: tuple[float | None, float | None],
    end_value: Callable[[float], float],
    mark: Mark,
) -> None:
    """Draw an interval as a thin bar; nothing without one."""
    low, high = ends
    if low is None or high is None:
        return
    axes.plot([budget, budget], [end_value(low), end_value(high)], color=mark.colour, lw=0.9)


def _draw_optimum(axes: Axes, optimum: Optimum, y: float, mark: Mark, side: int) -> None:
    (line,) = axes.plot(
        [optimum.budget_flops],
        [y],
        color=mark.colour,
        marker=mark.marker,
        markersize=5,
        markerfacecolor="none" if optimum.is_bound else mark.colour,
        markeredgewidth=1.1,
        # A bound is see-through and on top, so that neither mark hides the other.
        zorder=4 if optimum.is_bound else 3,
        linestyle="none",
    )
    plot_tips.tell(line, [plot_tips.optimum_text(optimum)])
    if optimum.is_bound:
        axes.annotate(
            "",
            xy=(optimum.budget_flops, y),
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
        lines.append(f"No minimum found: {', '.join(absent)}.")
    lines.append(excluded_note(fits))
    return lines

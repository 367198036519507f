"""The three plots of a fit: isoFLOP profiles, the frontier, and the size of the optimum.

matplotlib is imported when a plot is drawn, through its object interface: no pyplot, no window,
no global figure list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from isoflop.analysis import plot_scale, plot_style
from isoflop.analysis.fit import Fits
from isoflop.analysis.laws import LawAxis, PowerLaw
from isoflop.analysis.optima import Optimum
from isoflop.analysis.plot_profiles import draw_profiles
from isoflop.analysis.plot_style import Mark
from isoflop.analysis.summary import excluded_note, perplexity
from isoflop.numbers import format_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LAW_SAMPLES = 60
_BUDGET_LABEL = "Training compute per run (FLOPs)"


def write_plots(fits: Fits, folder: Path) -> tuple[Path, ...]:
    """Write isoflop_profiles, frontier and optimum_size as PNG and SVG; return the six paths.

    A table from which nothing can be drawn gives figures that say so.
    """
    drawings: dict[str, Callable[[Fits], Figure]] = {
        "isoflop_profiles": draw_profiles,
        "frontier": draw_frontier,
        "optimum_size": draw_optimum_size,
    }
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
        title="Perplexity at the compute-optimal size of each family",
        label="Perplexity, exp(nats per token)",
        value=lambda o: None if o.loss_opt is None else perplexity(o.loss_opt),
        law_value=lambda law, budget: perplexity(law.at(budget)),
        form=lambda y: f"{y:.4g}",
        arrow=lambda _: -1,
    )


def draw_optimum_size(fits: Fits) -> Figure:
    """Draw the compute-optimal number of parameters N* against compute, with its power law."""
    return _draw_against_compute(
        fits,
        axis="n_params",
        title="Compute-optimal number of parameters of each family",
        label="Optimal parameters N*",
        value=lambda o: o.x_opt,
        law_value=lambda law, budget: law.at(budget),
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
    law_value: Callable[[PowerLaw, float], float],
    form: Callable[[float], str],
    arrow: Callable[[Optimum], int],
) -> Figure:
    """Draw one value of the optima over n_params against the budget, log-log.

    ``arrow`` says on which side of a bound the optimum lies: −1 below, 1 above.
    """
    optima = {
        arch: [o for o in fits.optima_of(arch, "n_params") if (value(o) or 0.0) > 0.0]
        for arch in fits.archs
    }
    drawn = [o for group in optima.values() for o in group]
    if not drawn:
        return plot_style.sentence_figure(
            title, f"Nothing to draw: no parabola has a minimum. {excluded_note(fits)}"
        )
    figure, axes, height = _compute_axes(fits, title)
    budgets = [o.budget_flops for o in drawn]
    values = [value(o) or 0.0 for o in drawn]
    _scale(axes, budgets, values, form)
    axes.set(xlabel=_BUDGET_LABEL, ylabel=label)
    labels = []
    for index, arch in enumerate(fits.archs):
        mark = plot_style.family_mark(index)
        _draw_law(axes, fits.law(arch, axis), mark, law_value)
        for optimum in optima[arch]:
            _draw_optimum(axes, optimum, value(optimum) or 0.0, mark, arrow(optimum))
        if optima[arch]:
            labels.append((arch, value(optima[arch][-1]) or 0.0, mark))
    plot_style.direct_labels(axes, labels, height)
    _notes(figure, fits, optima, axis)
    return figure


def _compute_axes(fits: Fits, title: str) -> tuple[Figure, Axes, float]:
    """Return a figure with one log-log axes, and its height in inches.

    The right margin has room for the family labels, the height for all of them.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    longest = max(len(arch) for arch in fits.archs)
    left, plot_width, right = 0.95, 5.4, 0.7 + 0.105 * longest
    bottom, plot_height, top = 1.15, max(3.8, 0.24 * len(fits.archs)), 0.45
    width, height = left + plot_width + right, bottom + plot_height + top
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    axes = figure.add_axes(
        (left / width, bottom / height, plot_width / width, plot_height / height)
    )
    axes.set(xscale="log", yscale="log")
    axes.set_title(title, loc="left", fontweight="bold")
    return figure, axes, plot_height


def _scale(
    axes: Axes, budgets: Sequence[float], values: Sequence[float], form: Callable[[float], str]
) -> None:
    axes.set_xlim(*plot_scale.padded(min(budgets), max(budgets), 0.08))
    low, high = plot_scale.padded(min(values), max(values), 0.12)
    axes.set_ylim(low, high)
    plot_style.set_budget_ticks(axes, budgets)
    plot_style.set_log_ticks(axes.yaxis, low, high, 8, form)


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
        linewidth=1.6,
    )


def _draw_optimum(axes: Axes, optimum: Optimum, y: float, mark: Mark, side: int) -> None:
    axes.plot(
        [optimum.budget_flops],
        [y],
        color=mark.colour,
        marker=mark.marker,
        markersize=8,
        markerfacecolor="none" if optimum.is_bound else mark.colour,
        markeredgewidth=1.6,
        # A bound is see-through and on top, so that neither mark hides the other.
        zorder=4 if optimum.is_bound else 3,
        linestyle="none",
    )
    if optimum.is_bound:
        axes.annotate(
            "",
            xy=(optimum.budget_flops, y),
            xytext=(0, 20 * side),
            textcoords="offset points",
            arrowprops={"arrowstyle": "<-", "color": mark.colour, "shrinkA": 0, "shrinkB": 4},
        )


def _notes(figure: Figure, fits: Fits, drawn: dict[str, list[Optimum]], axis: LawAxis) -> None:
    optima = [optimum for group in drawn.values() for optimum in group]
    lines = []
    if any(o.is_point for o in optima):
        lines.append("Filled: minimum of the isoFLOP parabola.")
    if any(fits.law(arch, axis).exponent is not None for arch in drawn):
        lines[-1] += " Line: power law through the filled marks."
    if any(o.is_bound for o in optima):
        lines.append("Hollow: bound only; the minimum lies beyond, in the direction of the arrow.")
    absent = [arch for arch, group in drawn.items() if not group]
    if absent:
        lines.append(f"No minimum found: {', '.join(absent)}.")
    lines.append(excluded_note(fits))
    plot_style.note(figure, lines)

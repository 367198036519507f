"""A forest plot: the exponents of every family under every method, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from isoflop import plot_style
from isoflop.analysis import plot_frame, plot_tips
from isoflop.analysis.laws import LawAxis
from isoflop.analysis.optima_methods import METHODS
from isoflop.analysis.result import Fits
from isoflop.analysis.summary import excluded_note

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TITLE = "Exponents of the optimum under each method"
# The chinchilla surface names the exponents of N* and D* a and b.
_PANELS: tuple[tuple[LawAxis, str, str], ...] = (
    ("n_params", "a", "Exponent of N* in compute"),
    ("n_tokens", "b", "Exponent of D* in compute"),
)


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
    panels = [exponents(fits, axis, parameter) for axis, parameter, _ in _PANELS]
    if all(estimate.value is None for panel in panels for estimate in panel):
        return plot_style.sentence_figure(
            _TITLE, f"No family has optima at two budgets. {excluded_note(fits)}"
        )
    notes = [
        f"Bar: {100 * fits.options.confidence:g} % interval. No mark: too few optima.",
        excluded_note(fits),
    ]
    figure, grid = plot_frame.panels(
        2,
        title=_TITLE,
        archs=fits.archs,
        notes=notes,
        panel_height=0.5 + 0.13 * len(panels[0]),
    )
    for axes, estimates, (_, _, label) in zip(grid, panels, _PANELS, strict=True):
        axes.set_xlabel(label)
        _draw_panel(axes, estimates, fits.archs)
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
                method=f"surface, {row['method']}",
                value=row["value"],
                ci_lo=row["ci_lo"],
                ci_hi=row["ci_hi"],
            )
            for fit in fits.parametric
            for row in fit.rows()
            if (row["arch"], row["form"], row["parameter"]) == (arch, "chinchilla", parameter)
        ]
    return found


def _draw_panel(axes: Axes, estimates: Sequence[Estimate], archs: Sequence[str]) -> None:
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
        (line,) = axes.plot(
            [estimate.value],
            [place],
            color=mark.colour,
            marker=mark.marker,
            markersize=4,
            linestyle="none",
        )
        plot_tips.tell(line, [text])


def _name_rows(axes: Axes, estimates: Sequence[Estimate]) -> None:
    names = [estimate.method.replace("_", " ") for estimate in estimates]
    plot_style.set_ticks(axes.yaxis, range(len(names)), lambda place: names[place])

"""How much the exponents of the optimum depend on the method that finds it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from isoflop import plot_style, plot_texts
from isoflop.analysis.figures import marks
from isoflop.analysis.figures.canvas import finish, open_canvas, say
from isoflop.analysis.figures.legends import handles_of
from isoflop.analysis.figures.notes import families_note, run_notes
from isoflop.analysis.figures.rows import set_rows
from isoflop.analysis.figures.shown import MOST_FAMILIES, Palette, Shown, show
from isoflop.analysis.laws import LawAxis
from isoflop.analysis.optima_methods import METHODS
from isoflop.analysis.result import Fits
from isoflop.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure


_ROW_HEIGHT = 0.13
_TITLE = "Exponents of the optimum under each method"
# The chinchilla surface names the exponents of N* and D* a and b.
_PANELS: dict[LawAxis, tuple[str, str]] = {
    "n_params": ("a", "Exponent of N* in compute"),
    "n_tokens": ("b", "Exponent of D* in compute"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """One row of a panel."""

    arch: str
    method: str
    value: float | None
    ci_lo: float | None
    ci_hi: float | None


def sensitivity(
    fits: Fits,
    *,
    axis: str | None = None,
    figure: Figure | SubFigure | None = None,
    ax: Axes | None = None,
    archs: Sequence[str] | str | None = None,
    palette: Palette | None = None,
    notes: bool = True,
) -> tuple[Figure | SubFigure, np.ndarray[Any, Any]]:
    """Draw the exponents of N* and D* as marks with bars, a row per family and method.

    An exponent is one of all budgets, so that this figure takes no ``budgets``, and colours are
    always those of families. ``axis`` is the one whose exponents are drawn, "n_params" or
    "n_tokens"; None: a panel each, or in an axes that is given those of N*. Arguments, results and
    errors are else those of `isoflop.analysis.figures.profiles.profiles`.
    """
    seen = show(fits, archs=archs, palette=palette, most=MOST_FAMILIES)
    asked = next(iter(_PANELS)) if axis is None and ax is not None else axis
    drawn = [one for one in _PANELS if asked in (None, one)]
    if not drawn:
        raise UserError("axis", axis, f"one of {', '.join(_PANELS)}", "name an axis, or none")
    panels = [exponents(fits, seen.archs, one, _PANELS[one][0]) for one in drawn]
    if all(estimate.value is None for panel in panels for estimate in panel):
        canvas = open_canvas(1, figure=figure, ax=ax)
        return say(canvas, fits, _TITLE, "No family has optima at two budgets.")
    canvas = open_canvas(len(drawn), figure=figure, ax=ax)
    for axes, estimates, one in zip(canvas.axes, panels, drawn, strict=True):
        axes.set_xlabel(_PANELS[one][1])
        _draw_exponents(axes, estimates, seen)
    names = [estimate.method.replace("_", " ") for estimate in panels[0]]
    set_rows(canvas, names, _ROW_HEIGHT)
    lines = [
        f"Bar: {100 * fits.options.confidence:g} % interval. No mark: too few optima.",
        *families_note(fits, seen),
        *run_notes(fits),
    ]
    return finish(
        canvas,
        title=_TITLE,
        handles=handles_of(seen),
        notes=lines if notes else (),
        is_full=True,
    )


def exponents(fits: Fits, archs: Sequence[str], axis: LawAxis, parameter: str) -> list[Estimate]:
    """Return the exponents through optima by each method, then those of the fitted surfaces."""
    fitted = {law.method for law in fits.laws}
    found = []
    for arch in archs:
        for method in METHODS:
            if method not in fitted:
                continue
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


def _draw_exponents(axes: Axes, estimates: Sequence[Estimate], seen: Shown) -> None:
    """Draw a row per estimate; a family's are one artist, with the family's label."""
    groups = itertools.groupby(enumerate(estimates), key=lambda item: item[1].arch)
    for arch, group in groups:
        rows = list(group)
        if rows[0][0]:
            axes.axhline(
                rows[0][0] - 0.5, color=plot_style.faded(0.88), linewidth=0.6, label="_nolegend_"
            )
        known = [(place, one, one.value) for place, one in rows if one.value is not None]
        if not known:
            continue
        mark = seen.mark(arch, float("nan"))
        bars = [(place, one.ci_lo, one.ci_hi) for place, one, _ in known]
        marks.draw_bars(axes, bars, mark.colour, width=1.0, is_across=True)
        marks.draw_marks(
            axes,
            [(value, place) for place, _, value in known],
            mark,
            [_text(one, value) for _, one, value in known],
            label=plot_texts.literal(arch),
            scale=0.8,
        )


def _text(estimate: Estimate, value: float) -> str:
    """Return the hover text of an estimate."""
    text = f"{estimate.arch}, {estimate.method.replace('_', ' ')}\n{value:.4f}"
    if estimate.ci_lo is not None and estimate.ci_hi is not None:
        text += f" ({estimate.ci_lo:.4f} to {estimate.ci_hi:.4f})"
    return text

"""The figure of at_scale.py: predicted seconds per FLOP of each family, a panel a device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from at_scale_clock import REFERENCE, SUBJECT, DeviceSeconds, Measured
from seconds_per_flop import CellKey, SecondsPerFlop

from isoflop import plot_style
from isoflop.analysis.figures.canvas import COMPUTE_LABEL, finish, open_canvas, page_figure
from isoflop.analysis.figures.legends import entry
from isoflop.plan.planner import Plan
from isoflop.plot_style import padded

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STEM = "seconds_per_flop"


def write_figure(plan: Plan, of: DeviceSeconds, measured: Measured, folder: Path) -> Path:
    """Write seconds_per_flop.png into a folder."""
    with plot_style.style():
        (path,) = plot_style.save(draw(plan, of, measured), folder, STEM, ("png",))
    return path


def draw(plan: Plan, of: DeviceSeconds, measured: Measured) -> Figure:
    """Draw seconds per FLOP as estimated; a band is the multiplier that was measured."""
    archs = sorted(plan.study.archs)
    notes = [
        "Predicted from data sheets; nothing was measured on a GPU. Lines: centres of the grids; "
        "bars: all sizes of the grid. A family breaks even by the clock where its compute "
        f"multiplier over {REFERENCE} equals its line.",
        f"{SUBJECT}'s multiplier has not been measured yet."
        if SUBJECT not in measured.multipliers
        else f"Band: {SUBJECT}'s multiplier as measured on a CPU at far smaller budgets.",
    ]
    canvas = open_canvas(len(of), figure=page_figure())
    for (device, by_change), axes in zip(of.items(), canvas.axes, strict=True):
        _draw_band(axes, measured)
        _draw_device(axes, archs, plan.study.budgets, by_change["as estimated"])
        axes.set_title(device)
        axes.set_xlabel(COMPUTE_LABEL)
    marks = [plot_style.family_mark(index) for index in range(len(archs))]
    finish(
        canvas,
        title=f"Seconds per FLOP over {REFERENCE}'s",
        handles=[
            entry(arch, color=mark.colour, marker=mark.marker, linestyle=mark.line)
            for arch, mark in zip(archs, marks, strict=True)
        ],
        notes=notes,
    )
    return canvas.figure


def _draw_band(axes: Axes, measured: Measured) -> None:
    found = measured.multipliers.get(SUBJECT)
    if found is not None and found.ci_lo is not None and found.ci_hi is not None:
        axes.axhspan(found.ci_lo, found.ci_hi, color="#909090", alpha=0.3, lw=0)


def _draw_device(
    axes: Axes,
    archs: Sequence[str],
    budgets: Sequence[int],
    found: Mapping[CellKey, SecondsPerFlop],
) -> None:
    axes.set(xscale="log", yscale="log")
    for index, arch in enumerate(archs):
        mark = plot_style.family_mark(index)
        # Beside one another, so that bars of equal budgets can be distinguished.
        shift = 1.06 ** (index - (len(archs) - 1) / 2)
        own = [found[arch, budget] for budget in budgets]
        units = [found[REFERENCE, budget].s_per_flop for budget in budgets]
        y = [one.s_per_flop / unit for one, unit in zip(own, units, strict=True)]
        below = [(p.s_per_flop - p.low) / unit for p, unit in zip(own, units, strict=True)]
        above = [(p.high - p.s_per_flop) / unit for p, unit in zip(own, units, strict=True)]
        axes.errorbar(
            [budget * shift for budget in budgets],
            y,
            yerr=[below, above],
            color=mark.colour,
            marker=mark.marker,
            ls=mark.line,
            ms=4,
            lw=1.1,
            elinewidth=0.6,
        )
    axes.set_xlim(*padded(min(budgets), max(budgets), 0.12))
    plot_style.set_budget_ticks(axes, [float(budget) for budget in budgets])
    plot_style.set_ticks(axes.yaxis, [0.5, 1, 2, 4], "{:g}".format)

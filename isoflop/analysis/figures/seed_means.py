"""Losses of families that have one size each: all seeds, and their means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from isoflop import plot_style
from isoflop.analysis.compare import one_size
from isoflop.analysis.compare.one_size import SeedMean
from isoflop.analysis.figures import marks
from isoflop.analysis.figures.canvas import Canvas, finish, open_canvas, say
from isoflop.analysis.figures.legends import entry
from isoflop.analysis.figures.notes import run_notes
from isoflop.analysis.figures.rows import row_names, set_rows
from isoflop.analysis.figures.shown import Palette, Shown, label_colours, show
from isoflop.analysis.points import Point
from isoflop.analysis.result import Fits
from isoflop.numbers import format_flops
from isoflop.plot_style import Mark
from isoflop.units import loss_label

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure


_TITLE = "Loss of each family at its one size"
# Rows on one page.
_MOST_ROWS = 50
_ROW_HEIGHT = 0.19
_BY_SEED = "seed"


def seed_means(
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
    """Draw the runs of every family that has one size at a budget, and their means as bars.

    Rows are in the order of ``archs`` and ``budgets`` where these are given. The hue may be "seed",
    too, which is the default. Arguments and errors are those of
    `isoflop.analysis.figures.profiles.profiles`.
    """
    by_seed = hue in (None, _BY_SEED)
    seen = show(
        fits,
        archs=archs,
        budgets=budgets,
        hue=None if by_seed else hue,
        palette=None if by_seed else palette,
    )
    canvas = open_canvas(1, figure=figure, ax=ax)
    (axes,) = canvas.axes
    found = _means(fits, seen, is_ordered=archs is not None or budgets is not None)
    if not found:
        say(canvas, fits, _TITLE, "No family has exactly one size at a budget.")
        return axes
    means = found[:_MOST_ROWS]
    axes.set_xlabel(loss_label(fits.unit))
    places = np.arange(len(means))
    losses = [mean.loss for mean in means]
    bar: dict[str, Any] = {"colors": [plot_style.grey()], "label": "_nolegend_"}
    axes.vlines(losses, places - 0.35, places + 0.35, **bar)
    rows = [(i, p) for i, m in enumerate(means) for p in fits.groups[m.arch, m.budget_flops]]
    seeds = _seed_marks([point.seed for _, point in rows], palette if by_seed else None)
    _draw_runs(axes, fits, rows, seeds, None if by_seed else seen)
    set_rows(canvas, _row_names(canvas, fits, means), _ROW_HEIGHT)
    finish(
        canvas,
        title=_TITLE,
        handles=_handles(seeds, is_grey=not by_seed),
        notes=_notes(fits, means, len(found)) if notes else (),
        scale=seen.scale,
        is_full=True,
    )
    return axes


def _means(fits: Fits, seen: Shown, *, is_ordered: bool) -> list[SeedMean]:
    """Return the means that are drawn, in natural order or in the order asked for."""
    found = {(m.arch, m.budget_flops): m for m in one_size.seed_means(fits.selection)}
    keys = [(arch, budget) for arch in seen.archs for budget in seen.budgets]
    if is_ordered:
        return [found[key] for key in keys if key in found]
    return [mean for key, mean in found.items() if key in keys]


def _seed_marks(seeds: Sequence[int | None], palette: Palette | None) -> dict[int | None, Mark]:
    """Return the look of each seed, in order; runs that have none come last."""
    known: list[int | None] = [*sorted({seed for seed in seeds if seed is not None})]
    if None in seeds:
        known.append(None)
    places = {_seed_label(seed): i for i, seed in enumerate(known)}
    colours = label_colours(list(places), places, palette)
    return {
        seed: Mark(colour=colours[_seed_label(seed)], marker=plot_style.marker(i), line="none")
        for i, seed in enumerate(known)
    }


def _seed_label(seed: int | None) -> str:
    return "no seed" if seed is None else f"seed {seed}"


def _draw_runs(
    axes: Axes,
    fits: Fits,
    rows: Sequence[tuple[int, Point]],
    seeds: Mapping[int | None, Mark],
    seen: Shown | None,
) -> None:
    """Draw the runs in their rows: markers tell seeds, colours too, unless ``seen`` has them."""
    alike: dict[tuple[str, int | None], list[tuple[int, Point]]] = {}
    for place, point in rows:
        label = _seed_label(point.seed)
        if seen is not None:
            label = seen.label(point.arch, point.budget_flops)
        alike.setdefault((label, point.seed), []).append((place, point))
    labels: set[str] = set()
    for (label, seed), group in alike.items():
        mark = seeds[seed]
        if seen is not None:
            first = group[0][1]
            mark = replace(mark, colour=seen.mark(first.arch, first.budget_flops).colour)
        marks.draw_marks(
            axes,
            [(point.loss, place) for place, point in group],
            mark,
            [marks.run_text(point, fits.unit) for _, point in group],
            label=None if label in labels else label,
            scale=0.8,
        )
        labels.add(label)


def _handles(seeds: Mapping[int | None, Mark], *, is_grey: bool) -> list[Artist]:
    """Return a legend's entries of the seeds; grey where colours tell something else."""
    if list(seeds) == [None]:
        return []
    return [
        entry(
            _seed_label(seed),
            color=plot_style.grey() if is_grey else mark.colour,
            marker=mark.marker,
            linestyle="none",
        )
        for seed, mark in seeds.items()
    ]


def _row_names(canvas: Canvas, fits: Fits, means: Sequence[SeedMean]) -> list[str]:
    """Return the family of each row, and the budget where there are several."""
    names = row_names(canvas, [mean.arch for mean in means])
    if len(fits.budgets) == 1:
        return names
    budgets = [format_flops(mean.budget_flops) for mean in means]
    return [f"{name}, {budget}" for name, budget in zip(names, budgets, strict=True)]


def _notes(fits: Fits, means: Sequence[SeedMean], num: int) -> list[str]:
    why = "Runs of one seed read the same text, so "
    if fits.has_own_trainer:
        why = "Runs of one seed read the same text as far as the trainer's seed sees to it; "
    return [
        f"Bar: geometric mean over the seeds. {why}families are compared seed by seed.",
        *([f"Drawn: the first {len(means)} of {num} rows."] if len(means) < num else []),
        *run_notes(fits),
    ]

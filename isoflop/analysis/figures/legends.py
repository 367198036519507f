"""Legends of figures: their entries, below the panels or as a part of one axes."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from isoflop import plot_style, plot_texts
from isoflop.analysis.figures.shown import Shown, budget_label

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.text import Text

# Entries of a legend.
_MOST_NAMED = 40
# Entries that find room inside an axes, and the share of its width that they may take.
_MOST_INSIDE, _INSIDE_SHARE = 4, 0.65
# Of the width of an axes that was given, what a name may take.
_NAME_SHARE = 0.4
# In units of the legend's size: handle, the gap after it, and the gap between columns.
_HANDLE_EMS, _COLUMN_EMS = 3.0, 1.5
# Of the legend, however little room there is.
_LEAST_LINES = 3
# Marks a legend's entries that are names of families, which may be cut.
_NAME = "name "
# Of the longest name in a legend, at 8 points.
_NAME_INCHES = 2.3
# More entries of a legend stand in two columns.
_MOST_LINES = 12


def handles_of(seen: Shown, *, names: bool = True) -> list[Artist]:
    """Return a legend's entries of what is shown: families, budgets, or both.

    Args:
        seen: what is shown.
        names: whether families are named where colours are those of budgets.
    """
    found: list[Artist] = []
    budget = seen.budgets[0] if seen.budgets else math.nan
    if seen.hue == "arch" or (names and seen.shape == "arch" and len(seen.archs) > 1):
        for arch, name in short_names(seen.archs).items():
            look = _look(seen, arch, budget)
            if seen.hue == "budget":
                look["color"] = plot_style.soft()
            found.append(entry(name, gid=f"{_NAME}{arch}", **look))
    if seen.hue == "arch":
        return found
    if seen.scale is None:
        arch = seen.archs[0] if seen.archs else ""
        for one in sorted(seen.budgets) if seen.archs else ():
            look = _look(seen, arch, one)
            if seen.shape == "arch":
                look |= {"marker": "none", "linestyle": "-"}
            found.append(entry(budget_label(one), **look))
    return found


def _look(seen: Shown, arch: str, budget: float) -> dict[str, Any]:
    mark = seen.mark(arch, budget)
    return {"color": mark.colour, "marker": mark.marker, "linestyle": mark.line}


def entry(label: str, **look: Any) -> Artist:
    """Return an entry of a legend."""
    from matplotlib.lines import Line2D

    return Line2D([], [], label=label, **look)


def short_names(archs: Sequence[str]) -> dict[str, str]:
    """Return the names of families for legends: long ones lose a part, none is read as math."""
    size = plot_style.points_of("legend.fontsize")
    distinct = list(dict.fromkeys(archs))
    cut = plot_texts.shortened(distinct, _NAME_INCHES * plot_style.em(), size)
    return {arch: plot_texts.literal(name) for arch, name in zip(distinct, cut, strict=True)}


def write_below(
    figure: Figure | SubFigure, handles: Sequence[Artist], note: Text, room: float
) -> Artist:
    """Write a legend below the panels of a figure, above its note, and return it.

    Args:
        figure: all of whose panels are drawn.
        handles: its entries; those that find no room are counted.
        note: at the lower edge.
        room: inches that legend and note may take.
    """
    from isoflop.analysis.figures.artists import LegendAboveNote

    width = figure.bbox.width / figure.dpi
    size = plot_style.points_of("legend.fontsize")
    around = (_HANDLE_EMS + _COLUMN_EMS) * size / 72
    if len(handles) > _MOST_LINES:
        # Shorter names in two columns rather than a legend that is higher than the panels.
        most = min(width / 2 - around, _NAME_INCHES * plot_style.em())
        _shorten_labels(handles, most, size)
    longest = max(_label_width(handle, size) for handle in handles)
    columns = max(1, min(len(handles), int(width / (longest + around))))
    lines = max(
        _LEAST_LINES,
        (room - note.get_window_extent().height / figure.dpi) * 72 / size / plot_texts.LINE_EMS,
    )
    return LegendAboveNote(
        figure,
        _at_most(handles, int(min(_MOST_NAMED, lines * columns))),
        note,
        ncols=columns,
        frameon=False,
        handlelength=2.2,
        columnspacing=_COLUMN_EMS - 0.3,
    )


def _at_most(handles: Sequence[Artist], most: int) -> list[Artist]:
    """Return the handles; of too many the first, and how many more there are."""
    if len(handles) <= most:
        return list(handles)
    kept = handles[: max(most - 1, 0)]
    return [*kept, entry(f"and {len(handles) - len(kept)} more", color="none")]


def _label_width(handle: Artist, size: float) -> float:
    """Return the inches of the longest line of a label, math in it as it looks."""
    text = re.sub(r"\\times ", "×", str(handle.get_label()))
    plain = re.sub(r"\\(?=\$)|(?<!\\)\$|[{}^]", "", text)
    return max(plot_texts.text_width(part, size) for part in plain.split("\n"))


def is_laid_out(axes: Axes) -> bool:
    """Return whether a layout engine places what stands around the axes."""
    root: Any = axes.get_figure(root=True)
    return root.get_layout_engine() is not None


def write_in_axes(axes: Axes, handles: Sequence[Artist], beside: float, *, is_full: bool) -> None:
    """Write a legend as a part of the axes, with the entries of the one that it has.

    Where nothing lays the figure out, it stays inside the axes' place, for its neighbours keep
    theirs.

    Args:
        axes: with everything drawn.
        handles: the new entries.
        beside: inches that a colour bar takes to the right.
        is_full: whether a legend finds no room inside.
    """
    from matplotlib.transforms import ScaledTranslation

    handles = [*_listed(axes, handles), *handles]
    width = axes.figure.bbox.width / axes.figure.dpi * axes.get_position().width
    size = plot_style.points_of("legend.fontsize")
    _shorten_labels(handles, _NAME_SHARE * width, size)
    widest = max(_label_width(handle, size) for handle in handles) + _HANDLE_EMS * size / 72
    is_small = len(handles) <= _MOST_INSIDE and widest <= _INSIDE_SHARE * width
    if not is_laid_out(axes) or (is_small and not is_full):
        axes.legend(handles=_at_most(handles, _MOST_NAMED))
        return
    shift = ScaledTranslation(beside, 0.0, axes.figure.dpi_scale_trans)
    axes.legend(
        handles=_at_most(handles, _MOST_NAMED),
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
        bbox_transform=axes.transAxes + shift,
    )


def _listed(axes: Axes, new: Sequence[Artist]) -> list[Artist]:
    """Return the entries of a legend that the axes already has, and that are not new ones."""
    legend = axes.get_legend()
    if legend is None:
        return []
    found = []
    for handle, text in zip(legend.legend_handles, legend.get_texts(), strict=True):
        assert handle is not None
        handle.set_label(text.get_text())
        if text.get_text() not in [one.get_label() for one in new]:
            found.append(handle)
    return found


def _shorten_labels(handles: Sequence[Artist], width: float, size: float) -> None:
    """Cut the names of families that are wide for an axes."""
    names = {one: gid.removeprefix(_NAME) for one in handles if (gid := one.get_gid())}
    cut = plot_texts.shortened(list(names.values()), width, size)
    for handle, name in zip(names, cut, strict=True):
        handle.set_label(plot_texts.literal(name))

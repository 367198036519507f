"""Where a figure is drawn: its own figure, one that was given, or one axes that was given.

Everything is placed by the constrained layout. All lengths follow `font.size`: at 8 points a
figure of several panels is as wide as a page of print. Figures that are ours become as high as
what stands outside of their panels needs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from isoflop import plot_style, plot_texts
from isoflop.analysis.figures.shown import Shown, budget_label, check_place
from isoflop.errors import UserError, shown

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.text import Text

PANELS_A_ROW = 3
ROW_HEIGHT = 1.9
"""Inches of a row of panels with its labels, at 8 points."""
MOST_NAMED = 40
"""Entries of a legend."""
COMPUTE_LABEL = "Training compute (FLOPs)"
# Entries that find room inside an axes, and the share of its width that they may take.
_MOST_INSIDE, _INSIDE_SHARE = 4, 0.65
# Of the width of an axes that was given, what a name may take.
_NAME_SHARE = 0.4
# Inches at 8 points that a panel takes with its labels, however little room there is.
_LEAST_WIDTH, _LEAST_HEIGHT = 1.4, 1.0
# ... and that it keeps, where legend and note ask for room.
_GOOD_HEIGHT = 1.4
# In units of the legend's size: handle, the gap after it, and the gap between columns.
_HANDLE_EMS, _COLUMN_EMS = 3.0, 1.5
_LINE_EMS = 1.5
# Of the legend, however little room there is.
_LEAST_LINES = 3
# How much higher a single row of panels is.
_ONE_ROW = 1.2
# Marks a legend's entries that are names of families, which may be cut.
_NAME = "name "
# Inches around what stands at an edge of the figure.
_PAD = 0.09
# Of the longest name in a legend, at 8 points.
_NAME_INCHES = 2.3
# More entries of a legend stand in two columns.
_MOST_LINES = 12
_NOTE_LEFT = 0.012


@dataclass(frozen=True, kw_only=True, slots=True)
class Canvas:
    """Empty axes to draw into."""

    figure: Figure | SubFigure
    axes: tuple[Axes, ...]
    is_ours: bool
    """Whether the figure may be made higher."""
    is_axes: bool
    """Whether one axes was given: then nothing stands outside it."""
    num_rows: int = 1

    @property
    def grid(self) -> np.ndarray[Any, Any]:
        """The axes as callers get them."""
        return np.array(self.axes, dtype=object)


def open_canvas(
    num: int,
    *,
    figure: Figure | SubFigure | None = None,
    ax: Axes | None = None,
    share_y: bool = True,
    row_height: float = ROW_HEIGHT,
) -> Canvas:
    """Return axes for a figure of some panels.

    Args:
        num: of panels.
        figure: to draw into; None: a new figure of pyplot.
        ax: the axes to draw into, where there is one panel.
        share_y: whether all panels have one y axis.
        row_height: inches of a row of panels at 8 points, where the figure is ours.

    Raises:
        UserError: an axes is given for several panels, or both a figure and an axes.
    """
    check_place(figure, ax)
    if ax is not None:
        if num != 1 or figure is not None:
            raise UserError(
                "ax",
                shown("an axes"),
                f"left out, for there are {num} panels" if num != 1 else "left out beside figure",
                "pass figure=, or ask for one family and one budget" if num != 1 else "pass one",
            )
        return Canvas(figure=ax.figure, axes=(ax,), is_ours=False, is_axes=True)
    from isoflop.analysis.figures.artists import PageFigure

    is_ours = figure is None or isinstance(figure, PageFigure)
    figure = figure or _pyplot_figure()
    # Four are a square rather than a row of three and one.
    columns = 2 if num == 4 else min(num, PANELS_A_ROW)
    rows = -(-num // columns)
    root: Any = figure.get_figure(root=True)
    if root.get_layout_engine() is None:
        root.set_layout_engine("constrained")
    least = (_LEAST_WIDTH * columns * plot_style.em(), _LEAST_HEIGHT * rows * plot_style.em())
    if is_ours and num > 1:
        height = row_height * plot_style.em() * (rows if rows > 1 else _ONE_ROW)
        root.set_size_inches(plot_style.PAGE_WIDTH * plot_style.em(), height)
    elif is_ours:
        # Twice: room for the labels of a font that is large for the figure.
        root.set_size_inches(
            *(max(a, 2 * b) for a, b in zip(root.get_size_inches(), least, strict=True))
        )
    else:
        _check_size(figure, least)
    grid = figure.subplots(rows, columns, sharey=share_y, squeeze=False).flatten().tolist()
    for axes in grid[num:]:
        axes.remove()
    return Canvas(
        figure=figure, axes=tuple(grid[:num]), is_ours=is_ours, is_axes=False, num_rows=rows
    )


def _check_size(figure: Figure | SubFigure, least: tuple[float, float]) -> None:
    width, height = least
    height += 2 * plot_style.points_of("figure.titlesize") * _LINE_EMS / 72
    if _width(figure) < width or _height(figure) < height:
        raise UserError(
            "figure",
            shown(f"{_width(figure):.3g} × {_height(figure):.3g} inches"),
            f"at least {width:.2g} × {height:.2g} for its panels at this font.size",
            "give a larger one, or ask for fewer families and budgets",
        )


def page_figure() -> Figure:
    """Return an empty figure that belongs to no window and grows with what is drawn into it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from isoflop.analysis.figures.artists import PageFigure

    figure = PageFigure(layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _pyplot_figure() -> Figure:
    """Return a new figure that notebooks show and scripts can save."""
    import matplotlib.pyplot as plt

    return plt.figure(layout="constrained")


def finish(
    canvas: Canvas,
    *,
    title: str | None = None,
    label: str | None = None,
    handles: Sequence[Artist] = (),
    notes: Sequence[str] = (),
    scale: ScalarMappable | None = None,
    is_full: bool = False,
) -> None:
    """Write what stands around the panels, and make a figure of ours as high as that needs.

    Args:
        canvas: with everything drawn.
        title: of the figure; of an axes that was given, where it has none.
        label: of the leftmost y axes.
        handles: entries of the legend; they carry their labels.
        notes: sentences below the figure; not written where an axes was given.
        scale: of the colours of budgets; None: no colour bar.
        is_full: whether a legend finds no room inside a panel.
    """
    if label is not None and not canvas.is_ours and canvas.num_rows > 1:
        # Of low panels each, labels would overlap.
        canvas.figure.supylabel(label, fontsize=plot_style.points_of("axes.labelsize"))
    elif label is not None:
        _label_leftmost(canvas.axes, label)
    outside = _write_title(canvas, title) if title else []
    if canvas.is_axes:
        _finish_axes(canvas.axes[0], handles, scale, is_full=is_full)
        return
    if len(canvas.axes) > 1:
        _wrap_labels(canvas)
    if scale is not None:
        bar = canvas.figure.colorbar(scale, ax=list(canvas.axes), aspect=30, pad=0.02)
        _label_bar(bar, scale)
    room = _room(canvas, outside)
    note = _write_note(canvas, notes, max(0.0, 0.5 * room))
    if handles:
        outside.append(_write_legend(canvas, handles, note, room))
    elif note.get_text():
        outside.append(note)
    if canvas.is_ours:
        _grow(canvas.figure, outside)


def say(canvas: Canvas, title: str, sentence: str) -> None:
    """Say in the first axes why there is nothing to draw."""
    (axes,) = canvas.axes
    axes.set_axis_off()
    size = plot_style.points_of("font.size")
    width = _width(canvas.figure) * (axes.get_position().width if canvas.is_axes else 0.95)
    lines = plot_texts.wrap(plot_texts.literal(sentence), width, size)
    axes.text(
        0.5,
        0.5,
        "\n".join(lines),
        transform=axes.transAxes,
        ha="center",
        va="center",
        parse_math=False,
    )
    if canvas.is_ours:
        _set_height(canvas.figure, (len(lines) + 1) * size * _LINE_EMS / 72)
    finish(canvas, title=title)


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
    known = [plot_texts.literal(arch).replace(r"\$", "$") for arch in distinct]
    cut = plot_texts.shortened(known, _NAME_INCHES * plot_style.em(), size)
    return {arch: plot_texts.literal(name) for arch, name in zip(distinct, cut, strict=True)}


def panel_names(archs: Sequence[str], canvas: Canvas) -> list[str]:
    """Return the names of families that fit above their panels."""
    columns = len({round(axes.get_position().x0, 3) for axes in canvas.axes})
    width = _width(canvas.figure) / columns - 4 * plot_style.small_size() / 72
    if canvas.is_axes:
        width = _width(canvas.figure) * canvas.axes[0].get_position().width
    known = [plot_texts.literal(arch).replace(r"\$", "$") for arch in archs]
    size = plot_style.points_of("axes.titlesize")
    is_bold = plot_style.is_bold("axes.titleweight")
    return plot_texts.shortened(known, width, size, bold=is_bold)


def _width(figure: Figure | SubFigure) -> float:
    """Return the width of a figure in inches."""
    return float(figure.bbox.width / figure.dpi)


def _height(figure: Figure | SubFigure) -> float:
    return float(figure.bbox.height / figure.dpi)


def _label_leftmost(axes: Sequence[Axes], label: str) -> None:
    for one in axes:
        spec = one.get_subplotspec()
        if spec is None or spec.is_first_col() or len(axes) == 1:
            one.set_ylabel(label)


def _wrap_labels(canvas: Canvas) -> None:
    """Break the labels of x axes that would run into those of the panels beside."""
    size = plot_style.points_of("axes.labelsize")
    for axes in canvas.axes:
        width = _width(canvas.figure) * axes.get_position().width
        axes.set_xlabel("\n".join(plot_texts.wrap(axes.get_xlabel(), width, size)))


def _write_title(canvas: Canvas, title: str) -> list[Artist]:
    """Write the title of a figure; that of a single panel is the panel's, for `set_title`."""
    axes = canvas.axes[0]
    has_own = any(axes.get_title(loc=where) for where in ("left", "center", "right"))
    if has_own and canvas.is_axes:
        return []
    is_panels = len(canvas.axes) == 1 and not has_own
    name = "axes" if is_panels else "figure"
    size = plot_style.points_of(f"{name}.titlesize")
    is_bold = plot_style.is_bold(f"{name}.titleweight")
    width = _width(canvas.figure) * (axes.get_position().width if is_panels else 0.95)
    text = "\n".join(plot_texts.wrap(title, width, size, bold=is_bold))
    return [axes.set_title(text) if is_panels else canvas.figure.suptitle(text)]


def _room(canvas: Canvas, above: Sequence[Artist]) -> float:
    """Return the inches that legend and note may take; a figure of ours grows."""
    if canvas.is_ours:
        return math.inf
    boxes = [box for artist in above if (box := artist.get_tightbbox()) is not None]
    taken = sum(float(box.height) for box in boxes) / canvas.figure.dpi + 3 * _PAD
    panels = _GOOD_HEIGHT * plot_style.em() * canvas.num_rows
    return _height(canvas.figure) - taken - panels


def _write_note(canvas: Canvas, notes: Sequence[str], room: float) -> Text:
    """Write the notes at the lower edge; of those that find no room the first lines."""
    size = plot_style.small_size()
    # Texts are wider than measured at few dots per inch.
    width = 0.92 * _width(canvas.figure)
    lines = [part for one in notes for part in plot_texts.wrap(plot_texts.shown(one), width, size)]
    if len(lines) > room * 72 / (size * _LINE_EMS):
        most = max(1, int(room * 72 / (size * _LINE_EMS)))
        lines = [*lines[: most - 1], f"{lines[most - 1]} …"] if len(lines) > most else lines
    return canvas.figure.supxlabel(
        "\n".join(lines),
        x=_NOTE_LEFT,
        ha="left",
        fontsize=size,
        fontweight="normal",
        color=plot_style.soft(),
        linespacing=1.15,
        parse_math=False,
    )


def _write_legend(canvas: Canvas, handles: Sequence[Artist], note: Text, room: float) -> Artist:
    from isoflop.analysis.figures.artists import LegendAboveNote

    figure: Any = canvas.figure
    size = plot_style.points_of("legend.fontsize")
    around = (_HANDLE_EMS + _COLUMN_EMS) * size / 72
    if len(handles) > _MOST_LINES:
        # Shorter names in two columns rather than a legend that is higher than the panels.
        width = min(_width(figure) / 2 - around, _NAME_INCHES * plot_style.em())
        _shorten_labels(handles, width, size)
    longest = max(_label_width(handle, size) for handle in handles)
    columns = max(1, min(len(handles), int(_width(figure) / (longest + around))))
    lines = max(
        _LEAST_LINES, (room - note.get_window_extent().height / figure.dpi) * 72 / size / _LINE_EMS
    )
    most = int(min(MOST_NAMED, lines * columns))
    return LegendAboveNote(
        figure,
        _at_most(handles, most),
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


def _finish_axes(
    axes: Axes,
    handles: Sequence[Artist],
    scale: ScalarMappable | None,
    *,
    is_full: bool,
) -> None:
    """Write legend and colour bar as parts of the axes.

    Where nothing lays the figure out, they stay inside the axes' place, for its neighbours keep
    theirs.
    """
    from matplotlib.transforms import ScaledTranslation

    root: Any = axes.get_figure(root=True)
    is_laid_out = root.get_layout_engine() is not None
    beside = 0.0
    if scale is not None and not is_laid_out:
        _label_bar(axes.figure.colorbar(scale, ax=axes), scale)
    elif scale is not None:
        room = axes.inset_axes((1.02, 0.0, 0.04, 1.0))
        _label_bar(axes.figure.colorbar(scale, cax=room), scale)
        box = room.get_tightbbox()
        assert box is not None
        beside = (box.x1 - axes.bbox.x1) / axes.figure.dpi
    if not handles:
        return
    handles = [*_listed(axes, handles), *handles]
    width = _width(axes.figure) * axes.get_position().width
    size = plot_style.points_of("legend.fontsize")
    _shorten_labels(handles, _NAME_SHARE * width, size)
    widest = max(_label_width(handle, size) for handle in handles) + _HANDLE_EMS * size / 72
    is_small = len(handles) <= _MOST_INSIDE and widest <= _INSIDE_SHARE * width
    if not is_laid_out or (is_small and not is_full):
        axes.legend(handles=_at_most(handles, MOST_NAMED))
        return
    shift = ScaledTranslation(beside, 0.0, axes.figure.dpi_scale_trans)
    axes.legend(
        handles=_at_most(handles, MOST_NAMED),
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
    full = {one: gid.removeprefix(_NAME) for one in handles if (gid := one.get_gid())}
    names = {one: plot_texts.literal(name).replace(r"\$", "$") for one, name in full.items()}
    cut = plot_texts.shortened(list(names.values()), width, size)
    for handle, name in zip(names, cut, strict=True):
        handle.set_label(plot_texts.literal(name))


def _label_bar(bar: Any, scale: ScalarMappable) -> None:
    """Name the budgets at a colour bar."""
    low, high = (float(end) for end in scale.get_clim())
    ticks = plot_style.log_ticks(low, high, 6)
    bar.set_ticks(ticks, labels=[plot_style.math_flops(tick, 3) for tick in ticks])
    bar.ax.minorticks_off()
    # Short, for a bar is as high as a row of panels.
    bar.set_label("Compute (FLOPs)")
    bar.outline.set_visible(False)


def _grow(figure: Any, outside: Sequence[Artist]) -> None:
    """Make a figure as much higher as what stands outside its panels takes."""
    boxes = [artist.get_tightbbox() for artist in outside]
    inches = [box.height / figure.dpi + _PAD for box in boxes if box is not None]
    _set_height(figure, _height(figure) + sum(inches))


def _set_height(figure: Any, inches: float) -> None:
    # Rounded, for the last bits of measured boxes differ between runs.
    figure.set_figheight(math.ceil(100 * inches) / 100)

"""Where a figure is drawn: its own figure, one that was given, or one axes that was given.

Everything is placed by the constrained layout. All lengths follow `font.size`: at 8 points a
figure of several panels is as wide as a page of print. Figures that are ours become as high as
what stands outside of their panels needs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from isoflop import plot_style, plot_texts
from isoflop.analysis.figures import legends
from isoflop.analysis.result import Fits, excluded_note
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
COMPUTE_LABEL = "Training compute (FLOPs)"
# Inches at 8 points that a panel takes with its labels, however little room there is.
_LEAST_WIDTH, _LEAST_HEIGHT = 1.4, 1.0
# ... and that it keeps, where legend and note ask for room.
_GOOD_HEIGHT = 1.4
# How much higher a single row of panels is.
_ONE_ROW = 1.2
# Inches around what stands at an edge of the figure.
_PAD = 0.09
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
    def parts(self) -> tuple[Figure | SubFigure, np.ndarray[Any, Any]]:
        """The figure and its axes as callers get them."""
        return self.figure, np.array(self.axes, dtype=object)


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
    _check_place(figure, ax)
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


def _check_place(figure: Any, ax: Any) -> None:
    """Raise UserError for what is no figure or no axes of matplotlib, such as an array of them."""
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

    if ax is not None and not isinstance(ax, Axes):
        raise UserError("ax", type(ax).__name__, "an axes of matplotlib", "pass one, as axes[0, 0]")
    if figure is not None and not isinstance(figure, FigureBase):
        raise UserError("figure", type(figure).__name__, "a figure or a SubFigure", "pass one")


def _check_size(figure: Figure | SubFigure, least: tuple[float, float]) -> None:
    width, height = least
    height += 2 * plot_style.points_of("figure.titlesize") * plot_texts.LINE_EMS / 72
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
) -> tuple[Figure | SubFigure, np.ndarray[Any, Any]]:
    """Write what stands around the panels, and make a figure of ours as high as that needs.

    Return the figure and its axes.

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
        axes = canvas.axes[0]
        beside = 0.0 if scale is None else _write_bar_beside(axes, scale)
        if handles:
            legends.write_in_axes(axes, handles, beside, is_full=is_full)
        return canvas.parts
    if len(canvas.axes) > 1:
        _wrap_labels(canvas)
    if scale is not None:
        bar = canvas.figure.colorbar(scale, ax=list(canvas.axes), aspect=30, pad=0.02)
        _label_bar(bar, scale)
    room = _room(canvas, outside)
    note = _write_note(canvas, notes, max(0.0, 0.5 * room))
    if handles:
        outside.append(legends.write_below(canvas.figure, handles, note, room))
    elif note.get_text():
        outside.append(note)
    if canvas.is_ours:
        _grow(canvas.figure, outside)
    return canvas.parts


def say(
    canvas: Canvas, fits: Fits, title: str, why: str
) -> tuple[Figure | SubFigure, np.ndarray[Any, Any]]:
    """Say in the only axes why there is nothing to draw; return the figure and its axes."""
    (axes,) = canvas.axes
    sentence = f"{why} {excluded_note(fits)}"
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
        _set_height(canvas.figure, (len(lines) + 1) * size * plot_texts.LINE_EMS / 72)
    return finish(canvas, title=title)


def panel_names(archs: Sequence[str], canvas: Canvas) -> list[str]:
    """Return the names of families that fit above their panels."""
    columns = len({round(axes.get_position().x0, 3) for axes in canvas.axes})
    width = _width(canvas.figure) / columns - 4 * plot_style.small_size() / 72
    if canvas.is_axes:
        width = _width(canvas.figure) * canvas.axes[0].get_position().width
    size = plot_style.points_of("axes.titlesize")
    is_bold = plot_style.is_bold("axes.titleweight")
    return plot_texts.shortened(archs, width, size, bold=is_bold)


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
    if len(lines) > room * 72 / (size * plot_texts.LINE_EMS):
        most = max(1, int(room * 72 / (size * plot_texts.LINE_EMS)))
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


def _write_bar_beside(axes: Axes, scale: ScalarMappable) -> float:
    """Write a colour bar as a part of the axes; return the inches that it takes to the right.

    Where nothing lays the figure out, the bar stays inside the axes' place, for its neighbours keep
    theirs.
    """
    if not legends.is_laid_out(axes):
        _label_bar(axes.figure.colorbar(scale, ax=axes), scale)
        return 0.0
    room = axes.inset_axes((1.02, 0.0, 0.04, 1.0))
    _label_bar(axes.figure.colorbar(scale, cax=room), scale)
    box = room.get_tightbbox()
    assert box is not None
    return float(box.x1 - axes.bbox.x1) / axes.figure.dpi


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

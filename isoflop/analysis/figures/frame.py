"""Empty figures of the right size, and the hover texts of their markers in the HTML report.

Markers carry their hover texts (isoflop.analysis.figures.artists), and in an SVG an id by which the
texts are found again.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from isoflop import plot_style, plot_texts
from isoflop.analysis.result import Fits, declared_note, excluded_note
from isoflop.numbers import format_count, format_flops
from isoflop.plot_style import Mark
from isoflop.units import format_loss, has_perplexity, loss_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from isoflop.analysis.figures.artists import Marks
    from isoflop.analysis.optima import Optimum
    from isoflop.analysis.points import Point


# Panels on one page.
MOST_FAMILIES = 11
# Names beside a plot, or in a legend.
MOST_NAMED = 40
_PANELS_A_ROW = 3
_NAME_INCHES = 2.3
_TITLE_INCHES = 2.02
_TIP_PREFIX = "tip-"


def drawn_archs(fits: Fits) -> list[str]:
    """Return the families that get a panel or rows: the first ones, the reference among them."""
    archs = fits.archs
    if len(archs) <= MOST_FAMILIES:
        return archs
    reference = fits.reference
    others = [arch for arch in archs if arch != reference][: MOST_FAMILIES - 1]
    return [arch for arch in archs if arch == reference or arch in others]


def unnamed_note(archs: Sequence[str]) -> list[str]:
    """Return a line on the families that are drawn without a name; none where all have one."""
    if len(archs) <= MOST_NAMED:
        return []
    return [f"Named: the first {MOST_NAMED} of {len(archs)} families."]


def left_out_note(fits: Fits) -> list[str]:
    """Return a line on the families that are not drawn; none where all are."""
    num = len(fits.archs)
    if num <= MOST_FAMILIES:
        return []
    return [f"Drawn: {MOST_FAMILIES} of {num} families, the reference among them."]


def panel_titles(archs: Sequence[str]) -> list[str]:
    """Return names of families that fit above a panel, a third of a page wide."""
    return plot_texts.shortened(archs, _TITLE_INCHES, plot_style.FONT_SIZE, bold=True)


def short_names(archs: Sequence[str]) -> dict[str, str]:
    """Return the names of families for legends and labels; long ones lose a part."""
    size = plot_style.FONT_SIZE
    distinct = list(dict.fromkeys(archs))
    shown = plot_texts.shortened(distinct, _NAME_INCHES, size, bold=True)
    return dict(zip(distinct, shown, strict=True))


def compute_axes(
    archs: Sequence[str], title: str, notes: Sequence[str]
) -> tuple[Figure, Axes, float]:
    """Return a figure of a column's width with one log-log axes, and the axes' height in inches.

    The right margin has room for the family labels, the height for all of them and the notes.
    """
    longest = max(map(len, short_names(archs).values()))
    left, right = 0.62, 0.42 + 0.075 * longest
    plot_width = max(1.7, plot_style.COLUMN_WIDTH - left - right)
    bottom = 0.42 + plot_style.note_height(notes, left + plot_width + right)
    plot_height, top = max(2.2, 0.17 * min(len(archs), MOST_NAMED)), 0.28
    width, height = left + plot_width + right, bottom + plot_height + top
    figure = plot_style.new_figure(width, height)
    axes = figure.add_axes(
        (left / width, bottom / height, plot_width / width, plot_height / height)
    )
    axes.set(xscale="log", yscale="log")
    axes.set_title(title, loc="left", fontweight="bold", x=0.04 - left / plot_width)
    return figure, axes, plot_height


def scale(
    axes: Axes, budgets: Sequence[float], values: Sequence[float], form: Callable[[float], str]
) -> None:
    """Set the limits and ticks of an axes against compute."""
    axes.set_xlim(*plot_style.padded(min(budgets), max(budgets), 0.08))
    low, high = plot_style.padded(min(values), max(values), 0.12)
    axes.set_ylim(low, high)
    plot_style.set_budget_ticks(axes, budgets)
    plot_style.set_log_ticks(axes.yaxis, low, high, 6, form)


def panels(
    num: int,
    *,
    title: str,
    label: str = "",
    archs: Sequence[str],
    notes: Sequence[str],
    panel_height: float = 1.9,
    share_y: bool = True,
) -> tuple[Figure, list[Axes]]:
    """Return a figure of at most a page's width with ``num`` axes and a legend of the families.

    The leftmost axes are labelled. Of very many families the legend names the first.
    """
    notes = [*notes, *unnamed_note(archs)]
    # Four are a square rather than a row of three and one.
    columns = 2 if num == 4 else min(num, _PANELS_A_ROW)
    rows = -(-num // columns)
    width = plot_style.PAGE_WIDTH if num > 1 else plot_style.COLUMN_WIDTH
    names = _legend_names(archs)
    legend_rows = -(-len(names) // legend_columns(names, width))
    note = plot_style.note_height(notes, width)
    strip = note + 0.06 + 0.16 * legend_rows
    height = panel_height * rows + plot_style.title_height(title, width) + strip
    figure = plot_style.new_figure(width, height, strip=strip)
    grid = figure.subplots(rows, columns, sharey=share_y, squeeze=False).flatten().tolist()
    for axes in grid[num:]:
        axes.remove()
    for axes in grid[:num:columns]:
        axes.set_ylabel(label)
    plot_style.title(figure, title)
    _family_legend(figure, archs, note / height)
    plot_style.note(figure, notes)
    return figure, grid[:num]


def legend_columns(archs: Sequence[str], width: float) -> int:
    """Return how many families fit side by side in a legend."""
    longest = max(len(arch) for arch in archs)
    return max(1, min(len(archs), int(width / (0.4 + 0.065 * longest))))


def _legend_names(archs: Sequence[str]) -> list[str]:
    return list(short_names(archs[:MOST_NAMED]).values())


def _family_legend(figure: Figure, archs: Sequence[str], bottom: float) -> None:
    """Put the legend across the figure, above a height given as a share of it."""
    from matplotlib.lines import Line2D

    names = _legend_names(archs)
    handles = []
    for index, name in enumerate(names):
        mark = plot_style.family_mark(index)
        handles.append(
            Line2D(
                [],
                [],
                color=mark.colour,
                marker=mark.marker,
                ms=4.5,
                ls=mark.line,
                lw=1.1,
                # An underscore would hide the entry, a dollar start math.
                label=name.replace("$", r"\$") if not name.startswith("_") else f" {name}",
            )
        )
    figure.legend(
        handles=handles,
        loc="lower center",
        bbox_to_anchor=(0.5, bottom),
        borderaxespad=0.0,
        ncols=legend_columns(names, float(figure.get_figwidth())),
        frameon=False,
        handlelength=2.2,
        columnspacing=1.2,
    )


def draw_marks(
    axes: Axes,
    points: Sequence[tuple[float, float]],
    mark: Mark,
    tips: Sequence[str],
    *,
    label: str | None = None,
    scale: float = 1.0,
    **style: Any,
) -> Marks:
    """Draw a marker at each point, with its hover text, and no line between them.

    Args:
        axes: to draw in.
        points: (x, y) of each.
        mark: their colour and marker.
        tips: hover text of each.
        label: entry of a legend; None: not in legends.
        scale: the size of the markers, in units of `lines.markersize`.
        style: what matplotlib's Line2D takes, over the mark's.
    """
    from matplotlib import rcParams

    from isoflop.analysis.figures.artists import Marks

    look = {
        "color": mark.colour,
        "marker": mark.marker,
        "linestyle": "none",
        "markersize": scale * rcParams["lines.markersize"],
        "label": label or "_nolegend_",
        **style,
    }
    marks = Marks(points, tips=tips, **look)
    axes.add_line(marks)
    axes.autoscale_view()
    return marks


def collect_tips(figure: Figure) -> dict[str, list[str]]:
    """Return the hover texts of each line by its id in the SVG, which the line gets here."""
    from isoflop.analysis.figures.artists import Marks

    tips: dict[str, list[str]] = {}
    for marks in figure.findobj(Marks):
        assert isinstance(marks, Marks)
        gid = f"{_TIP_PREFIX}{len(tips)}"
        marks.set_gid(gid)
        tips[gid] = list(marks.tips)
    return tips


def run_notes(fits: Fits) -> list[str]:
    """Return what any figure says of the runs: those excluded, declared FLOPs."""
    declared = declared_note(fits)
    return [excluded_note(fits), *([] if declared is None else [declared])]


def run_text(point: Point, unit: str) -> str:
    """Return the hover text of a run's marker."""
    perplexity = f", perplexity {math.exp(point.loss):.4g}" if has_perplexity(unit) else ""
    lines = [
        f"{point.arch} at {format_flops(point.budget_flops)} FLOPs",
        f"parameters {format_count(point.n_params)}, tokens {format_count(point.n_tokens)}",
        f"{loss_name(unit)} {format_loss(point.loss, unit)}{perplexity}",
    ]
    if point.seed is not None:
        lines.append(f"seed {point.seed}")
    return "\n".join(lines)


def optimum_text(optimum: Optimum, unit: str) -> str:
    """Return the hover text of an optimum: value, interval, and whether it is a bound."""
    assert optimum.x_opt is not None
    sign = {"edge_low": "below ", "edge_high": "above "}.get(optimum.status, "")
    name = {"n_params": "parameters", "n_tokens": "tokens", "n_active": "active parameters"}
    lines = [
        f"{optimum.arch} at {format_flops(optimum.budget_flops)} FLOPs: "
        + ("bound" if sign else "optimum"),
        f"{name[optimum.axis]} {sign}{format_count(optimum.x_opt)}"
        + _interval(optimum.ci_lo, optimum.ci_hi, format_count),
    ]
    form = functools.partial(format_loss, unit=unit)
    if optimum.loss_opt is not None:
        most = "at most " if sign else ""
        lines.append(
            f"{loss_name(unit)} {most}{form(optimum.loss_opt)}"
            + _interval(optimum.loss_ci_lo, optimum.loss_ci_hi, form)
        )
    return "\n".join(lines)


def _interval(low: float | None, high: float | None, form: Callable[[float], str]) -> str:
    if low is None or high is None:
        return ""
    return f" ({form(low)} to {form(high)})"

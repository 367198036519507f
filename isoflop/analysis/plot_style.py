"""What the plots share: fixed style, distinguishable marks, ticks, labels and saving.

Families differ in colour, marker and line at once, so the plots survive black-and-white printing;
the colours are those of Okabe and Ito (2008, "Color Universal Design"), without their yellow,
which is too pale for a white page.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop.analysis.plot_scale import log_ticks, spread_labels
from isoflop.files import write_bytes_atomic
from isoflop.numbers import format_flops

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from matplotlib.axes import Axes
    from matplotlib.axis import Axis as MplAxis
    from matplotlib.figure import Figure

DPI = 150
FONT_SIZE = 11.0
SMALL_SIZE = 9.0

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
# No star and no cross: those mark optima and excluded runs.
_MARKERS = ("o", "s", "^", "D", "v", "P", "p", "h")
_LINES: tuple[Any, ...] = (
    "-",
    (0, (5, 2)),
    (0, (1, 1.5)),
    (0, (6, 2, 1, 2)),
    (0, (3, 1, 1, 1, 1, 1)),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """Colour, marker and line of one family or budget."""

    colour: Any
    marker: str
    line: Any


def family_mark(index: int) -> Mark:
    """Return the mark of the index-th family; the combination repeats after 280 families."""
    return Mark(
        colour=_COLOURS[index % len(_COLOURS)],
        marker=_MARKERS[index % len(_MARKERS)],
        line=_LINES[index % len(_LINES)],
    )


def budget_mark(index: int, num_budgets: int) -> Mark:
    """Return the mark of the index-th budget: light to dark, so that grey keeps the order."""
    from matplotlib import colormaps

    # cividis read from its pale end to its dark end, without the palest fifth.
    position = 0.78 * (1 - index / max(num_budgets - 1, 1))
    return Mark(
        colour=colormaps["cividis"](position),
        marker=_MARKERS[index % len(_MARKERS)],
        line="-",
    )


def style() -> AbstractContextManager[None]:
    """Return a context with matplotlib's own defaults and the settings of these plots.

    A user's matplotlibrc is overridden, so that the files are the same on every machine with the
    same matplotlib.
    """
    import matplotlib.style

    return matplotlib.style.context(
        [
            "default",
            {
                "font.size": FONT_SIZE,
                "axes.titlesize": FONT_SIZE,
                "axes.labelsize": FONT_SIZE,
                "xtick.labelsize": SMALL_SIZE + 1,
                "ytick.labelsize": SMALL_SIZE + 1,
                "legend.fontsize": SMALL_SIZE + 1,
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.grid": True,
                "grid.color": "#E0E0E0",
                "grid.linewidth": 0.6,
                "axes.axisbelow": True,
                "svg.hashsalt": "isoflop",
            },
        ]
    )


def save(figure: Figure, folder: Path, stem: str) -> tuple[Path, Path]:
    """Write STEM.png and STEM.svg; the bytes depend on the figure alone, on no date."""
    paths = []
    metadata: dict[str, dict[str, Any]] = {"png": {"Software": None}, "svg": {"Date": None}}
    for suffix, entries in metadata.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix, dpi=DPI, metadata=entries)
        path = folder / f"{stem}.{suffix}"
        write_bytes_atomic(path, buffer.getvalue())
        paths.append(path)
    return paths[0], paths[1]


def math_flops(flops: float) -> str:
    """Return a budget for matplotlib's math text: 3×10¹⁰."""
    mantissa, exponent = format_flops(flops).split("e")
    factor = "" if mantissa == "1" else rf"{mantissa}\times "
    return rf"${factor}10^{{{exponent}}}$"


def set_log_ticks(axis: MplAxis, low: float, high: float, most: int, form: Any) -> None:
    """Label a logarithmic axis at round numbers in [low, high] with form(value)."""
    set_ticks(axis, log_ticks(low, high, most), form)


def set_ticks(axis: MplAxis, values: Sequence[float], form: Any) -> None:
    """Put labelled major ticks at the values and no minor ticks."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    axis.set_major_locator(FixedLocator(list(values)))
    axis.set_major_formatter(FixedFormatter([form(value) for value in values]))
    axis.set_minor_locator(NullLocator())


def direct_labels(
    axes: Axes, labels: Sequence[tuple[str, float, Mark]], height_inches: float
) -> None:
    """Write (text, y in data of a log axis, mark) beside the right edge of the axes, apart.

    A thin line leads from the edge to a label that had to move.
    """
    low, high = (math.log(y) for y in axes.get_ylim())
    wanted = [(math.log(y) - low) / (high - low) for _, y, _ in labels]
    gap = 1.35 * FONT_SIZE / (72 * height_inches)
    for (text, _, mark), start, end in zip(labels, wanted, spread_labels(wanted, gap), strict=True):
        axes.plot(
            [1.0, 1.03],
            [start, end],
            transform=axes.transAxes,
            color=mark.colour,
            lw=0.8,
            clip_on=False,
        )
        axes.plot(
            [1.05],
            [end],
            transform=axes.transAxes,
            color=mark.colour,
            marker=mark.marker,
            markersize=6,
            clip_on=False,
        )
        axes.text(
            1.075,
            end,
            text,
            transform=axes.transAxes,
            color=mark.colour,
            va="center",
            fontweight="bold",
            parse_math=False,
        )


def set_budget_ticks(axes: Axes, budgets: Sequence[float]) -> None:
    """Label the compute axis at the budgets where they lie far enough apart, else at decades."""
    low, high = axes.get_xlim()
    chosen = sorted(set(budgets))
    steps = [math.log(b / a) for a, b in pairwise(chosen)]
    if steps and min(steps) < math.log(high / low) / 9:
        chosen = log_ticks(low, high, 8)
    set_ticks(axes.xaxis, chosen, math_flops)


def note(figure: Figure, lines: Sequence[str]) -> None:
    """Write lines of small text at the lower left corner of the figure."""
    width, height = figure.get_size_inches()
    figure.text(
        0.12 / width,
        0.1 / height,
        "\n".join(lines),
        fontsize=SMALL_SIZE,
        color="#404040",
        va="bottom",
        parse_math=False,
    )


def sentence_figure(title: str, sentence: str) -> Figure:
    """Return a figure that holds a title and a sentence, for when there is nothing to draw."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 1.6))
    FigureCanvasAgg(figure)
    figure.text(0.03, 0.72, title, fontweight="bold", va="center")
    figure.text(0.03, 0.35, sentence, va="center", wrap=True, parse_math=False)
    return figure

"""What the plots share: fixed style, distinguishable marks, ticks, labels and saving.

Families differ in colour, marker and line at once, so the plots survive black-and-white printing;
the colours are those of Okabe and Ito (2008, "Color Universal Design"), without their yellow,
which is too pale for a white page.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from isoflop import plot_texts
from isoflop.files import write_bytes_atomic
from isoflop.numbers import format_count, format_flops

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from matplotlib.axes import Axes
    from matplotlib.axis import Axis as MplAxis
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure


DPI = 200
# The figures are as wide as a column or a page of print, where 7 points are the least to be read.
COLUMN_WIDTH = 3.5
PAGE_WIDTH = 7.0
FONT_SIZE = 8.0
SMALL_SIZE = 7.0
TITLE_SIZE = FONT_SIZE + 1
Format = Literal["png", "svg", "pdf"]

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
# Of a budget at its tick, as in legends.
_TICK_DIGITS = 3
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
    return Mark(colour=_COLOURS[index % len(_COLOURS)], marker=marker(index), line=line(index))


def marker(index: int) -> str:
    """Return the index-th marker; they repeat after 8."""
    return _MARKERS[index % len(_MARKERS)]


def line(index: int) -> Any:
    """Return the index-th style of lines; they repeat after 5."""
    return _LINES[index % len(_LINES)]


def cycle() -> list[Any]:
    """Return the colours of `axes.prop_cycle`, which styles set."""
    from matplotlib import rcParams

    return rcParams["axes.prop_cycle"].by_key().get("color") or [rcParams["text.color"]]


def budget_colours() -> Colormap:
    """Return a colormap from faint to strong, so that grey keeps the order of budgets."""
    from matplotlib import colormaps, rcParams
    from matplotlib.colors import ListedColormap, to_rgb

    is_dark = sum(to_rgb(rcParams["axes.facecolor"])) < 1.5
    # cividis without what is too near to the colour of the page.
    ends = (0.4, 1.0) if is_dark else (0.78, 0.0)
    steps = 256
    places = [ends[0] + (ends[1] - ends[0]) * i / (steps - 1) for i in range(steps)]
    return ListedColormap([colormaps["cividis"](place) for place in places], name="budgets")


def faded(share: float) -> str:
    """Return the colour of text with a share of the page's in it."""
    from matplotlib import rcParams
    from matplotlib.colors import to_hex, to_rgb

    face = rcParams["axes.facecolor"]
    pairs = zip(to_rgb(rcParams["text.color"]), to_rgb(face), strict=True)
    red, green, blue = ((1 - share) * ink + share * paper for ink, paper in pairs)
    return to_hex((red, green, blue))


def small_size() -> float:
    """Return the size of notes in points: seven eighths of `font.size`."""
    return SMALL_SIZE * em()


def grey() -> str:
    """Return the colour of what is not a family's or a budget's: #606060 in print."""
    return faded(96 / 255)


def soft() -> str:
    """Return the colour of notes: #404040 in print."""
    return faded(64 / 255)


def em() -> float:
    """Return how much larger texts are than in print: 1 where `font.size` is 8 points."""
    from matplotlib import rcParams

    return float(rcParams["font.size"]) / FONT_SIZE


def is_bold(name: str) -> bool:
    """Return whether a weight of rcParams is bold."""
    return _setting(name) in ("bold", "heavy", "black", "semibold", "demibold", 600, 700, 800)


def _setting(name: str) -> Any:
    """Return a setting by a name that the types of matplotlib do not know."""
    from matplotlib import rcParams

    settings: Any = rcParams
    return settings[name]


def points_of(name: str) -> float:
    """Return a size of rcParams in points, "large" and the like included."""
    from matplotlib.font_manager import FontProperties

    return float(FontProperties(size=_setting(name)).get_size_in_points())


def style() -> AbstractContextManager[None]:
    """Return a context with matplotlib's own defaults and the settings of these plots.

    A user's matplotlibrc is overridden, so that the files are the same on every machine with the
    same matplotlib.
    """
    import matplotlib.style
    from cycler import cycler

    return matplotlib.style.context(
        [
            "default",
            {
                "font.size": FONT_SIZE,
                "figure.figsize": (COLUMN_WIDTH, 2.9),
                "figure.titlesize": TITLE_SIZE,
                "figure.titleweight": "bold",
                "axes.prop_cycle": cycler(color=_COLOURS),
                "axes.titleweight": "bold",
                "axes.titlelocation": "left",
                "lines.linewidth": 1.1,
                "lines.markersize": 5.0,
                "axes.titlesize": FONT_SIZE,
                "axes.labelsize": FONT_SIZE,
                "xtick.labelsize": SMALL_SIZE,
                "ytick.labelsize": SMALL_SIZE,
                "legend.fontsize": SMALL_SIZE,
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.grid": True,
                "grid.color": "#E0E0E0",
                "grid.linewidth": 0.6,
                "axes.axisbelow": True,
                "svg.hashsalt": "isoflop",
                # Text in a PDF stays text.
                "pdf.fonttype": 42,
            },
        ]
    )


_METADATA: dict[Format, dict[str, Any]] = {
    "png": {"Software": None},
    "svg": {"Date": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


def save(
    figure: Figure, folder: Path, stem: str, formats: Sequence[Format] = ("png", "svg")
) -> tuple[Path, ...]:
    """Write STEM.png and so on; the bytes depend on the figure alone, on no date."""
    _settle(figure)
    paths = []
    for suffix in formats:
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix, dpi=DPI, metadata=_METADATA[suffix])
        path = folder / f"{stem}.{suffix}"
        write_bytes_atomic(path, buffer.getvalue())
        paths.append(path)
    return tuple(paths)


def _settle(figure: Figure) -> None:
    """Lay the figure out once and round the places of its axes.

    The solver of the constrained layout differs in the last bits from run to run, and clip paths
    in an SVG are named after those bits.
    """
    from matplotlib.transforms import Bbox

    if figure.get_layout_engine() is None:
        return
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        corners = axes.get_position().get_points().round(5)
        axes.set_position(Bbox(corners))


def math_flops(flops: float, digits: int = 5) -> str:
    """Return a budget for matplotlib's math text: 3×10¹⁰."""
    mantissa, exponent = format_flops(flops, digits).split("e")
    factor = "" if mantissa == "1" else rf"{mantissa}\times "
    return rf"${factor}10^{{{exponent}}}$"


def set_log_ticks(axis: MplAxis, most: int, form: Any) -> None:
    """Label a logarithmic axis at round numbers with form(value), as many as have room."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    from isoflop.plot_ticks import RoundTicks

    axis.set_major_locator(RoundTicks(most, log_ticks))
    axis.set_major_formatter(FuncFormatter(lambda value, _: str(form(value))))
    axis.set_minor_locator(NullLocator())


def count_ticks(axes: Axes, values: Sequence[float], share: float = 0.06) -> None:
    """Make the x axis one of counts on a logarithmic scale, around some values."""
    axes.set_xscale("log")
    low, high = padded(min(values), max(values), share)
    axes.set_xlim(low, high)
    set_log_ticks(axes.xaxis, 4, format_count)


def set_ticks(axis: MplAxis, values: Sequence[float], form: Any) -> None:
    """Put labelled major ticks at the values and no minor ticks."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    axis.set_major_locator(FixedLocator(list(values)))
    axis.set_major_formatter(FixedFormatter([form(value) for value in values]))
    axis.set_minor_locator(NullLocator())


def set_budget_ticks(axes: Axes, budgets: Sequence[float]) -> None:
    """Label the compute axis at the budgets where their labels have room, else at decades."""
    low, high = axes.get_xlim()
    chosen = sorted(set(budgets))
    steps = [math.log(b / a) for a, b in itertools.pairwise(chosen)]
    figure = axes.get_figure(root=True)
    assert figure is not None
    width = axes.bbox.width / figure.dpi
    share = max(1 / 5, max(map(_flops_inches, chosen), default=0.0) / width)
    if steps and min(steps) < math.log(high / low) * share:
        set_log_ticks(axes.xaxis, 4, math_flops)
    else:
        set_ticks(axes.xaxis, chosen, lambda budget: math_flops(budget, _TICK_DIGITS))


def _flops_inches(flops: float) -> float:
    """Return the inches of `math_flops` as a tick label, with a gap beside it."""
    mantissa, exponent = format_flops(flops, _TICK_DIGITS).split("e")
    factor = "" if mantissa == "1" else f"{mantissa} × "
    size = points_of("xtick.labelsize")
    raised = plot_texts.text_width(exponent, 0.7 * size)
    return plot_texts.text_width(f"{factor}10", size) + raised + 0.5 * size / 72


def family_colours() -> tuple[str, ...]:
    """Return the colours of the families, in order."""
    return _COLOURS


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches that belongs to no window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """Return at most ``most`` round numbers in [low, high] for a logarithmic axis.

    Tries ever coarser steps within a decade, then whole decades; a range that holds fewer than
    two of those, or three within a decade, gets evenly spaced round numbers.
    """
    fewest = 3 if high < 10 * low and most > 2 else 2
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    decades = range(first, last + 1)
    for factors in ((1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        ticks = [f * 10.0**d for d in decades for f in factors if low <= f * 10.0**d <= high]
        if fewest <= len(ticks) <= most:
            return ticks
        if len(ticks) < fewest:
            return _linear_ticks(low, high, most)
    stride = math.ceil(len(ticks) / most)
    return ticks[::stride]


def padded(low: float, high: float, share: float) -> tuple[float, float]:
    """Widen a positive range by a share of its length on the logarithmic scale.

    A single value gets a quarter below and above; a narrow range at least 2 %, so that ticks of
    four digits differ.
    """
    factor = max((high / low) ** share, 1.02) if high > low else 1.25
    return low / factor, high * factor


def _linear_ticks(low: float, high: float, most: int) -> list[float]:
    from matplotlib.ticker import MaxNLocator

    ticks = MaxNLocator(nbins=most, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [float(tick) for tick in ticks if low <= tick <= high]

"""Hover texts: what a marker says when pointed at in the HTML report.

A line that tells carries its texts, one per marker, in its label (legends here are made by hand),
and an id by which they are found again in the SVG.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from isoflop.numbers import format_count, format_flops

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from isoflop.analysis.optima import Optimum
    from isoflop.analysis.points import Point

_PREFIX = "tip-"
_BETWEEN = "\x1f"


def tell(line: Line2D, texts: Sequence[str]) -> None:
    """Give each marker of a line its text."""
    line.set_label(_BETWEEN.join(texts))
    line.set_gid(_PREFIX)


def collect(figure: Figure) -> dict[str, list[str]]:
    """Return number the lines that tell; return the texts of each by its id in the SVG."""
    from matplotlib.lines import Line2D

    tips: dict[str, list[str]] = {}
    for line in figure.findobj(Line2D):
        if (line.get_gid() or "").startswith(_PREFIX):
            gid = f"{_PREFIX}{len(tips)}"
            line.set_gid(gid)
            tips[gid] = str(line.get_label()).split(_BETWEEN)
    return tips


def run_text(point: Point) -> str:
    """Return what a run's marker says."""
    lines = [
        f"{point.arch} at {format_flops(point.budget_flops)} FLOPs",
        f"parameters {format_count(point.n_params)}, tokens {format_count(point.n_tokens)}",
        f"loss {point.loss:.4f}, perplexity {math.exp(point.loss):.4g}",
    ]
    if point.seed is not None:
        lines.append(f"seed {point.seed}")
    return "\n".join(lines)


def optimum_text(optimum: Optimum) -> str:
    """Return what an optimum's marker says: value, interval, and whether it is a bound."""
    assert optimum.x_opt is not None
    sign = {"edge_low": "below ", "edge_high": "above "}.get(optimum.status, "")
    name = {"n_params": "parameters", "n_tokens": "tokens", "n_active": "active parameters"}
    lines = [
        f"{optimum.arch} at {format_flops(optimum.budget_flops)} FLOPs: "
        + ("bound" if sign else "optimum"),
        f"{name[optimum.axis]} {sign}{format_count(optimum.x_opt)}"
        + _interval(optimum.ci_lo, optimum.ci_hi, digits=None),
    ]
    if optimum.loss_opt is not None:
        most = "at most " if sign else ""
        lines.append(
            f"loss {most}{optimum.loss_opt:.4f}"
            + _interval(optimum.loss_ci_lo, optimum.loss_ci_hi, digits=4)
        )
    return "\n".join(lines)


def _interval(low: float | None, high: float | None, digits: int | None) -> str:
    if low is None or high is None:
        return ""
    ends = [format_count(x) if digits is None else f"{x:.{digits}f}" for x in (low, high)]
    return f" ({ends[0]} to {ends[1]})"

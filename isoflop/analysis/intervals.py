"""Intervals of optima, read off their draws."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Literal

import numpy as np

from isoflop.analysis.optima import Optimum
from isoflop.analysis.optima_methods import ABOVE, BELOW, NO_MINIMUM, Method
from isoflop.analysis.points import Axis
from isoflop.analysis.resample import Draws, num_failed, percentiles


def with_intervals(
    optima: Iterable[Optimum],
    draws: Mapping[tuple[Axis, Method], Draws],
    confidence: float = 0.95,
) -> tuple[Optimum, ...]:
    """Give each interior optimum its interval; a bound has none, nor has one without draws.

    A draw whose minimum lies beyond the grid counts as that end of the grid, so that such draws do
    not shorten the interval from the other side; ``ci_at_edge`` then says that it may reach
    further. No interval when half of the draws or more are not interior.
    """
    return tuple(
        _with_interval(optimum, draws[optimum.axis, optimum.method], confidence)
        if (optimum.axis, optimum.method) in draws
        else optimum
        for optimum in optima
    )


def _with_interval(optimum: Optimum, draws: Draws, confidence: float) -> Optimum:
    key = (optimum.arch, optimum.budget_flops)
    if not optimum.is_point or key not in draws.x_opt:
        return optimum
    failed = num_failed(draws, key)
    known = replace(optimum, bootstrap_kind=draws.kind, n_boot=draws.n_boot, n_failed=failed)
    if 2 * failed >= draws.n_boot:
        return known
    edge, x = draws.edge[key], draws.x_opt[key].copy()
    x[edge == BELOW], x[edge == ABOVE] = optimum.grid_lo, optimum.grid_hi
    interval = percentiles(x[edge < NO_MINIMUM], confidence)
    of_loss = percentiles(draws.loss_opt[key], confidence)
    assert interval is not None
    assert of_loss is not None
    return replace(
        known,
        ci_lo=interval[0],
        ci_hi=interval[1],
        loss_ci_lo=of_loss[0],
        loss_ci_hi=of_loss[1],
        ci_at_edge=_touched(interval, optimum),
    )


def _touched(interval: tuple[float, float], o: Optimum) -> Literal["low", "high", "both"] | None:
    at_low = o.grid_lo is not None and bool(np.isclose(interval[0], o.grid_lo, rtol=1e-12))
    at_high = o.grid_hi is not None and bool(np.isclose(interval[1], o.grid_hi, rtol=1e-12))
    if at_low and at_high:
        return "both"
    return "low" if at_low else "high" if at_high else None

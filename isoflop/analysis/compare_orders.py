"""Which family is better at a budget, pair by pair, and which of these orders are claimed."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from isoflop.analysis.compare_interval import (
    FitsLike,
    Interval,
    interval,
    optima_by_group,
    order,
    strict_interval,
)
from isoflop.analysis.optima import Method, Optimum
from isoflop.analysis.points import Axis


@dataclass(frozen=True, kw_only=True, slots=True)
class PairOrder:
    """The optimal losses of two families at one budget; ``better`` has the lower estimate."""

    budget_flops: float
    better: str
    worse: str
    log_ratio: float
    """ln(loss of better) − ln(loss of worse), at most 0."""
    ci_lo: float | None
    ci_hi: float | None
    strict: Interval
    """The interval with every failed draw counted against a claim."""
    claimed: bool
    """Whether the strict interval lies below 0."""


def pair_orders(
    fits: FitsLike,
    *,
    axis: Axis = "n_params",
    method: Method = "parabola",
    confidence: float = 0.95,
) -> tuple[PairOrder, ...]:
    """Return every pair with two interior optima at a budget, by budget and label."""
    draws = fits.draws.get((axis, method))
    points = [o for o in optima_by_group(fits, axis, method).values() if _log_loss(o) is not None]
    found = []
    for one, other in itertools.combinations(points, 2):
        if one.budget_flops != other.budget_flops:
            continue
        better, worse = sorted((one, other), key=lambda o: (_log_loss(o) or 0.0, o.arch))
        keys = [(o.arch, o.budget_flops) for o in (better, worse)]
        drawn = None
        if draws is not None and all(key in draws.loss_opt for key in keys):
            with np.errstate(invalid="ignore", divide="ignore"):
                drawn = np.log(draws.loss_opt[keys[0]]) - np.log(draws.loss_opt[keys[1]])
        bounds: Interval = interval(drawn, confidence)
        strict = strict_interval(drawn, confidence)
        found.append(
            PairOrder(
                budget_flops=one.budget_flops,
                better=better.arch,
                worse=worse.arch,
                log_ratio=(_log_loss(better) or 0.0) - (_log_loss(worse) or 0.0),
                ci_lo=bounds[0],
                ci_hi=bounds[1],
                strict=strict,
                claimed=order(strict, 0.0) == "lower",
            )
        )
    return tuple(sorted(found, key=lambda p: (p.budget_flops, sorted((p.better, p.worse)))))


def _log_loss(optimum: Optimum) -> float | None:
    if not optimum.is_point or optimum.loss_opt is None or optimum.loss_opt <= 0:
        return None
    return math.log(optimum.loss_opt)

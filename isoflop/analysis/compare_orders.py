"""Which family is better at a budget, pair by pair, and which of these orders are claimed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranking:
    """The families in the order of their optimal losses, best first."""

    budget_flops: float | None
    """None: over all budgets."""
    archs: tuple[str, ...]
    """Without those whose optimum is at an edge or missing (anywhere, over all budgets)."""
    claimed: tuple[tuple[str, str], ...]
    """Pairs (better, worse) whose order is claimed; over all budgets: at every one of them."""

    @property
    def unclaimed(self) -> tuple[tuple[str, str], ...]:
        """The other pairs, (better estimate, worse estimate): no order is claimed."""
        pairs = itertools.combinations(self.archs, 2)
        return tuple(pair for pair in pairs if pair not in self.claimed)


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


def rankings(
    fits: FitsLike,
    *,
    axis: Axis = "n_params",
    method: Method = "parabola",
    confidence: float = 0.95,
) -> tuple[Ranking, ...]:
    """Return the ranking at each budget, and last the one over all budgets.

    Over all budgets, archs are in the order of their mean ln loss, and a pair is claimed where it
    is claimed, the same way round, at every budget.
    """
    pairs = pair_orders(fits, axis=axis, method=method, confidence=confidence)
    optima = optima_by_group(fits, axis, method)
    budgets = sorted({budget for _, budget in optima})
    losses = {key: _log_loss(o) for key, o in optima.items()}
    archs = sorted({arch for arch, _ in optima})
    everywhere = {
        arch: math.fsum(losses[arch, b] or 0.0 for b in budgets)
        for arch in archs
        if all(losses.get((arch, b)) is not None for b in budgets)
    }
    by_budget = [
        Ranking(
            budget_flops=budget,
            archs=_ordered({a: losses[a, budget] for a, b in losses if b == budget}.items()),
            claimed=_claimed(pairs, budget),
        )
        for budget in budgets
    ]
    always = set.intersection(*(set(r.claimed) for r in by_budget)) if by_budget else set()
    overall = Ranking(
        budget_flops=None, archs=_ordered(everywhere.items()), claimed=tuple(sorted(always))
    )
    return (*by_budget, overall)


def _log_loss(optimum: Optimum) -> float | None:
    if not optimum.is_point or optimum.loss_opt is None or optimum.loss_opt <= 0:
        return None
    return math.log(optimum.loss_opt)


def _ordered(losses: Iterable[tuple[str, float | None]]) -> tuple[str, ...]:
    known = [(loss, arch) for arch, loss in losses if loss is not None]
    return tuple(arch for _, arch in sorted(known))


def _claimed(pairs: Iterable[PairOrder], budget: float) -> tuple[tuple[str, str], ...]:
    return tuple((p.better, p.worse) for p in pairs if p.budget_flops == budget and p.claimed)

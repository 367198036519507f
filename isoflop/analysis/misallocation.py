"""What it costs to train a size that is not the optimal one at a budget.

By the surface of a family, whose draws give the intervals: at k · N · D = C the loss of f · N* and
D* / f over that of N* and D*, and the share of C with which the optimum reaches that loss. On the
surface the optimal loss is E + K · C^−g with g = alpha · beta / (alpha + beta). The profile's own
curvature (of all sizes at the budget, without a surface) gives the cost beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isoflop.analysis.parametric import ChinchillaLaw, surface_draws, surface_of
from isoflop.analysis.result import Fits
from isoflop.arrays import percentiles

FACTORS = (0.5, 2.0, 4.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Misallocation:
    """The cost of a size off the optimum, for one family and budget."""

    arch: str
    budget_flops: float
    factor: float
    """Size trained over the optimal one; tokens are divided by it."""
    loss_cost: float
    """Loss above that of the optimum, in the unit of the losses."""
    loss_cost_lo: float | None
    """Interval of the loss cost, from the draws of the surface; None without them."""
    loss_cost_hi: float | None
    """Its other end."""
    compute_wasted: float
    """Share of the budget that the optimum does not need for the same loss."""
    compute_wasted_lo: float | None
    """Interval of the share wasted, from the same draws."""
    compute_wasted_hi: float | None
    """Its other end."""
    profile_loss_cost: float | None
    """The loss cost by the curvature of the profile over parameters, as large on both sides; None
    without an interior optimum."""


def misallocation(fits: Fits, factors: Sequence[float] = FACTORS) -> tuple[Misallocation, ...]:
    """Return what sizes off the optimum cost, by arch, budget and factor.

    Families without a surface that has an optimum (by Huber's criterion) are left out, and so is an
    interval of which half of the draws have no optimum.
    """
    rows = []
    for fit in fits.parametric:
        if (fit.form, fit.method, fit.status) != ("chinchilla", "huber", "ok"):
            continue
        law, drawn = surface_of(fit), surface_draws(fit)
        for optimum in fits.optima_of(fit.arch, "n_params"):
            for factor in factors:
                loss_cost, wasted = _cost(law, optimum.budget_flops, factor)
                intervals = _intervals(drawn, optimum.budget_flops, factor, fit.confidence)
                bend = optimum.curvature if optimum.is_point else None
                rows.append(
                    Misallocation(
                        arch=fit.arch,
                        budget_flops=optimum.budget_flops,
                        factor=factor,
                        loss_cost=float(loss_cost),
                        loss_cost_lo=intervals[0],
                        loss_cost_hi=intervals[1],
                        compute_wasted=float(wasted),
                        compute_wasted_lo=intervals[2],
                        compute_wasted_hi=intervals[3],
                        profile_loss_cost=None if bend is None else bend * math.log(factor) ** 2,
                    )
                )
    return tuple(rows)


def _cost(law: ChinchillaLaw, budget_flops: float, factor: float) -> tuple[Any, Any]:
    """Return the loss above the optimum and the share of compute wasted; NaN without an optimum."""
    n_params, n_tokens = law.optimum(budget_flops)
    best = law.loss(n_params, n_tokens)
    cost = law.loss(n_params * factor, n_tokens / factor) - best
    with np.errstate(divide="ignore", invalid="ignore"):
        power = 1 / law.alpha + 1 / law.beta
        return cost, 1 - ((best - law.E) / (best - law.E + cost)) ** power


def _intervals(
    drawn: ChinchillaLaw | None, budget_flops: float, factor: float, confidence: float
) -> tuple[float | None, float | None, float | None, float | None]:
    """Return the ends of the loss cost and of the share wasted; None without draws of them."""
    if drawn is None:
        return None, None, None, None
    loss_cost, wasted = _cost(drawn, budget_flops, factor)
    return (
        *(percentiles(loss_cost, confidence) or (None, None)),
        *(percentiles(wasted, confidence) or (None, None)),
    )

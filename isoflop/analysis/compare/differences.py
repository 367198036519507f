"""Differences between two families from the same draws: of exponents, and of losses at a budget."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from isoflop.analysis.compare.claims import (
    Interval,
    Order,
    interval,
    num_failed,
    order,
    strict_interval,
)
from isoflop.analysis.laws import (
    LAW_AXES,
    DrawnOptima,
    LawAxis,
    drawn_optima,
    fit_laws,
    law_source,
)
from isoflop.analysis.optima import Optimum
from isoflop.analysis.optima_methods import Method
from isoflop.analysis.result import Fits
from isoflop.arrays import Floats
from isoflop.tables import NOT_A_COLUMN, schema_of

ExponentStatus = Literal["estimate", "too_few"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Exponent:
    """An exponent of one family over given budgets, and its draws."""

    value: float | None
    """None with fewer than two interior optima."""
    drawn: Floats | None
    """[n_boot]; NaN where a draw left fewer than two optima; None without draws of two."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExponentDifference:
    """One row of exponents.parquet: the exponent of ``arch`` minus that of ``reference``.

    Over the budgets at which both have an interior optimum, in the estimate and in every draw, so
    that a bend of the laws is not taken for a difference. C is of the same kind for both
    (`Fits.law_budget`). With equal budgets it is the difference of the two laws.
    """

    arch: str
    reference: str
    axis: LawAxis
    method: Method
    difference: float | None
    ci_lo: float | None
    ci_hi: float | None
    order_claimed: Order
    """Whether the whole strict interval lies above 0 (`higher`) or below it (`lower`)."""
    strict: Interval = field(metadata=NOT_A_COLUMN)
    """The interval with every failed draw counted against a claim."""
    confidence: float
    bootstrap_kind: str | None
    n_boot: int | None
    n_failed: int | None
    status: ExponentStatus
    """`too_few`: fewer than two budgets at which both have an interior optimum."""


EXPONENTS = schema_of("exponents", ExponentDifference)


def exponent(
    fits: Fits, arch: str, axis: LawAxis, budgets: Collection[float] | None = None
) -> Exponent:
    """Return the arch's exponent of ``axis`` in C, over some budgets (None: all it can)."""
    optima = [
        o for o in _interior(fits, arch, axis) if budgets is None or o.budget_flops in budgets
    ]
    laws = [law for law in fit_laws(optima, budget=fits.law_budget) if law.axis == axis]
    drawn = _drawn(fits, optima, arch, axis)
    return Exponent(
        value=laws[0].exponent if laws else None,
        drawn=None if drawn is None else drawn.law().exponent,
    )


def _drawn(fits: Fits, optima: Sequence[Optimum], arch: str, axis: LawAxis) -> DrawnOptima | None:
    draws = fits.draws_of(law_source(axis))
    return None if draws is None else drawn_optima(optima, draws, arch, axis, fits.law_budget)


def exponent_differences(
    fits: Fits, axes: Sequence[LawAxis] = LAW_AXES
) -> tuple[ExponentDifference, ...]:
    """Return the difference of every other arch to the reference, by arch and axis.

    Raises:
        UserError: the reference is not in the table.
    """
    reference = fits.reference
    return tuple(
        exponent_difference(fits, arch, reference, axis)
        for arch in fits.archs
        if reference is not None and arch != reference
        for axis in axes
    )


def exponent_difference(fits: Fits, arch: str, reference: str, axis: LawAxis) -> ExponentDifference:
    """Return the exponent of ``arch`` minus that of ``reference``."""
    shared = {o.budget_flops for o in _interior(fits, arch, axis)}
    shared &= {o.budget_flops for o in _interior(fits, reference, axis)}
    one = exponent(fits, arch, axis, shared)
    other = exponent(fits, reference, axis, shared)
    known = one.value is not None and other.value is not None
    drawn = _drawn_difference(fits, arch, reference, axis, shared)
    confidence = fits.options.confidence
    bounds: Interval = interval(drawn, confidence)
    strict = strict_interval(drawn, confidence)
    draws = fits.draws_of(law_source(axis))
    return ExponentDifference(
        arch=arch,
        reference=reference,
        axis=axis,
        method=fits.options.method,
        difference=one.value - other.value if known else None,  # type: ignore[operator]
        ci_lo=bounds[0],
        ci_hi=bounds[1],
        order_claimed=order(strict, 0.0),
        strict=strict,
        confidence=confidence,
        bootstrap_kind=None if drawn is None or draws is None else draws.kind,
        n_boot=None if drawn is None else len(drawn),
        n_failed=num_failed(drawn),
        status="estimate" if known else "too_few",
    )


def _drawn_difference(
    fits: Fits, arch: str, reference: str, axis: LawAxis, budgets: Collection[float]
) -> Floats | None:
    """Return the difference in every draw, over the budgets that the draw left to both."""
    optima = {
        name: [o for o in _interior(fits, name, axis) if o.budget_flops in budgets]
        for name in (arch, reference)
    }
    one, other = (_drawn(fits, optima[name], name, axis) for name in (arch, reference))
    if one is None or other is None:
        return None
    is_lost = np.isnan(one.log_y) | np.isnan(other.log_y)
    laws = [drawn.without(is_lost).law() for drawn in (one, other)]
    return laws[0].exponent - laws[1].exponent


def _interior(fits: Fits, arch: str, axis: LawAxis) -> list[Optimum]:
    return [o for o in fits.optima_of(arch, law_source(axis)) if o.is_point]


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


def pair_orders(fits: Fits) -> tuple[PairOrder, ...]:
    """Return every pair with two interior optima at a budget, by budget and label."""
    draws, confidence = fits.draws_of(), fits.options.confidence
    points = [o for o in fits.optima_by_group().values() if _log_loss(o) is not None]
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

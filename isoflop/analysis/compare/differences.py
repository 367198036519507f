"""Differences between two families from the same draws: of exponents, and of losses at a budget."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from isoflop.analysis.compare.claims import (
    Interval,
    JointClaims,
    Order,
    agreeing,
    deciding,
    interval,
    joint_claims,
    num_failed,
    stretched,
    strict_interval,
)
from isoflop.analysis.laws import (
    DrawnOptima,
    LawAxis,
    drawn_optima,
    fit_laws,
    law_axes,
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
    """Of this difference alone."""
    ci_hi: float | None
    ci_lo_simultaneous: float | None
    """Of all differences of the table together."""
    ci_hi_simultaneous: float | None
    order_claimed: Order
    """Whether it lies above 0 (`higher`) or below it (`lower`), all of the table taken together."""
    strict: Interval = field(metadata=NOT_A_COLUMN)
    """The simultaneous interval with every failed draw counted against a claim."""
    confidence: float
    bootstrap_kind: str | None
    n_boot: int | None
    n_failed: int | None
    status: ExponentStatus
    """`too_few`: fewer than two budgets at which both have an interior optimum."""


EXPONENTS = schema_of("exponents", ExponentDifference, version=4)


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
    fits: Fits, axes: Sequence[LawAxis] | None = None
) -> tuple[ExponentDifference, ...]:
    """Return the difference of every other arch to the reference, by arch and axis (None: all).

    Raises:
        UserError: the reference is not in the table.
    """
    reference = fits.reference
    found = [
        _difference(fits, arch, reference, axis)
        for arch in fits.archs
        if reference is not None and arch != reference
        for axis in axes or law_axes(o.axis for o in fits.optima)
    ]
    claims = joint_claims([drawn for _, drawn in found], fits.options.confidence)
    return tuple(
        _claimed(row, drawn, claimed, claims)
        for (row, drawn), claimed in zip(found, claims.orders, strict=True)
    )


def _claimed(
    row: ExponentDifference, drawn: Floats | None, claimed: Order, claims: JointClaims
) -> ExponentDifference:
    together = agreeing(stretched(drawn, (row.ci_lo, row.ci_hi), claims), claimed)
    return replace(
        row,
        ci_lo_simultaneous=together[0],
        ci_hi_simultaneous=together[1],
        order_claimed=claimed,
        strict=deciding(stretched(drawn, row.strict, claims), claimed),
    )


def _difference(
    fits: Fits, arch: str, reference: str, axis: LawAxis
) -> tuple[ExponentDifference, Floats | None]:
    """Return the exponent of ``arch`` minus that of ``reference``, alone, and its draws."""
    shared = {o.budget_flops for o in _interior(fits, arch, axis)}
    shared &= {o.budget_flops for o in _interior(fits, reference, axis)}
    one = exponent(fits, arch, axis, shared)
    other = exponent(fits, reference, axis, shared)
    known = one.value is not None and other.value is not None
    drawn = _drawn_difference(fits, arch, reference, axis, shared)
    confidence = fits.options.confidence
    bounds = interval(drawn, confidence)
    strict = strict_interval(drawn, confidence)
    draws = fits.draws_of(law_source(axis))
    row = ExponentDifference(
        arch=arch,
        reference=reference,
        axis=axis,
        method=fits.options.method,
        difference=one.value - other.value if known else None,  # type: ignore[operator]
        ci_lo=bounds[0],
        ci_hi=bounds[1],
        ci_lo_simultaneous=None,
        ci_hi_simultaneous=None,
        order_claimed="none",
        strict=strict,
        confidence=confidence,
        bootstrap_kind=None if drawn is None or draws is None else draws.kind,
        n_boot=None if drawn is None else len(drawn),
        n_failed=num_failed(drawn),
        status="estimate" if known else "too_few",
    )
    return row, drawn


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
    """Of this pair alone."""
    ci_hi: float | None
    strict: Interval
    """Of all pairs at all budgets together, every failed draw counted against a claim."""
    claimed: bool
    """Whether the ratio lies below 1, all pairs at all budgets taken together."""


def pair_orders(fits: Fits) -> tuple[PairOrder, ...]:
    """Return every pair with two interior optima at a budget, by budget and label."""
    confidence = fits.options.confidence
    points = [o for o in fits.optima_by_group().values() if _log_loss(o) is not None]
    pairs = [
        sorted(pair, key=lambda o: (_log_loss(o) or 0.0, o.arch))
        for pair in itertools.combinations(points, 2)
        if pair[0].budget_flops == pair[1].budget_flops
    ]
    ratios = [_drawn_ratio(fits, better, worse) for better, worse in pairs]
    claims = joint_claims(ratios, confidence)
    found = []
    for (better, worse), drawn, claimed in zip(pairs, ratios, claims.orders, strict=True):
        bounds = interval(drawn, confidence)
        strict = stretched(drawn, strict_interval(drawn, confidence), claims)
        found.append(
            PairOrder(
                budget_flops=better.budget_flops,
                better=better.arch,
                worse=worse.arch,
                log_ratio=(_log_loss(better) or 0.0) - (_log_loss(worse) or 0.0),
                ci_lo=bounds[0],
                ci_hi=bounds[1],
                strict=deciding(strict, claimed),
                claimed=claimed == "lower",
            )
        )
    return tuple(sorted(found, key=lambda p: (p.budget_flops, sorted((p.better, p.worse)))))


def _drawn_ratio(fits: Fits, better: Optimum, worse: Optimum) -> Floats | None:
    """Return ln of the ratio of two optimal losses in every draw; None without draws of both."""
    draws = fits.draws_of()
    keys = [(o.arch, o.budget_flops) for o in (better, worse)]
    if draws is None or not all(key in draws.loss_opt for key in keys):
        return None
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.log(draws.loss_opt[keys[0]]) - np.log(draws.loss_opt[keys[1]]))


def _log_loss(optimum: Optimum) -> float | None:
    if not optimum.is_point or optimum.loss_opt is None or optimum.loss_opt <= 0:
        return None
    return math.log(optimum.loss_opt)

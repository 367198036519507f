"""Differences of exponents between two families, from the same draws."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from isoflop.analysis.compare import pick_reference
from isoflop.analysis.compare_interval import (
    FitsLike,
    Floats,
    Interval,
    Order,
    interval,
    num_failed,
    optima_by_group,
    order,
    strict_interval,
)
from isoflop.analysis.laws import LAW_AXES, LawAxis, fit_laws, law_draws, law_source
from isoflop.analysis.optima import Method, Optimum
from isoflop.tables import EXPONENTS

ExponentStatus = Literal["estimate", "too_few"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Exponent:
    """An exponent of one family over given budgets, and its draws."""

    value: float | None
    """None with fewer than two interior optima."""
    drawn: Floats | None
    """[n_boot]; NaN where a draw lost one of the optima; None without draws of all of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExponentDifference:
    """One row of exponents.parquet: the exponent of ``arch`` minus that of ``reference``.

    Over the budgets at which both have an interior optimum, so that a bend of the laws is not
    taken for a difference. With equal budgets it is the difference of the two laws.
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
    strict: Interval
    """The interval with every failed draw counted against a claim; not in the table."""
    confidence: float
    bootstrap_kind: str | None
    n_boot: int | None
    n_failed: int | None
    status: ExponentStatus
    """`too_few`: fewer than two budgets at which both have an interior optimum."""

    def row(self) -> dict[str, Any]:
        """Return the row of exponents.parquet."""
        return {name: getattr(self, name) for name in EXPONENTS.names}


def exponent(
    fits: FitsLike,
    arch: str,
    axis: LawAxis,
    method: Method,
    budgets: Collection[float] | None = None,
) -> Exponent:
    """Return the arch's exponent of ``axis`` in C, over some budgets (None: all it can)."""
    optima = [
        o
        for o in _interior(fits, arch, axis, method)
        if budgets is None or o.budget_flops in budgets
    ]
    laws = [law for law in fit_laws(optima) if law.axis == axis]
    draws = fits.draws.get((law_source(axis), method))
    drawn = None if draws is None else law_draws(optima, draws, arch, axis)
    return Exponent(
        value=laws[0].exponent if laws else None, drawn=None if drawn is None else drawn.exponent
    )


def exponent_differences(
    fits: FitsLike,
    *,
    reference: str | None = None,
    axes: Sequence[LawAxis] = LAW_AXES,
    method: Method = "parabola",
    confidence: float = 0.95,
) -> tuple[ExponentDifference, ...]:
    """Return the difference of every other arch to the reference, by arch and axis.

    Raises:
        UserError: the reference is not in the table.
    """
    archs = sorted({optimum.arch for optimum in fits.optima})
    chosen = pick_reference(archs, reference)
    return tuple(
        exponent_difference(fits, arch, chosen, axis=axis, method=method, confidence=confidence)
        for arch in archs
        if chosen is not None and arch != chosen
        for axis in axes
    )


def exponent_difference(
    fits: FitsLike,
    arch: str,
    reference: str,
    *,
    axis: LawAxis,
    method: Method = "parabola",
    confidence: float = 0.95,
) -> ExponentDifference:
    """Return the exponent of ``arch`` minus that of ``reference``."""
    shared = {o.budget_flops for o in _interior(fits, arch, axis, method)}
    shared &= {o.budget_flops for o in _interior(fits, reference, axis, method)}
    one = exponent(fits, arch, axis, method, shared)
    other = exponent(fits, reference, axis, method, shared)
    known = one.value is not None and other.value is not None
    drawn = None if one.drawn is None or other.drawn is None else one.drawn - other.drawn
    bounds: Interval = interval(drawn, confidence)
    strict = strict_interval(drawn, confidence)
    draws = fits.draws.get((law_source(axis), method))
    return ExponentDifference(
        arch=arch,
        reference=reference,
        axis=axis,
        method=method,
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


def _interior(fits: FitsLike, arch: str, axis: LawAxis, method: Method) -> list[Optimum]:
    by_group = optima_by_group(fits, law_source(axis), method)
    return [o for (label, _), o in by_group.items() if label == arch and o.is_point]

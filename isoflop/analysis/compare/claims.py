"""Intervals of quantities that are computed draw by draw, and what order they let us claim."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from isoflop.arrays import Floats, percentiles

Interval = tuple[float | None, float | None]

Order = Literal["higher", "lower", "none"]

# Widths of intervals without any noise.
_LEAST = 1e-300

# Far below any interval that is shown.
_INSIDE = 1e-9


def interval(values: Floats | None, confidence: float) -> Interval:
    """Return the central percentile interval; (None, None) with too few draws that have a value."""
    bounds = None if values is None else percentiles(values, confidence)
    return (None, None) if bounds is None else bounds


def num_failed(values: Floats | None) -> int | None:
    """Return the number of draws without a value; None without draws."""
    return None if values is None else int(np.sum(~np.isfinite(values)))


def strict_interval(values: Floats | None, confidence: float) -> Interval:
    """Return the interval in which every draw without a value counts against whatever is claimed.

    Such a draw lies below all others for the lower end and above them for the upper, so that a
    quantity that often has no value supports no claim. Ends may be infinite.
    """
    if values is None or not len(values):
        return None, None
    tail = (1 - confidence) / 2
    is_there = np.isfinite(values)
    low = np.quantile(np.where(is_there, values, -np.inf), tail, method="lower")
    high = np.quantile(np.where(is_there, values, np.inf), 1 - tail, method="higher")
    return float(low), float(high)


def order(strict: Interval, neutral: float) -> Order:
    """Return which side of ``neutral`` the whole strict interval lies on; none without one."""
    low, high = strict
    if low is not None and low > neutral:
        return "higher"
    if high is not None and high < neutral:
        return "lower"
    return "none"


def exp_interval(log_bounds: Interval) -> Interval:
    """Return e to both ends; an end that is infinite, or none, stays so."""
    low, high = log_bounds
    if low is None or high is None:
        return None, None
    with np.errstate(over="ignore"):
        return float(np.exp(low)), float(np.exp(high))


def rejected_together(p_values: Sequence[float | None], level: float) -> list[bool]:
    """Return which hypotheses Holm's step-down rejects, any false one with at most this chance.

    One without a p value is not tested and does not count.
    """
    tested = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    rejected = [False] * len(p_values)
    for rank, (p, index) in enumerate(tested):
        if p > level / (len(tested) - rank):
            break
        rejected[index] = True
    return rejected


def claimed_note(num_claimed: int, num: int, what: str, confidence: float) -> str:
    """Return how many of a table's comparisons are claimed, such as "3 of 16 multipliers ..."."""
    level = f"at {100 * (1 - confidence):.3g} % for all together"
    return f"{num_claimed} of {num} {what} claimed, {level}."


@dataclass(frozen=True, kw_only=True, slots=True)
class JointClaims:
    """What several comparisons together let us claim."""

    orders: tuple[Order, ...]
    stretch: float
    """How much longer than alone every interval is, about the median of its draws, so that all of
    them hold at once; 1 with a single one."""


def joint_claims(drawn: Sequence[Floats | None], confidence: float) -> JointClaims:
    """Return which of several quantities lie on one side of 0, wrong in any with 1 − confidence.

    The distance of each draw from its median is measured in single intervals; the quantile of the
    largest over all quantities is the stretch of simultaneous intervals (balanced max statistic:
    Beran 1988). Claims step down (Romano and Wolf 2005): the clearest is held against the largest
    over all, the next against the largest over the others, and so on up to the first that fails.
    A quantity without draws, or that fails in so many that a strict interval has no end, is none.
    """
    orders: list[Order] = ["none"] * len(drawn)
    tested, distances, needed = [], [], []
    for index, values in enumerate(drawn):
        low, high = strict_interval(values, confidence)
        if values is None or low is None or high is None or not np.isfinite([low, high]).all():
            continue
        middle = float(np.nanmedian(values))
        below, above = max(middle - low, _LEAST), max(high - middle, _LEAST)
        far = np.where(values >= middle, (values - middle) / above, (middle - values) / below)
        tested.append(index)
        # A failed draw has counted against its own quantity, in the strict interval.
        distances.append(np.where(np.isfinite(values), far, 0.0))
        needed.append(middle / below if middle > 0 else -middle / above)
    if not tested:
        return JointClaims(orders=tuple(orders), stretch=1.0)
    clearest = np.argsort(needed)[::-1]
    # The largest over each comparison and all that are less clear.
    ranked = np.stack([distances[i] for i in clearest[::-1]])
    largest = np.maximum.accumulate(ranked)[::-1]
    bounds = np.quantile(largest, confidence, axis=1, method="higher")
    for index, bound in zip(clearest, bounds, strict=True):
        if not needed[index] > bound:
            break
        values = drawn[tested[index]]
        assert values is not None
        orders[tested[index]] = "higher" if np.nanmedian(values) > 0 else "lower"
    return JointClaims(orders=tuple(orders), stretch=max(1.0, float(bounds[0])))


def stretched(values: Floats | None, single: Interval, claims: JointClaims) -> Interval:
    """Return an interval about the median of its draws that holds together with the others."""
    low, high = single
    if values is None or low is None or high is None:
        return None, None
    if not np.isfinite(values).any():
        return low, high
    middle = float(np.nanmedian(values))
    return middle - claims.stretch * (middle - low), middle + claims.stretch * (high - middle)


def agreeing(bounds: Interval, order_claimed: Order) -> Interval:
    """Return a simultaneous interval about 0 cut so that it says what is claimed.

    A claim of a later step may be clear of 0 by less than the stretch of all: its interval then
    ends at 0 (Strassburger and Bretz 2008). Without a claim the interval holds 0.
    """
    low, high = bounds
    if low is None or high is None:
        return bounds
    if order_claimed == "higher":
        return max(low, 0.0), max(high, 0.0)
    if order_claimed == "lower":
        return min(low, 0.0), min(high, 0.0)
    return min(low, 0.0), max(high, 0.0)


def deciding(strict: Interval, order_claimed: Order) -> Interval:
    """Return the strict interval that decides rules: where nothing is claimed, 0 is inside it.

    ``agreeing`` lets it end at 0, which a rule would take as an order: none may follow beyond the
    reference's budgets, whatever side the interval is on.
    """
    low, high = strict
    if order_claimed != "none" or low is None or high is None or low <= 0 <= high:
        return agreeing(strict, order_claimed)
    return min(low, -_INSIDE), max(high, _INSIDE)

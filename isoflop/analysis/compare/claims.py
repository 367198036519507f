"""Intervals of quantities that are computed draw by draw, and what order they let us claim."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from isoflop.arrays import Floats, percentiles

Interval = tuple[float | None, float | None]

Order = Literal["higher", "lower", "none"]


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

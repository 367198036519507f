"""A mean with its bootstrap interval. Letters: B draws."""

from __future__ import annotations

from dataclasses import dataclass

from isoflop.arrays import Floats, percentiles

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """An estimate and its interval; None where no data allow one."""

    value: float | None
    lo: float | None = None
    hi: float | None = None


def interval_of(value: float | None, draws_B: Floats, confidence: float = CONFIDENCE) -> Interval:
    """Return an estimate with the percentiles of its draws, NaN in those that had nothing to count.

    Without an estimate, or with more than half of the draws lost, there is no interval.
    """
    ends = None if value is None else percentiles(draws_B, confidence)
    lo, hi = ends or (None, None)
    return Interval(value=value, lo=lo, hi=hi)

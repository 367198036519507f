"""A mean with its bootstrap interval. Letters: B draws."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """An estimate and its interval; None where there is nothing to tell it from."""

    value: float | None
    lo: float | None = None
    hi: float | None = None


def interval_of(
    value: float | None, draws_B: NDArray[np.float64], confidence: float = CONFIDENCE
) -> Interval:
    """Return an estimate between the percentiles of its draws; NaN ones had nothing to count."""
    known = draws_B[~np.isnan(draws_B)]
    if value is None or not known.size:
        return Interval(value=value)
    tail = (1 - confidence) / 2
    lo, hi = np.quantile(known, [tail, 1 - tail])
    return Interval(value=value, lo=float(lo), hi=float(hi))

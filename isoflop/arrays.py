"""The array type of every part, and the interval that draws give."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def percentiles(draws: Floats, confidence: float) -> tuple[float, float] | None:
    """Return the central interval of the draws; None when more than half are NaN."""
    finite = draws[np.isfinite(draws)]
    if 2 * len(finite) < len(draws) or not len(finite):
        return None
    tail = (1 - confidence) / 2
    low, high = np.quantile(finite, [tail, 1 - tail])
    return float(low), float(high)

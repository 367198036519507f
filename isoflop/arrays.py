"""The array types of every part, and small functions of numbers that several parts need."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def percentiles(draws: Floats, confidence: float) -> tuple[float, float] | None:
    """Return the central interval of the draws; None when more than half are NaN."""
    finite = draws[np.isfinite(draws)]
    if 2 * len(finite) < len(draws) or not len(finite):
        return None
    tail = (1 - confidence) / 2
    low, high = np.quantile(finite, [tail, 1 - tail])
    return float(low), float(high)


def exp_or_none(log_value: float) -> float | None:
    """Return e^log_value; None where no float64 can hold it, which is better than infinity."""
    return math.exp(log_value) if abs(log_value) <= 700.0 else None


def row_patterns(is_there: Bools) -> list[tuple[Bools, Bools]]:
    """Return each pattern of columns that rows have, and the rows that have it.

    Args:
        is_there: which columns are there [rows, columns].

    Returns:
        (columns, rows) of each pattern; in most tables there is one.
    """
    if is_there.all():
        return [(np.ones(is_there.shape[1], dtype=np.bool_), np.ones(len(is_there), np.bool_))]
    packed = np.packbits(is_there, axis=1)
    keys = np.ascontiguousarray(packed).view(np.dtype((np.void, packed.shape[1]))).ravel()
    _, first, of_row = np.unique(keys, return_index=True, return_inverse=True)
    return [(is_there[row], of_row.ravel() == index) for index, row in enumerate(first)]

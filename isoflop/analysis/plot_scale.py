"""Arithmetic of the plots' scales: round ticks on logarithmic axes, labels that do not overlap."""

from __future__ import annotations

import math
from collections.abc import Sequence


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """Return at most ``most`` round numbers in [low, high] for a logarithmic axis.

    Tries ever coarser steps within a decade, then whole decades; a range that holds fewer than
    two of those, or three within a decade, gets evenly spaced round numbers.
    """
    fewest = 3 if high < 10 * low and most > 2 else 2
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    decades = range(first, last + 1)
    for factors in ((1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        ticks = [f * 10.0**d for d in decades for f in factors if low <= f * 10.0**d <= high]
        if fewest <= len(ticks) <= most:
            return ticks
        if len(ticks) < fewest:
            return _linear_ticks(low, high, most)
    stride = math.ceil(len(ticks) / most)
    return ticks[::stride]


def padded(low: float, high: float, share: float) -> tuple[float, float]:
    """Widen a positive range by a share of its length on the logarithmic scale.

    A single value gets a quarter below and above; a narrow range at least 2 %, so that ticks of
    four digits differ.
    """
    factor = max((high / low) ** share, 1.02) if high > low else 1.25
    return low / factor, high * factor


def spread_labels(wanted: Sequence[float], gap: float) -> list[float]:
    """Return positions in [0, 1] as close to the wanted ones as a minimal gap allows.

    Labels keep the order of the wanted positions; when they cannot all fit, the gap shrinks.
    """
    if not wanted:
        return []
    gap = min(gap, 1.0 / max(len(wanted) - 1, 1))
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    # Subtracting the gaps turns "at least a gap apart" into "not decreasing".
    shifted = [wanted[i] - rank * gap for rank, i in enumerate(order)]
    top = 1.0 - (len(wanted) - 1) * gap
    placed = [0.0] * len(wanted)
    for rank, (i, value) in enumerate(zip(order, _not_decreasing(shifted), strict=True)):
        placed[i] = min(max(value, 0.0), max(top, 0.0)) + rank * gap
    return placed


def _linear_ticks(low: float, high: float, most: int) -> list[float]:
    from matplotlib.ticker import MaxNLocator

    ticks = MaxNLocator(nbins=most, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [float(tick) for tick in ticks if low <= tick <= high]


def _not_decreasing(values: Sequence[float]) -> list[float]:
    """Return the nearest non-decreasing sequence (pool adjacent violators)."""
    blocks: list[tuple[float, int]] = []
    for value in values:
        mean, size = value, 1
        while blocks and blocks[-1][0] > mean:
            last, count = blocks.pop()
            mean, size = (last * count + mean * size) / (count + size), count + size
        blocks.append((mean, size))
    return [mean for mean, size in blocks for _ in range(size)]

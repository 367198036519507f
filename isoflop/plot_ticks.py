"""Ticks at round numbers of a logarithmic axis; importing this imports matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from matplotlib.ticker import Locator


class RoundTicks(Locator):
    """As many round numbers as the axis has room for when it is drawn, at whatever zoom."""

    def __init__(self, most: int, ticks: Callable[[float, float, int], Sequence[float]]) -> None:
        """Take the most ticks wanted, and what gives the numbers for (low, high, most)."""
        self._most = most
        self._ticks = ticks

    def __call__(self) -> Sequence[float]:
        """Return the ticks of the view."""
        assert self.axis is not None
        low, high = sorted(self.axis.get_view_interval())
        return self.tick_values(low, high)

    def tick_values(self, vmin: float, vmax: float) -> Sequence[float]:
        """Return the ticks of a range."""
        room = self._most if self.axis is None else self.axis.get_tick_space()
        if not 0.0 < vmin < vmax:
            return []
        return self._ticks(vmin, vmax, max(2, min(self._most, room)))

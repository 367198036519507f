"""Progress told a few times a second, however fast the steps are."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from isoflop.train.loop import StepMetrics

# Who watches redraws a few times a second; more messages would only cost time.
REPORT_EVERY_S = 0.25


class Reporter:
    """Tells of the first step and then of one every REPORT_EVERY_S seconds.

    Args:
        tell: told of the completed steps, the run's number of steps and the loss.
    """

    def __init__(self, tell: Callable[[int, int, float], None]) -> None:
        self._tell = tell
        self._last_s = float("-inf")

    def __call__(self, metrics: StepMetrics, steps: int) -> None:
        """Take note of a step."""
        now = time.monotonic()
        if now - self._last_s >= REPORT_EVERY_S:
            self._last_s = now
            self._tell(metrics.step + 1, steps, metrics.loss)

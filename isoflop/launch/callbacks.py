"""What training calls between two steps: a flag that signals set, and a report of progress.

Imports nothing slow: a job sets the flag before anything else.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from isoflop.train.loop import StepMetrics


# USR2 is SLURM's warning (as submitit asks for it), TERM a polite kill, INT a terminal's Ctrl-C.
STOP_SIGNALS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)


class StopFlag:
    """The first stop signal that this process received; must be made in the main thread."""

    def __init__(self, numbers: Sequence[signal.Signals] = STOP_SIGNALS) -> None:
        self.reason: str | None = None
        self.received_s: float | None = None
        """Unix time at which it came; None: none came."""
        for number in numbers:
            signal.signal(number, self._set)

    def __call__(self) -> str | None:
        """Return the signal's name; None: none came."""
        return self.reason

    def _set(self, number: int, frame: FrameType | None) -> None:
        if self.reason is None:
            self.received_s = time.time()
            self.reason = signal.Signals(number).name


# A display redraws a few times a second; more messages would only cost time.
REPORT_EVERY_S = 0.25


class Reporter:
    """Reports the first step, and then one every REPORT_EVERY_S seconds.

    Args:
        report: called with the completed steps, the run's number of steps and the loss.
    """

    def __init__(self, report: Callable[[int, int, float], None]) -> None:
        self._report = report
        self._last_s = float("-inf")

    def __call__(self, metrics: StepMetrics, steps: int) -> None:
        """Report a step if it is time to."""
        now = time.monotonic()
        if now - self._last_s >= REPORT_EVERY_S:
            self._last_s = now
            self._report(metrics.step + 1, steps, metrics.loss)

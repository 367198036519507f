"""How long the steps of an attempt took, and when its next checkpoint is due."""

from __future__ import annotations

import time

from isoflop.placement import Placement


class Clock:
    """Wall-clock of this attempt's training steps: not of what comes before a :meth:`go_on`."""

    def __init__(self) -> None:
        self.wall_s = 0.0
        self._last = 0.0

    def go_on(self) -> None:
        """What was done since the last step does not count."""
        self._last = time.perf_counter()

    def step_done(self) -> float:
        """Return seconds since the step before, or since :meth:`go_on`."""
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        self.wall_s += seconds
        return seconds


class Cadence:
    """When the next checkpoint is due."""

    def __init__(self, placement: Placement) -> None:
        self._every_s = placement.checkpoint_every_s
        self._every_steps = placement.checkpoint_every_steps
        self._saved_s = time.monotonic()

    def saved(self) -> None:
        """One was written: the next interval begins."""
        self._saved_s = time.monotonic()

    def is_due(self, step: int) -> bool:
        """Return whether one is to be written after ``step`` completed steps."""
        by_steps = self._every_steps is not None and step % self._every_steps == 0
        passed_s = time.monotonic() - self._saved_s
        return by_steps or (self._every_s is not None and passed_s >= self._every_s)

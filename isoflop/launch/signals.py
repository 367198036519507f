"""Signals that ask a run to stop: they set a flag, and the loop looks at it between two steps."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from types import FrameType

# USR2 is SLURM's warning (as submitit asks for it), TERM a polite kill, INT a terminal's Ctrl-C.
STOP_SIGNALS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)


class StopFlag:
    """The first stop signal that this process received. Made in the main thread."""

    def __init__(self, numbers: Sequence[signal.Signals] = STOP_SIGNALS) -> None:
        self.reason: str | None = None
        for number in numbers:
            signal.signal(number, self._set)

    def __call__(self) -> str | None:
        """Return the signal's name, or None while there was none."""
        return self.reason

    def _set(self, number: int, frame: FrameType | None) -> None:
        if self.reason is None:
            self.reason = signal.Signals(number).name

"""The sign of life of a run at work: while it is renewed, nobody else begins the run."""

from __future__ import annotations

import contextlib
import threading

from isoflop.launch.store import Attempt, RunFolder

HEARTBEAT_S = 5.0


class Heartbeat:
    """Writes the lease every few seconds while a run is at work, whatever the run is doing."""

    def __init__(self, folder: RunFolder, attempt: Attempt, steps: int) -> None:
        self._folder = folder
        self._attempt = attempt
        self._steps = steps
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat_until_stopped, daemon=True)
        self.step = 0
        self.superseded = False

    def __enter__(self) -> Heartbeat:
        self._folder.beat(self._attempt, self.step, self._steps)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _beat_until_stopped(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            if not self._folder.is_newest(self._attempt):
                self.superseded = True
                return
            # On a full disk or a stalled file system the next beat may go through.
            with contextlib.suppress(OSError):
                self._folder.beat(self._attempt, self.step, self._steps)

"""Where metrics may go besides the run's folder; none of it can block or fail a run.

A sink is named in a study's [placement] table or by `isoflop run --sink`. Its library is imported,
and talks to whatever it talks to, in a thread of the sink's own. A run puts rows into a bounded
queue: when it is full, rows are dropped and counted; when the library is missing or fails, the sink
warns once and takes nothing more.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from isoflop.errors import UserError

logger = logging.getLogger("isoflop")

NAMES = ("tensorboard", "wandb")
QUEUE_ROWS = 1000
# How long the end of a run waits for rows that are still on their way.
CLOSE_S = 5.0
USAGE_KEYS = ("fraction_used", "entropy", "cv", "ever_used")


@dataclass(frozen=True, kw_only=True, slots=True)
class About:
    """The run that rows are of."""

    study: str
    run_id: str
    """64 hex digits."""
    folder: Path
    """The run's folder."""
    spec: Mapping[str, Any]
    """What the run is, as JSON values."""


class Backend(Protocol):
    """What a module of this package opens; lives in the sink's thread."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write finite numbers by name, at a step; steps come in order."""

    def close(self) -> None:
        """Flush pending rows."""


class Sink:
    """One backend behind a bounded queue and a thread."""

    def __init__(
        self, name: str, open_backend: Callable[[], Backend], *, queue_rows: int = QUEUE_ROWS
    ) -> None:
        self._name = name
        self._open_backend = open_backend
        self._rows: queue.Queue[tuple[int, dict[str, float]] | None] = queue.Queue(queue_rows)
        self._dead = False
        self.num_dropped = 0
        self._thread = threading.Thread(target=self._work, name=f"sink-{name}", daemon=True)
        self._thread.start()

    def step(self, step: int, values: Mapping[str, Any]) -> None:
        """Queue a step's metrics; never wait."""
        self._put(step, {f"train/{key}": v for key, v in values.items() if key != "step"})

    def event(self, kind: str, values: Mapping[str, Any]) -> None:
        """Queue the numbers of an event, if it has a step; never wait."""
        if "step" not in values:
            return
        numbers = {f"{kind}/{key}": v for key, v in values.items() if key not in ("step", "rows")}
        for row in _whole_layers(values.get("rows", ())):
            layer = f"{kind}/{values['split']}/layer{row['layer']}"
            numbers |= {f"{layer}/{key}": row[key] for key in USAGE_KEYS}
        self._put(values["step"], numbers)

    def _put(self, step: int, values: Mapping[str, Any]) -> None:
        if self._dead:
            return
        numbers = {
            key: float(value)
            for key, value in values.items()
            if isinstance(value, int | float) and math.isfinite(value)
        }
        try:
            self._rows.put_nowait((step, numbers))
        except queue.Full:
            self.num_dropped += 1

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Flush pending rows; give up those that are left after the timeout."""
        deadline_s = time.monotonic() + timeout_s
        with contextlib.suppress(queue.Full):
            self._rows.put(None, timeout=timeout_s)
        self._thread.join(max(0.0, deadline_s - time.monotonic()))
        if self._thread.is_alive():
            logger.warning("%s did not finish within %g s; given up", self._name, timeout_s)
        if self.num_dropped:
            logger.warning("%s was too slow: %d rows were dropped", self._name, self.num_dropped)

    def _work(self) -> None:
        try:
            backend = self._open_backend()
            while (row := self._rows.get()) is not None:
                backend.write(*row)
            backend.close()
        # Libraries raise what they like, and some of them exit.
        except BaseException as error:
            self._dead = True
            first_line = (str(error).splitlines() or [""])[0]
            logger.warning("%s is off: %s: %s", self._name, type(error).__name__, first_line)
            self._drain()

    def _drain(self) -> None:
        """Empty the queue, so that closing does not wait for a dead sink."""
        while True:
            try:
                self._rows.get_nowait()
            except queue.Empty:
                return


def _whole_layers(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the rows of expert usage that are of all channels together, or else all rows."""
    whole = [row for row in rows if row["channel"] is None]
    return whole or list(rows)


def check_names(names: Sequence[str]) -> None:
    """Refuse names that are not sinks.

    Raises:
        UserError: one is not.
    """
    for name in names:
        if name not in NAMES:
            raise UserError("sinks", name, f"one of {', '.join(NAMES)}", "correct it")


def open_sinks(names: Sequence[str], about: About) -> list[Sink]:
    """Return a sink for each name. Nothing of their libraries is imported in the calling thread.

    Raises:
        UserError: there is no such sink.
    """
    check_names(names)
    return [Sink(name, lambda name=name: _open(name, about)) for name in names]  # type: ignore[misc]


def _open(name: str, about: About) -> Backend:
    module = importlib.import_module(f"isoflop.launch.sinks.{name}")
    backend: Backend = module.open_backend(about)
    return backend

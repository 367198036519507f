"""Batches made ready while the GPU is at work on the one before."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Self

import torch

from isoflop.train.step import Batch

# One batch waits while the next is made.
DEPTH = 2
# How long a full queue is waited for before looking whether to stop.
_LOOK_S = 0.1


class Prefetch:
    """The batches of some steps, in order; a context manager and an iterator over them.

        with Prefetch(lambda step: rank_batch(windows.batch(step, ...), ranks), steps, device) as p:
            for step, batch in p: ...

    For a GPU a thread prepares up to two batches ahead in page-locked memory, so that their copies
    do not wait. For the CPU each batch is made when it is asked for: a thread would compete with
    the model for the interpreter, and there is nothing to copy. What is yielded is the same.

    An error of ``make`` is raised at the step that needs the batch. Leaving the block stops the
    thread, whatever it is at, once its batch is made.

    Args:
        make: the batch of a step, on the CPU; called from the thread, one step after the other.
        steps: numbers of the steps.
        device: where the model is.
        threaded: whether to use a thread; None: only for a GPU.
    """

    def __init__(
        self,
        make: Callable[[int], Batch],
        steps: Sequence[int],
        device: torch.device,
        *,
        threaded: bool | None = None,
    ) -> None:
        self._make = make
        self._steps = steps
        self._device = device
        self._ready: queue.Queue[Batch | Exception] = queue.Queue(DEPTH)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        if device.type == "cuda" if threaded is None else threaded:
            self._thread = threading.Thread(target=self._fill, name="prefetch", daemon=True)

    def __enter__(self) -> Self:
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def __iter__(self) -> Iterator[tuple[int, Batch]]:
        for step in self._steps:
            if self._thread is None:
                yield step, self._make(step)
                continue
            ready = self._ready.get()
            if isinstance(ready, Exception):
                raise ready
            yield step, ready.to(self._device)

    def _fill(self) -> None:
        for step in self._steps:
            try:
                batch = self._make(step)
                made: Batch | Exception = batch.pinned() if self._device.type == "cuda" else batch
            except Exception as error:
                made = error
            if not self._put(made) or isinstance(made, Exception):
                return

    def _put(self, made: Batch | Exception) -> bool:
        """Wait for room; False once nothing more is wanted."""
        while not self._stop.is_set():
            try:
                self._ready.put(made, timeout=_LOOK_S)
            except queue.Full:
                continue
            return True
        return False

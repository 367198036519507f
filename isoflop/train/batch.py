"""Batches of a run: this rank's share of each, made ready while the GPU is at work on the last.

Letters: B sequences of the global batch, R of this rank's share, T tokens.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from isoflop.data.tokenizers import BEGIN_ID, PAD_ID
from isoflop.data.windows import Tokens, shift_right
from isoflop.spec import RunSpec
from isoflop.train.ranks import SINGLE, Ranks

# One batch waits while the next is made.
DEPTH = 2
# How long a full queue is waited for before looking whether to stop.
_LOOK_S = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """One rank's share of a global batch."""

    inputs_RT: Tensor
    """int64: the targets shifted right."""
    targets_RT: Tensor
    """int64; padding carries no loss."""
    num_targets: int
    """Targets of the whole global batch that carry loss."""

    def to(self, device: torch.device) -> Batch:
        """Return the same on a device; from pinned memory the copy does not wait."""
        return Batch(
            inputs_RT=self.inputs_RT.to(device, non_blocking=True),
            targets_RT=self.targets_RT.to(device, non_blocking=True),
            num_targets=self.num_targets,
        )

    def pinned(self) -> Batch:
        """Return the same in page-locked memory, which a GPU copies from by itself."""
        return Batch(
            inputs_RT=self.inputs_RT.pin_memory(),
            targets_RT=self.targets_RT.pin_memory(),
            num_targets=self.num_targets,
        )

    def split(self, micro_batch: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield inputs and targets of at most ``micro_batch`` sequences at a time; None: all."""
        size = micro_batch or len(self.targets_RT)
        return zip(self.inputs_RT.split(size), self.targets_RT.split(size), strict=True)


def rank_batch(targets_BT: Tokens, ranks: Ranks = SINGLE, *, begin_id: int = BEGIN_ID) -> Batch:
    """Return a rank's share of a global batch, on the CPU; ``begin_id`` is the input at position 0.

    Raises:
        UserError: the batch does not split evenly over the ranks.
    """
    targets_RT = targets_BT[ranks.rows(len(targets_BT))]
    return Batch(
        inputs_RT=torch.from_numpy(shift_right(targets_RT, begin_id).astype(np.int64)),
        targets_RT=torch.from_numpy(targets_RT.astype(np.int64)),
        num_targets=int(np.count_nonzero(targets_BT != PAD_ID)),
    )


def made_batch(spec: RunSpec) -> Tokens:
    """Return uniform tokens [B, T] without padding, to measure with: texts hardly matter."""
    shape = (spec.batch_size, spec.seq_len)
    tokens_BT = np.random.default_rng(0).integers(PAD_ID + 1, spec.vocab_size, shape)
    return tokens_BT.astype(np.uint32)


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

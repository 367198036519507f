"""What a run has in common with others that differ from it in steps alone.

Such runs are one training until the shorter one's learning rate falls: see isoflop.plan.trunks. A
run that passes the place where a shorter one leaves it, the fork, writes its whole state there, as
a checkpoint. A run without checkpoints of its own begins at the latest fork that is not past its
own, as if it had come there itself: weights, optimizer, random generators, position in the data,
times of steps, and what was gathered of them. Forks only save work: a run that begins before them
ends in the same bits on the CPU in float32.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from isoflop.train.checkpoint import Checkpoint, CheckpointError, CheckpointStore
from isoflop.train.ranks import Ranks
from isoflop.train.state import TrainingState


class Fork(NamedTuple):
    """Where a run may begin."""

    store: int
    """Of SharedTrunk.stores."""
    step: int
    """Completed steps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SharedTrunk:
    """What one run shares; on every rank, with equal stores. Only the main rank's decides."""

    leaves: Sequence[int]
    """Completed steps at which it may leave a fork, ascending."""
    others: Mapping[int, int]
    """By the steps of each run that may begin at one of them: the last such fork's steps."""
    stores: Sequence[CheckpointStore]
    """Forks by who left them: its own first, then those of other runs."""
    usable: Callable[[], Iterable[Fork]] = tuple
    """Return the forks at which it may begin, the one to try first first; damaged ones included."""
    is_needed: Callable[[int], bool] = lambda step: False
    """Return whether a run may yet begin at the fork of these completed steps."""
    on_usage_of: Callable[[int, dict[str, Any]], None] = lambda steps, values: None
    """As isoflop.train.health.Monitor calls it."""

    def begin(self, state: TrainingState, ranks: Ranks) -> CheckpointStore | None:
        """Go on from the first usable fork that every rank can read; return whose it is.

        None: there is none, and the state is as it was.
        """
        for fork in self._agreed(ranks):
            store = self.stores[fork.store]
            checkpoint = store.read_whole(fork.step)
            if _all_have(checkpoint, ranks):
                assert checkpoint is not None
                state.take(checkpoint, ranks)
                if fork.store != 0:
                    state.trunk_steps = state.step
                    state.trunk_wall_s = sum(state.step_s)
                return store
        return None

    def _agreed(self, ranks: Ranks) -> Iterable[Fork]:
        """Yield the forks that the main rank finds, on every rank."""
        found = list(self.usable()) if ranks.is_main else []
        for number in range(int(ranks.broadcast(float(len(found))))):
            store, step = found[number] if ranks.is_main else (0, 0)
            yield Fork(int(ranks.broadcast(float(store))), int(ranks.broadcast(float(step))))

    def leave(
        self,
        state: TrainingState,
        ranks: Ranks,
        *,
        batch_size: int,
        on_event: Callable[[str, dict[str, Any]], None],
    ) -> bool:
        """Write the fork of the completed steps, if one is to be there; return whether it looked.

        All ranks call this. One that cannot be written is an event, and training goes on.
        """
        step = state.step
        if step not in self.leaves:
            return False
        own = self.stores[0]
        # Where it began at another's fork, that one is still there for others.
        is_there = state.trunk_steps == step
        wanted = ranks.is_main and self.is_needed(step) and not (is_there or own.is_whole(step))
        if not ranks.broadcast(float(wanted)):
            return True
        begin_s = time.perf_counter()
        try:
            if state.save(own, ranks, batch_size=batch_size):
                on_event("fork", {"step": step, "seconds": time.perf_counter() - begin_s})
        except CheckpointError as error:
            on_event("fork_failed", {"step": step, "reason": str(error)})
        return True


def _all_have(checkpoint: Checkpoint | None, ranks: Ranks) -> bool:
    (num_ranks,) = ranks.sum([float(checkpoint is not None)])
    return num_ranks == ranks.size

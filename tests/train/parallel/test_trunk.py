"""Several ranks agree on the fork at which they begin, and on writing one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from isoflop.train.checkpoint import CheckpointStore
from isoflop.train.trunk import Fork, SharedTrunk
from made_trunks import MadeTrunk

SCRIPT = Path(__file__).parent / "two_ranks_of_a_trunk.py"
TIMEOUT_S = 600


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
def test_two_ranks_begin_at_a_fork_as_if_they_had_come_there(tmp_path: Path) -> None:
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(tmp_path)],
            env={**os.environ, **meeting, "RANK": str(r), "LOCAL_RANK": str(r)},
        )
        for r in range(2)
    ]
    try:
        assert [process.wait(TIMEOUT_S) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    shared, alone = (MadeTrunk(tmp_path / name, "sgatlin") for name in ("shared", "alone"))
    assert shared.forks(2) == [8, 11]
    for number in (0, 1, 2):
        assert shared.ending(number) == alone.ending(number)
    for number in (0, 1):
        # The later one is damaged.
        (begun,) = shared.events(number, "begun")
        assert begun["step"] == 8


class Two:
    """One of two ranks that are threads of this process."""

    size = 2

    def __init__(self, rank: int, meeting: threading.Barrier, told: dict[int, list[float]]) -> None:
        self.is_main = rank == 0
        self._rank, self._meeting, self._told = rank, meeting, told

    def _exchange(self, values: Sequence[float]) -> list[list[float]]:
        self._told[self._rank] = list(values)
        self._meeting.wait(10)
        found = [self._told[0], self._told[1]]
        self._meeting.wait(10)
        return found

    def broadcast(self, value: float) -> float:
        return self._exchange([value])[0][0]

    def sum(self, values: Sequence[float]) -> list[float]:
        return [a + b for a, b in zip(*self._exchange(values), strict=True)]


class State:
    step = 0
    step_s = (1.0, 2.0)
    trunk_steps = 0
    trunk_wall_s = 0.0

    def take(self, checkpoint: Any, ranks: Any) -> None:
        self.step = checkpoint


class Store:
    """Forks of which a rank can read some."""

    def __init__(self, run_id: str, readable: set[int]) -> None:
        self.run_id = run_id
        self._readable = readable

    def read_whole(self, step: int) -> int | None:
        return step if step in self._readable else None


def test_a_fork_that_one_rank_cannot_read_is_used_by_none() -> None:
    meeting = threading.Barrier(2)
    told: dict[int, list[float]] = {}
    # The other rank sees no list of forks at all, and cannot read what was pruned meanwhile.
    readable = [({12}, {12, 9, 5}), (set(), {9, 5})]
    found: dict[int, tuple[str | None, int, int]] = {}

    def begin(rank: int) -> None:
        own, other = readable[rank]
        stores: Any = [Store("own", own), Store("other", other)]
        forks = [Fork(0, 12), Fork(1, 12), Fork(1, 9), Fork(1, 5)] if rank == 0 else []
        trunk = SharedTrunk(leaves=(), others={}, stores=stores, usable=lambda: forks)
        state: Any = State()
        store: CheckpointStore | None = trunk.begin(state, Two(rank, meeting, told))  # type: ignore[arg-type]
        found[rank] = (store and store.run_id, state.step, state.trunk_steps)

    threads = [threading.Thread(target=begin, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found == {0: ("other", 9, 9), 1: ("other", 9, 9)}

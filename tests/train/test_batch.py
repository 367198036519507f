"""Batches prepared ahead: the same ones, at most a few, and no thread left behind."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch

from isoflop.train.batch import DEPTH, Batch, Prefetch, rank_batch

CPU = torch.device("cpu")


def batch_of(step: int) -> Batch:
    return rank_batch(np.full((2, 3), step + 1, dtype=np.uint16))


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


@pytest.mark.parametrize("threaded", [False, True])
def test_batches_come_in_order_and_unchanged(threaded: bool) -> None:
    with Prefetch(batch_of, range(5, 30), CPU, threaded=threaded) as prefetch:
        got = list(prefetch)
    assert [step for step, _ in got] == list(range(5, 30))
    for step, batch in got:
        assert torch.equal(batch.targets_RT, batch_of(step).targets_RT)
        assert torch.equal(batch.inputs_RT, batch_of(step).inputs_RT)
        assert batch.num_targets == 6
    assert not threads()


def test_the_cpu_makes_each_batch_when_it_is_asked_for() -> None:
    made: list[int] = []

    def make(step: int) -> Batch:
        made.append(step)
        return batch_of(step)

    with Prefetch(make, range(10), CPU) as prefetch:
        assert not threads()
        for step, _ in prefetch:
            assert made == list(range(step + 1))


def test_no_more_than_two_wait() -> None:
    made: list[int] = []
    several = threading.Event()

    def make(step: int) -> Batch:
        made.append(step)
        if len(made) > DEPTH:
            several.set()
        return batch_of(step)

    with Prefetch(make, range(100), CPU, threaded=True) as prefetch:
        assert several.wait(10)
        time.sleep(0.05)
        # Two in the queue and one in hand.
        assert made == [0, 1, 2]
        batches = iter(prefetch)
        assert next(batches)[0] == 0
    assert not threads()
    assert len(made) <= 5


@pytest.mark.parametrize("threaded", [False, True])
def test_an_error_is_raised_at_the_step_that_needs_the_batch(threaded: bool) -> None:
    def make(step: int) -> Batch:
        if step == 3:
            raise OSError("shard is gone")
        return batch_of(step)

    with Prefetch(make, range(10), CPU, threaded=threaded) as prefetch:
        batches = iter(prefetch)
        assert [next(batches)[0] for _ in range(3)] == [0, 1, 2]
        with pytest.raises(OSError, match="shard is gone"):
            next(batches)
    assert not threads()


def test_an_error_of_the_loop_stops_the_thread() -> None:
    def fail() -> None:
        with Prefetch(batch_of, range(1000), CPU, threaded=True) as prefetch:
            for _ in prefetch:
                raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not threads()

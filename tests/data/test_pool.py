from __future__ import annotations

import multiprocessing
import os
from contextlib import closing

import pytest

from isoflop.data.pool import TASKS_PER_WORKER, ordered_map


def _square(base: int, task: int) -> int:
    if task == 7:
        raise ValueError("seven")
    if task == 13:
        os._exit(1)
    return base + task * task


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order_and_errors_in_their_turn(workers: int) -> None:
    results = ordered_map(_square, 1, [9, 1, 2, 7, 3], workers)
    assert [next(results) for _ in range(3)] == [82, 2, 5]
    with pytest.raises(ValueError, match="seven"):
        next(results)
    assert list(ordered_map(_square, 0, [], workers)) == []


def test_closed_early_the_processes_end_in_silence(capfd: pytest.CaptureFixture[str]) -> None:
    tasks = iter(range(20, 1000))
    with closing(ordered_map(_square, 1, tasks, 2)) as results:
        assert next(results) == 401
        assert next(tasks) == 20 + TASKS_PER_WORKER * 2
    assert multiprocessing.active_children() == []
    assert capfd.readouterr().err == ""


def test_a_process_that_dies_is_told(refused) -> None:
    with refused("ended"):
        list(ordered_map(_square, 0, [1, 13, 2, 3, 4, 5, 6], 2))

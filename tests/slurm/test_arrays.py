"""Runs become tasks and arrays: nothing lost, nothing twice, nothing too large."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoflop.errors import UserError
from isoflop.launch.slurm.arrays import (
    RunToSend,
    memory_mb,
    plan_arrays,
    share_evenly,
    time_limit_min,
)
from isoflop.launch.slurm.executors import sbatch_parameters
from isoflop.launch.slurm.profile import ClusterProfile

CPU = ClusterProfile(name="cpu", hardware="cpu2", time_floor_min=20, time_limit_min=1000)
GPU = ClusterProfile(name="gpu", hardware="h100", gpus_per_node=4)


def run(number: int, **changes: Any) -> RunToSend:
    values = {"run_id": f"{number:064x}", "seconds": 600.0, "num_ranks": 1, "peak_mem_bytes": 1}
    return RunToSend(**(values | changes))


RUNS = st.builds(
    RunToSend,
    run_id=st.uuids().map(lambda uuid: uuid.hex),
    seconds=st.none() | st.floats(0, 1e7),
    num_ranks=st.sampled_from([1, 2, 4, 8]),
    peak_mem_bytes=st.integers(0, 10**11),
    exclude_nodes=st.sampled_from([(), ("n1",), ("n1", "n2")]),
    fork_s=st.none() | st.sampled_from([0.0, 5.0, math.inf]),
)


@given(
    runs=st.lists(RUNS, max_size=60, unique_by=lambda run: run.run_id),
    max_array_size=st.integers(0, 9),
    runs_per_task=st.integers(1, 4),
    gpus_per_node=st.sampled_from([0, 4, 8]),
)
def test_each_run_is_in_one_task_that_has_what_it_needs(
    runs: list[RunToSend], max_array_size: int, runs_per_task: int, gpus_per_node: int
) -> None:
    profile = ClusterProfile(
        name="any", hardware="any", gpus_per_node=gpus_per_node, runs_per_task=runs_per_task
    )
    arrays = plan_arrays(runs, profile, max_array_size)
    sent = Counter(run_id for array in arrays for task in array.tasks for run_id in task)
    assert sent == Counter(run.run_id for run in runs)
    by_id = {run.run_id: run for run in runs}
    # Those that begin at once come first: none waits behind one that waits for it.
    waits = [not by_id[i].begins_at_once for array in arrays for task in array.tasks for i in task]
    assert waits == sorted(waits)
    for array in arrays:
        needs = array.resources
        assert len({by_id[i].begins_at_once for task in array.tasks for i in task}) == 1
        assert 1 <= len(array.tasks) <= max(1, max_array_size)
        assert profile.time_floor_min <= needs.time_min <= profile.time_limit_min
        assert not gpus_per_node or needs.ranks_per_node <= gpus_per_node
        for task in array.tasks:
            of_task = [by_id[run_id] for run_id in task]
            assert len(task) <= (runs_per_task if needs.num_ranks == 1 else 1)
            assert {run.num_ranks for run in of_task} == {needs.num_ranks}
            assert {run.exclude_nodes for run in of_task} == {needs.exclude_nodes}
            assert needs.time_min == time_limit_min([run.seconds for run in of_task], profile)
            for one in of_task:
                memory = memory_mb(one, profile)
                wanted = None if memory is None else memory * needs.ranks_per_node
                assert needs.memory_mb_per_node == wanted


def test_runs_of_alike_needs_share_an_array_cut_at_the_largest_index() -> None:
    arrays = plan_arrays([run(i) for i in range(25)], CPU, 11)
    assert [len(array.tasks) for array in arrays] == [11, 11, 3]
    assert len({array.resources for array in arrays}) == 1


def test_runs_that_wait_come_behind_all_others_those_that_can_begin_first_first() -> None:
    profile = dataclasses.replace(CPU, runs_per_task=2)
    branches = [run(i, seconds=9e3, fork_s=f) for i, f in enumerate([math.inf, 50.0, 10.0, 0.0])]
    arrays = plan_arrays([*branches, run(8, seconds=1.0), run(9)], profile, 11)
    tasks = [[int(i, 16) for i in task] for array in arrays for task in array.tasks]
    assert tasks == [[9, 8], [3, 2], [1, 0]]
    # On this machine, too: each process ends with them.
    shares = share_evenly([*branches, run(8, seconds=1.0), run(9)], 2)
    assert [[int(i, 16) for i in share] for share in shares] == [[9, 2, 0], [8, 3, 1]]


@pytest.mark.parametrize(
    ("seconds", "minutes"),
    [
        # 120 s to start and twice the estimate, rounded up to 20, 40, 80 ... and cut at 1,000.
        ([0.0], 20),
        ([540.0], 20),
        ([541.0], 40),
        ([540.0, 540.0], 40),
        ([30_000.0], 1000),
        ([None], 1000),
        ([1.0, None], 1000),
    ],
)
def test_time_limits(seconds: list[float | None], minutes: int) -> None:
    assert time_limit_min(seconds, CPU) == minutes


def test_memory_is_the_estimate_with_a_margin_unless_it_is_named() -> None:
    assert memory_mb(run(0, peak_mem_bytes=0), CPU) == 1024
    assert memory_mb(run(0, peak_mem_bytes=1024**3 * 2 // 3), CPU) == 1024
    assert memory_mb(run(0, peak_mem_bytes=1024**3), CPU) == 2048
    named = ClusterProfile(name="cpu", hardware="cpu2", memory_gb_per_device=1.5)
    assert memory_mb(run(0, peak_mem_bytes=10**12), named) == 1536
    assert memory_mb(run(0), GPU) is None


@pytest.mark.parametrize(("ranks", "layout"), [(1, (1, 1)), (4, (1, 4)), (8, (2, 4)), (6, (2, 3))])
def test_several_ranks_take_few_nodes(ranks: int, layout: tuple[int, int]) -> None:
    (array,) = plan_arrays([run(0, num_ranks=ranks)], GPU, 1001)
    assert (array.resources.num_nodes, array.resources.ranks_per_node) == layout


def test_a_node_is_not_asked_for_more_gpus_than_it_gives() -> None:
    profile = dataclasses.replace(GPU, ranks_per_node=8)
    (array,) = plan_arrays([run(0, num_ranks=8)], profile, 1001)
    assert (array.resources.num_nodes, array.resources.ranks_per_node) == (2, 4)


def test_ranks_that_do_not_split_over_nodes_are_refused() -> None:
    with pytest.raises(UserError, match="ranks = 5: must be a multiple of the 2 nodes"):
        plan_arrays([run(0, num_ranks=5)], GPU, 1001)


def test_a_command_has_one_task_with_all_devices_of_its_ranks_on_one_node() -> None:
    profile = dataclasses.replace(GPU, cpus_per_device=6)
    (plan,) = plan_arrays([run(1, num_ranks=4, starts_ranks=True)], profile, 10)
    found = sbatch_parameters(plan, profile, job_name="j", comment="c", variables={})
    names = ("nodes", "ntasks_per_node", "gpus_per_node", "cpus_per_task")
    assert [found[name] for name in names] == [1, 1, 4, 24]
    assert "srun_args" not in found
    with pytest.raises(UserError, match=r"ranks = 8: must be at most 4, those of one node"):
        plan_arrays([run(1, num_ranks=8, starts_ranks=True)], profile, 10)


def test_runs_of_unknown_times_are_shared_by_number() -> None:
    shares = share_evenly([run(number, seconds=None) for number in range(5)], 2)
    assert sorted(map(len, shares)) == [2, 3]


def test_local_tasks_end_at_about_the_same_time() -> None:
    runs = [run(i, seconds=float(s)) for i, s in enumerate([9, 7, 6, 5, 4, 2])]
    shares = share_evenly(runs, 2)
    by_id = {run.run_id: run.seconds for run in runs}
    assert sorted(sum(by_id[i] for i in share) for share in shares) == [16, 17]
    assert sorted(i for share in shares for i in share) == sorted(by_id)
    assert len(share_evenly(runs[:1], 4)) == 1

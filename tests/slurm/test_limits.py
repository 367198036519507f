"""One throttle over all arrays: shares, chains, and what is in the queue already."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.launch.slurm.arrays import ArrayPlan, Resources
from isoflop.launch.slurm.limits import LiveArray, live_arrays, room_beside, throttled, within
from isoflop.launch.slurm.profile import ClusterProfile
from isoflop.launch.slurm.then_fit import fit_array
from isoflop.launch.status import live_work
from slurm.made_scheduler import Scheduler, Sent


def plan(num_tasks: int, time_min: int = 20) -> ArrayPlan:
    needs = Resources(
        num_nodes=1,
        ranks_per_node=1,
        memory_mb_per_node=None,
        exclude_nodes=(),
        time_min=time_min,
    )
    return ArrayPlan(resources=needs, tasks=tuple((f"{time_min}-{i}",) for i in range(num_tasks)))


def live(
    job_id: str, num_tasks: int, at_a_time: int, *, waits: bool = False, is_stuck: bool = False
) -> LiveArray:
    return LiveArray(
        job_id=job_id, num_tasks=num_tasks, at_a_time=at_a_time, waits=waits, is_stuck=is_stuck
    )


def shares(plans: Sequence[ArrayPlan]) -> list[int]:
    return [each.at_a_time for each in plans]


def test_shares_follow_the_work_and_fill_the_throttle() -> None:
    # 300, 100 and 2 tasks of one length; then the same work in fewer, longer ones.
    assert shares(throttled([plan(300), plan(100), plan(2)], 64)) == [47, 16, 1]
    assert shares(throttled([plan(30, 100), plan(100, 30)], 20)) == [10, 10]
    # No array has more than its tasks; the rest goes to the others.
    assert shares(throttled([plan(4, 1440), plan(100)], 64)) == [4, 60]
    assert shares(throttled([plan(3), plan(1)], 64)) == [3, 1]
    assert shares(throttled([plan(300)], 64)) == [64]


def test_more_arrays_than_the_throttle_are_chained() -> None:
    found = throttled([plan(5, 40), plan(8), plan(2), plan(2), plan(1)], 2)
    assert shares(found) == [1] * 5
    # 200 minutes, then 160, 40 and 40 on the second, 20 on the first.
    assert [each.after_arrays for each in found] == [(), (), (1,), (0,), (2,)]


@pytest.mark.parametrize(
    ("there", "num_tasks", "share", "after"),
    [
        # Room for all of them.
        ([live("7", 40, 40)], 24, 24, ()),
        # None: after those that are there.
        ([live("7", 300, 64)], 24, 24, ("7",)),
        # 4 at a time would take 25 rounds; after one round there is room for all.
        ([live("7", 60, 60)], 100, 64, ("7",)),
        # 32 at a time take 4 rounds; the others alone take 10.
        ([live("7", 320, 32)], 100, 32, ()),
        # What waits for 7 will take all the room, though 7 takes little now.
        ([live("7", 4, 4), live("8", 64, 64, waits=True)], 10, 10, ("7", "8")),
    ],
)
def test_earlier_arrays_have_the_room_first(
    there: list[LiveArray], num_tasks: int, share: int, after: tuple[str, ...]
) -> None:
    (found,) = throttled([plan(num_tasks)], 64, there)
    assert (found.at_a_time, found.after_jobs) == (share, after)


sizes = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 99)), min_size=1, max_size=12)


@settings(max_examples=40)
@given(sizes, st.integers(1, 20), st.lists(st.tuples(st.integers(1, 30), st.booleans())))
def test_never_more_than_the_throttle_and_every_array_gets_its_turn(
    new: list[tuple[int, int]], throttle: int, earlier: list[tuple[int, bool]]
) -> None:
    there = [live(str(i), n, 1, waits=waits) for i, (n, waits) in enumerate(earlier)]
    plans = [plan(*size) for size in new]
    found = throttled(plans, throttle, there)
    assert [each.tasks for each in found] == [each.tasks for each in plans]
    assert all(1 <= each.at_a_time <= len(each.tasks) for each in found)
    # Links point backwards, so the chains end; of a chain one array is at work at a time.
    assert all(n < i for i, each in enumerate(found) for n in each.after_arrays)
    heads = [each for each in found if not each.after_arrays]
    assert len({each.after_arrays for each in found} - {()}) == len(found) - len(heads)
    behind = [each for each in heads if each.after_jobs]
    assert behind == heads or not behind
    room = throttle if behind else room_beside(there, throttle)
    assert sum(each.at_a_time for each in heads) <= room
    assert not behind or heads[0].after_jobs == tuple(each.job_id for each in there)


def test_within_a_number_of_tasks() -> None:
    kept, left = within([plan(3, 60), plan(3)], 4)
    assert [each.tasks for each in kept] == [plan(3, 60).tasks, (("20-0",),)]
    assert left == ("20-1", "20-2")
    assert within([plan(3)], 0) == ([], ("20-0", "20-1", "20-2"))
    assert within([plan(3)], None) == ([plan(3)], ())


def test_what_is_in_the_queue_is_counted_in_tasks(told: Scheduler, sent: Sent) -> None:
    sent.submission("12", tasks=[[0, 1, 2], [3]], throttle=8)
    sent.submission("13", tasks=[[0]], name="s2")
    sent.submission("14", tasks=[[0], [1]], name="s3")
    told.queue(
        sent.line("12_0", "RUNNING"),
        sent.line("12_1", "COMPLETED"),
        sent.line("13", "PENDING", reason="Dependency"),
        sent.line("14_0", "PENDING", reason="JobHeldUser"),
        sent.line("14_1", "PENDING", reason="BadConstraints"),
    )
    queue = live_work(sent.folder, sent.plan).queue
    found = sorted(live_arrays(queue), key=lambda each: each.job_id)
    assert found == [
        live("12", 1, 1),
        live("13", 1, 1, waits=True),
        live("14", 2, 2, is_stuck=True),
    ]
    # Nobody waits for what waits for a person, but the job that comes after all does.
    (new,) = throttled([plan(10)], 1, found[2:])
    assert (new.at_a_time, new.after_jobs) == (1, ())
    assert fit_array(ClusterProfile(name="x", hardware="cpu2"), 0, found).after_jobs == (
        "12",
        "13",
        "14",
    )

"""How many tasks of a study there may be: in the queue (max_submit), and at a time (throttle).

One throttle holds over all arrays of a study. SLURM has one per array (`--array=0-99%8`), so the
arrays of a submission share the profile's in proportion to their work, and end at about the same
time. Tasks of earlier arrays take their room first. Where there is none left, or waiting ends
sooner, new arrays start after the earlier ones (`--dependency=afterany`). More arrays than the
throttle form that many chains of arrays with one task at a time. Dependencies point backwards and
are met however the other job ends, and none points to an array that waits for a person: no array
waits for ever.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from isoflop.launch.slurm.arrays import ArrayPlan
from isoflop.launch.slurm.profile import ClusterProfile
from isoflop.launch.slurm.queue import Queue
from isoflop.launch.slurm.scheduler import JobState

# squeue's reason of a job that waits for another one.
_WAITS_FOR_ANOTHER = "Dependency"
# Of one that is held, or that no node of the cluster can run.
_NEEDS_A_PERSON = re.compile("JobHeld|BadConstraints|PartitionConfig|InvalidAccount|InvalidQOS")


def waits_for_another(job: JobState) -> bool:
    """Return whether a job in the queue begins when other jobs have ended."""
    return job.reason == _WAITS_FOR_ANOTHER


def needs_a_person(job: JobState) -> bool:
    """Return whether a job in the queue waits until a person changes something."""
    return _NEEDS_A_PERSON.match(job.reason or "") is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class LiveArray:
    """An array or job of the study that is in the queue."""

    job_id: str
    num_tasks: int
    """That have not ended."""
    at_a_time: int
    """Most of them that run together."""
    waits: bool
    """Whether it waits for another array."""
    is_stuck: bool = False
    """Whether it waits for a person, who may never come."""

    @property
    def num_rounds(self) -> int:
        """Tasks that follow each other until it has ended."""
        return math.ceil(self.num_tasks / self.at_a_time)


def live_arrays(queue: Queue) -> list[LiveArray]:
    """Return the arrays and jobs of a study that are in the queue, by their ids."""
    live: dict[str, list[JobState]] = {}
    at_a_time: dict[str, int] = {}
    seen = set()
    for task in itertools.chain.from_iterable(queue.tasks.values()):
        job = queue.job(task)
        # Of a task with several runs once.
        if task.is_local or job is None or job.is_final or job.job_id in seen:
            continue
        seen.add(job.job_id)
        array_id = job.job_id.partition("_")[0]
        live.setdefault(array_id, []).append(job)
        at_a_time[array_id] = task.at_a_time
    return [
        LiveArray(
            job_id=job_id,
            num_tasks=len(jobs),
            at_a_time=min(len(jobs), at_a_time[job_id]),
            waits=any(map(waits_for_another, jobs)),
            is_stuck=all(map(needs_a_person, jobs)),
        )
        for job_id, jobs in live.items()
    ]


def within(
    plans: Sequence[ArrayPlan], num_tasks: int | None
) -> tuple[list[ArrayPlan], tuple[str, ...]]:
    """Return the first so many tasks, and the runs of the others; None: there is no limit."""
    if num_tasks is None:
        return list(plans), ()
    kept: list[ArrayPlan] = []
    left: list[str] = []
    for plan in plans:
        tasks = plan.tasks[:num_tasks]
        left += itertools.chain.from_iterable(plan.tasks[num_tasks:])
        num_tasks -= len(tasks)
        if tasks:
            kept.append(dataclasses.replace(plan, tasks=tasks))
    return kept, tuple(left)


def room_for(
    profile: ClusterProfile, num_tasks: int, live: Sequence[LiveArray], *, fills_up: bool
) -> int | None:
    """Return how many tasks may be sent; None: any number.

    Args:
        profile: where they go.
        num_tasks: in the queue.
        live: the study's arrays in the queue.
        fills_up: whether only those are wanted that the throttle lets run at once.
    """
    if profile.is_local:
        return None
    rooms = []
    if profile.max_submit is not None:
        rooms.append(max(0, profile.max_submit - num_tasks))
    if fills_up:
        rooms.append(room_beside(live, profile.throttle))
    return min(rooms, default=None)


def room_beside(live: Sequence[LiveArray], throttle: int) -> int:
    """Return how many tasks may run besides those of live arrays, now and later."""
    able = [array for array in live if not array.is_stuck]
    now = sum(array.at_a_time for array in able if not array.waits)
    later = sum(array.at_a_time for array in able if array.waits)
    return max(0, throttle - max(now, later))


def throttled(
    plans: Sequence[ArrayPlan], throttle: int, live: Sequence[LiveArray] = ()
) -> list[ArrayPlan]:
    """Return arrays with their shares of the throttle, and the jobs that they wait for.

    Args:
        plans: to be sent, in this order.
        throttle: most tasks of the study at a time.
        live: the study's arrays that are in the queue; those that are stuck are passed.
    """
    if not plans:
        return []
    live = [array for array in live if not array.is_stuck]
    room = room_beside(live, throttle)
    waits_for: tuple[str, ...] = ()
    num_tasks = sum(len(plan.tasks) for plan in plans)
    if live and not _is_sooner_now(num_tasks, room, throttle, live):
        room, waits_for = throttle, tuple(array.job_id for array in live)
    if len(plans) > room:
        return _chained(plans, room, waits_for)
    return [
        dataclasses.replace(plan, at_a_time=share, after_jobs=waits_for)
        for plan, share in zip(plans, _shares(plans, room), strict=True)
    ]


def _is_sooner_now(num_tasks: int, room: int, throttle: int, live: Sequence[LiveArray]) -> bool:
    """Return whether tasks end sooner in the room there is than after the live arrays."""
    if room == 0:
        return False
    after = max(array.num_rounds for array in live) + math.ceil(num_tasks / throttle)
    return math.ceil(num_tasks / room) <= after


def _shares(plans: Sequence[ArrayPlan], room: int) -> list[int]:
    """Return how many tasks of each array run at a time: one or more, together at most the room."""
    shares = [1] * len(plans)
    for _ in range(room - len(plans)):
        open_ones = [i for i, plan in enumerate(plans) if shares[i] < len(plan.tasks)]
        if not open_ones:
            break
        # One more for the array that would end last.
        shares[max(open_ones, key=lambda i: _work(plans[i]) / shares[i])] += 1
    return shares


def _chained(
    plans: Sequence[ArrayPlan], num_chains: int, waits_for: tuple[str, ...]
) -> list[ArrayPlan]:
    """Return arrays in chains of about the same length, with one task at a time in each."""
    ends: list[int | None] = [None] * num_chains
    loads = [0] * num_chains
    chained = []
    for number, plan in enumerate(plans):
        least = loads.index(min(loads))
        before = ends[least]
        chained.append(
            dataclasses.replace(
                plan,
                at_a_time=1,
                after_arrays=() if before is None else (before,),
                after_jobs=waits_for if before is None else (),
            )
        )
        ends[least] = number
        loads[least] += _work(plan)
    return chained


def _work(plan: ArrayPlan) -> int:
    return len(plan.tasks) * plan.resources.time_min

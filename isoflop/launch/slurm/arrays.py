"""Runs grouped by what they need, into tasks and job arrays of the sizes that a cluster takes.

The time asked for is the estimate of a task's runs times the profile's margin plus START_S, rounded
up to the floor times a power of two and cut at the profile's limit: few classes, so few arrays, and
a run that takes longer than its limit saves, requeues itself and goes on. Memory, where the profile
does not name it, is the estimated peak times MEMORY_MARGIN, rounded up to a power of two.

Runs that begin where a longer one of the same submission passes come after all that begin at once:
in arrays of their own behind the others, so that they take no room from those that they wait for.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from isoflop.errors import UserError
from isoflop.launch.slurm.profile import ClusterProfile

_T = TypeVar("_T")

# To start Python, open the data and compile; assumed.
START_S = 120.0
MEMORY_MARGIN = 1.5
_SMALLEST_MEMORY_MB = 1024
_BYTES_PER_MB = 1024**2


@dataclass(frozen=True, kw_only=True, slots=True)
class RunToSend:
    """What grouping needs of a run."""

    run_id: str
    seconds: float | None
    """Estimated; None: not known."""
    num_ranks: int
    peak_mem_bytes: int | None
    """Per device; None: not known."""
    exclude_nodes: tuple[str, ...] = ()
    starts_ranks: bool = False
    """Whether a command of the user's own trains it, which starts its ranks itself."""
    fork_s: float | None = None
    """Estimated seconds of training until a longer run has passed where this one begins; infinity:
    not known; None: it begins at once."""

    @property
    def begins_at_once(self) -> bool:
        """Whether it waits for no longer run."""
        return self.fork_s is None


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """What each task of an array is given."""

    num_nodes: int
    ranks_per_node: int
    memory_mb_per_node: int | None
    """None: the cluster's default."""
    exclude_nodes: tuple[str, ...]
    time_min: int
    starts_ranks: bool = False
    """Whether the scheduler starts one process, which has all devices and starts the ranks."""

    @property
    def num_ranks(self) -> int:
        """Processes, each with a device of its own."""
        return self.num_nodes * self.ranks_per_node

    @property
    def tasks_per_node(self) -> int:
        """Processes that the scheduler starts on each node."""
        return 1 if self.starts_ranks else self.ranks_per_node


@dataclass(frozen=True, kw_only=True, slots=True)
class ArrayPlan:
    """A job array, or a single job, to be sent."""

    resources: Resources
    tasks: tuple[tuple[str, ...], ...]
    """Run ids by array index."""
    at_a_time: int = 1
    """Most of its tasks that run together; isoflop.launch.slurm.limits has the say."""
    after_arrays: tuple[int, ...] = ()
    """Arrays of the same submission, by number, that end before it starts."""
    after_jobs: tuple[str, ...] = ()
    """Jobs of earlier submissions, likewise."""
    is_fit: bool = False
    """Whether it is the job of isoflop.launch.slurm.then_fit; its task has no runs."""

    @property
    def num_runs(self) -> int:
        """Runs of all tasks."""
        return sum(len(task) for task in self.tasks)


def plan_arrays(
    runs: Iterable[RunToSend], profile: ClusterProfile, max_array_size: int
) -> list[ArrayPlan]:
    """Group runs into arrays: the longest tasks first, behind them those that wait for longer runs.

    Args:
        runs: what is to be sent.
        profile: where.
        max_array_size: the cluster's MaxArraySize, one more than the largest index.

    Raises:
        UserError: a run's ranks do not split evenly over nodes, or a command of the user's own is
            to have more than a node has.
    """
    grouped: dict[tuple[bool, Resources], list[tuple[str, ...]]] = {}
    for task in _tasks(runs, profile):
        names = tuple(run.run_id for run in task)
        # All of a task begin at once, or none.
        key = (not task[0].begins_at_once, _resources(task, profile))
        grouped.setdefault(key, []).append(names)
    ordered = sorted(grouped.items(), key=lambda item: (item[0][0], -item[0][1].time_min))
    return [
        ArrayPlan(resources=resources, tasks=tuple(chunk))
        for (_, resources), tasks in ordered
        for chunk in _chunks(tasks, max(1, max_array_size))
    ]


def _tasks(runs: Iterable[RunToSend], profile: ClusterProfile) -> Iterator[list[RunToSend]]:
    """Group runs that need the same, begin together and take about as long into tasks."""

    def kind(run: RunToSend) -> tuple[int, int, tuple[str, ...], bool, bool]:
        memory = memory_mb(run, profile) or 0
        return (run.num_ranks, memory, run.exclude_nodes, run.starts_ranks, not run.begins_at_once)

    ordered = sorted(runs, key=lambda run: (kind(run), _turn(run)))
    for (num_ranks, *_), group in itertools.groupby(ordered, kind):
        # Several ranks meet once, for one run.
        yield from _chunks(list(group), profile.runs_per_task if num_ranks == 1 else 1)


def _turn(run: RunToSend) -> tuple[float, float]:
    """Return what sorts runs: the first that can begin, of these the longest."""
    return (run.fork_s or 0.0, -(run.seconds or math.inf))


def _resources(task: Sequence[RunToSend], profile: ClusterProfile) -> Resources:
    run = task[0]
    most = _most_per_node(run.num_ranks, profile)
    if run.starts_ranks and run.num_ranks > most:
        allowed = f"at most {most}, those of one node, where a command of your own trains"
        raise UserError("ranks", run.num_ranks, allowed, "ask for fewer, or for larger nodes")
    num_nodes, ranks_per_node = _nodes(run.num_ranks, profile)
    memory = memory_mb(run, profile)
    return Resources(
        num_nodes=num_nodes,
        ranks_per_node=ranks_per_node,
        memory_mb_per_node=None if memory is None else memory * ranks_per_node,
        exclude_nodes=run.exclude_nodes,
        time_min=time_limit_min([r.seconds for r in task], profile),
        starts_ranks=run.starts_ranks,
    )


def _nodes(num_ranks: int, profile: ClusterProfile) -> tuple[int, int]:
    """Return the fewest nodes that hold the ranks, and the ranks on each."""
    num_nodes = math.ceil(num_ranks / _most_per_node(num_ranks, profile))
    if num_ranks % num_nodes:
        raise UserError(
            "ranks", num_ranks, f"a multiple of the {num_nodes} nodes they need", "correct it"
        )
    return num_nodes, num_ranks // num_nodes


def _most_per_node(num_ranks: int, profile: ClusterProfile) -> int:
    limits = (profile.ranks_per_node, profile.gpus_per_node or None)
    return min((limit for limit in limits if limit is not None), default=num_ranks)


def time_limit_min(seconds: Sequence[float | None], profile: ClusterProfile) -> int:
    """Return the minutes to request for runs that take these seconds one after the other."""
    known = [s for s in seconds if s is not None]
    if len(known) < len(seconds):
        return profile.time_limit_min
    needed_min = (START_S + profile.time_margin * sum(known)) / 60
    limit_min = profile.time_floor_min
    while limit_min < min(needed_min, profile.time_limit_min):
        limit_min *= 2
    return min(limit_min, profile.time_limit_min)


def memory_mb(run: RunToSend, profile: ClusterProfile) -> int | None:
    """Return the host memory per rank to request; None: leave it to the cluster."""
    if profile.memory_gb_per_device is not None:
        return math.ceil(1024 * profile.memory_gb_per_device)
    if profile.gpus_per_node or run.peak_mem_bytes is None:
        return None
    memory = _SMALLEST_MEMORY_MB
    while memory * _BYTES_PER_MB < MEMORY_MARGIN * run.peak_mem_bytes:
        memory *= 2
    return memory


def share_evenly(runs: Iterable[RunToSend], num_tasks: int) -> list[tuple[str, ...]]:
    """Return tasks that end at about the same time: the longest run first, to the least loaded.

    Runs that wait for longer ones come last in each.
    """
    shares: list[list[str]] = [[] for _ in range(num_tasks)]
    loads = [0.0] * num_tasks
    for run in sorted(runs, key=lambda run: (not run.begins_at_once, *_turn(run))):
        # Where nothing is known of their times, as many to each.
        least = min(range(num_tasks), key=lambda n: (loads[n], len(shares[n])))
        shares[least].append(run.run_id)
        loads[least] += run.seconds or 0.0
    return [tuple(share) for share in shares if share]


def _chunks(values: Sequence[_T], size: int) -> Iterator[list[_T]]:
    for start in range(0, len(values), size):
        yield list(values[start : start + size])

"""Which stage may run until when, and the order of jobs: nothing here knows what a job measures.

A stage ends at the latest when its own share of the budget and those of the stages before are used
up, so that what an early stage leaves goes to the later ones. The first, for which all others wait,
may take half of the whole.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from isoflop.gpu_report.records import Job, Row

GRACE_S = 5.0
"""What killing a process, and writing the page, may take beyond the budget."""
LEAST_S = 1.0
"""With less left, no job begins."""


class Budget:
    """Seconds for each stage, on a clock that is given.

    Args:
        total_s: of the whole command.
        shares: of each stage in their order, in any unit.
        clock: seconds from anywhere, which only grow.
    """

    def __init__(
        self, total_s: float, shares: Mapping[str, float], clock: Callable[[], float]
    ) -> None:
        self._clock = clock
        self._begin = clock()
        self._ends: dict[str, float] = {}
        end = 0.0
        for stage, share in shares.items():
            end += total_s * share / sum(shares.values())
            self._ends[stage] = end
        # Without the first nothing else can be; on a slow disk it takes long to start.
        first = next(iter(shares))
        self._ends[first] = max(self._ends[first], total_s / 2)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the command began."""
        return self._clock() - self._begin

    def left_s(self, stage: str) -> float:
        """Return the seconds until a stage has to end; 0 if it is over."""
        return max(0.0, self._ends[stage] - self.elapsed_s)


class Runner(Protocol):
    """Runs jobs one after the other: a process of its own, or in tests a clock."""

    def run(self, job: Job, limit_s: float) -> Iterator[Row]:
        """Yield the rows of a job as they come; it is ended after ``limit_s``, with a row."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """Jobs that share a part of the budget."""

    name: str
    jobs: Sequence[Job]


def run_stage(
    stage: Stage, budget: Budget, runners: Sequence[Runner], found: Callable[[Row], None]
) -> None:
    """Run the jobs of a stage in their order, each on the next free runner, until it has to end.

    Args:
        stage: its name is one of the budget's.
        budget: says how long.
        runners: as many jobs run at a time.
        found: called with each row as it comes, from any thread, one at a time.
    """
    waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
    for job in stage.jobs:
        waiting.put(job)
    lock = threading.Lock()

    def work(runner: Runner) -> None:
        while not waiting.empty():
            try:
                job = waiting.get_nowait()
            except queue.Empty:
                return
            for row in _rows(job, budget, runner):
                with lock:
                    found(row)

    if len(runners) == 1:
        work(runners[0])
        return
    threads = [threading.Thread(target=work, args=(runner,), daemon=True) for runner in runners]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _rows(job: Job, budget: Budget, runner: Runner) -> Iterator[Row]:
    left_s = budget.left_s(job.stage)
    if left_s < LEAST_S:
        note = "the stage's share of the budget was used up"
        yield Row(stage=job.stage, case=job.case, outcome="cut", note=note)
        return
    yield from runner.run(job, min(job.limit_s, left_s))

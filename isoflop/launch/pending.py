"""The jobs of a session that no worker has: which is the next one, and what the others wait for.

A job whose run is to begin where a longer one passes (isoflop.launch.trunks) waits until that has
left its fork, or is not going to. It is looked at again when the longer run is heard of: when it
has passed the fork, or has ended. Runs at work in other processes are heard of by their files
alone, which are looked at as often as :meth:`Pending.look_again` is called: those of such runs and
of runs that this session has begun, not of all that wait.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from isoflop.launch.job import Job, Sibling
from isoflop.launch.trunks import is_trained, waits_for


class Pending:
    """Jobs in the order in which they are to begin.

    Args:
        jobs: all of a session.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._jobs = list(jobs)
        # Places in the order; what may begin, as far as is known.
        self._open = list(range(len(jobs)))
        self._waiting: dict[str, list[int]] = defaultdict(list)
        """Places of the jobs that wait for a run, by its id."""
        self._held: list[Job] = []
        """Jobs whose runs other processes have; they come last when they are tried again."""
        self._to_end = {job.run_id for job in jobs}
        """Runs of this session that have not ended in it, those at a worker included."""
        self._begun: set[str] = set()
        """Of them, those that were given to a worker."""
        self._news: list[tuple[Job, Sibling]] = []
        self._told: dict[str, str] = {}
        """By run, the longer one that it was found to wait for."""

    def __bool__(self) -> bool:
        """Return whether any job has no worker and has not ended."""
        return bool(self._open or self._held or self._waiting)

    def next(self) -> Job | None:
        """Return the first job that waits for nothing, which is no more pending; None: all wait."""
        while self._open:
            place = heapq.heappop(self._open)
            job = self._jobs[place]
            longer = self._longer(job)
            if longer is None:
                self._begun.add(job.run_id)
                return job
            self._waiting[longer.run_id].append(place)
            if self._told.get(job.run_id) != longer.run_id:
                self._told[job.run_id] = longer.run_id
                self._news.append((job, longer))
        return None

    def news(self) -> Iterator[tuple[Job, Sibling]]:
        """Yield jobs that were found to wait since the last call, each with the longer run."""
        news, self._news = self._news, []
        yield from news

    def see_step(self, run_id: str, step: int) -> None:
        """Take note of the steps that a run has completed: it has passed the forks before them."""
        for place in self._waiting.pop(run_id, ()):
            trunk = self._jobs[place].trunk
            assert trunk is not None
            if trunk.fork < step:
                heapq.heappush(self._open, place)
            else:
                self._waiting[run_id].append(place)

    def end(self, run_id: str) -> None:
        """Take note that a job has ended, however it did."""
        self._to_end.discard(run_id)
        self._reopen(run_id)

    def hold(self, job: Job) -> None:
        """Take back a job whose run another process has."""
        self._held.append(job)

    def look_again(self) -> None:
        """Try jobs again whose runs others had, and those that wait for runs at work."""
        at_work = self._waiting.keys() - (self._to_end - self._begun)
        for run_id in at_work:
            self._reopen(run_id)
        held, self._held = self._held, []
        for job in held:
            self._jobs.append(job)
            heapq.heappush(self._open, len(self._jobs) - 1)

    def _reopen(self, run_id: str) -> None:
        for place in self._waiting.pop(run_id, ()):
            heapq.heappush(self._open, place)

    def _longer(self, job: Job) -> Sibling | None:
        if job.trunk is None:
            return None
        folder = Path(job.study_folder)

        def is_coming(run_id: str) -> bool:
            return run_id in self._to_end or is_trained(folder, run_id)

        # One of this session that failed before is tried again.
        return waits_for(folder, job.run_id, job.trunk, is_coming, retries=True)

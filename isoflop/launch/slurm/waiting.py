"""Which runs of a task wait for a longer one of their trunk, and how long the task stays for them.

A run waits as long as a longer one is coming, that is, goes on to where the two part: a live
process holds it, or the queue has a job that is going to train it. Nothing else is waited for, so
a longer run that failed, was cancelled or lost, or was never sent keeps nobody. Where the scheduler
does not answer, one that was sent counts as coming.

Nothing waits for ever, and no task is requeued in circles. A run waits for longer ones only. While
one waits, either the longer ones complete further steps, of which there are so many, or for
MAX_STILL_S none does, whatever the reason is, and from then on nobody is waited for. Between two
looks of a task that requeues itself there are FIRST_DELAY_S or more, so that it does so a bounded
number of times. Whoever waits no more trains from the best state that there is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from isoflop.errors import UserError
from isoflop.files import write_json_atomic
from isoflop.launch.collect import steps_per_s
from isoflop.launch.job import Job, TrunkJob
from isoflop.launch.metrics import LINES_FILE
from isoflop.launch.run_folder import RunFolder
from isoflop.launch.slurm.limits import needs_a_person, waits_for_another
from isoflop.launch.slurm.queue import Queue, query_queue
from isoflop.launch.slurm.records import Waited, cancelled_jobs, read_waited
from isoflop.launch.trunks import is_trained, waits_for
from isoflop.spec import shown_id

if TYPE_CHECKING:
    from isoflop.train.ranks import Ranks

# A task keeps its node for a fork that is expected so soon, and looks again so often.
NEAR_S = 240.0
POLL_S = 2.0
# Else it begins again after about the time that is expected, or twice as late each time.
FIRST_DELAY_S, LONGEST_DELAY_S = 60, 1200
MAX_STILL_S = 24 * 3600.0
# One answer of the scheduler serves so long.
_ANSWER_S = 30.0
_WAITS, _POLLS = -1, -2


@dataclass(frozen=True, kw_only=True, slots=True)
class Wait:
    """A run that waits, as things are now."""

    run_id: str
    longer: str
    """The run that it waits for, by its id."""
    fork: int
    """Completed steps of the longer one at which it begins."""
    step: int
    """Those that the longer one has completed, as far as it has told."""
    is_live: bool
    """Whether a process trains the longer one now."""
    expected_s: float | None
    """Seconds until it has passed the fork; None: not known."""

    @property
    def is_near(self) -> bool:
        """Whether the fork may be there within NEAR_S."""
        return self.is_live and (self.expected_s is None or self.expected_s <= NEAR_S)

    @property
    def text(self) -> str:
        """For people."""
        return f"waits for run {shown_id(self.longer)} to pass step {self.fork} (now {self.step})"


def find_wait(
    study_folder: Path, run_id: str, job: TrunkJob, is_coming: Callable[[str], bool]
) -> Wait | None:
    """Return whom a run waits for; None: it may begin.

    The arguments are those of :func:`isoflop.launch.trunks.waits_for`.
    """
    longer = waits_for(study_folder, run_id, job, is_coming)
    if longer is None:
        return None
    other, fork = RunFolder(study_folder, longer.run_id), job.fork
    step, is_live, expected_s = 0, False, None
    # It may end, or begin anew, between two looks.
    with contextlib.suppress(UserError, OSError):
        lease, attempt = other.lease(), other.attempt_at_work()
        step = 0 if lease is None else lease.step
        is_live = attempt is not None
        if attempt is not None and (rate := steps_per_s(other.path / LINES_FILE, attempt.number)):
            expected_s = max(0.0, (fork - step) / rate)
    return Wait(
        run_id=run_id,
        longer=longer.run_id,
        fork=fork,
        step=step,
        is_live=is_live,
        expected_s=expected_s,
    )


def is_queued(
    queue: Queue, run_id: str, cancelled: Collection[str], place: tuple[str, int] | None
) -> bool:
    """Return whether a job in the queue is going to train a run, or may be.

    Args:
        queue: with the run's tasks.
        run_id: of the run.
        cancelled: as isoflop.launch.slurm.records.cancelled_jobs returns them.
        place: submission and array of whoever waits for the run; None: of nobody.
    """
    found = queue.live(run_id)
    if found is not None:
        task, job = found
        if needs_a_person(job):
            return False
        # An array that comes after others, `afterany`, may come after the one that waits here. Of
        # the same submission, arrays come after earlier ones only.
        is_earlier = place is not None and (task.submission.submission_id, task.array) <= place
        is_same = place is not None and task.submission.submission_id == place[0]
        return not waits_for_another(job) or (is_same and is_earlier)
    is_away = queue.answer.unreachable is not None
    return any(
        (task.hidden is not None or (is_away and not task.is_local))
        and task.rejected is None
        and not task.is_cancelled(cancelled)
        for task in queue.tasks.get(run_id, ())
    )


class Waiting:
    """The waits of one task.

    Args:
        jobs: of its runs, by run id.
        study_folder: the study's folder.
        place: its submission, and its array there.
        notes: where it notes how far the longer runs were, for itself when it begins again; None:
            it does not, and so stays for as long as it waits.
        should_stop: a reason ends the waiting.
    """

    def __init__(
        self,
        jobs: Mapping[str, Job],
        study_folder: Path,
        place: tuple[str, int],
        notes: Path | None,
        should_stop: Callable[[], str | None],
    ) -> None:
        self._jobs = jobs
        self._folder = study_folder
        self._place = place
        self._notes = notes
        self._should_stop = should_stop
        self._waited = _noted(notes)
        self._answer: tuple[float, Queue] | None = None
        self.waits: tuple[Wait, ...] = ()
        """Those of the last look, where every run waited."""

    def first(self, left: Sequence[str], ranks: Ranks | None = None) -> str | None:
        """Return the first of some runs that waits for no other; stay while a fork is near.

        Args:
            left: of the task, those that it has not begun.
            ranks: the processes that train the only run together, of which the main one decides.

        Returns None where all wait, and for longer, or the task is asked to stop.
        """
        end_s = time.monotonic() + NEAR_S
        while True:
            is_main = ranks is None or ranks.is_main
            found = self._look(left, end_s) if is_main else _WAITS
            if ranks is not None:
                found = round(ranks.broadcast(float(found)))
            if found != _POLLS:
                return None if found == _WAITS else left[found]
            time.sleep(POLL_S)

    def _look(self, left: Sequence[str], end_s: float) -> int:
        """Return the place of a run that may begin; _POLLS: look again; _WAITS: give up."""
        waits = []
        for number, run_id in enumerate(left):
            wait = self._wait_of(run_id, left)
            if wait is None or not self._gets_on(wait):
                return number
            waits.append(wait)
        self.waits = tuple(waits)
        if self._should_stop() is not None:
            return _WAITS
        is_near = any(wait.is_near for wait in waits) and time.monotonic() < end_s
        return _POLLS if is_near or self._notes is None else _WAITS

    def _wait_of(self, run_id: str, left: Collection[str]) -> Wait | None:
        trunk = self._jobs[run_id].trunk
        if trunk is None:
            return None
        return find_wait(self._folder, run_id, trunk, lambda other: self._is_coming(other, left))

    def _gets_on(self, wait: Wait) -> bool:
        """Return whether the longer runs got on, or did in the last MAX_STILL_S."""
        before, now_s = self._waited, time.time()
        if wait.step > before.steps.get(wait.longer, -1):
            steps = {**before.steps, wait.longer: wait.step}
            self._waited = Waited(steps=steps, since_s=now_s)
        return now_s - self._waited.since_s < MAX_STILL_S

    def _is_coming(self, run_id: str, left: Collection[str]) -> bool:
        """Return whether a longer run is being trained, or going to be."""
        if is_trained(self._folder, run_id):
            return True
        if run_id in self._jobs:
            # This task has tried it, or is going to.
            return run_id in left
        return is_queued(self._queue(), run_id, cancelled_jobs(self._folder), self._place)

    def _queue(self) -> Queue:
        """Return the tasks of all longer runs, by an answer that is not too old."""
        now_s = time.monotonic()
        if self._answer is None or now_s - self._answer[0] > _ANSWER_S:
            trunks = (job.trunk for job in self._jobs.values() if job.trunk is not None)
            longer = {other.run_id for trunk in trunks for other in trunk.longer}
            self._answer = (now_s, query_queue(self._folder, only=longer))
        return self._answer[1]

    def give_back(self) -> int:
        """Note how far the longer runs are; return the seconds after which to begin again."""
        assert self._notes is not None
        expected = [wait.expected_s for wait in self.waits if wait.expected_s is not None]
        again_s = FIRST_DELAY_S * 2 ** min(self._waited.num_times, 10)
        delay_s = min(expected, default=again_s)
        self._waited = dataclasses.replace(self._waited, num_times=self._waited.num_times + 1)
        # A folder that was moved away is not made again.
        if self._notes.parent.is_dir():
            write_json_atomic(self._notes, dataclasses.asdict(self._waited))
        return round(min(max(delay_s, FIRST_DELAY_S), LONGEST_DELAY_S))


def _noted(notes: Path | None) -> Waited:
    """Return what the task noted before; it begins anew where that is damaged."""
    now_s = time.time()
    found = None
    if notes is not None:
        with contextlib.suppress(UserError):
            found = read_waited(notes)
    # Clocks of nodes differ.
    since_s = now_s if found is None else min(found.since_s, now_s)
    return Waited(since_s=since_s) if found is None else dataclasses.replace(found, since_s=since_s)

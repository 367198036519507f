"""Where every run of a plan stands: by its files, then the scheduler's queue, then accounting.

The files win: a result is a result, whatever the scheduler answers. The queue wins over accounting,
which lags behind it: a job that the queue has waiting or running is not over, even where accounting
has it as NODE_FAIL or PREEMPTED. A job that neither has and that left no result is lost, after a
grace time in which its files may still appear.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from isoflop.errors import UserError
from isoflop.launch.collect import RunState, or_damaged, study_states
from isoflop.launch.job import TrunkJob
from isoflop.launch.run_folder import RunFolder
from isoflop.launch.run_records import Attempt, RunResult
from isoflop.launch.slurm import failures
from isoflop.launch.slurm.logs import last_lines
from isoflop.launch.slurm.queue import (
    Queue,
    SentTask,
    add_accounting,
    hidden_runs,
    query_queue,
    why_it_waits,
)
from isoflop.launch.slurm.records import NotRequeued, RunOptions, cancelled_jobs, read_options
from isoflop.launch.slurm.scheduler import JobState, SchedulerError
from isoflop.launch.slurm.then_fit import FitState, fit_state
from isoflop.launch.slurm.waiting import find_wait, is_queued
from isoflop.launch.trunks import is_trained, trunk_jobs
from isoflop.plan.artefact import read_plan
from isoflop.plan.planner import Plan

# A job that left the queue may still write: a shared file system shows files late, a lost node's
# process goes on until its heartbeat is missed.
GRACE_S = 60.0

# Of a failed run's output.
NUM_LOG_LINES = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyStatus:
    """All runs of a plan and where they stand."""

    states: tuple[RunState, ...]
    """In the plan's order."""
    queue: Queue
    damaged: tuple[str, ...] = ()
    """A line for each damaged record of the study's jobs; those of runs are in their states."""
    fit: FitState | None = None
    """Where the job stands that fits when all is over; None: none was sent."""

    def damaged_of(self, wanted: Collection[str] | None) -> list[str]:
        """Return the lines of damaged runs; ``wanted``: only of these, None: of all."""
        found = {s.run.run_id: str(s.reason) for s in self.states if s.state == "damaged"}
        return [line for run_id, line in found.items() if wanted is None or run_id in wanted]

    @property
    def unreachable(self) -> str | None:
        """Why the scheduler did not answer; then the states are by the files. None: it answered."""
        return self.queue.answer.unreachable


def study_status(study_folder: Path, plan: Plan) -> StudyStatus:
    """Return where every run of a plan stands, by its files and one query of the scheduler.

    A second command asks accounting, where there is any, about jobs that the queue has forgotten.
    A damaged record costs its own run or jobs.
    """
    finished = _finished(study_folder, plan)
    queue = query_queue(study_folder, finished)
    # After the queue: a run that ends between the two would seem to be lost.
    by_files = study_states(study_folder, plan, finished)
    queue = add_accounting(queue, _forgotten(by_files, queue))
    merge = _Merge(study_folder, queue, trunk_jobs(plan))
    merged = {state.run.run_id: state for state in map(merge.state, by_files)}
    states = (dataclasses.replace(merged[s.run.run_id], run=s.run) for s in by_files)
    damaged = (*map(str, queue.damaged), *merge.damaged)
    fit = fit_state(study_folder, queue)
    return StudyStatus(states=tuple(states), queue=queue, damaged=damaged, fit=fit)


@dataclass(frozen=True, kw_only=True, slots=True)
class LiveWork:
    """What of a study is at work, or in the queue."""

    run_ids: frozenset[str]
    """Runs that a process is training or a job in the queue is going to train, or may be."""
    hidden: Mapping[str, str]
    """Those of them whose jobs may be there without being shown, with the reason."""
    queue: Queue
    """The tasks of all runs without a result."""


def live_work(
    study_folder: Path, plan: Plan, results: Mapping[str, RunResult] | None = None
) -> LiveWork:
    """Return what is at work or in the queue.

    A run whose records are damaged may be one of them, and counts as one.

    Args:
        study_folder: the study's folder.
        plan: its plan.
        results: by run id, those that were read already; a result never changes.

    Raises:
        SchedulerError: something was sent, and the scheduler does not answer.
        UserError: a submission's record is damaged, so that its jobs are not known.
    """
    finished = _finished(study_folder, plan, results)
    queue = query_queue(study_folder, finished)
    for error in queue.damaged:
        raise error
    if queue.answer.unreachable is not None:
        raise SchedulerError("squeue", queue.answer.unreachable)
    live = {run_id for run_id in queue.tasks if queue.live(run_id) is not None}
    for run_id in {run.run_id for run in plan.runs} - live - finished.keys():
        folder = RunFolder(study_folder, run_id)
        if folder.checked()[1] is not None or folder.attempt_at_work() is not None:
            live.add(run_id)
    hidden = hidden_runs(study_folder, queue, queue.tasks.keys() - live - finished.keys())
    return LiveWork(run_ids=frozenset(live | hidden.keys()), hidden=hidden, queue=queue)


def live_runs(study_folder: Path, plan: Plan) -> frozenset[str]:
    """Return the runs of :func:`live_work`; raises as it does."""
    return live_work(study_folder, plan).run_ids


def is_any_live(study_folder: Path) -> bool:
    """Return whether a run of a study is at work or in the queue, as far as that can be known."""
    try:
        return bool(live_runs(study_folder, read_plan(study_folder)))
    except SchedulerError:
        # Of jobs that were sent to a cluster, too.
        return True


def _finished(
    study_folder: Path, plan: Plan, known: Mapping[str, RunResult] | None = None
) -> dict[str, RunResult]:
    """Return the results that there are, by run id; damaged ones are left out."""
    found: dict[str, RunResult | None] = dict(known or {})
    for run in (run for run in plan.unique_runs if run.run_id not in found):
        with contextlib.suppress(UserError):
            found[run.run_id] = RunFolder(study_folder, run.run_id).result()
    return {run_id: result for run_id, result in found.items() if result is not None}


def _forgotten(states: Sequence[RunState], queue: Queue) -> list[SentTask]:
    """Return newest jobs of unfinished runs that the queue does not have."""
    found = []
    for state in states:
        tasks = [t for t in queue.tasks.get(state.run.run_id, ()) if not t.is_local and t.job_id]
        if state.result is None and tasks and queue.job(tasks[-1]) is None:
            found.append(tasks[-1])
    return [task for task in found if task.hidden is None]


def _with_kind(study_folder: Path, state: RunState, outputs: Sequence[Path] = ()) -> RunState:
    """Return a failed run with its kind and its last lines of output."""
    if state.state != "failed" or state.attempt is None:
        return state
    folder = RunFolder(study_folder, state.run.run_id)
    lines = last_lines(folder, state.attempt, outputs)
    kind = failures.kind_of_attempt(state.attempt)
    return dataclasses.replace(state, kind=kind, log_lines=tuple(lines[-NUM_LOG_LINES:]))


class _Merge:
    """Joins what the files have of a run with what the scheduler has of its jobs."""

    def __init__(self, study_folder: Path, queue: Queue, trunks: Mapping[str, TrunkJob]) -> None:
        self._folder = study_folder
        self._queue = queue
        self._trunks = trunks
        self._options: Mapping[str, RunOptions] = {}
        self._cancelled: set[str] = set()
        self._now_s = time.time()
        damaged = []
        try:
            self._options = read_options(study_folder)
        except UserError as error:
            damaged.append(str(error))
        try:
            self._cancelled = cancelled_jobs(study_folder)
        except UserError as error:
            damaged.append(str(error))
        self.damaged = tuple(damaged)

    def state(self, state: RunState) -> RunState:
        """Return where a run stands."""
        if state.state == "damaged":
            return state
        return or_damaged(state.run, lambda: self._state(state))

    def _state(self, state: RunState) -> RunState:
        tasks = self._queue.tasks.get(state.run.run_id, ())
        if state.result is not None or not tasks:
            return _with_kind(self._folder, state)
        live = self._queue.live(state.run.run_id)
        if live is not None:
            return self._with_wait(self._live(state, *live), live[0])
        if state.state == "running":
            return dataclasses.replace(state, job=self._queue.job(tasks[-1]))
        if state.state == "failed" and _attempt_of(state, tasks[-1]) is not None:
            return self._failed(state, tasks[-1])
        return self._not_live(state, tasks[-1])

    def _with_wait(self, state: RunState, task: SentTask) -> RunState:
        """Return the state with the longer run that a run in the queue waits for."""
        trunk = self._trunks.get(state.run.run_id)
        if trunk is None or state.state not in ("waiting", "requeued"):
            return state
        place = (task.submission.submission_id, task.array)
        wait = find_wait(
            self._folder,
            state.run.run_id,
            trunk,
            lambda longer: (
                is_trained(self._folder, longer)
                or is_queued(self._queue, longer, self._cancelled, place)
            ),
        )
        return (
            state if wait is None else _become(state, state.state, f"{state.reason}, {wait.text}")
        )

    def _live(self, state: RunState, task: SentTask, job: JobState) -> RunState:
        """Return the state of a run whose job waits or runs."""
        state = dataclasses.replace(state, job=job)
        same_job = state.attempt is not None and state.attempt.job_id == job.job_id
        if same_job and job.is_paused:
            return _paused(state, job)
        if state.state == "running":
            if same_job and not job.is_running:
                return _become(state, "requeued", "its earlier process has not stopped yet")
            return state
        name = "requeued" if job.restarts > 0 or same_job else "waiting"
        if not job.is_running:
            return _become(state, name, why_it_waits(job, state.attempt))
        if state.state == "failed" and same_job:
            return self._failed(state, task)
        if task.is_cancelled(self._cancelled):
            return _become(state, "waiting", f"{job.name} is being cancelled")
        note = task.not_requeued(self._folder, state.attempt)
        if note is not None:
            tries = f"{job.text}, tries to be requeued: {note.message}"
            return _become(state, "requeued", tries)
        return _become(state, name, task.why_it_does_not_train(job))

    def _failed(self, state: RunState, task: SentTask) -> RunState:
        """Return the state of a run whose newest attempt recorded an error."""
        state = _with_kind(self._folder, state, task.logs(self._folder))
        folder = RunFolder(self._folder, state.run.run_id)
        failed = failures.num_failures(folder, self._options)
        if failed < task.submission.max_failures:
            return state
        return _become(state, "failed", f"parked after {failed} failures; {state.reason}")

    def _not_live(self, state: RunState, task: SentTask) -> RunState:
        """Return the state of a run without result, process and job in the queue."""
        job = self._queue.job(task)
        if task.rejected is not None:
            return _become(state, "missing", f"rejected: {task.rejected}")
        note = task.not_requeued(self._folder, state.attempt)
        if note is not None and not self._is_cancelled(task, job):
            return self._not_requeued(state, task, note)
        if job is not None:
            return self._ended(state, task, job)
        if task.is_cancelled(self._cancelled):
            return _become(state, "missing", f"{task.name} was cancelled")
        if task.is_local:
            return self._local_gone(state, task)
        is_away = self._queue.answer.unreachable is not None
        unseen = "the scheduler does not answer" if is_away else task.hidden
        if unseen is not None:
            sent = f"sent as {task.name}" if task.job_id else "perhaps sent"
            return _become(state, "unknown", f"{sent}; {unseen}")
        if task.job_id is None:
            return _become(state, "missing", "its submission was cut off; submit again")
        if self._now_s - self._last_sign_s(state, task) < GRACE_S:
            return _become(state, "waiting", f"{task.name} has just left the queue")
        gone = f"{task.name} is gone and left no result"
        if self._queue.is_reused(task):
            gone = f"{gone}; the scheduler has given its number to another job"
        lines = self._last_lines(state, task)
        if self._queue.no_accounting is None:
            return _died(state, "lost", gone, lines)
        kind = failures.kind_of_output(lines) or "lost"
        return _died(state, kind, f"{gone}; {self._queue.no_accounting}", lines)

    def _is_cancelled(self, task: SentTask, job: JobState | None) -> bool:
        is_ended_so = job is not None and job.state == "CANCELLED"
        return is_ended_so or task.is_cancelled(self._cancelled)

    def _not_requeued(self, state: RunState, task: SentTask, note: NotRequeued) -> RunState:
        """Return the state of a run whose job saved, and was not taken back into the queue."""
        state = dataclasses.replace(state, job=self._queue.job(task))
        tries = "once" if note.num_tries == 1 else f"{note.num_tries} times"
        reason = f"{task.name} asked {tries} to be requeued: {note.message}"
        if self._queue.answer.unreachable is not None:
            return _become(state, "unknown", f"{reason}; the scheduler does not answer")
        reason += "; submit again to go on"
        return dataclasses.replace(_become(state, "failed", reason), kind="requeue")

    def _local_gone(self, state: RunState, task: SentTask) -> RunState:
        """Return the state of a run whose local process is gone, or not visible from here."""
        attempt = _attempt_of(state, task)
        if attempt is None and (task.process is None or task.process.is_alive() is None):
            return _become(state, "missing", f"{task.name} cannot be seen from here")
        if attempt is None:
            return _become(state, "missing", f"{task.name} ended before this run began")
        if attempt.ended:
            return state
        reason = f"{task.name} is gone and left no result"
        return _died(state, "lost", reason, self._last_lines(state, task))

    def _ended(self, state: RunState, task: SentTask, job: JobState) -> RunState:
        """Return the state of a run whose job ended without a result or an error's record."""
        state = dataclasses.replace(state, job=job)
        if job.state == "CANCELLED":
            return _become(state, "missing", f"{job.name} was cancelled")
        lines = self._last_lines(state, task)
        kind = failures.kind_of_job(job, lines)
        reason = failures.describe_job(job)
        return _died(state, kind, f"{reason} without a result" if kind == "lost" else reason, lines)

    def _last_lines(self, state: RunState, task: SentTask) -> list[str]:
        folder = RunFolder(self._folder, state.run.run_id)
        return last_lines(folder, _attempt_of(state, task), task.logs(self._folder))

    def _last_sign_s(self, state: RunState, task: SentTask) -> float:
        sent_s = task.submission.created_at
        if state.attempt is None:
            return sent_s
        folder = RunFolder(self._folder, state.run.run_id)
        return max(sent_s, folder.last_sign_s(state.attempt) or sent_s)


def _attempt_of(state: RunState, task: SentTask) -> Attempt | None:
    """Return the newest attempt, if it came after the task was sent."""
    return state.attempt if state.attempt is not None and task.is_before(state.attempt) else None


def _paused(state: RunState, job: JobState) -> RunState:
    """Return a run whose processes stand still, and whose rate means nothing."""
    step = "" if state.step is None else f" at step {state.step} of {state.run.spec.steps}"
    reason = f"{job.text}{step}: {job.meaning}"
    return dataclasses.replace(_become(state, "waiting", reason), steps_per_s=None)


def _died(state: RunState, kind: str, reason: str, lines: Sequence[str]) -> RunState:
    """Return the state of a run whose job or process is over, with the end of what it wrote."""
    last = None if state.attempt is None else state.attempt.exit_reason
    if kind == "lost" and last is not None:
        reason = f"{reason} ({last})"
    state = _become(state, "lost" if kind == "lost" else "failed", reason)
    return dataclasses.replace(state, kind=kind, log_lines=tuple(lines[-NUM_LOG_LINES:]))


def _become(state: RunState, name: str, reason: str | None) -> RunState:
    return dataclasses.replace(state, state=name, reason=reason)

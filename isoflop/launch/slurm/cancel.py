"""`isoflop cancel`: ends runs at work and removes those that wait from the queue."""

from __future__ import annotations

import os
import signal
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from isoflop.launch.process import ProcessIdentity
from isoflop.launch.run_folder import RunFolder
from isoflop.launch.slurm import scheduler
from isoflop.launch.slurm.queue import Queue, SentTask, hidden_runs, query_queue
from isoflop.launch.slurm.records import record_cancelled
from isoflop.launch.slurm.then_fit import live_fits
from isoflop.plan.planner import Plan


@dataclass(frozen=True, kw_only=True, slots=True)
class Cancellation:
    """What is to be ended."""

    tasks: tuple[SentTask, ...]
    """In the queue, or processes of submissions to this machine."""
    fits: tuple[SentTask, ...]
    """Jobs that are to fit when all runs are over."""
    holders: dict[str, ProcessIdentity]
    """Processes to end on this machine, by the id of the run that one trains without a job."""
    elsewhere: dict[str, str]
    """The host of each run that a process which is not visible here trains without a job: of
    another machine, or of another container of this one."""
    hidden: dict[str, str]
    """Runs with a job that may be there without being shown here, with the reason."""
    damaged: tuple[str, ...] = ()
    """A line for each record that cannot be read: what it knows of is not ended."""

    @property
    def run_ids(self) -> list[str]:
        """All runs that end, those that share a task with a wanted one included."""
        shared = (run_id for task in self.tasks for run_id in task.run_ids)
        return list(dict.fromkeys([*shared, *self.holders]))


def to_cancel(study_folder: Path, plan: Plan, wanted: Collection[str] | None) -> Cancellation:
    """Return what has to end so that some runs do.

    Args:
        study_folder: the study's folder.
        plan: its plan.
        wanted: run ids; None: all.

    Raises:
        SchedulerError: the scheduler does not answer.
    """
    runs = {r.run_id for r in plan.runs if wanted is None or r.run_id in wanted}
    checked = {run_id: RunFolder(study_folder, run_id).checked() for run_id in sorted(runs)}
    damage = {run_id: error for run_id, (_, error) in checked.items() if error is not None}
    readable = runs - damage.keys()
    finished = {run_id for run_id, (result, _) in checked.items() if result is not None}
    queue = query_queue(study_folder, finished)
    if queue.answer.unreachable is not None:
        raise scheduler.SchedulerError("squeue", queue.answer.unreachable)
    tasks = _live_tasks(queue, runs - finished)
    held = readable - finished - {run_id for task in tasks for run_id in task.run_ids}
    hidden = hidden_runs(study_folder, queue, held)
    holders: dict[str, ProcessIdentity] = {}
    elsewhere: dict[str, str] = {}
    for run_id in sorted(held - hidden.keys()):
        attempt = RunFolder(study_folder, run_id).attempt_at_work()
        if attempt is None:
            continue
        if attempt.holder.is_alive():
            # `isoflop run` itself, which would go on with its next run.
            starter = None if wanted is not None else _starter(attempt.holder.pid)
            holders[run_id] = starter or attempt.holder
        else:
            elsewhere[run_id] = attempt.holder.host
    lines = [str(error) for error in (*queue.damaged, *damage.values())]
    return Cancellation(
        tasks=tuple(tasks),
        fits=live_fits(queue) if wanted is None else (),
        holders=holders,
        elsewhere=elsewhere,
        hidden=hidden,
        damaged=tuple(lines),
    )


def cancel(study_folder: Path, cancellation: Cancellation) -> dict[str, str]:
    """End tasks and processes without waiting: each run saves at its next step, if there is time.

    The jobs that scancel took, and processes of tasks, are recorded as cancelled.

    Returns why the others were not ended, by their names (`job 123_4`, `process 123`).

    Raises:
        SchedulerError: scancel failed as a whole.
    """
    tasks = (*cancellation.tasks, *cancellation.fits)
    jobs = _still_theirs([task for task in tasks if not task.is_local])
    refused = scheduler.cancel(jobs)
    not_ended = {f"job {job_id}": words for job_id, words in refused.items()}
    ended = [job_id for job_id in jobs if job_id not in refused]
    names = {task.process: task.comment for task in tasks if task.process is not None}
    for process in {*names, *cancellation.holders.values()}:
        # Its number may be another's since it was looked at.
        if not process.is_alive():
            continue
        try:
            os.kill(process.pid, signal.SIGTERM)
        except ProcessLookupError:
            continue
        except PermissionError as error:
            not_ended[f"process {process.pid}"] = str(error.strerror)
            continue
        if process in names:
            ended.append(names[process])
    if ended:
        # The scheduler forgets a cancelled job within minutes.
        record_cancelled(study_folder, ended)
    return not_ended


def _still_theirs(tasks: Collection[SentTask]) -> list[str]:
    """Return the ids of jobs that still are the tasks': a person may have taken long to answer.

    Raises:
        SchedulerError: the scheduler does not answer.
    """
    ids = [str(task.job_id) for task in tasks]
    queue = Queue(answer=scheduler.query(ids))
    if queue.answer.unreachable is not None:
        raise scheduler.SchedulerError("squeue", queue.answer.unreachable)
    return [str(task.job_id) for task in tasks if queue.job(task) is not None]


def _starter(pid: int) -> ProcessIdentity | None:
    """Return the `isoflop run` that a process is a worker of; None: it is none."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        parent = int(after_name[1])
        is_worker = b"multiprocessing" in Path(f"/proc/{pid}/cmdline").read_bytes()
        is_isoflop = b"isoflop" in Path(f"/proc/{parent}/cmdline").read_bytes()
    except OSError:
        return None
    return ProcessIdentity.of(parent) if is_worker and is_isoflop else None


def _live_tasks(queue: Queue, runs: Collection[str]) -> list[SentTask]:
    """Return every live task of the runs once; by hand, a run may have got several jobs."""
    tasks = {}
    for run_id in runs:
        for task in queue.tasks.get(run_id, ()):
            job = queue.job(task)
            if job is not None and not job.is_final:
                tasks[job.job_id] = task
    return [tasks[job_id] for job_id in sorted(tasks)]

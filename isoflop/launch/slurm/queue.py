"""The tasks that each run was sent as, and the state of their jobs, by one query for all.

A number alone says little: after a lost state, and on another cluster, it is another's job. A job
is a task's only if its comment says so. A job that is not there is gone only where it would be
visible: on the cluster that it was sent to, to this user.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from isoflop.errors import UserError
from isoflop.files import is_plain_file
from isoflop.launch.process import ProcessIdentity
from isoflop.launch.run_records import Attempt
from isoflop.launch.slurm import scheduler
from isoflop.launch.slurm.records import (
    NotRequeued,
    Submission,
    array_folder,
    cancelled_jobs,
    comment_of,
    not_requeued_file,
    read_fit,
    read_not_requeued,
    read_submission,
    readable_submissions,
    slurm_task_id,
    write_submission,
)
from isoflop.launch.slurm.scheduler import Answer, JobState


@dataclass(frozen=True, kw_only=True, slots=True)
class SentTask:
    """One task of a submission: a job, or an element of an array."""

    submission: Submission
    array: int
    index: int
    run_ids: tuple[str, ...]
    job_id: str | None
    """123_4 or 123; on this machine its process; None: the scheduler's answer never came."""
    rejected: str | None
    process: ProcessIdentity | None = None
    """Which process it is on this machine; None: a job of a scheduler, or sent by 0.1.0 and not to
    be seen here."""
    hidden: str | None = None
    """Why its job may be there although the queue does not show it; None: it would be shown."""

    @property
    def comment(self) -> str:
        """The comment of its job."""
        return comment_of(self.submission.submission_id, self.array)

    @property
    def is_local(self) -> bool:
        """Whether it is a process of a machine instead of a job of a scheduler."""
        return self.submission.cluster == "local"

    @property
    def is_fit(self) -> bool:
        """Whether it is the job of isoflop.launch.slurm.then_fit."""
        return self.submission.arrays[self.array].is_fit

    @property
    def name(self) -> str:
        """As shown to people: `job 123_4`, or `process 123`."""
        return f"{'process' if self.is_local else 'job'} {self.job_id}"

    @property
    def at_a_time(self) -> int:
        """Most tasks of its array that run together."""
        share = self.submission.arrays[self.array].at_a_time
        return self.submission.throttle if share is None else share

    def is_cancelled(self, cancelled: Collection[str]) -> bool:
        """Return whether it is among what :func:`cancelled_jobs` returned."""
        # The number of a process is given again; 0.1.0 recorded it nevertheless.
        if self.is_local and self.submission.arrays[self.array].process is not None:
            return self.comment in cancelled
        return self.job_id in cancelled or self.comment in cancelled

    def is_before(self, attempt: Attempt) -> bool:
        """Return whether an attempt came after the task was sent: nothing newer is known."""
        if self.job_id is not None and attempt.job_id == self.job_id:
            return True
        return attempt.start_s >= self.submission.created_at

    def not_requeued(self, study_folder: Path, newest: Attempt | None) -> NotRequeued | None:
        """Return that it could not requeue itself, unless the run began again since.

        Args:
            study_folder: the study's folder.
            newest: the run's newest attempt.

        Raises:
            UserError: the record is damaged.
        """
        if self.job_id is None:
            return None
        submission_id = self.submission.submission_id
        note = read_not_requeued(not_requeued_file(study_folder, submission_id, self.job_id))
        is_old = note is not None and newest is not None and newest.start_s > note.at_s
        return None if is_old else note

    def why_it_does_not_train(self, job: JobState) -> str:
        """Return why a run does not train although its job has a node, for people."""
        shares = len(self.run_ids)
        why = f"one of its {shares} runs" if shares > 1 else job.meaning or "starting up"
        return f"{job.text}, {why}"

    def logs(self, study_folder: Path) -> list[Path]:
        """Return the files that its output goes to, those of its first process first."""
        folder = array_folder(study_folder, self.submission.submission_id, self.array)
        found: list[Path] = []
        # Asked for by name: the folder has the files of all tasks, and there may be thousands.
        for process in itertools.count() if self.job_id else ():
            names = (f"{self.job_id}_{process}_log.{stream}" for stream in ("err", "out"))
            there = [path for path in map(folder.joinpath, names) if is_plain_file(path)]
            if not there:
                break
            found += there
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Queue:
    """The tasks of all runs, and what the scheduler answered about them."""

    tasks: Mapping[str, Sequence[SentTask]] = field(default_factory=dict)
    """Of each run, oldest first; tasks that were found in the queue by their comment have a job id
    although their record has none."""
    answer: Answer = field(default_factory=Answer)
    damaged: tuple[UserError, ...] = ()
    """The records of submissions whose jobs are not known."""
    no_accounting: str | None = None
    """That accounting, which this cluster has, did not answer; None: it did, or was not asked."""
    fits: Sequence[SentTask] = ()
    """Jobs that fit when all runs are over, oldest first."""

    def job(self, task: SentTask) -> JobState | None:
        """Return the state of a task's job; None: it is not in the queue, or not known."""
        job = self._found(task)
        return job if job is not None and job.comment == task.comment else None

    def is_reused(self, task: SentTask) -> bool:
        """Return whether the scheduler has given the task's number to another job."""
        return self._found(task) is not None and self.job(task) is None

    def _found(self, task: SentTask) -> JobState | None:
        return None if task.job_id is None else self.answer.jobs.get(_key(task))

    @property
    def num_live_tasks(self) -> int:
        """Jobs and tasks of arrays that wait or run; processes of this machine are none."""
        tasks = itertools.chain(self.fits, *self.tasks.values())
        jobs = (self.job(task) for task in tasks)
        live = (job for job in jobs if job is not None and not job.is_final)
        return len({job.job_id for job in live if not job.is_process})

    def live(self, run_id: str) -> tuple[SentTask, JobState] | None:
        """Return the newest task of a run that waits or runs; None: there is none."""
        for task in reversed(self.tasks.get(run_id, ())):
            job = self.job(task)
            if job is not None and not job.is_final:
                return task, job
        return None


def query_queue(
    study_folder: Path, finished: Iterable[str] = (), *, only: Collection[str] | None = None
) -> Queue:
    """Read the records of all submissions; query squeue once, if a job may be of interest.

    Args:
        study_folder: the study's folder.
        finished: run ids whose jobs do not matter any more; tasks of no others are left out.
        only: run ids; tasks that have none of them are left out. None: all matter.
    """
    done = set(finished)
    submissions, damaged = readable_submissions(study_folder)
    sent = sent_tasks(submissions)
    if only is not None:
        sent = [task for task in sent if not set(only).isdisjoint(task.run_ids)]
    fits_made = [task for task in sent if task.is_fit and _is_over(study_folder, task)]
    tasks = [
        task
        for task in sent
        if (task not in fits_made if task.is_fit else not done.issuperset(task.run_ids))
    ]
    answer = _ask([task for task in tasks if not task.is_local and task.rejected is None])
    tasks = [_with_process(study_folder, task) if task.is_local else task for task in tasks]
    processes = _processes(task for task in tasks if task.is_local)
    answer = dataclasses.replace(answer, jobs={**answer.jobs, **processes})
    tasks = list(_identified(tasks, answer))
    if answer.unreachable is None:
        try:
            tasks = _with_hidden(Queue(answer=answer), tasks)
        except scheduler.SchedulerError as error:
            answer = dataclasses.replace(answer, unreachable=error.words)
    by_run: dict[str, list[SentTask]] = {}
    for task in tasks:
        for run_id in task.run_ids:
            by_run.setdefault(run_id, []).append(task)
    fits = sorted(
        (*fits_made, *(task for task in tasks if task.is_fit)),
        key=lambda task: task.submission.created_at,
    )
    return Queue(tasks=by_run, answer=answer, damaged=tuple(damaged), fits=fits)


def _is_over(study_folder: Path, fit: SentTask) -> bool:
    """Return whether a job that fits left its record; one that is damaged was left, too."""
    try:
        return read_fit(study_folder, fit.submission.submission_id) is not None
    except UserError:
        return True


def hidden_runs(study_folder: Path, queue: Queue, run_ids: Iterable[str]) -> dict[str, str]:
    """Return which of some runs have a job that may be there without being shown, with the reason.

    Raises:
        UserError: a record is damaged.
    """
    cancelled = cancelled_jobs(study_folder)
    return {
        run_id: f"{task.name}, {task.hidden}"
        for run_id in sorted(run_ids)
        for task in queue.tasks.get(run_id, ())
        if task.hidden is not None and not task.is_cancelled(cancelled)
    }


def record_found(study_folder: Path, queue: Queue) -> None:
    """Write down the ids of this user's jobs that were found by their comment.

    The queue forgets a job minutes after its end, and its comment with it.

    Raises:
        UserError: a record is damaged.
    """
    found: dict[str, dict[int, str]] = {}
    for task in itertools.chain(*queue.tasks.values(), queue.fits):
        sent = task.submission
        is_new = task.job_id is not None and sent.arrays[task.array].job_id is None
        if is_new and sent.user in (None, scheduler.user_name()):
            ids = found.setdefault(sent.submission_id, {})
            ids[task.array] = str(task.job_id).partition("_")[0]
    for submission_id, ids in found.items():
        sent = read_submission(study_folder, submission_id)
        arrays = tuple(
            dataclasses.replace(array, job_id=ids.get(number, array.job_id))
            for number, array in enumerate(sent.arrays)
        )
        write_submission(study_folder, dataclasses.replace(sent, arrays=arrays))


def add_accounting(queue: Queue, tasks: Sequence[SentTask]) -> Queue:
    """Return the queue with the jobs that only accounting, if the cluster has it, knows."""
    try:
        if not tasks or not scheduler.cluster().has_accounting:
            return queue
    except scheduler.SchedulerError:
        return queue
    ids = dict.fromkeys(task.job_id for task in tasks if task.job_id is not None)
    history = scheduler.history(list(ids))
    known = {
        job.job_id: dataclasses.replace(job, comment=task.comment)
        for task in tasks
        if task.job_id is not None
        and (job := history.jobs.get(task.job_id)) is not None
        and _is_accounted(task, job)
        # Of a job that squeue does not have, accounting can only be behind with any other state.
        and job.is_final
    }
    answer = dataclasses.replace(
        queue.answer,
        jobs={**known, **queue.answer.jobs},
        calls=queue.answer.calls + history.calls,
    )
    words = history.unreachable
    silent = None if words is None else f"accounting does not answer: {words}"
    return dataclasses.replace(queue, answer=answer, no_accounting=silent)


def why_it_waits(job: JobState, attempt: Attempt | None) -> str:
    """Return why a job has no node, and what ended the run's newest attempt, for people."""
    parts = [f"{job.name} {job.state}" + (f" ({job.reason})" if job.reason else "")]
    if job.meaning is not None:
        parts.append(job.meaning)
    if job.restarts:
        parts.append(f"put back {job.restarts} times" if job.restarts > 1 else "put back once")
    if attempt is not None and attempt.exit_reason:
        parts.append(f"before: {attempt.exit_reason}")
    # A held job waits until a person releases it.
    if job.reason is not None and "held" in job.reason.lower():
        parts.append(f"until `scontrol release {job.job_id}`")
    return ", ".join(parts)


def sent_tasks(submissions: Iterable[Submission]) -> list[SentTask]:
    """Return the tasks of submissions, in their order."""
    return [
        SentTask(
            submission=submission,
            array=number,
            index=index,
            run_ids=run_ids,
            job_id=slurm_task_id(array, index),
            rejected=array.rejected,
            process=array.process,
        )
        for submission in submissions
        for number, array in enumerate(submission.arrays)
        for index, run_ids in enumerate(array.tasks)
    ]


# Clocks of the machine that submits and of the controller.
_CLOCK_SKEW_S = 600.0


def _is_accounted(task: SentTask, job: JobState) -> bool:
    """Return whether a job of accounting, which may not keep comments, is a task's."""
    if job.comment is not None:
        return job.comment == task.comment
    sent = task.submission
    return (
        sent.job_name in (None, job.job_name)
        and sent.user in (None, job.user)
        and (job.submit_s is None or job.submit_s >= sent.created_at - _CLOCK_SKEW_S)
    )


def _with_hidden(queue: Queue, tasks: Sequence[SentTask]) -> list[SentTask]:
    """Return the tasks, those whose jobs may be there without being shown with the reason.

    Raises:
        SchedulerError: the controller cannot be reached.
    """
    unseen = [
        task
        for task in tasks
        if not task.is_local and task.rejected is None and queue.job(task) is None
    ]
    # Records of 0.1.0 do not say where jobs were sent and by whom.
    if all(task.submission.cluster_name is None for task in unseen):
        return list(tasks)
    here = scheduler.cluster()
    hidden = {id(task): _why_hidden(queue, task, here) for task in unseen}
    return [
        dataclasses.replace(task, hidden=why) if (why := hidden.get(id(task))) else task
        for task in tasks
    ]


def _why_hidden(queue: Queue, task: SentTask, here: scheduler.Cluster) -> str | None:
    sent = task.submission
    if sent.cluster_name not in (None, here.name):
        return f"sent to cluster {sent.cluster_name}, this is {here.name}"
    is_others = sent.user not in (None, scheduler.user_name())
    if here.hides_jobs and is_others and not queue.is_reused(task):
        return f"not visible to you, submitted by {sent.user}"
    return None


def _key(task: SentTask) -> str:
    """Return the key of a task's job in an answer: a process may have the number of a job."""
    return task.name if task.is_local else str(task.job_id)


def _ask(tasks: Sequence[SentTask]) -> Answer:
    # Submissions that were cut off before their answer are found by comment only.
    if any(task.job_id is None for task in tasks):
        users = {task.submission.user or scheduler.user_name() for task in tasks}
        return scheduler.query([], all_of_user=True, others=users - {scheduler.user_name()})
    return scheduler.query([task.job_id for task in tasks if task.job_id is not None])


def _identified(tasks: Iterable[SentTask], answer: Answer) -> Iterator[SentTask]:
    """Yield the tasks, those of cut-off submissions with the job ids that the queue has."""
    found = {
        (job.comment, job_id.partition("_")[2] or "0"): job_id
        for job_id, job in answer.jobs.items()
        if job.comment
    }
    for task in tasks:
        if task.job_id is None and task.rejected is None:
            yield dataclasses.replace(task, job_id=found.get((task.comment, str(task.index))))
        else:
            yield task


def _with_process(study_folder: Path, task: SentTask) -> SentTask:
    """Return a task of this machine with its process, where 0.1.0 recorded only its number."""
    if task.process is not None or task.job_id is None:
        return task
    sent = array_folder(study_folder.resolve(), task.submission.submission_id, task.array)
    try:
        arguments = Path(f"/proc/{task.job_id}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return task
    # The number may be another's by now; the folder is on the task's command line only.
    if os.fsencode(sent) not in arguments:
        return task
    return dataclasses.replace(task, process=ProcessIdentity.of(int(task.job_id)))


def _processes(tasks: Iterable[SentTask]) -> dict[str, JobState]:
    """Return the tasks of submissions to this machine whose process is there."""
    return {
        _key(task): JobState(
            job_id=task.job_id, state="RUNNING", comment=task.comment, is_process=True
        )
        for task in tasks
        if task.job_id is not None and task.process is not None and task.process.is_alive()
    }

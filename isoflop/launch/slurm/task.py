"""What a job on the cluster runs: one task of a submission, which it finds in its record.

    python -m isoflop.launch.slurm.task STUDY_FOLDER SUBMISSION_ID ARRAY

The record was written before sbatch was started. A node that does not see it yet waits, then puts
the task back into the queue.

Each run is executed as anywhere (isoflop.launch.execute): "already complete?", the claim, its own
checkpoints, the result once. This module adds what a scheduler needs:

* USR2 (the time limit is near, or a preemption that gives notice): the run saves at its next step,
  and the task requeues itself, as often as it takes. A scheduler that does not answer is asked
  again for as long as there is time; then the task leaves a record of it (records.NotRequeued).
* TERM (a preemption without notice, `scontrol requeue`, scancel): the run saves and the task ends;
  SLURM requeues what it preempted.
* A run that another process holds, such as an orphan on a node that SLURM has lost: the task waits
  for its result, or for its heartbeat to stop. If neither comes, it gives its node back: it goes on
  with its other runs and then requeues itself, to begin later.
* A run that begins where a longer one passes, which is not there yet: likewise, once the task's
  other runs are over (isoflop.launch.slurm.waiting).
* A folder that was moved away: the task ends with one line, and writes nothing more. It is not
  requeued, since nothing of it would be found.
* A failure: the task requeues itself until the run has failed max_failures times; then the run is
  parked, with the reason in its last attempt's record.
* A file system that cannot be used: the task ends with an exit code of its own, which the scheduler
  keeps where the disk takes no record. It is not requeued: that would go round without an end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
import os
import platform
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

from isoflop.disk import fault_of, line_of_reason
from isoflop.errors import UserError
from isoflop.files import write_json_atomic
from isoflop.launch.callbacks import StopFlag
from isoflop.launch.job import DISK_FAILED, DONE, FAILED, TO_BE_CONTINUED, Job, JobResult
from isoflop.launch.run_folder import LEASE_TIMEOUT_S, Watch, watch_all
from isoflop.launch.slurm.profile import profile_from_mapping
from isoflop.launch.slurm.records import (
    NotRequeued,
    jobs_file,
    not_requeued_file,
    read_jobs,
    read_options,
    read_submission,
    submission_file,
    waited_file,
)

if TYPE_CHECKING:
    from isoflop.data.windows import TokenData
    from isoflop.launch.command.environment import Surroundings
    from isoflop.train.ranks import Ranks

HELD_POLL_S = 2.0
# How long a task waits for a run whose holder lives, and how much later it then looks again.
HELD_WAIT_S = 2 * LEASE_TIMEOUT_S
HELD_DELAY_S = 1200
# Seconds that a task waits for its record, and how often it is put back where that was in vain.
RECORD_WAIT_S = 60.0
_RECORD_POLL_S = 1.0
MAX_RECORD_TRIES = 3
_TIME_IS_UP = "SIGUSR2"

# Waits between tries to requeue; each is twice the one before.
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 30.0
_WAIT_POLL_S = 0.2
# Before the time limit: to write the record and to end.
REQUEUE_MARGIN_S = 5.0
# Answers to `scontrol requeue` that time does not change.
_REFUSED = re.compile(
    r"disabled|Invalid job id|permission denied|Only batch jobs|not on the PATH", re.IGNORECASE
)


def run_task(study_folder: str, submission_id: str, array: str) -> str:
    """Train the runs of one task. Requeue the task if a run is unfinished.

    Args:
        study_folder: the study's folder.
        submission_id: which submission this is of.
        array: which of its arrays; of its tasks, the one that SLURM's variables name.

    Returns a word for the log, which nothing reads back. The process ends with code 1 if a run
    failed or diverged, 74 if a file system cannot be used, 75 if a run is unfinished and the task
    could not requeue itself.
    """
    # Before anything slow: USR2 ends a process that does not handle it.
    should_stop = StopFlag()
    folder = Path(study_folder)
    try:
        for file in (submission_file(folder, submission_id), jobs_file(folder, submission_id)):
            if not _is_seen(file, should_stop):
                return _not_seen(file)
        submission = read_submission(folder, submission_id)
        sent = submission.arrays[int(array)]
        if sent.is_fit:
            from isoflop.launch.slurm.then_fit import fit_when_done
            from isoflop.launch.status import is_any_live

            # A cluster starts it when all others are over.
            live = functools.partial(is_any_live, folder) if submission.cluster == "local" else None
            code = fit_when_done(folder, submission_id, should_stop, is_any_live=live)
            return sys.exit(code) if code != DONE else "complete"
        profile = profile_from_mapping(submission.profile)
        index = int(os.environ["SLURM_ARRAY_TASK_ID"]) if sent.is_array else 0
        task = ArrayTask(
            folder,
            (submission_id, int(array)),
            sent.tasks[index],
            should_stop,
            max_failures=profile.max_failures,
            signal_s=profile.signal_s,
        )
        return task.run()
    except Exception as error:
        fault = fault_of(error)
        if fault is None:
            raise
        _say(fault.line)
        sys.exit(DISK_FAILED)


def _is_seen(path: Path, should_stop: Callable[[], str | None]) -> bool:
    """Wait for a file that a shared file system shows late; return whether it came."""
    end_s = time.monotonic() + RECORD_WAIT_S
    while not path.exists():
        if time.monotonic() >= end_s or should_stop() is not None:
            return False
        time.sleep(_RECORD_POLL_S)
    return True


def _not_seen(path: Path) -> str:
    """Requeue a task whose record is not there, unless that was tried before."""
    from isoflop.launch.slurm import scheduler

    _say(f"{os.environ.get('SLURMD_NODENAME', platform.node())} does not see {path}")
    slurm_id = SlurmTaskId.from_environment(os.environ)
    if slurm_id is None or int(os.environ.get("SLURM_RESTART_COUNT", "0")) >= MAX_RECORD_TRIES:
        sys.exit(DISK_FAILED)
    try:
        # Any rank: the others cannot begin without it.
        scheduler.requeue(slurm_id.job_id)
    except scheduler.SchedulerError as error:
        _say(f"not put back into the queue: {error.words}")
        sys.exit(DISK_FAILED)
    return "to be continued"


@dataclass(frozen=True, kw_only=True, slots=True)
class SlurmTaskId:
    """The job or task of an array that this process belongs to."""

    job_id: str
    """123, or 123_4 for a task of an array."""
    is_main: bool
    """Whether this process is the job's first."""

    @staticmethod
    def from_environment(environ: Mapping[str, str]) -> SlurmTaskId | None:
        """Return the id that SLURM gave in the environment; None: SLURM did not start this."""
        if environ.get("SUBMITIT_EXECUTOR") != "slurm":
            return None
        array = environ.get("SLURM_ARRAY_JOB_ID")
        job_id = environ["SLURM_JOB_ID"]
        if array is not None:
            job_id = f"{array}_{environ['SLURM_ARRAY_TASK_ID']}"
        return SlurmTaskId(job_id=job_id, is_main=environ.get("SLURM_PROCID", "0") == "0")


def master_address(environ: Mapping[str, str], hosts: Sequence[str]) -> str:
    """Return where the ranks meet: the first node's name or, where none resolves, its address."""
    try:
        socket.getaddrinfo(hosts[0], None)
    except OSError:
        # srun, which knows the node's address, was started there.
        return environ.get("SLURM_LAUNCH_NODE_IPADDR", hosts[0])
    return hosts[0]


class ArrayTask:
    """One task of a submission: trains its runs, and requeues itself where that is due.

    ``place`` is its submission, and its array there.
    """

    def __init__(
        self,
        study_folder: Path,
        place: tuple[str, int],
        run_ids: Sequence[str],
        should_stop: StopFlag,
        *,
        max_failures: int,
        signal_s: float,
    ) -> None:
        from isoflop.launch.slurm.waiting import Waiting

        self._folder = study_folder
        self._submission_id = place[0]
        self._run_ids = run_ids
        self._jobs = read_jobs(study_folder, self._submission_id)
        self._max_failures = max_failures
        self._signal_s = signal_s
        self._should_stop = should_stop
        self._slurm_id = SlurmTaskId.from_environment(os.environ)
        if self._slurm_id is not None and self._slurm_id.is_main:
            # It was requeued after all, by hand or by a try whose answer was lost.
            self._not_requeued(self._slurm_id).unlink(missing_ok=True)
        own_id = None if self._slurm_id is None else self._slurm_id.job_id
        self._waiting = Waiting(
            {run_id: self._jobs[run_id] for run_id in run_ids},
            study_folder,
            place,
            None if own_id is None else waited_file(study_folder, self._submission_id, own_id),
            should_stop,
        )
        self._watches: dict[str, Watch] = {}
        self._unfinished = False
        self._failed = False
        self._try_again = False
        self._held = False
        self._waits = False
        self._prune = False
        self._disk_reason: str | None = None

    def run(self) -> str:
        """Train the runs one after the other; return :meth:`end`."""
        try:
            left = self._in_order(self._run_ids)
            while left:
                run_id = self._next(left)
                if run_id is None:
                    self._put_off()
                    break
                left.remove(run_id)
                self.train(run_id)
            return self.end()
        except Exception:
            # Its code was in the folder: an import may have failed.
            if not self.is_gone:
                raise
            self.end_without_folder()

    def _in_order(self, run_ids: Sequence[str]) -> list[str]:
        """Begin to watch holders that cannot be seen; return the runs, those of these last."""
        self._watches = watch_all(self._folder, run_ids)
        # Each rank looks for itself, and all have to begin the same run.
        if any(self._is_of_ranks(run_id) for run_id in run_ids):
            return list(run_ids)
        return sorted(run_ids, key=lambda run_id: run_id in self._watches)

    def _is_of_ranks(self, run_id: str) -> bool:
        job = self._jobs[run_id]
        return job.trainer is None and job.placement.num_ranks > 1

    def _next(self, left: Sequence[str]) -> str | None:
        """Return the run to begin now; None: all that are left wait for longer ones."""
        if self._disk_reason is not None or self.is_gone:
            return left[0]
        # Ranks agree on it once they have met, and a task has one run of several ranks.
        return left[0] if self._is_of_ranks(left[0]) else self._waiting.first(left)

    def _put_off(self) -> None:
        """Note that runs wait for longer ones, or were not begun when the task was to stop."""
        self._unfinished = True
        self._waits = True
        for wait in self._waiting.waits:
            _say(f"run {wait.run_id} {wait.text}", sys.stdout)

    @property
    def is_gone(self) -> bool:
        """Whether the study's folder was moved or removed."""
        return not jobs_file(self._folder, self._submission_id).exists()

    def end_without_folder(self) -> NoReturn:
        """End with one line and the code of a failure."""
        words = "was moved or removed: it is not made again, and its runs go on where it is"
        _say(f"{self._folder} {words}")
        sys.exit(FAILED)

    def train(self, run_id: str) -> None:
        """Train one run, unless the task was asked to stop, or its disk or folder is gone."""
        if self._disk_reason is not None or self.is_gone:
            return
        if self._should_stop() is not None:
            self._unfinished = True
            return
        job = self._jobs[run_id]
        try:
            result = self._execute(job)
        except UserError as error:
            # A damaged record, or data that are not there, costs this run only.
            _say(f"run {run_id} failed: {error}", sys.stdout)
            self._failed = True
            return
        if result.status == "waits":
            self._put_off()
            return
        self._prune |= job.keep_weights == "best" and result.status == "done"
        reason = "" if result.reason is None else f": {result.reason}"
        _say(f"run {run_id} {result.status}{reason}", sys.stdout)
        if result.status in ("interrupted", "held"):
            self._unfinished = True
            self._held |= result.status == "held"
            self._try_again |= result.asks_for_more
        elif result.failed_by_disk:
            self._disk_reason = result.reason
        elif result.status == "failed":
            self._failed = True
            self._try_again |= not result.failed_by_mistake and not self._is_parked(run_id)
        elif result.status in ("diverged", "gone"):
            self._failed = True

    def end(self) -> str:
        """Requeue the task where that is due; return a word for the log."""
        if self.is_gone:
            self.end_without_folder()
        if self._prune:
            self._prune_weights()
        stop = self._should_stop()
        goes_on = (self._unfinished and stop == _TIME_IS_UP) or (self._try_again and stop is None)
        if self._slurm_id is not None and not self._slurm_id.is_main:
            # The main rank alone decides, and is not to be ended by the code of another.
            return "ended"
        if self._disk_reason is not None:
            _say(line_of_reason(self._disk_reason, self._folder))
            sys.exit(DISK_FAILED)
        if self._slurm_id is not None and goes_on:
            self._requeue(self._slurm_id)
            return "to be continued"
        if self._slurm_id is not None and self._waits and stop is None:
            self._requeue(self._slurm_id, delay_s=self._waiting.give_back())
            return "waits for longer runs, to be continued"
        if self._slurm_id is not None and self._held and stop is None:
            self._requeue(self._slurm_id, delay_s=HELD_DELAY_S)
            return "held elsewhere, to be continued"
        if self._unfinished:
            return "held elsewhere" if stop is None else f"stopped by {stop}"
        if self._failed:
            sys.exit(FAILED)
        return "complete"

    def _requeue(self, slurm_id: SlurmTaskId, *, delay_s: int = 0) -> None:
        """Requeue the task; try again until its time is nearly up, or it is ended from outside."""
        from isoflop.launch.slurm import scheduler

        is_ended = StopFlag((signal.SIGTERM,))
        path = self._not_requeued(slurm_id)
        wait_s = FIRST_WAIT_S
        for num_tries in itertools.count(1):
            try:
                scheduler.requeue(slurm_id.job_id, delay_s=delay_s)
            except scheduler.SchedulerError as error:
                words = error.words
            else:
                path.unlink(missing_ok=True)
                return
            _say(f"not put back into the queue: {words}")
            record = NotRequeued(at_s=time.time(), num_tries=num_tries, message=words)
            # At every try, since nothing is written after a SIGKILL. A folder that was moved away
            # is not made again.
            with contextlib.suppress(OSError):
                if path.parent.is_dir():
                    write_json_atomic(path, dataclasses.asdict(record))
            if _REFUSED.search(words) or not self._wait(wait_s, is_ended):
                break
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)
        sys.exit(TO_BE_CONTINUED)

    def _wait(self, seconds: float, is_ended: Callable[[], str | None]) -> bool:
        """Wait, at most until the task's time is nearly up; return whether there was time left."""
        begin_s = time.monotonic()
        while (left_s := self._time_left_s()) > 0 and is_ended() is None:
            if time.monotonic() - begin_s >= min(seconds, left_s):
                return True
            time.sleep(_WAIT_POLL_S)
        return False

    def _time_left_s(self) -> float:
        """Return seconds in which the task may go on trying; infinity before the time limit nears.

        Without a controller no job is ended, and USR2 comes once it is back.
        """
        # Newer versions of SLURM say it; else USR2 came signal_s before, or earlier.
        end_s = os.environ.get("SLURM_JOB_END_TIME")
        if end_s is not None:
            return float(end_s) - REQUEUE_MARGIN_S - time.time()
        if self._should_stop.received_s is None:
            return math.inf
        return self._should_stop.received_s + self._signal_s - REQUEUE_MARGIN_S - time.time()

    def _not_requeued(self, slurm_id: SlurmTaskId) -> Path:
        return not_requeued_file(self._folder, self._submission_id, slurm_id.job_id)

    def _execute(self, job: Job) -> JobResult:
        from isoflop.launch.train_job import train_job

        if job.trainer is not None or job.placement.num_ranks == 1:
            return self._until_decided(job, None)
        if self._slurm_id is None:
            watch = self._watches.get(job.run_id)
            return train_job(job, should_stop=self._should_stop, watch=watch)
        from submitit import JobEnvironment

        from isoflop.train.parallel import ranks_from_environment

        hosts = JobEnvironment().hostnames
        os.environ.setdefault("MASTER_ADDR", master_address(os.environ, hosts))
        with ranks_from_environment(job.placement) as ranks:
            if self._waiting.first([job.run_id], ranks) is None:
                return JobResult(status="waits")
            return self._until_decided(job, ranks)

    def _until_decided(self, job: Job, ranks: Ranks | None) -> JobResult:
        """Execute a run; wait for up to HELD_WAIT_S as long as another process holds it."""
        from isoflop.launch.train_job import open_data_of

        data = None if job.trainer is not None else open_data_of(job)
        end_s = time.monotonic() + HELD_WAIT_S
        while True:
            result = self._once(job, data, ranks)
            is_held = result.status == "held" and self._should_stop() is None
            waits = is_held and time.monotonic() < end_s
            # Ranks that are not main get "held" of a run that is complete, too.
            if not (waits if ranks is None else bool(ranks.broadcast(float(waits)))):
                return result
            self._watches |= watch_all(self._folder, [job.run_id])
            time.sleep(HELD_POLL_S)

    def _once(self, job: Job, data: TokenData | None, ranks: Ranks | None) -> JobResult:
        stop, watch = self._should_stop, self._watches.get(job.run_id)
        from isoflop.launch.train_job import prune_forks_after, train_job

        if data is not None:
            from isoflop.launch.execute import execute

            result = execute(job, data, should_stop=stop, ranks=ranks, watch=watch)
            prune_forks_after(job, result)
            return result
        # A job that is to go on gives its node back first: its time is nearly up, perhaps.
        again = self._slurm_id is None
        own = self._surroundings()
        return train_job(job, should_stop=stop, watch=watch, surroundings=own, goes_on=again)

    def _surroundings(self) -> Surroundings:
        from isoflop.launch.command.environment import STOP_GRACE_S, Surroundings

        # After USR2 there is signal_s for saving, its record and the requeue; TERM comes before
        # SLURM's own KILL.
        before_limit_s = max(self._signal_s - 3 * REQUEUE_MARGIN_S, self._signal_s / 2)
        return Surroundings(
            environ=dict(os.environ),
            grace_s=lambda reason: before_limit_s if reason == _TIME_IS_UP else STOP_GRACE_S,
        )

    def _prune_weights(self) -> None:
        """Remove weights that do not stay. Once per task: it reads the results of all runs."""
        from isoflop.launch.weights import prune_weights
        from isoflop.plan.artefact import read_plan

        prune_weights(self._folder, read_plan(self._folder))

    def _is_parked(self, run_id: str) -> bool:
        from isoflop.launch.run_folder import RunFolder
        from isoflop.launch.slurm.failures import num_failures

        folder = RunFolder(self._folder, run_id)
        return num_failures(folder, read_options(self._folder)) >= self._max_failures


def _say(text: str, stream: TextIO | None = None) -> None:
    """Write a line to the job's log of errors, which may be on the disk that is full."""
    with contextlib.suppress(OSError):
        print(f"isoflop: {text}", file=stream or sys.stderr, flush=True)


if __name__ == "__main__":
    _say(run_task(*sys.argv[1:]), sys.stdout)

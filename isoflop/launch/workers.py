"""The local pool: as many single-threaded workers as cores, fed with a plan's unfinished runs.

Tiny models run fastest with one thread each. A worker that dies takes only its run with it.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from isoflop.disk import reason_of
from isoflop.environ import environment_with
from isoflop.launch.callbacks import StopFlag
from isoflop.launch.command.environment import Surroundings
from isoflop.launch.job import Job, JobResult, Sibling, assign_device, num_gpus, visible_devices
from isoflop.launch.pending import Pending
from isoflop.launch.run_folder import Watch, watch_all
from isoflop.launch.train_job import open_data_of, train_job

if TYPE_CHECKING:
    from isoflop.data.windows import TokenData


# A run held by another process is tried again this often, and one that waits for a longer run.
HELD_POLL_S = 1.0
# Time for workers to reach the next step boundary and to save when interrupted, before they are
# killed. That loses no more than the work since the last checkpoint.
STOP_GRACE_S = 30.0
_STOP_POLL_S = 0.1
# Of the math libraries; they must be set before a worker loads them.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Something happened to a job: `start`, `step`, `end`, `wait` or `behind`.

    At `wait`, another process has its run; at `behind`, it is to begin where a longer run passes,
    and waits for that.
    """

    kind: str
    job: Job
    step: int = 0
    steps: int = 0
    loss: float | None = None
    result: JobResult | None = None
    longer: Sibling | None = None
    """Whom it waits for."""


@dataclass(slots=True)
class _Worker:
    process: BaseProcess
    pipe: Connection
    job: Job | None = None


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True, kw_only=True, slots=True)
class _Inherited:
    """What all workers give to commands of the user's own."""

    environ: Mapping[str, str]
    """That of the process which starts the workers."""
    devices: Sequence[str]
    """GPUs, which workers take in turn."""

    def of(self, worker: int, job: Job) -> Surroundings:
        """Return what the command of a worker's job inherits."""
        ranks, devices = job.placement.num_ranks, self.devices
        first = worker * ranks % max(1, len(devices))
        return Surroundings(
            environ=self.environ, devices=devices[first : first + ranks] if devices else None
        )


def run_jobs(
    jobs: Sequence[Job],
    num_workers: int,
    on_stop: Callable[[int], bool] = lambda num_saving: False,
    watches: Mapping[str, Watch] = MappingProxyType({}),
) -> Generator[Event]:
    """Run every job once, in order, and yield what happens.

    A job that is to begin where a longer run passes waits for that, and others go before it. One
    whose run another live process holds is tried again until that process has finished or died.
    Closing the iterator (or an exception in the consumer) stops the workers: runs save at their
    next step.

    Args:
        jobs: what to run.
        num_workers: jobs at a time.
        on_stop: called when the workers are stopped, and then a few times a second, with the
            number of runs that have not saved yet; True ends these at once.
        watches: of holders that cannot be seen, by run id.
    """
    watched = dict(watches)
    pending = Pending(jobs)
    next_poll_s = 0.0
    inherited = _Inherited(environ=dict(os.environ), devices=_devices(jobs))
    with _workers(min(num_workers, max(1, len(jobs))), inherited, on_stop) as workers:
        while pending or any(w.job for w in workers):
            for worker in workers:
                if worker.job is not None:
                    continue
                job = pending.next()
                if job is None and time.monotonic() >= next_poll_s:
                    pending.look_again()
                    next_poll_s = time.monotonic() + HELD_POLL_S
                    job = pending.next()
                if job is None:
                    break
                worker.job = job
                worker.pipe.send((job, watched.get(job.run_id)))
                yield Event(kind="start", job=job)
            for waiting, longer in pending.news():
                yield Event(kind="behind", job=waiting, longer=longer)
            for index, event in _receive(workers):
                event = _noted(event, pending, watched)
                yield event
                if event.result is not None and event.result.status == "interrupted":
                    # It was asked to stop and takes no other job, but may not be gone yet.
                    workers[index].process.join()
                if not workers[index].process.is_alive():
                    workers[index] = _start_worker(index, inherited)


def _noted(event: Event, pending: Pending, watched: dict[str, Watch]) -> Event:
    """Take note of what a worker reported; return what to tell of it."""
    run_id = event.job.run_id
    if event.result is None:
        pending.see_step(run_id, event.step)
    elif event.result.status == "held":
        pending.hold(event.job)
        watched |= watch_all(Path(event.job.study_folder), [run_id])
        return Event(kind="wait", job=event.job)
    else:
        pending.end(run_id)
    return event


def _devices(jobs: Sequence[Job]) -> tuple[str, ...]:
    """Return the GPUs that the commands of jobs share."""
    placements = (job.placement for job in jobs if job.trainer is not None)
    return next(filter(None, map(visible_devices, placements)), ())


def _receive(workers: Sequence[_Worker]) -> Iterator[tuple[int, Event]]:
    """Yield messages of all workers, waiting a moment for the first."""
    ready = wait([w.pipe for w in workers if w.job], timeout=HELD_POLL_S)
    for index, worker in enumerate(workers):
        if worker.pipe not in ready or worker.job is None:
            continue
        job = worker.job
        try:
            message: tuple[Any, ...] = worker.pipe.recv()
        except (EOFError, ConnectionResetError):
            worker.process.join()
            worker.job = None
            code = worker.process.exitcode
            reason = f"the worker process died (exit code {code})"
            result = JobResult(status="failed", reason=reason)
            yield index, Event(kind="end", job=job, result=result)
            continue
        if message[0] == "step":
            _, step, steps, loss = message
            yield index, Event(kind="step", job=job, step=step, steps=steps, loss=loss)
        else:
            worker.job = None
            yield index, Event(kind="end", job=job, result=message[1])


@contextmanager
def _workers(
    count: int, inherited: _Inherited, on_stop: Callable[[int], bool]
) -> Iterator[list[_Worker]]:
    workers = [_start_worker(index, inherited) for index in range(count)]
    try:
        yield workers
    finally:
        _stop(workers, on_stop)


def _start_worker(index: int, inherited: _Inherited) -> _Worker:
    # A fresh interpreter: forking a process that has threads or torch loaded is not safe.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs, index, inherited), daemon=True)
    with environment_with(_ONE_THREAD):
        process.start()
    theirs.close()
    return _Worker(process=process, pipe=ours)


def _stop(workers: Sequence[_Worker], on_stop: Callable[[int], bool]) -> None:
    on_stop(_num_saving(workers))
    for worker in workers:
        if worker.job is None and worker.process.is_alive():
            # It may have died since.
            with suppress(BrokenPipeError):
                worker.pipe.send(None)
        else:
            worker.process.terminate()
    deadline_s = time.monotonic() + STOP_GRACE_S
    while time.monotonic() < deadline_s and any(w.process.is_alive() for w in workers):
        if on_stop(_num_saving(workers)):
            break
        wait([w.process.sentinel for w in workers if w.process.is_alive()], timeout=_STOP_POLL_S)
    for worker in workers:
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
        worker.pipe.close()


def _num_saving(workers: Sequence[_Worker]) -> int:
    return sum(w.job is not None and w.process.is_alive() for w in workers)


def work(jobs: Connection, number: int, inherited: _Inherited) -> None:
    """Receive jobs until None comes; send ("step", …) and ("end", …) messages in return.

    With a job comes the watch of its holder, or None.

    Args:
        jobs: the pipe to the parent.
        number: of this worker, from 0; on a machine with several GPUs each worker has its own.
        inherited: what commands of the user's own are given.

    SIGINT is left to the parent (a terminal sends it to the whole group); SIGTERM and SIGUSR2 ask
    the run to stop at its next step; when the parent dies, the worker does too.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    should_stop = StopFlag((signal.SIGTERM, signal.SIGUSR2))
    threading.Thread(target=_die_with_parent, daemon=True).start()
    data: dict[str, TokenData] = {}

    def execute(job: Job, watch: Watch | None) -> JobResult:
        own = None if job.trainer is None else inherited.of(number, job)
        return _run(job, watch, number, data, jobs, should_stop, own)

    while should_stop.reason is None:
        message: tuple[Job, Watch | None] | None = jobs.recv()
        if message is None:
            return
        jobs.send(("end", execute(*message)))


def _die_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _run(
    job: Job,
    watch: Watch | None,
    number: int,
    data: dict[str, TokenData],
    jobs: Connection,
    should_stop: StopFlag,
    surroundings: Surroundings | None,
) -> JobResult:
    def report(step: int, steps: int, loss: float) -> None:
        jobs.send(("step", step, steps, loss))

    try:
        if job.trainer is None:
            placement = assign_device(job.placement, number, num_gpus(job.placement))
            job = dataclasses.replace(job, placement=placement)
        return train_job(
            job,
            on_step=report,
            should_stop=should_stop,
            watch=watch,
            data_of=lambda job: _opened(job, data),
            surroundings=surroundings,
        )
    except Exception as error:
        # What fails outside the run itself (data, damaged records, a full disk) fails this job
        # only; the worker lives on.
        return JobResult(status="failed", reason=reason_of(error))


def _opened(job: Job, data: dict[str, TokenData]) -> TokenData:
    """Return the data of a job, whose shards are verified once per worker, not once per run."""
    if job.data_folder not in data:
        data[job.data_folder] = open_data_of(job)
    return data[job.data_folder]

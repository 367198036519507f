"""Sends the runs of a plan that are not done, each exactly once however often this is called.

What `prepare` made ready is sent by `send`. It holds a lock in the study's folder, looks again
which runs have a result, a live attempt or a job in the queue, writes down what it is about to
send, sends it, and writes down every answer. Nothing waits for a job.
"""

from __future__ import annotations

import dataclasses
import fcntl
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isoflop.errors import UserError
from isoflop.files import write_json_atomic
from isoflop.launch.slurm import executors, records
from isoflop.launch.slurm.arrays import ArrayPlan
from isoflop.launch.slurm.prepare import (
    Prepared,
    arrays_of,
    gpus_of,
    parameters_of,
    prepare,
    variables_of,
)
from isoflop.launch.slurm.profile import ClusterProfile
from isoflop.launch.slurm.records import SentArray, Submission
from isoflop.launch.slurm.states import live_runs
from isoflop.launch.store import RunFolder

LOCK_FILE = "submit.lock"
LOCK_WAIT_S = 60.0
_LOCK_POLL_S = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class SubmitReport:
    """What one submission came to."""

    submission_id: str | None
    """None: there was nothing to send."""
    arrays: tuple[SentArray, ...]
    num_done: int
    """Runs that had a result before."""
    num_live: int
    """Runs that are at work, or in the queue, already."""
    parked: tuple[str, ...]
    num_left: int
    """Runs that the limit on submitted tasks left for later."""
    is_local: bool = False
    """Whether jobs are processes of this machine."""

    @property
    def num_sent(self) -> int:
        """Runs in jobs that the scheduler took."""
        return sum(len(task) for array in self._taken for task in array.tasks)

    @property
    def job_ids(self) -> list[str]:
        """The scheduler's, of arrays and single jobs."""
        return [str(array.job_id) for array in self._taken]

    @property
    def rejected(self) -> dict[str, int]:
        """What the scheduler said, and of how many runs."""
        said: dict[str, int] = {}
        for array in self.arrays:
            if array.rejected is not None:
                num_runs = sum(map(len, array.tasks))
                said[array.rejected] = said.get(array.rejected, 0) + num_runs
        return said

    @property
    def _taken(self) -> list[SentArray]:
        return [array for array in self.arrays if array.job_id is not None]


def submit(
    folder: Path,
    profile: ClusterProfile,
    *,
    options: Mapping[str, Any] | None = None,
    only: Collection[str] | None = None,
) -> SubmitReport:
    """Prepare and sends; see :func:`prepare` and :func:`send`."""
    return send(prepare(folder, profile, options=options, only=only))


def send(prepared: Prepared) -> SubmitReport:
    """Send what has no result, no live attempt and no job yet; returns without waiting for jobs.

    Raises:
        UserError: another submission of this study is at work, the scheduler does not answer (then
            nothing was sent), or the code snapshot was changed.
    """
    with submit_lock(prepared.folder):
        live = live_runs(prepared.folder, prepared.plan)
        free = [run_id for run_id in prepared.runs if run_id not in live]
        todo = [r for r in free if RunFolder(prepared.folder, r).result() is None]
        plans, num_left = _within_limit(arrays_of(prepared, todo), prepared.profile, len(live))
        arrays: tuple[SentArray, ...] = ()
        if plans:
            prepared.snapshot.write()
            arrays = _send_all(prepared, plans)
    return SubmitReport(
        submission_id=prepared.submission_id if plans else None,
        arrays=arrays,
        num_done=prepared.num_done + len(free) - len(todo),
        num_live=prepared.num_live + len(prepared.runs) - len(free),
        parked=prepared.parked,
        num_left=num_left,
        is_local=prepared.profile.is_local,
    )


@contextmanager
def submit_lock(folder: Path) -> Iterator[None]:
    """Holds the lock of a study's submissions; waits for another one for up to LOCK_WAIT_S.

    Raises:
        UserError: another process holds it longer.
    """
    path = folder / records.LAUNCH_FOLDER / LOCK_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        _lock(file.fileno(), path, time.monotonic() + LOCK_WAIT_S)
        file.truncate(0)
        file.write(f"process {os.getpid()} of {os.uname().nodename}\n")
        file.flush()
        yield


def _lock(descriptor: int, path: Path, deadline_s: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline_s:
                holder = path.read_text(encoding="utf-8").strip() or "another process"
                raise UserError(
                    "submit lock", str(path), f"free ({holder} is submitting)", "try again later"
                ) from None
            time.sleep(_LOCK_POLL_S)


def _send_all(prepared: Prepared, plans: Sequence[ArrayPlan]) -> tuple[SentArray, ...]:
    """Send array after array; after each, what is known is on the disk."""
    jobs = {
        run_id: prepared.jobs[run_id].to_json()
        for plan in plans
        for task in plan.tasks
        for run_id in task
    }
    write_json_atomic(records.jobs_file(prepared.folder, prepared.submission_id), jobs)
    arrays = [_intended(plan, prepared.profile) for plan in plans]
    created_at = time.time()
    _record(prepared, created_at, arrays)
    for number, plan in enumerate(plans):
        try:
            job_id = _send(prepared, plan, number)
            arrays[number] = dataclasses.replace(arrays[number], job_id=job_id)
        except executors.Rejected as error:
            arrays[number] = dataclasses.replace(arrays[number], rejected=str(error))
        _record(prepared, created_at, arrays)
    return tuple(arrays)


def _intended(plan: ArrayPlan, profile: ClusterProfile) -> SentArray:
    is_array = not profile.is_local and len(plan.tasks) > 1
    return SentArray(job_id=None, tasks=plan.tasks, rejected=None, is_array=is_array)


def _record(prepared: Prepared, created_at: float, arrays: Sequence[SentArray]) -> None:
    submission = Submission(
        submission_id=prepared.submission_id,
        created_at=created_at,
        profile=prepared.profile.to_json(),
        snapshot=str(prepared.snapshot.folder),
        cluster="local" if prepared.profile.is_local else "slurm",
        arrays=tuple(arrays),
        options=dict(prepared.options),
    )
    records.write_submission(prepared.folder, submission)


def _send(prepared: Prepared, plan: ArrayPlan, number: int) -> str:
    folder = records.array_folder(prepared.folder, prepared.submission_id, number)
    known = (str(prepared.folder), prepared.submission_id)
    last = str(prepared.profile.max_failures)
    arguments = [(*known, ",".join(task), last) for task in plan.tasks]
    if prepared.profile.is_local:
        gpus = gpus_of(prepared, plan, number)
        variables = variables_of(prepared)
        return executors.send_to_this_machine(folder, variables, arguments[0], gpus)
    parameters = parameters_of(prepared, plan, number)
    return executors.send_to_slurm(prepared.profile, folder, parameters, arguments)


def _within_limit(
    plans: Sequence[ArrayPlan], profile: ClusterProfile, num_live: int
) -> tuple[list[ArrayPlan], int]:
    """Return the first tasks that the limit allows, and the number of runs in the others."""
    if profile.max_submit is None:
        return list(plans), 0
    room = max(0, profile.max_submit - num_live)
    kept = []
    for plan in plans:
        tasks = plan.tasks[:room]
        room -= len(tasks)
        if tasks:
            kept.append(dataclasses.replace(plan, tasks=tasks))
    return kept, sum(p.num_runs for p in plans) - sum(p.num_runs for p in kept)

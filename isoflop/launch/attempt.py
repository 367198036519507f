"""An attempt at a run: the claim, its heartbeat, and how it ended; whatever trains meanwhile.

While a run is trained, a thread renews its heartbeat, so that no other process begins it. A run
whose folder is moved away meanwhile stops and writes nothing more; it can be continued in the new
place.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from isoflop import __version__
from isoflop.files import write_text_atomic
from isoflop.launch.job import Job, JobResult
from isoflop.launch.metrics import write_tables
from isoflop.launch.run_folder import RunFolder, Watch
from isoflop.launch.run_records import Attempt

HEARTBEAT_S = 5.0

GONE = "its folder was moved or removed"
SUPERSEDED = "superseded"
"""Reasons to stop of an attempt that may write no more."""


def begin(
    job: Job,
    folder: RunFolder,
    versions: Mapping[str, str],
    watch: Watch | None,
    should_stop: Callable[[], str | None],
) -> tuple[JobResult, Attempt | None]:
    """Claim a run unless it is complete or held.

    Args:
        job: which run, and where.
        folder: the run's.
        versions: of what trains it besides isoflop, by name.
        watch: of the run's holder where that cannot be seen; see RunFolder.claim.
        should_stop: ends the watching.

    Returns how the run stands, and the attempt or None.
    """
    if not folder.path.is_dir():
        return _gone(folder), None
    finished = folder.result()
    if finished is not None:
        return JobResult.of(finished), None
    attempt = folder.claim(_provenance(job, versions), watch=watch, should_stop=should_stop)
    if attempt is None:
        return JobResult(status="held"), None
    # The run may have been finished before the claim.
    finished = folder.result()
    if finished is None:
        return JobResult(status="held"), attempt
    folder.end_attempt(attempt, "already complete")
    return JobResult.of(finished), None


def _gone(folder: RunFolder) -> JobResult:
    reason = f"{folder.path} was moved or removed; it is not made again, nothing more is written"
    return JobResult(status="gone", reason=reason)


def _provenance(job: Job, versions: Mapping[str, str]) -> dict[str, Any]:
    return {
        "device": job.placement.device,
        "placement": dataclasses.asdict(job.placement),
        "isoflop": __version__,
        **versions,
        "python": platform.python_version(),
        "machine": platform.machine(),
        **_slurm_details(os.environ),
    }


def _slurm_details(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the SLURM job of this process, its node and restarts; nothing outside SLURM."""
    names = {
        "job_id": "SLURM_JOB_ID",
        "array_job_id": "SLURM_ARRAY_JOB_ID",
        "array_task_id": "SLURM_ARRAY_TASK_ID",
        "node": "SLURMD_NODENAME",
        "restart_count": "SLURM_RESTART_COUNT",
    }
    found = {key: environ[name] for key, name in names.items() if name in environ}
    return {"slurm": found} if "job_id" in found else {}


class AttemptRecord:
    """Records how a claimed attempt ended.

    Args:
        folder: the run's.
        attempt: as claimed.
    """

    def __init__(self, folder: RunFolder, attempt: Attempt) -> None:
        self._folder = folder
        self._attempt = attempt
        self._steps: tuple[int, int] | None = None
        self._wall_s: float | None = None

    def step(self, step: int, wall_s: float) -> None:
        """Note a step that was completed, and the seconds of training so far."""
        first = step if self._steps is None else self._steps[0]
        self._steps, self._wall_s = (first, step), wall_s

    def complete(
        self, values: Mapping[str, Any], wall_s: float, tidy: Callable[[RunFolder], None]
    ) -> JobResult:
        """Write the run's result, unless the folder is gone or another attempt may write.

        Args:
            values: fields of RunResult.
            wall_s: seconds of training in this attempt.
            tidy: called once the result is there.
        """
        if self.is_gone():
            return self.record_gone()
        own_s = wall_s + self._folder.previous_wall_s(self._attempt)
        whole = {**values, "wall_s": own_s + values.get("trunk_wall_s", 0.0)}
        # Before the result, after which no attempt follows; what a kill leaves is written again.
        write_tables(self._folder.path)
        if not self._folder.write_result(self._attempt, whole):
            self._end(SUPERSEDED, wall_s)
            finished = self._folder.result()
            return JobResult(status="held") if finished is None else JobResult.of(finished)
        self._end(values["status"], wall_s)
        tidy(self._folder)
        return JobResult(
            status=values["status"],
            reason=values["status_reason"],
            loss=values["loss"],
            wall_s=whole["wall_s"],
        )

    def interrupt(self, reason: str, wall_s: float) -> JobResult:
        """Record that the attempt stopped and is to be continued."""
        if reason == GONE or self.is_gone():
            return self.record_gone()
        if not self._folder.may_write(self._attempt):
            self._end(SUPERSEDED, wall_s)
            return JobResult(status="held")
        self._end(f"interrupted: {reason}", wall_s)
        return JobResult(status="interrupted", reason=reason)

    def fail(self, reason: str, text: str | None = None, wall_s: float | None = None) -> JobResult:
        """Record a failure.

        Args:
            reason: in one line.
            text: the traceback; None: there is none.
            wall_s: seconds of training in this attempt; None: up to its last step.
        """
        # A full disk may take no record either; the reason is still returned.
        with contextlib.suppress(OSError):
            self._end(f"failed: {reason}", wall_s)
        if text is not None:
            with contextlib.suppress(OSError):
                path = self._folder.traceback_file(self._attempt)
                write_text_atomic(path, text, make_folder=False)
        return JobResult(status="failed", reason=reason)

    def is_gone(self) -> bool:
        """Return whether the folder was moved or removed, as far as can be seen."""
        # A file system that does not answer is not a folder that was moved.
        with contextlib.suppress(OSError):
            return self._folder.is_gone(self._attempt)
        return False

    def record_gone(self) -> JobResult:
        """Return that the folder is gone. Where it is back, record the end for the next attempt."""
        if not self.is_gone():
            with contextlib.suppress(OSError):
                self._end(f"interrupted: {GONE}")
        return _gone(self._folder)

    def _end(self, reason: str, wall_s: float | None = None) -> None:
        wall_s = self._wall_s if wall_s is None else wall_s
        self._folder.end_attempt(self._attempt, reason, step_range=self._steps, wall_s=wall_s)


class Heartbeat:
    """Writes the lease every few seconds while a run is at work, whatever the run is doing.

    Args:
        folder: the run's.
        attempt: whose lease.
        steps: optimizer steps of the run.
        warnings: called at every beat for what the attempt cannot write.
    """

    def __init__(
        self,
        folder: RunFolder,
        attempt: Attempt,
        steps: int,
        warnings: Callable[[], Sequence[str]] = lambda: (),
    ) -> None:
        self._folder = folder
        self._attempt = attempt
        self._steps = steps
        self._warnings = warnings
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat_until_stopped, daemon=True)
        self.step = 0
        self.lost: str | None = None
        """Why the run is to stop: SUPERSEDED or GONE; None: it may go on."""

    def __enter__(self) -> Heartbeat:
        self._folder.beat(self._attempt, self.step, self._steps)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _beat_until_stopped(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            # On a full disk or a stalled file system the next beat may go through.
            with contextlib.suppress(OSError):
                if not self._folder.may_write(self._attempt):
                    self.lost = GONE if self._folder.is_gone(self._attempt) else SUPERSEDED
                    return
                self._folder.beat(self._attempt, self.step, self._steps, self._warnings())

"""One run, start to end, in the calling process: claim, train, record. A function of strings.

While a run trains, a thread renews its heartbeat, so that no other process begins it. A run whose
folder is moved away meanwhile stops and writes nothing more; it can be continued in the new place.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import platform
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop import __version__
from isoflop.disk import reason_of
from isoflop.errors import UserError
from isoflop.families import check_digest, family_digest, is_built_in, is_family
from isoflop.files import write_text_atomic
from isoflop.launch.job import Job, JobResult
from isoflop.launch.metrics import LINES_FILE, MetricsLog, write_tables
from isoflop.launch.run_folder import RunFolder, Watch
from isoflop.launch.run_records import Attempt
from isoflop.launch.sinks import About, open_sinks
from isoflop.launch.weights import keep_final_weights, remove_checkpoints

if TYPE_CHECKING:
    from isoflop.data.windows import TokenData
    from isoflop.placement import Placement
    from isoflop.spec import RunSpec
    from isoflop.train.loop import RunOutcome, StepMetrics
    from isoflop.train.ranks import Ranks
    from isoflop.train.throughput import Achieved


HEARTBEAT_S = 5.0

GONE = "its folder was moved or removed"


def execute(
    job: Job,
    data: TokenData,
    *,
    on_step: Callable[[StepMetrics, int], None] = lambda metrics, steps: None,
    should_stop: Callable[[], str | None] = lambda: None,
    ranks: Ranks | None = None,
    watch: Watch | None = None,
) -> JobResult:
    """Train one run unless it is complete or held, and record how it ended.

    Args:
        job: which run, and where.
        data: the opened training data.
        on_step: called with every step's metrics and the run's number of steps.
        should_stop: called between steps; a reason (a signal's name) ends the attempt there, after
            a checkpoint.
        ranks: the processes that train the run together; None: this one alone. All of them call
            this; the main rank claims, beats and writes, the others only train.
        watch: of the run's holder where that cannot be seen; see RunFolder.claim.

    A diverged run gets a result (it would diverge again); a failed or interrupted one only its
    attempt's record, so that the next attempt goes on from the newest checkpoint.
    """
    if ranks is None:
        from isoflop.train.ranks import SINGLE

        ranks = SINGLE
    folder = RunFolder(Path(job.study_folder), job.run_id)
    if not ranks.is_main:
        return _follow(job, data, folder, ranks, should_stop)
    attempt = None
    try:
        result, attempt = _begin(job, folder, watch, should_stop)
    finally:
        ranks.broadcast(float(attempt is not None))
    if attempt is None:
        return result
    return RunningAttempt(job, folder, attempt, on_step, should_stop).run(data, ranks)


def _begin(
    job: Job, folder: RunFolder, watch: Watch | None, should_stop: Callable[[], str | None]
) -> tuple[JobResult, Attempt | None]:
    """Return the claim on a run, or None and how it stands."""
    if not folder.path.is_dir():
        return _gone(folder), None
    finished = folder.result()
    if finished is not None:
        return JobResult.of(finished), None
    attempt = folder.claim(_provenance(job), watch=watch, should_stop=should_stop)
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


def _follow(
    job: Job,
    data: TokenData,
    folder: RunFolder,
    ranks: Ranks,
    should_stop: Callable[[], str | None],
) -> JobResult:
    """Train with the main rank, which alone records how the run ended."""
    from isoflop.train.checkpoint import CheckpointStore
    from isoflop.train.loop import train_run

    if not ranks.broadcast(0.0):
        return JobResult(status="held")
    outcome = train_run(
        checked_spec(folder, data, job),
        data,
        placement=job.placement,
        ranks=ranks,
        checkpoints=CheckpointStore(folder.checkpoints, run_id=job.run_id),
        keep_weights=job.keep_weights != "none",
        should_stop=should_stop,
    )
    return JobResult.of(outcome)


def _provenance(job: Job) -> dict[str, Any]:
    import torch

    return {
        "device": job.placement.device,
        "placement": dataclasses.asdict(job.placement),
        "isoflop": __version__,
        "torch": torch.__version__,
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


class RunningAttempt:
    """One attempt at a run by the process that claimed it: trains, and records how it ended."""

    def __init__(
        self,
        job: Job,
        folder: RunFolder,
        attempt: Attempt,
        on_step: Callable[[StepMetrics, int], None],
        should_stop: Callable[[], str | None],
    ) -> None:
        self._job = job
        self._folder = folder
        self._attempt = attempt
        self._on_step = on_step
        self._should_stop = should_stop
        self._spec: RunSpec | None = None
        self._first_step: int | None = None
        self._last: StepMetrics | None = None
        self._checkpoint_trouble: str | None = None

    def run(self, data: TokenData, ranks: Ranks) -> JobResult:
        """Train and record. What goes wrong is recorded and never raised."""
        try:
            return self._record(self._train(data, ranks))
        except Exception as error:
            if self._is_gone():
                return self._record_gone()
            reason = self._describe(error, ranks)
            text = traceback.format_exc()
            # A full disk may take no record either; the reason is still returned.
            with contextlib.suppress(OSError):
                self._end(f"failed: {reason}")
            with contextlib.suppress(OSError):
                path = self._folder.traceback_file(self._attempt)
                write_text_atomic(path, text, make_folder=False)
            return JobResult(status="failed", reason=reason)

    def _train(self, data: TokenData, ranks: Ranks) -> RunOutcome:
        self._spec = spec = checked_spec(self._folder, data, self._job)
        log = MetricsLog(
            self._folder.path / LINES_FILE,
            self._attempt.number,
            spec.steps,
            rate=_rate(self._job, spec, ranks),
            sinks=open_sinks(self._job.sinks, self._about(spec)),
        )
        beat = Heartbeat(self._folder, self._attempt, spec.steps, lambda: self._warnings(log))
        with contextlib.closing(log), beat:
            return self._train_watched(spec, data, ranks, log, beat)

    def _train_watched(
        self, spec: RunSpec, data: TokenData, ranks: Ranks, log: MetricsLog, beat: Heartbeat
    ) -> RunOutcome:
        from isoflop.train.checkpoint import CheckpointStore
        from isoflop.train.loop import Hooks, train_run

        def on_step(metrics: StepMetrics) -> None:
            if self._first_step is None:
                self._first_step = metrics.step
            self._last = metrics
            beat.step = metrics.step
            log.write(metrics)
            self._on_step(metrics, spec.steps)

        def on_event(kind: str, values: Mapping[str, Any]) -> None:
            if kind in ("checkpoint", "checkpoint_failed"):
                self._checkpoint_trouble = values.get("reason")
            log.event(kind, values)

        def on_damaged(step: int, reason: str) -> None:
            log.event("checkpoint_damaged", {"step": step, "reason": reason})

        store = CheckpointStore(
            self._folder.checkpoints,
            run_id=self._job.run_id,
            may_write=lambda: self._folder.may_write(self._attempt),
            on_damaged=on_damaged,
        )
        store.clean_up()
        return train_run(
            spec,
            data,
            placement=self._job.placement,
            ranks=ranks,
            hooks=Hooks(on_step=on_step, on_event=on_event),
            checkpoints=store,
            keep_weights=self._job.keep_weights != "none",
            should_stop=lambda: beat.lost or self._should_stop(),
        )

    def _warnings(self, log: MetricsLog) -> list[str]:
        """Return what cannot be written now, while training goes on."""
        metrics = None if log.trouble is None else f"cannot write metrics: {log.trouble}"
        return [text for text in (self._checkpoint_trouble, metrics) if text is not None]

    def _about(self, spec: RunSpec) -> About:
        return About(
            study=Path(self._job.study_folder).name,
            run_id=self._job.run_id,
            folder=self._folder.path,
            spec=spec.to_json(),
        )

    def _describe(self, error: Exception, ranks: Ranks) -> str:
        if self._spec is None:
            return reason_of(error)
        from isoflop.train.memory import describe

        return describe(error, self._spec, self._job.placement, ranks.size)

    def _record(self, outcome: RunOutcome) -> JobResult:
        if outcome.status == "stopped":
            return self._record_stop(outcome)
        if self._is_gone():
            return self._record_gone()
        wall_s = outcome.wall_s + self._folder.previous_wall_s(self._attempt)
        whole = dataclasses.replace(outcome, wall_s=wall_s)
        # Before the result, after which no attempt follows; what a kill leaves is written again.
        write_tables(self._folder.path)
        if not self._folder.write_result(self._attempt, dataclasses.asdict(whole)):
            self._end("superseded", outcome.wall_s)
            finished = self._folder.result()
            return JobResult(status="held") if finished is None else JobResult.of(finished)
        self._end(outcome.status, outcome.wall_s)
        if outcome.status == "done" and self._job.keep_weights != "none":
            keep_final_weights(self._folder)
        else:
            remove_checkpoints(self._folder)
        return JobResult.of(whole)

    def _record_stop(self, outcome: RunOutcome) -> JobResult:
        if outcome.status_reason == GONE or self._is_gone():
            return self._record_gone()
        if not self._folder.may_write(self._attempt):
            self._end("superseded", outcome.wall_s)
            return JobResult(status="held")
        self._end(f"interrupted: {outcome.status_reason}", outcome.wall_s)
        return JobResult(status="interrupted", reason=outcome.status_reason)

    def _is_gone(self) -> bool:
        # A file system that does not answer is not a folder that was moved.
        with contextlib.suppress(OSError):
            return self._folder.is_gone(self._attempt)
        return False

    def _record_gone(self) -> JobResult:
        """Return that the folder is gone. Where it is back, record the end for the next attempt."""
        if not self._is_gone():
            with contextlib.suppress(OSError):
                self._end(f"interrupted: {GONE}")
        return _gone(self._folder)

    def _end(self, reason: str, wall_s: float | None = None) -> None:
        steps = None
        if self._first_step is not None and self._last is not None:
            steps = (self._first_step, self._last.step)
            wall_s = self._last.wall_s if wall_s is None else wall_s
        self._folder.end_attempt(self._attempt, reason, step_range=steps, wall_s=wall_s)


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
        """Why the run is to stop: superseded, or GONE; None: it may go on."""

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
                    self.lost = GONE if self._folder.is_gone(self._attempt) else "superseded"
                    return
                self._folder.beat(self._attempt, self.step, self._steps, self._warnings())


def checked_spec(folder: RunFolder, data: TokenData, job: Job) -> RunSpec:
    """Return the run's identity, checked against the data and the code of its family.

    Raises:
        UserError: the run is of other data, or the family's source is not the planned one.
    """
    spec = folder.read_spec()
    have = data.identity.data_id
    if have != spec.data_id:
        raise UserError("data id", have, f"the plan's {spec.data_id}", "plan again")
    if not is_built_in(spec.family):
        found = family_digest(spec.family) if is_family(spec.family) else None
        check_digest(spec.family, found, job.family_digest)
    return spec


def _rate(job: Job, spec: RunSpec, ranks: Ranks) -> Callable[[int, float], Achieved | None]:
    """Return a function of tokens and seconds that gives the rates achieved on these devices."""
    from isoflop.train.throughput import achieved, training_flops_per_token

    flops_per_token = training_flops_per_token(spec, job.convention)
    peak = _peak(job.placement, spec.precision) * ranks.size
    return lambda tokens, seconds: achieved(tokens, seconds, flops_per_token, peak)


# Measured once per process, before its first run.
@functools.cache
def _peak(placement: Placement, precision: str) -> float:
    import torch

    from isoflop.train.throughput import measured_peak

    torch.set_num_threads(placement.num_threads)
    return measured_peak(torch.device(placement.device), precision)

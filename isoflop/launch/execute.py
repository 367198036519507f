"""One run, start to end, in the calling process: claim, train, record. A function of strings.

What every attempt has, by whatever it is trained, is in isoflop.launch.attempt.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop.disk import reason_of
from isoflop.errors import UserError
from isoflop.families import check_digest, family_digest, is_built_in, is_family
from isoflop.launch.attempt import AttemptRecord, Heartbeat, begin
from isoflop.launch.forks import TrunkLog, inherited_by, trunk_of_follower
from isoflop.launch.job import Job, JobResult
from isoflop.launch.metrics import LINES_FILE, MetricsLog
from isoflop.launch.run_folder import RunFolder, Watch
from isoflop.launch.run_records import Attempt, RunResult
from isoflop.launch.sinks import About, open_sinks
from isoflop.launch.weights import keep_final_weights, remove_checkpoints
from isoflop.spec import RunSpec

if TYPE_CHECKING:
    from isoflop.data.windows import TokenData
    from isoflop.placement import Placement
    from isoflop.train.loop import RunOutcome, StepMetrics
    from isoflop.train.ranks import Ranks
    from isoflop.train.throughput import Achieved


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

    A run whose trunk diverged in what both have in common diverged with it, and is not trained. A
    diverged run gets a result (it would diverge again); a failed or interrupted one only its
    attempt's record, so that the next attempt goes on from the newest checkpoint.
    """
    if ranks is None:
        from isoflop.train.ranks import SINGLE

        ranks = SINGLE
    folder = RunFolder(Path(job.study_folder), job.run_id)
    if not ranks.is_main:
        return _follow(job, data, folder, ranks, should_stop)
    attempt = found = None
    try:
        result, attempt = begin(job, folder, _versions(), watch, should_stop)
        found = None if attempt is None else inherited_by(job, folder)
    finally:
        ranks.broadcast(float(attempt is not None and found is None))
    if attempt is None:
        return result
    running = RunningAttempt(job, folder, attempt, on_step, should_stop)
    return running.run(data, ranks) if found is None else running.inherit(data, found)


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
        trunk=trunk_of_follower(job, folder),
    )
    return JobResult.of(outcome)


def _versions() -> dict[str, str]:
    import torch

    return {"torch": torch.__version__}


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
        self._record = AttemptRecord(folder, attempt)
        self._checkpoint_trouble: str | None = None

    def run(self, data: TokenData, ranks: Ranks) -> JobResult:
        """Train and record. What goes wrong is recorded and never raised."""
        try:
            return self._end(self._train(data, ranks))
        except Exception as error:
            if self._record.is_gone():
                return self._record.record_gone()
            return self._record.fail(self._describe(error, ranks), traceback.format_exc())

    def inherit(self, data: TokenData, found: RunResult) -> JobResult:
        """Record the divergence of another run, in the steps that both have in common."""
        try:
            spec = checked_spec(self._folder, data, self._job)
            with contextlib.closing(self._log(spec)) as log, self._trunk_log(log) as trunk:
                assert trunk is not None
                log.event("begun", {"step": found.num_steps, "run_id": found.run_id})
                trunk.take_over(found.run_id, found.num_steps)
            names = {field.name for field in dataclasses.fields(RunResult)}
            own = ("schema_version", "run_id", "attempt", "wall_s", "metrics")
            values = {name: getattr(found, name) for name in names.difference(own)}
            values |= {"trunk_steps": found.num_steps, "trunk_wall_s": found.wall_s or 0.0}
            return self._record.complete(values, 0.0, remove_checkpoints)
        except Exception as error:
            return self._record.fail(reason_of(error), traceback.format_exc())

    def _train(self, data: TokenData, ranks: Ranks) -> RunOutcome:
        self._spec = spec = checked_spec(self._folder, data, self._job)
        log = self._log(spec, rate=_rate(self._job, spec, ranks))
        beat = Heartbeat(self._folder, self._attempt, spec.steps, lambda: self._warnings(log))
        with contextlib.closing(log), self._trunk_log(log) as trunk, beat:
            return self._train_watched(spec, data, ranks, log, trunk, beat)

    def _log(
        self, spec: RunSpec, rate: Callable[[int, float], Achieved | None] | None = None
    ) -> MetricsLog:
        return MetricsLog(
            self._folder.path / LINES_FILE,
            self._attempt.number,
            spec.steps,
            rate=rate,
            sinks=open_sinks(self._job.sinks, self._about(spec)),
        )

    def _trunk_log(self, log: MetricsLog) -> contextlib.AbstractContextManager[TrunkLog | None]:
        if self._job.trunk is None:
            return contextlib.nullcontext()
        return contextlib.closing(TrunkLog(self._job.trunk, self._folder, self._attempt, log))

    def _train_watched(
        self,
        spec: RunSpec,
        data: TokenData,
        ranks: Ranks,
        log: MetricsLog,
        trunk: TrunkLog | None,
        beat: Heartbeat,
    ) -> RunOutcome:
        from isoflop.train.checkpoint import CheckpointStore
        from isoflop.train.loop import Hooks, train_run

        def on_step(metrics: StepMetrics) -> None:
            self._record.step(metrics.step, metrics.wall_s)
            beat.step = metrics.step
            log.write(metrics)
            if trunk is not None:
                trunk.step(metrics)
            self._on_step(metrics, spec.steps)

        def on_event(kind: str, values: Mapping[str, Any]) -> None:
            if kind in ("checkpoint", "checkpoint_failed"):
                self._checkpoint_trouble = values.get("reason")
            log.event(kind, values)
            if trunk is not None:
                trunk.event(kind, values)

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
            trunk=None if trunk is None else trunk.shared_trunk(),
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

    def _end(self, outcome: RunOutcome) -> JobResult:
        if outcome.status == "stopped":
            return self._record.interrupt(str(outcome.status_reason), outcome.wall_s)
        is_kept = outcome.status == "done" and self._job.keep_weights != "none"
        tidy = keep_final_weights if is_kept else remove_checkpoints
        return self._record.complete(dataclasses.asdict(outcome), outcome.wall_s, tidy)


def checked_spec(folder: RunFolder, data: TokenData, job: Job) -> RunSpec:
    """Return the run's identity, checked against the data and the code of its family.

    Raises:
        UserError: the run is of other data, or the family's source is not the planned one.
    """
    spec = folder.read_spec()
    assert isinstance(spec, RunSpec)
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

    from isoflop.train.step import set_float32_products
    from isoflop.train.throughput import measured_peak

    torch.set_num_threads(placement.num_threads)
    set_float32_products(placement)
    return measured_peak(torch.device(placement.device), precision)

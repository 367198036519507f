"""One run by a command of the user's own, start to end: claim, run, read its result, record.

    runs/ID/trainer/             {checkpoint_dir}: the command's own
    runs/ID/reported/0001/       per attempt: log.txt (what it prints), result.json, curve.jsonl
    runs/ID/forks/, began.json   of trunks, see isoflop.launch.command.branch

A command ends with 0 and a result, with 75 (CONTINUE) to be started again, or with 77 (DIVERGED).
Whatever else it ends with is a failure, unless it was told to stop.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from isoflop.disk import reason_of
from isoflop.errors import UserError
from isoflop.files import refuse_links
from isoflop.launch import attempt as attempts
from isoflop.launch.attempt import AttemptRecord, Heartbeat
from isoflop.launch.command.branch import CommandTrunk
from isoflop.launch.command.curve import CurvePoint, CurveReader
from isoflop.launch.command.environment import Surroundings, command_environment
from isoflop.launch.command.process import Command, CommandEnd, kill_left_behind
from isoflop.launch.command.results import (
    Places,
    TrainerResult,
    check_against_plan,
    read_ending,
    read_result,
)
from isoflop.launch.job import ASKS_FOR_MORE, Job, JobResult, TrainerJob
from isoflop.launch.metrics import LINES_FILE, MetricsLog
from isoflop.launch.run_folder import RunFolder, Watch
from isoflop.launch.run_records import Attempt, RunResult
from isoflop.launch.sinks import About, open_sinks
from isoflop.launch.slurm.logs import tail
from isoflop.launch.weights import remove_trainer_folder
from isoflop.spec import TrainerSpec
from isoflop.study.trainer import placed
from isoflop.texts import printable
from isoflop.trainer import CONTINUE, DIVERGED, STOP_FILE
from isoflop.units import NATS

# How often the curve is looked at, and a signal or the command's end at the latest.
_LOOK_S = 1.0
_POLL_S = 0.2

# What is passed on as it is.
_STOP_SIGNALS = {"SIGUSR2": signal.SIGUSR2, "SIGTERM": signal.SIGTERM}

# In an attempt's folder: its command ended with 0 by itself, so that all it reports is there.
_ENDED = "ended"

_LOG_LINES = 3
_LOG_CHARACTERS = 400
_ERROR = re.compile(r"\s*(?:\S+: )?[\w.]*(?:Error|Exception|error)\b")
# Of a folder of checkpoints, to see whether it changed.
_MAX_ENTRIES = 100_000


def execute_command(
    job: Job,
    *,
    on_step: Callable[[int, int, float], None] = lambda *_: None,
    should_stop: Callable[[], str | None] = lambda: None,
    watch: Watch | None = None,
    surroundings: Surroundings | None = None,
) -> JobResult:
    """Run the command of a run unless it is complete or held, and record how it ended.

    Args:
        job: which run, and where.
        on_step: called with the completed steps, the run's number of steps and the loss.
        should_stop: called a few times a second; a reason ends the attempt: SIGUSR2 is sent to the
            command as it is, anything else as SIGTERM.
        watch: of the run's holder where that cannot be seen; see RunFolder.claim.
        surroundings: what the command inherits; None: this process's environment.
    """
    folder = RunFolder(Path(job.study_folder).absolute(), job.run_id)
    result, attempt = attempts.begin(job, folder, {}, watch, should_stop)
    if attempt is None:
        return result
    surroundings = surroundings or Surroundings(environ=dict(os.environ))
    return CommandAttempt(job, folder, attempt, on_step, should_stop, surroundings).run()


class CommandAttempt:
    """One attempt at a run by the process that claimed it."""

    def __init__(
        self,
        job: Job,
        folder: RunFolder,
        attempt: Attempt,
        on_step: Callable[[int, int, float], None],
        should_stop: Callable[[], str | None],
        surroundings: Surroundings,
    ) -> None:
        assert job.trainer is not None
        self._job = job
        self._trainer: TrainerJob = job.trainer
        self._folder = folder
        self._attempt = attempt
        self._on_step = on_step
        self._should_stop = should_stop
        self._surroundings = surroundings
        self._record = AttemptRecord(folder, attempt)
        self._trunk = CommandTrunk(folder.path.parents[1], job.trunk, folder, attempt)
        self._reported = folder.reported(attempt.number)
        self._begin_s = time.monotonic()
        self._begin_time_s = time.time()
        self._stopped_by: str | None = None

    def run(self) -> JobResult:
        """Run the command and record. What goes wrong is recorded and never raised."""
        try:
            spec = self._read_spec()
            if (found := self._found_before(spec)) is not None:
                return self._done(spec, found)
            if (reason := self._should_stop()) is not None:
                return self._record.interrupt(reason, 0.0)
            if (ended := self._trunk.inherited()) is not None:
                return self._inherit(spec, ended)
            places = self._prepare(spec)
            if (reason := self._stopped_by or self._should_stop()) is not None:
                return self._record.interrupt(reason, 0.0)
            reader = CurveReader(self._trainer.result, places, steps=spec.steps)
            before = _signature(self._folder.trainer)
            end = self._run(spec, places, reader)
            if self._stopped_by in (attempts.GONE, attempts.SUPERSEDED):
                return self._record.interrupt(self._stopped_by, self._wall_s)
            return self._end(
                spec, places, end, reader.newest, lambda: self._has_progress(reader, before)
            )
        except Exception as error:
            if self._record.is_gone():
                return self._record.record_gone()
            is_told = isinstance(error, UserError)
            text = None if is_told else traceback.format_exc()
            return self._record.fail(reason_of(error), text, self._wall_s)

    @property
    def _wall_s(self) -> float:
        return time.monotonic() - self._begin_s

    def _read_spec(self) -> TrainerSpec:
        spec = self._folder.read_spec()
        if not isinstance(spec, TrainerSpec):
            raise UserError("run spec", self._folder.path.name, "of a trainer's run", "plan again")
        return spec

    def _found_before(self, spec: TrainerSpec) -> TrainerResult | None:
        """Return the result that the attempt before has, if its command ended with 0.

        It was not read then: [trainer.result] did not fit and was corrected, or nobody was there.
        """
        number = self._attempt.number - 1
        if number < 1 or not (self._folder.reported(number) / _ENDED).is_file():
            return None
        self._folder.refuse_links()
        refuse_links(self._folder.reported(number), 1)
        try:
            found = read_result(self._trainer.result, self._places(number))
            check_against_plan(found, n_tokens=spec.n_tokens, n_params=self._trainer.n_params)
        except UserError:
            return None
        return found if found.ending is None else None

    def _prepare(self, spec: TrainerSpec) -> Places:
        """Make the attempt's folders; end what earlier attempts left; return where things are."""
        code = Path(self._trainer.code_folder)
        if not code.is_dir():
            do = "restore it, or submit again"
            raise UserError("code folder", str(code), "there, with the trainer's code", do)
        self._folder.refuse_links()
        self._reported.parent.mkdir(exist_ok=True)
        kill_left_behind(self._job.run_id, self._reported.parent, self._attempt.number)
        if self._trainer.resume == "restart":
            remove_trainer_folder(self._folder)
        if self._job.trunk is not None:
            # A large state takes longer to copy than a holder may be silent.
            with Heartbeat(self._folder, self._attempt, spec.steps) as beat:
                self._trunk.begin(lambda: beat.lost is None and self._should_stop() is None)
                self._stopped_by = beat.lost
        self._folder.trainer.mkdir(exist_ok=True)
        self._reported.mkdir(exist_ok=True)
        refuse_links(self._reported, 1)
        return self._places(self._attempt.number)

    def _places(self, number: int) -> Places:
        """Return where things are for an attempt."""
        values = {
            "python": self._surroundings.python,
            "ranks": str(self._job.placement.num_ranks),
            "run_id": self._job.run_id,
            "checkpoint_dir": str(self._folder.trainer),
            "result": str(self._folder.reported(number) / "result.json"),
            "log": str(self._folder.command_log(number)),
            "branch_steps": ",".join(map(str, self._trunk.asked)),
            "branch_dir": str(self._folder.forks),
        }
        return Places(values=values, folder=Path(self._trainer.code_folder))

    @property
    def _log(self) -> Path:
        return self._folder.command_log(self._attempt.number)

    def _run(self, spec: TrainerSpec, places: Places, reader: CurveReader) -> CommandEnd:
        """Run the command to its end, however that comes; tell of its steps."""
        about = About(
            study=Path(self._job.study_folder).name,
            run_id=self._job.run_id,
            folder=self._folder.path,
            spec=spec.to_json(),
        )
        log = MetricsLog(
            self._folder.path / LINES_FILE,
            self._attempt.number,
            spec.steps,
            sinks=open_sinks(self._job.sinks, about),
        )
        beat = Heartbeat(
            self._folder,
            self._attempt,
            spec.steps,
            lambda: [*_warnings(log.trouble, reader.trouble), *self._trunk.warnings()],
        )
        if self._trunk.began is not None:
            beat.step = self._trunk.began.step - 1
        command = [placed(text, places.values) for text in spec.command]
        env = command_environment(
            self._surroundings, self._job, spec, places, self._attempt.number, self._folder.path
        )
        self._begin_s, self._begin_time_s = time.monotonic(), time.time()
        with contextlib.closing(log), beat:
            self._trunk.tell_of_beginning(log)
            with Command(command, env=env, cwd=places.folder, log=self._log) as process:
                end = self._follow(process, beat, lambda: self._tell(reader, log, beat, spec))
            if end.code is None:
                kill_left_behind(self._job.run_id, self._reported.parent, self._attempt.number)
            self._tell(reader, log, beat, spec, is_over=True)
            is_done = end.code == 0 and self._stopped_by is None
            self._trunk.tell_of_end(log, reader.newest, is_done=is_done)
        return end

    def _follow(self, process: Command, beat: Heartbeat, tell: Callable[[], None]) -> CommandEnd:
        """Wait for the command's end; stop it when told to."""
        next_look_s = time.monotonic() + _LOOK_S
        kill_s = math.inf
        while (end := process.wait(_POLL_S)) is None:
            now_s = time.monotonic()
            if beat.lost is not None and self._stopped_by != beat.lost:
                # Another process trains the run, or its folder is elsewhere: nothing is saved.
                self._stopped_by, kill_s = beat.lost, now_s
            elif self._stopped_by is None and (reason := self._should_stop()) is not None:
                self._stopped_by = reason
                kill_s = now_s + self._surroundings.grace_s(reason)
                # For ranks that no signal reaches.
                with contextlib.suppress(OSError):
                    (self._reported / STOP_FILE).touch()
                process.send_signal(_STOP_SIGNALS.get(reason, signal.SIGTERM))
            if now_s >= kill_s:
                kill_s = math.inf
                process.send_signal(signal.SIGKILL)
            if now_s >= next_look_s:
                next_look_s = now_s + _LOOK_S
                # A file system that does not answer now may do so at the next look.
                with contextlib.suppress(OSError):
                    tell()
        if self._stopped_by is None:
            # The signal may have reached the command first.
            self._stopped_by = beat.lost or self._should_stop()
        return end

    def _tell(
        self,
        reader: CurveReader,
        log: MetricsLog,
        beat: Heartbeat,
        spec: TrainerSpec,
        *,
        is_over: bool = False,
    ) -> None:
        """Pass on new points of the curve, as far as this attempt may still write."""
        points = reader.last_points() if is_over else reader.new_points()
        for point in points if self._folder.may_write(self._attempt) else ():
            self._record.step(point.step, self._wall_s)
            log.row(self._row(point))
        newest = reader.newest
        if newest is not None:
            self._trunk.look(newest.step)
            # Some count from 1.
            beat.step = self._trunk.completed(min(newest.step, spec.steps - 1))
            self._on_step(beat.step + 1, spec.steps, newest.loss)

    def _row(self, point: CurvePoint) -> dict[str, Any]:
        wall_s = self._wall_s
        if point.time_s is not None:
            wall_s = min(wall_s, max(0.0, point.time_s - self._begin_time_s))
        known = {name: point.values[name] for name in ("lr", "grad_norm") if name in point.values}
        row = {"step": point.step, "loss": point.loss, **known}
        return {**row, "tokens": point.tokens, "wall_s": wall_s}

    def _has_progress(self, reader: CurveReader, before: str) -> bool:
        """Return whether another attempt will begin where this one was not yet."""
        if self._trainer.resume == "restart":
            return False
        rows = (row for row in self._folder.metrics() if row["attempt"] < self._attempt.number)
        reached = max((row["step"] for row in rows if "step" in row), default=-1)
        is_further = reader.newest is not None and reader.newest.step > reached
        return is_further or _signature(self._folder.trainer) != before

    def _end(
        self,
        spec: TrainerSpec,
        places: Places,
        end: CommandEnd,
        newest: CurvePoint | None,
        has_progress: Callable[[], bool],
    ) -> JobResult:
        """Record how the command ended, and the result if there is one."""
        said = read_ending(places)
        if end.code == DIVERGED or (said is not None and said.status == "diverged"):
            reason = f"the command ended with code {DIVERGED}" if said is None else said.reason
            return self._diverged(spec, reason, newest)
        if end.code == 0 and said is None:
            if self._stopped_by is None:
                (self._reported / _ENDED).touch()
            try:
                found = read_result(self._trainer.result, places)
                if found.ending is not None:
                    return self._diverged(spec, found.ending.reason, newest)
                num_params = self._trainer.n_params
                check_against_plan(found, n_tokens=spec.n_tokens, n_params=num_params)
            except UserError:
                if self._stopped_by is None:
                    raise
            else:
                if self._stopped_by is None or _is_whole(spec, found, newest):
                    return self._done(spec, found)
        if self._stopped_by is not None:
            return self._record.interrupt(self._stopped_by, self._wall_s)
        if end.code == CONTINUE or said is not None:
            if has_progress():
                return self._record.interrupt(ASKS_FOR_MORE, self._wall_s)
            asks = f"it asks to be continued (exit code {CONTINUE})"
            if self._trainer.resume == "restart":
                do = 'resume = "restart" begins anew; write resume = "native" if it goes on'
                return self._fail(f"{asks}, and {do}")
            return self._fail(f"{asks} and came no step further; {end_of_log(self._log)}")
        return self._fail(f"{_ended(end)}; {end_of_log(self._log)}")

    def _inherit(self, spec: TrainerSpec, ended: RunResult) -> JobResult:
        """Record that the run diverged where another one did that was the same training."""
        self._folder.refuse_links()
        step = ended.num_steps
        lines = self._folder.path / LINES_FILE
        with contextlib.closing(MetricsLog(lines, self._attempt.number, spec.steps)) as log:
            log.event("begun", {"step": step, "run_id": ended.run_id})
            self._trunk.take_over_curve(log, ended.run_id, step)
        values = {
            "status": "diverged",
            "status_reason": ended.status_reason,
            "loss": None,
            "num_steps": step,
            "trunk_steps": step,
            "trunk_wall_s": self._trunk.seconds_until(ended.run_id, step),
        }
        return self._record.complete(values, 0.0, self._tidy)

    def _fail(self, reason: str) -> JobResult:
        return self._record.fail(reason, wall_s=self._wall_s)

    def _done(self, spec: TrainerSpec, found: TrainerResult) -> JobResult:
        unit = self._trainer.result.unit
        own_s = self._wall_s + self._folder.previous_wall_s(self._attempt)
        trunk = self._trunk.trunk_values()
        own_tokens = spec.n_tokens - trunk.get("trunk_steps", 0) * spec.batch_tokens
        in_bits = unit == "bits_per_byte"
        values = {
            "status": "done",
            "status_reason": None,
            "loss": found.loss,
            "num_steps": spec.steps,
            "loss_se": found.loss_se,
            "perplexity": _perplexity(found.loss) if unit == NATS else None,
            "bits_per_byte": found.loss if in_bits else None,
            "bits_per_byte_se": found.loss_se if in_bits else None,
            "tokens_per_s": own_tokens / own_s,
            "peak_mem_bytes": found.peak_mem_bytes,
            "metrics": {k: v for k, v in found.metrics.items() if v is not None},
            **trunk,
        }
        return self._record.complete(values, self._wall_s, self._tidy)

    def _diverged(self, spec: TrainerSpec, reason: str, newest: CurvePoint | None) -> JobResult:
        trunk = self._trunk.trunk_values()
        reached = trunk.get("trunk_steps", 0) if newest is None else min(newest.step, spec.steps)
        values = {
            "status": "diverged",
            "status_reason": printable(reason, ""),
            "loss": None,
            "num_steps": reached,
            **trunk,
        }
        return self._record.complete(values, self._wall_s, self._tidy)

    def _tidy(self, folder: RunFolder) -> None:
        if self._job.keep_weights == "none":
            # What cannot be removed costs the run nothing; `isoflop clean` names it.
            with contextlib.suppress(OSError):
                remove_trainer_folder(folder)


def end_of_log(log: Path) -> str:
    """Return the last lines of what a command printed, from its last error on, in one line."""
    lines = [line.strip() for line in tail(log) if line.strip()]
    errors = [number for number, line in enumerate(lines) if _ERROR.match(line)]
    last = lines[errors[-1] :] if errors else lines[-_LOG_LINES:]
    if len(last) > _LOG_LINES:
        last = [last[0], "…", *last[1 - _LOG_LINES :]]
    text = printable(" | ".join(last), "")
    cut = text if len(text) <= _LOG_CHARACTERS else f"…{text[-_LOG_CHARACTERS:]}"
    return f"its log ends: {cut}" if cut else "it printed nothing"


def _ended(end: CommandEnd) -> str:
    if end.code is None:
        return "the command's guard was killed"
    if end.code >= 0:
        return f"exit code {end.code}"
    try:
        return f"killed by {signal.Signals(-end.code).name}"
    except ValueError:
        return f"killed by signal {-end.code}"


def _is_whole(spec: TrainerSpec, found: TrainerResult, newest: CurvePoint | None) -> bool:
    """Return whether a command that was told to stop shows that it had trained to the end.

    Many end with 0 once they have saved, and the last loss in a log is not that of the end.
    """
    return found.tokens is not None or (newest is not None and newest.step >= spec.steps - 1)


def _perplexity(loss: float) -> float | None:
    try:
        return math.exp(loss)
    except OverflowError:
        return None


def _warnings(metrics: str | None, curve: str | None) -> Sequence[str]:
    """Return what cannot be written or read now, while the command goes on."""
    said = {"cannot write metrics": metrics, "cannot read the curve": curve}
    return [f"{what}: {why}" for what, why in said.items() if why is not None]


def _signature(folder: Path) -> str:
    """Return a digest of names, sizes and dates in a folder; links are not followed."""
    found: list[tuple[str, int, int]] = []
    waiting = [folder]
    while waiting and len(found) < _MAX_ENTRIES:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                about = entry.stat(follow_symlinks=False)
                found.append((entry.path, about.st_size, about.st_mtime_ns))
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))
    return hashlib.sha256(repr(sorted(found)).encode("utf-8", "surrogateescape")).hexdigest()

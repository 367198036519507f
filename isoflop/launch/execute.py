"""One run, start to end, in the calling process: claim, train, record. A function of strings."""

from __future__ import annotations

import dataclasses
import json
import platform
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from isoflop import __version__
from isoflop.errors import UserError
from isoflop.files import write_bytes_atomic, write_text_atomic
from isoflop.launch.store import Attempt, RunFolder

if TYPE_CHECKING:
    import torch

    from isoflop.data.windows import TokenData
    from isoflop.plan.identity import RunSpec
    from isoflop.train.loop import RunOutcome, StepMetrics

HEARTBEAT_S = 5.0
# Rows of metrics.jsonl per run: enough for a curve, small enough to keep.
MAX_METRIC_ROWS = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What a worker needs to know; plain strings and numbers, so that any launcher can carry it."""

    study_folder: str
    run_id: str
    data_folder: str
    keep_weights: bool
    device: str
    num_threads: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """How a job ended: done, diverged, failed, held (another process has the run), interrupted."""

    status: str
    reason: str | None = None
    loss: float | None = None
    wall_s: float | None = None


class Interrupted(Exception):
    """The person or the machine asked the run to stop."""


class Superseded(Exception):
    """Another process took the run over, believing this one dead."""


class Heartbeat:
    """Writes the lease every few seconds while a run is at work, whatever the run is doing."""

    def __init__(self, folder: RunFolder, attempt: Attempt, steps: int) -> None:
        self._folder = folder
        self._attempt = attempt
        self._steps = steps
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat_until_stopped, daemon=True)
        self.step = 0
        self.superseded = False

    def __enter__(self) -> Heartbeat:
        self._folder.beat(self._attempt, self.step, self._steps)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _beat_until_stopped(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            if not self._folder.is_newest(self._attempt):
                self.superseded = True
                return
            self._folder.beat(self._attempt, self.step, self._steps)


class MetricsLog:
    """Appends rows to metrics.jsonl; a line that a crash cut off is closed first."""

    def __init__(self, path: Path, attempt: int, steps: int) -> None:
        self._attempt = attempt
        self._steps = steps
        self._every = max(1, steps // MAX_METRIC_ROWS)
        self._file = _open_for_appending(path)

    def write(self, metrics: StepMetrics) -> None:
        """Appends every n-th step and the last one."""
        if metrics.step % self._every and metrics.step != self._steps - 1:
            return
        row = {"attempt": self._attempt, **dataclasses.asdict(metrics)}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _open_for_appending(path: Path) -> IO[str]:
    cut_off = path.exists() and not path.read_bytes().endswith((b"\n",)) and path.stat().st_size > 0
    file = path.open("a", encoding="utf-8")
    if cut_off:
        file.write("\n")
    return file


def execute(
    job: Job,
    data: TokenData,
    *,
    on_step: Callable[[StepMetrics, int], None],
    should_stop: Callable[[], bool],
) -> Ending:
    """Trains one run unless it is complete or held, and records what came of it.

    Args:
        job: which run, and where.
        data: the opened training data.
        on_step: told of every step's metrics and the run's number of steps.
        should_stop: asked at every step; True ends the attempt as interrupted.

    A diverged run gets a result (it would diverge again); a failed one only its attempt's record,
    so that the next `isoflop run` tries it anew.
    """
    folder = RunFolder(Path(job.study_folder), job.run_id)
    finished = folder.result()
    if finished is not None:
        return _ending_of(finished)
    attempt = folder.claim(_provenance(job))
    if attempt is None:
        return Ending(status="held")
    # The run may have been finished between the first look and the claim.
    finished = folder.result()
    if finished is not None:
        folder.end_attempt(attempt, "already complete", 0)
        return _ending_of(finished)
    return _attempt_run(job, data, folder, attempt, on_step, should_stop)


def _attempt_run(
    job: Job,
    data: TokenData,
    folder: RunFolder,
    attempt: Attempt,
    on_step: Callable[[StepMetrics, int], None],
    should_stop: Callable[[], bool],
) -> Ending:
    last_step = 0

    def watch(metrics: StepMetrics) -> None:
        nonlocal last_step
        last_step = heartbeat.step = metrics.step
        log.write(metrics)
        on_step(metrics, spec.steps)
        if heartbeat.superseded:
            raise Superseded
        if should_stop():
            raise Interrupted

    try:
        spec = folder.read_spec()
        have = data.identity.data_id
        if have != spec.data_id:
            raise UserError("data id", have, f"the plan's {spec.data_id}", "plan again")
        log = MetricsLog(folder.path / "metrics.jsonl", attempt.number, spec.steps)
        try:
            with Heartbeat(folder, attempt, spec.steps) as heartbeat:
                outcome = _train(job, spec, data, folder, watch)
        finally:
            log.close()
        wrote = folder.write_result(attempt, _result(folder, attempt, outcome))
    except Interrupted:
        folder.end_attempt(attempt, "interrupted", last_step)
        return Ending(status="interrupted")
    except Superseded:
        folder.end_attempt(attempt, "superseded", last_step)
        return Ending(status="held")
    except Exception as error:
        reason = failure_reason(error)
        write_text_atomic(folder.path / f"error-{attempt.number:04d}.txt", traceback.format_exc())
        folder.end_attempt(attempt, f"failed: {reason}", last_step)
        return Ending(status="failed", reason=reason)
    folder.end_attempt(attempt, outcome.status if wrote else "superseded", last_step)
    return Ending(
        status=outcome.status,
        reason=outcome.status_reason,
        loss=outcome.loss,
        wall_s=outcome.wall_s,
    )


def failure_reason(error: Exception) -> str:
    """An exception in one line: what a person sees; the traceback is in a file of its own."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _train(
    job: Job,
    spec: RunSpec,
    data: TokenData,
    folder: RunFolder,
    watch: Callable[[StepMetrics], None],
) -> RunOutcome:
    from isoflop.train.loop import Placement, train_run

    def keep(weights: dict[str, torch.Tensor]) -> None:
        from safetensors.torch import save

        write_bytes_atomic(folder.path / "weights.safetensors", save(weights))

    return train_run(
        spec,
        data,
        placement=Placement(device=job.device, num_threads=job.num_threads),
        on_step=watch,
        on_final_weights=keep if job.keep_weights else None,
    )


def _result(folder: RunFolder, attempt: Attempt, outcome: RunOutcome) -> dict[str, Any]:
    values = dataclasses.asdict(outcome)
    values["wall_s"] = outcome.wall_s + folder.previous_wall_s(attempt)
    return values


def _ending_of(result: dict[str, Any]) -> Ending:
    return Ending(
        status=result["status"],
        reason=result["status_reason"],
        loss=result["loss"],
        wall_s=result["wall_s"],
    )


def _provenance(job: Job) -> dict[str, Any]:
    import torch

    return {
        "device": job.device,
        "num_threads": job.num_threads,
        "isoflop": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }

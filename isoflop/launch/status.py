"""What is true of every run of a plan, read from its folders."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop.launch.metrics import LINES_FILE
from isoflop.launch.store import Attempt, RunFolder
from isoflop.launch.tail import tail
from isoflop.plan.estimate import load_estimates
from isoflop.plan.planner import Plan
from isoflop.plan.runs import PlannedRun
from isoflop.tables import RUNS, read_table, write_table

if TYPE_CHECKING:
    from isoflop.launch.slurm.scheduler import JobState

STATES = (
    "done",
    "running",
    "requeued",
    "waiting",
    "diverged",
    "failed",
    "lost",
    "unknown",
    "missing",
)
"""Files alone tell done, running, diverged, failed and missing; the others need a scheduler.
unknown: sent to a scheduler that does not answer now."""

LIVE = ("running", "requeued", "waiting", "unknown")
"""States that change without anybody doing anything."""

# As long as a run trains or is going to, runs.parquet calls it missing.
_UNFINISHED = (*LIVE, "lost")

# Rows of metrics.jsonl that a rate is taken over.
_RATE_ROWS = 10

_MEASURED = (
    "loss",
    "loss_se",
    "perplexity",
    "bits_per_byte",
    "wall_s",
    "step_s_median",
    "peak_mem_bytes",
    "tokens_per_s",
)

_KEPT = (*_MEASURED, "n_attempts", "status", "status_reason", "excluded_reason")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunState:
    """One run and where it stands."""

    run: PlannedRun
    state: str
    """One of STATES."""
    reason: str | None
    num_attempts: int
    step: int | None
    """Last step heard of, while running."""
    result: dict[str, Any] | None
    attempt: Attempt | None = None
    """The newest."""
    steps_per_s: float | None = None
    """While running, over its last metrics; None: too few of them yet."""
    kind: str | None = None
    """Of a failed or lost run, see isoflop.launch.slurm.failures.KINDS."""
    job: JobState | None = None
    """Its newest job, as far as the scheduler knows it."""
    log_lines: tuple[str, ...] = ()
    """The end of what a failed run wrote."""

    @property
    def eta_s(self) -> float | None:
        """Seconds of training left, while running at a known rate."""
        if self.steps_per_s is None or self.step is None:
            return None
        return (self.run.spec.steps - 1 - self.step) / self.steps_per_s


def run_state(folder: Path, run: PlannedRun, result: dict[str, Any] | None = None) -> RunState:
    """Return where one run stands; its result is read unless the caller has it.

    Raises:
        UserError: a file of the run's folder is damaged.
    """
    run_folder = RunFolder(folder, run.run_id)
    result = run_folder.result() if result is None else result
    attempts = run_folder.attempts()
    newest = attempts[-1] if attempts else None
    state, reason, step, rate = "missing", None, None, None
    if result is not None:
        state, reason = result["status"], result["status_reason"]
    elif newest is not None and run_folder.is_held(newest):
        lease = run_folder.lease()
        state, step = "running", 0 if lease is None else lease.step
        rate = steps_per_s(run_folder.path / LINES_FILE, newest.number)
    elif newest is not None and newest.failed:
        state, reason = "failed", newest.exit_reason
    elif newest is not None:
        reason = newest.exit_reason or "stopped without a word (killed, or the machine went down)"
    return RunState(
        run=run,
        state=state,
        reason=reason,
        num_attempts=len(attempts),
        step=step,
        result=result,
        attempt=newest,
        steps_per_s=rate,
    )


def steps_per_s(lines_file: Path, attempt: int) -> float | None:
    """Steps in a second of training, over the last metrics of an attempt; None: fewer than two."""
    rows = [row for row in _rows(tail(lines_file)) if row.get("attempt") == attempt]
    rows = [row for row in rows if "event" not in row][-_RATE_ROWS:]
    if len(rows) < 2 or rows[-1]["wall_s"] <= rows[0]["wall_s"]:
        return None
    return float((rows[-1]["step"] - rows[0]["step"]) / (rows[-1]["wall_s"] - rows[0]["wall_s"]))


def _rows(lines: Sequence[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        # A row that is being written.
        with contextlib.suppress(ValueError):
            yield json.loads(line)


def study_states(
    folder: Path, plan: Plan, results: Mapping[str, dict[str, Any]] | None = None
) -> list[RunState]:
    """Return the state of every run of a plan, in the plan's order.

    Args:
        folder: the study's folder.
        plan: its plan.
        results: by run id, those that were read already; a result never changes.
    """
    known = results or {}
    by_id = {r.run_id: run_state(folder, r, known.get(r.run_id)) for r in plan.unique_runs}
    return [dataclasses.replace(by_id[run.run_id], run=run) for run in plan.runs]


def runs_row(state: RunState) -> dict[str, Any]:
    """The columns of runs.parquet; what is not measured is null. A run at work is `missing`."""
    result = state.result or {}
    return {
        **state.run.row(),
        **{name: result.get(name) for name in _MEASURED},
        "n_attempts": state.num_attempts,
        "status": "missing" if state.state in _UNFINISHED else state.state,
        "status_reason": "running" if state.state == "running" else state.reason,
        "excluded_reason": None,
    }


def collect(folder: Path, plan: Plan, out_folder: Path | None = None) -> list[dict[str, Any]]:
    """Write runs.parquet from the run folders and returns its rows.

    A run without a folder keeps the result that the study's runs.parquet already has: the tables
    of a study travel without its run folders.

    Args:
        folder: the study's folder.
        plan: its plan.
        out_folder: where the table goes; None: into the study's folder.

    Raises:
        UserError: a file of a run's folder is damaged, or a table that is needed is.
    """
    states = study_states(folder, plan)
    stored = load_estimates(folder)
    estimates = {} if stored is None else stored.columns
    rows = [{**runs_row(state), **estimates.get(state.run.run_id, {})} for state in states]
    kept = results_without_folder(folder, states)
    rows = [row | kept.get(row["run_id"], {}) for row in rows]
    write_table((out_folder or folder) / "runs.parquet", rows, RUNS)
    return rows


def results_without_folder(folder: Path, states: list[RunState]) -> dict[str, dict[str, Any]]:
    """Return what runs.parquet says of finished runs that have no folder here, by run id.

    Raises:
        UserError: there are runs without a folder, and the table is damaged.
    """
    path = folder / "runs.parquet"
    bare = {s.run.run_id for s in states if s.num_attempts == 0 and s.result is None}
    if not bare or not path.exists():
        return {}
    return {
        row["run_id"]: {name: row[name] for name in _KEPT}
        for row in read_table(path, RUNS)
        if row["run_id"] in bare and row["status"] in ("done", "diverged")
    }

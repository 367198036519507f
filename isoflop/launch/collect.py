"""Where every run of a plan stands by the files of its folder alone, and the table runs.parquet."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isoflop.errors import UserError
from isoflop.launch.metrics import LINES_FILE, rows_of
from isoflop.launch.run_folder import RunFolder
from isoflop.launch.run_records import Attempt, RunResult
from isoflop.launch.slurm.logs import tail
from isoflop.launch.slurm.scheduler import JobState
from isoflop.launch.trunks import trunk_jobs, waits_for, waits_text
from isoflop.numbers import format_flops
from isoflop.plan.estimate import load_estimates
from isoflop.plan.planner import Plan
from isoflop.plan.runs import PlannedRun
from isoflop.plan.trunks import flops_of_steps, trunks_of
from isoflop.tables import MEASURED, METRIC, PLAN, RUNS, read_table

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
    "damaged",
)
"""The files suffice for done, running, diverged, failed, missing and damaged (a record of the run
cannot be read, and its reason says which), and for waiting where a run is to begin at the fork of a
longer one at work; the others need a scheduler.
unknown: sent to a scheduler that does not answer now, or cannot show the job from here."""

LIVE = ("running", "requeued", "waiting", "unknown")
"""States that change by themselves."""

# Rows of metrics.jsonl that a rate is taken over.
_RATE_ROWS = 10

# What runs.parquet has before the line of a damaged record.
_DAMAGED = "damaged: "

# As long as a run trains or is going to, runs.parquet calls it missing.
_UNFINISHED = (*LIVE, "lost", "damaged")

# What a row has of the plan: all else is kept.
_PLANNED = frozenset(PLAN.names)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunState:
    """One run and where it stands."""

    run: PlannedRun
    state: str
    """One of STATES."""
    reason: str | None
    num_attempts: int
    step: int | None
    """Last step reported, while running."""
    result: RunResult | None
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
    silent_s: float | None = None
    """While running, seconds since its last sign of life; None: no date of one can be trusted."""
    warnings: tuple[str, ...] = ()
    """While running, what it cannot write."""

    @property
    def eta_s(self) -> float | None:
        """Seconds of training left, while running at a known rate."""
        if self.steps_per_s is None or self.step is None:
            return None
        return (self.run.spec.steps - 1 - self.step) / self.steps_per_s


def run_state(folder: Path, run: PlannedRun, result: RunResult | None = None) -> RunState:
    """Return where one run stands; its result is read unless the caller has it.

    Raises:
        UserError: a file of the run's folder is damaged.
    """
    run_folder = RunFolder(folder, run.run_id)
    result = run_folder.result() if result is None else result
    attempts = run_folder.attempts()
    newest = attempts[-1] if attempts else None
    state, reason, step, rate = "missing", None, None, None
    last_sign_s: float | None = None
    warnings: tuple[str, ...] = ()
    if result is not None:
        state, reason = result.status, result.status_reason
    elif newest is not None and run_folder.is_held(newest):
        lease = run_folder.lease()
        state, step = "running", 0 if lease is None else lease.step
        last_sign_s = run_folder.last_sign_s(newest)
        if lease is not None and lease.attempt == newest.number:
            warnings = lease.warnings
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
        silent_s=None if last_sign_s is None else max(0.0, time.time() - last_sign_s),
        warnings=warnings,
    )


def steps_per_s(lines_file: Path, attempt: int) -> float | None:
    """Return steps per second of training, over an attempt's last metrics; None: fewer than two."""
    rows = [row for row in rows_of(tail(lines_file)) if row["attempt"] == attempt]
    rows = [row for row in rows if "event" not in row and {"step", "wall_s"} <= row.keys()]
    rows = rows[-_RATE_ROWS:]
    if len(rows) < 2 or rows[-1]["wall_s"] <= rows[0]["wall_s"]:
        return None
    return float((rows[-1]["step"] - rows[0]["step"]) / (rows[-1]["wall_s"] - rows[0]["wall_s"]))


def study_states(
    folder: Path, plan: Plan, results: Mapping[str, RunResult] | None = None
) -> list[RunState]:
    """Return the state of every run of a plan, in the plan's order.

    Args:
        folder: the study's folder.
        plan: its plan.
        results: by run id, those that were read already; a result never changes.
    """
    known = results or {}

    def state(run: PlannedRun) -> RunState:
        return or_damaged(run, lambda: run_state(folder, run, known.get(run.run_id)))

    by_id = {run.run_id: state(run) for run in plan.unique_runs}
    by_id |= _waiting(folder, plan, by_id)
    return [dataclasses.replace(by_id[run.run_id], run=run) for run in plan.runs]


def _waiting(folder: Path, plan: Plan, states: Mapping[str, RunState]) -> dict[str, RunState]:
    """Return the runs that are to begin where one at work passes, by run id."""
    at_work = {run_id for run_id, state in states.items() if state.state == "running"}
    found = {}
    for run_id, job in trunk_jobs(plan).items() if at_work else ():
        state = states[run_id]
        if state.state != "missing" or at_work.isdisjoint(other.run_id for other in job.longer):
            continue
        longer = waits_for(folder, run_id, job, at_work.__contains__)
        if longer is not None:
            reason = waits_text(longer.run_id, job.fork)
            found[run_id] = dataclasses.replace(state, state="waiting", reason=reason)
    return found


def or_damaged(run: PlannedRun, state: Callable[[], RunState]) -> RunState:
    """Return a run's state; `damaged`, with the line that says what, where a record is."""
    try:
        return state()
    except UserError as error:
        return RunState(
            run=run, state="damaged", reason=str(error), num_attempts=0, step=None, result=None
        )


def runs_row(state: RunState, *, with_spent: bool = False) -> dict[str, Any]:
    """Return the row of runs.parquet; what is not measured is null. A run at work is `missing`.

    Args:
        state: where the run stands.
        with_spent: whether the table has what was executed for each run alone.
    """
    result = state.result
    reasons = {"running": "running", "damaged": f"{_DAMAGED}{state.reason}"}
    return {
        **state.run.row(),
        **{name: None if result is None else getattr(result, name) for name in MEASURED},
        **({} if result is None else {f"{METRIC}{name}": v for name, v in result.metrics.items()}),
        "n_attempts": state.num_attempts,
        "status": "missing" if state.state in _UNFINISHED else state.state,
        "status_reason": reasons.get(state.state, state.reason),
        "excluded_reason": None,
        **(_spent(state.run, result) if with_spent and result is not None else {}),
    }


def _spent(run: PlannedRun, result: RunResult) -> dict[str, float | None]:
    """Return FLOPs and seconds of the steps that a run did not take over from a longer one."""
    wall_s = result.wall_s
    return {
        "flops_spent": float(flops_of_steps(run, result.num_own_steps)),
        "wall_s_spent": None if wall_s is None else wall_s - result.trunk_wall_s,
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class Shared:
    """What the finished runs of a study shared."""

    num_runs: int
    num_begun_at_forks: int
    """Those that began from a state of another one."""
    flops: float
    """Of all steps of the runs."""
    flops_spent: float
    """Of the steps that were executed for them."""

    def __str__(self) -> str:
        """Return it in a line."""
        return (
            f"{self.num_begun_at_forks} of {self.num_runs} runs began from a state of another "
            f"one: {format_flops(self.flops_spent, 3)} of {format_flops(self.flops, 3)} FLOPs "
            "executed"
        )


def shared(plan: Plan, results: Mapping[str, RunResult]) -> Shared | None:
    """Return what runs took over from longer ones; None: nothing.

    Args:
        plan: of the study.
        results: of the runs that are finished, by run id.
    """
    ended = [(run, results[run.run_id]) for run in plan.unique_runs if run.run_id in results]
    num_begun = sum(result.trunk_steps > 0 for _, result in ended)
    if num_begun == 0:
        return None
    return Shared(
        num_runs=len(ended),
        num_begun_at_forks=num_begun,
        flops=float(sum(flops_of_steps(run, result.num_steps) for run, result in ended)),
        flops_spent=float(sum(flops_of_steps(run, result.num_own_steps) for run, result in ended)),
    )


def collected_rows(folder: Path, plan: Plan) -> list[dict[str, Any]]:
    """Return the rows of runs.parquet, and write nothing.

    A run without a folder keeps the result that the study's runs.parquet already has: the tables
    of a study travel without its run folders.

    Raises:
        UserError: a table that is needed is damaged.
    """
    states = study_states(folder, plan)
    stored = load_estimates(folder)
    estimates = {} if stored is None else stored.columns
    # Planned again without trunks, what was executed stays what it was.
    began = any(state.result is not None and state.result.trunk_steps for state in states)
    with_spent = began or bool(trunks_of(plan))
    rows = [
        {**runs_row(state, with_spent=with_spent), **estimates.get(state.run.run_id, {})}
        for state in states
    ]
    kept = results_without_folder(folder, states)
    return [row | kept.get(row["run_id"], {}) for row in rows]


def results_without_folder(folder: Path, states: list[RunState]) -> dict[str, dict[str, Any]]:
    """Return what runs.parquet holds of finished runs that have no folder here, by run id.

    Raises:
        UserError: there are runs without a folder, and the table is damaged.
    """
    path = folder / "runs.parquet"
    bare = {s.run.run_id for s in states if s.num_attempts == 0 and s.result is None}
    bare -= {s.run.run_id for s in states if s.state == "damaged"}
    if not bare or not path.exists():
        return {}
    return {
        row["run_id"]: {name: v for name, v in row.items() if name not in _PLANNED}
        for row in read_table(path, RUNS, more=METRIC)
        if row["run_id"] in bare and row["status"] in ("done", "diverged")
    }


def damaged_reasons(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what is wrong with each run of :func:`collected_rows` whose records cannot be read."""
    found = (row["status_reason"] or "" for row in rows if row["status"] == "missing")
    lines = dict.fromkeys(line for line in found if line.startswith(_DAMAGED))
    return [line.removeprefix(_DAMAGED) for line in lines]

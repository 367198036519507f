"""Where the runs of a plan stand, for the terminal and as plain values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from isoflop.launch.slurm.states import Truth
from isoflop.launch.status import STATES, RunState
from isoflop.numbers import format_flops, format_seconds
from isoflop.plan.identity import shown_id
from isoflop.render.tables import new_table

_ALWAYS_SHOWN = ("done", "running", "diverged", "failed", "missing")
# Those that need somebody's attention last, where the eye is.
_LINE_ORDER = ("running", "waiting", "requeued", "unknown", "missing", "diverged", "lost", "failed")
_MAX_LINES = 20


def status_table(states: Sequence[RunState]) -> Table:
    """Counts of states by budget and arch, in the plan's order."""
    there = {state.state for state in states}
    columns = [state for state in STATES if state in _ALWAYS_SHOWN or state in there]
    table = new_table(("budget", ">"), ("arch", "<"), *((state, ">") for state in columns))
    cells: dict[tuple[int, str], Counter[str]] = {}
    for state in states:
        key = (state.run.budget_flops, state.run.arch)
        cells.setdefault(key, Counter())[state.state] += 1
    for (budget, arch), counts in cells.items():
        table.add_row(
            format_flops(budget), arch, *(str(counts[s]) if counts[s] else "-" for s in columns)
        )
    return table


def status_lines(truth: Truth) -> list[str]:
    """Each run that is neither done nor simply not begun, with its reason; of many the first."""
    lines = []
    if truth.unreachable is not None:
        lines.append(f"the scheduler does not answer: {truth.unreachable}")
        lines.append("this is what the files know; jobs in the queue are not in it")
    unique = {state.run.run_id: state for state in truth.states}.values()
    for name in _LINE_ORDER:
        found = [s for s in unique if s.state == name and (s.reason or name != "missing")]
        for state in found[:_MAX_LINES]:
            lines += _run_lines(state)
        if len(found) > _MAX_LINES:
            lines.append(f"{name:9s} … and {len(found) - _MAX_LINES} more; --json tells all")
    return lines


def status_view(truth: Truth) -> Group:
    """The whole of it, for a live display."""
    lines = (Text(line, overflow="fold") for line in status_lines(truth))
    return Group(status_table(truth.states), *lines)


def status_json(truth: Truth) -> dict[str, Any]:
    """The whole of it as plain JSON values; what is not known is null."""
    unique = {state.run.run_id: state for state in truth.states}
    return {
        "counts": dict(Counter(state.state for state in unique.values())),
        "scheduler_unreachable": truth.unreachable,
        "scheduler_calls": truth.queue.answer.calls,
        "runs": [_run_json(state) for state in unique.values()],
    }


def _run_lines(state: RunState) -> list[str]:
    run = state.run
    what = f"{shown_id(run.run_id)} {run.arch} size {run.size} at {format_flops(run.budget_flops)}"
    if state.state == "running":
        return [f"running   {what}: {_progress(state)}"]
    # A kind that the reason does not say already.
    kind = f"{state.kind}: " if state.state == "failed" and state.kind else ""
    return [
        f"{state.state:9s} {what}: {kind}{state.reason}",
        *(f"          | {line}" for line in state.log_lines),
    ]


def _progress(state: RunState) -> str:
    parts = [f"step {state.step} of {state.run.spec.steps}"]
    if state.steps_per_s is not None:
        parts.append(f"{state.steps_per_s:.3g} steps/s")
    if state.eta_s is not None:
        parts.append(f"{format_seconds(state.eta_s)} left")
    if state.job is not None:
        where = f" on {state.job.node}" if state.job.node else ""
        parts.append(f"job {state.job.job_id}{where}")
    return ", ".join(parts)


def _run_json(state: RunState) -> dict[str, Any]:
    run, job = state.run, state.job
    return {
        "run_id": run.run_id,
        "arch": run.arch,
        "size": run.size,
        "budget_flops": run.budget_flops,
        "state": state.state,
        "reason": state.reason,
        "kind": state.kind,
        "step": state.step,
        "steps": run.spec.steps,
        "steps_per_s": state.steps_per_s,
        "eta_s": state.eta_s,
        "attempts": state.num_attempts,
        "job": None if job is None else job.job_id,
        "job_state": None if job is None else job.state,
        "node": None if job is None else job.node,
        "restarts": None if job is None else job.restarts,
        "loss": None if state.result is None else state.result["loss"],
        "log_lines": list(state.log_lines),
    }

"""`isoflop status`."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from isoflop.cli.options import FOLDER
from isoflop.cli.tables import console, new_table, print_lines
from isoflop.disk import shortage_at
from isoflop.launch.collect import LIVE, STATES
from isoflop.numbers import format_flops, format_seconds
from isoflop.spec import shown_id
from isoflop.texts import printable

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.table import Table

    from isoflop.launch.collect import RunState
    from isoflop.launch.status import StudyStatus
    from isoflop.plan.planner import Plan


SCHEDULER_UNREACHABLE = 3

_ALWAYS_SHOWN = ("done", "running", "diverged", "failed", "missing")

# Those that need attention last, where the eye is.
_LINE_ORDER = (
    *("running", "waiting", "requeued", "unknown", "missing", "diverged", "lost", "failed"),
    "damaged",
)
_MAX_LINES = 20
# A run gives a sign of life every 5 s; a few may come late.
_SILENT_S = 30
_KEPT = "kept"


@click.command()
@click.argument("folder", type=FOLDER)
@click.option("--watch", is_flag=True, help="Go on until nothing runs or waits.")
@click.option(
    "--every",
    type=click.FloatRange(min=1),
    show_default=False,
    default=10,
    metavar="SECONDS",
    help="Between two looks, with --watch; 1 or more.  [default: 10]",
)
@click.option("--json", "as_json", is_flag=True, help="Every run, as JSON.")
def status(folder: Path, watch: bool, every: float, as_json: bool) -> None:
    """Say where every run of the plan in FOLDER stands.

    The run's own files are asked first, then the scheduler, once for all runs. Where it does not
    answer, what the files know is shown, and the exit code is 3. Failed runs come with their kind
    (see `isoflop retry`) and the last lines of their output.
    """
    from isoflop.launch.status import study_status
    from isoflop.plan.artefact import read_plan

    plan = read_plan(folder)
    if as_json:
        status = study_status(folder, plan)
        click.echo(json.dumps(status_json(status), indent=1))
    elif watch:
        status = _watch(folder, plan, every, console())
    else:
        status = study_status(folder, plan)
        _print(folder, status, console())
    sys.exit(0 if status.unreachable is None else SCHEDULER_UNREACHABLE)


def _print(folder: Path, status: StudyStatus, out: Console) -> None:
    from isoflop.launch.collect import results_without_folder

    kept = results_without_folder(folder, list(status.states))
    out.print(status_table(status.states, kept))
    lines = status_lines(status) + disk_lines(folder, status.states)
    if kept:
        lines.append(
            f"kept: runs.parquet holds the results of {len(kept)} runs that have no folder here; "
            "`isoflop fit` uses them, `isoflop run` would train them anew"
        )
    elif (hint := next_line(status, folder)) is not None:
        lines.append(hint)
    print_lines(out, lines)


def _watch(folder: Path, plan: Plan, every_s: float, out: Console) -> StudyStatus:
    """Show the status until nothing runs or waits any more; return the last one."""
    from rich.live import Live

    from isoflop.launch.status import study_status

    status = study_status(folder, plan)
    with Live(status_view(status, folder), console=out, auto_refresh=False) as live:
        while any(s.state in LIVE for s in status.states) or _is_to_be_fitted(status):
            try:
                time.sleep(every_s)
            except KeyboardInterrupt:
                break
            status = study_status(folder, plan)
            live.update(status_view(status, folder), refresh=True)
    return status


def status_table(states: Sequence[RunState], kept: Collection[str] = ()) -> Table:
    """Return counts of states by budget and arch, in the plan's order.

    Args:
        states: of all runs of the plan.
        kept: ids of runs whose results are in runs.parquet only; they have a column of their own.
    """
    named = [(_KEPT if state.run.run_id in kept else state.state, state.run) for state in states]
    there = {name for name, _ in named}
    columns = [name for name in (*STATES, _KEPT) if name in _ALWAYS_SHOWN or name in there]
    table = new_table(("budget", ">"), ("arch", "<"), *((name, ">") for name in columns))
    cells: dict[tuple[int, str], Counter[str]] = {}
    for name, run in named:
        cells.setdefault((run.budget_flops, run.arch), Counter())[name] += 1
    for (budget, arch), counts in cells.items():
        table.add_row(
            format_flops(budget), arch, *(str(counts[s]) if counts[s] else "-" for s in columns)
        )
    return table


def status_lines(status: StudyStatus) -> list[str]:
    """Return lines for the runs that are neither done nor simply not begun, with reasons."""
    lines = []
    if status.unreachable is not None:
        lines.append(f"the scheduler does not answer: {status.unreachable}")
        lines.append("this is what the files know; jobs in the queue are not in it")
    lines += (f"damaged: {line}" for line in status.damaged)
    unique = {state.run.run_id: state for state in status.states}.values()
    shown: set[tuple[str, ...]] = set()
    for name in _LINE_ORDER:
        found = [s for s in unique if s.state == name and (s.reason or name != "missing")]
        if name == "missing":
            found, together = _apart(found)
            lines += together
        for state in found[:_MAX_LINES]:
            lines.append(_run_line(state))
            lines += (f"          ! {warning}" for warning in state.warnings)
            # Runs that fail together mostly say the same.
            if state.log_lines not in shown:
                lines += (f"          | {line}" for line in state.log_lines)
            elif state.log_lines:
                lines.append("          | (the same as above)")
            shown.add(state.log_lines)
        if len(found) > _MAX_LINES:
            lines.append(f"{name:9s} … and {len(found) - _MAX_LINES} more; --json tells all")
    if status.fit is not None:
        lines.append(f"fit       {status.fit.line}")
    return lines


def disk_lines(folder: Path, states: Sequence[RunState]) -> list[str]:
    """Return a line where unfinished runs can write nothing; they may not have recorded why."""
    if all(state.state in ("done", "diverged") for state in states):
        return []
    shortage = shortage_at(folder)
    return [] if shortage is None else [f"runs can write nothing to {folder}: {shortage}"]


def next_line(status: StudyStatus, folder: Path) -> str | None:
    """Return what to type next, where nothing is going on any more."""
    there = {state.state for state in status.states}
    if there & {*LIVE, "lost"} or _is_to_be_fitted(status):
        return None
    if there <= {"done", "diverged"}:
        return f"all runs are over: `isoflop fit {folder}`"
    if "failed" in there:
        return (
            f"`isoflop logs {folder} RUN` shows why; `isoflop run {folder}`, or `isoflop retry "
            f"{folder} --failed KIND` on a cluster, tries again"
        )
    return (
        f"nothing is at work or queued: `isoflop run {folder}`, or `submit`, trains what is missing"
    )


def _is_to_be_fitted(status: StudyStatus) -> bool:
    return status.fit is not None and status.fit.is_live


def status_view(status: StudyStatus, folder: Path) -> Group:
    """Return table and lines together, for a live display."""
    from rich.console import Group
    from rich.text import Text

    lines = [*status_lines(status), *disk_lines(folder, status.states)]
    lines.append(next_line(status, folder) or "")
    texts = (Text(printable(line, ""), overflow="fold") for line in lines if line)
    return Group(status_table(status.states), *texts)


def status_json(status: StudyStatus) -> dict[str, Any]:
    """Return every run's state as plain JSON values; what is not known is null."""
    unique = {state.run.run_id: state for state in status.states}
    return {
        "counts": dict(Counter(state.state for state in unique.values())),
        "scheduler_unreachable": status.unreachable,
        "damaged": list(status.damaged),
        "scheduler_calls": status.queue.answer.calls,
        "fit": None if status.fit is None else status.fit.line,
        "runs": [_run_json(state) for state in unique.values()],
    }


def _apart(states: Sequence[RunState]) -> tuple[list[RunState], list[str]]:
    """Return the runs with a reason of their own, and a line for each reason that several share."""
    number = Counter(state.reason for state in states)
    lines = [f"missing   {n} runs: {reason}" for reason, n in number.items() if n > 1]
    return [state for state in states if number[state.reason] == 1], lines


def _run_line(state: RunState) -> str:
    run = state.run
    what = f"{shown_id(run.run_id)} {run.arch} size {run.size} at {format_flops(run.budget_flops)}"
    if state.state == "running":
        return f"running   {what}: {_progress(state)}"
    # The word that `isoflop retry --failed` takes.
    kind = f"{state.kind}: " if state.state == "failed" and state.kind else ""
    return f"{state.state:9s} {what}: {kind}{state.reason}"


def _progress(state: RunState) -> str:
    parts = [f"step {state.step} of {state.run.spec.steps}"]
    if state.steps_per_s is not None:
        parts.append(f"{state.steps_per_s:.3g} steps/s")
    if state.eta_s is not None:
        parts.append(f"{format_seconds(state.eta_s)} left")
    if state.job is not None:
        where = f" on {state.job.node}" if state.job.node else ""
        # What else it may be while its process is there.
        other = "" if state.job.state in ("RUNNING", "PENDING") else f" {state.job.state}"
        parts.append(f"{state.job.name}{other}{where}")
    if state.silent_s is not None and state.silent_s >= _SILENT_S:
        parts.append(f"no sign of life for {format_seconds(state.silent_s)}")
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
        "loss": None if state.result is None else state.result.loss,
        "log_lines": list(state.log_lines),
        "silent_s": state.silent_s,
        "warnings": list(state.warnings),
    }

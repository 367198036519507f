"""`isoflop status`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from isoflop.commands import FOLDER

if TYPE_CHECKING:
    from rich.console import Console

    from isoflop.launch.slurm.states import Truth
    from isoflop.plan.planner import Plan

SCHEDULER_UNREACHABLE = 3


@click.command(short_help="Say what is done, running, waiting, failed, lost, missing.")
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
    from isoflop.launch.slurm.states import study_truth
    from isoflop.plan.artefact import read_plan
    from isoflop.render.status import status_json
    from isoflop.render.tables import console

    plan = read_plan(folder)
    if as_json:
        truth = study_truth(folder, plan)
        click.echo(json.dumps(status_json(truth), indent=1))
    elif watch:
        truth = _watch(folder, plan, every, console())
    else:
        truth = study_truth(folder, plan)
        _print(folder, truth, console())
    sys.exit(0 if truth.unreachable is None else SCHEDULER_UNREACHABLE)


def _print(folder: Path, truth: Truth, out: Console) -> None:
    from isoflop.launch.status import results_without_folder
    from isoflop.render.status import next_line, status_lines, status_table

    kept = results_without_folder(folder, list(truth.states))
    out.print(status_table(truth.states, kept))
    lines = status_lines(truth)
    if kept:
        lines.append(
            f"kept: runs.parquet holds the results of {len(kept)} runs that have no folder here; "
            "`isoflop fit` uses them, `isoflop run` would train them anew"
        )
    elif (hint := next_line(truth.states, folder)) is not None:
        lines.append(hint)
    for line in lines:
        out.print(line, markup=False, soft_wrap=True)


def _watch(folder: Path, plan: Plan, every_s: float, out: Console) -> Truth:
    """Show the state again and again; the last one when nothing runs or waits any more."""
    from rich.live import Live

    from isoflop.launch.slurm.states import study_truth
    from isoflop.launch.status import LIVE
    from isoflop.render.status import status_view

    truth = study_truth(folder, plan)
    with Live(status_view(truth, folder), console=out, auto_refresh=False) as live:
        while any(state.state in LIVE for state in truth.states):
            try:
                time.sleep(every_s)
            except KeyboardInterrupt:
                break
            truth = study_truth(folder, plan)
            live.update(status_view(truth, folder), refresh=True)
    return truth

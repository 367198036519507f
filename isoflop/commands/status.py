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

_LIVE = ("running", "requeued", "waiting", "unknown")


@click.command(short_help="Say what is done, running, waiting, failed, lost, missing.")
@click.argument("folder", type=FOLDER)
@click.option("--watch", is_flag=True, help="Go on until nothing runs or waits.")
@click.option(
    "--every", type=click.FloatRange(min=1), default=10, show_default=True, help="With --watch: s."
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
    from isoflop.render.status import status_lines, status_table

    out.print(status_table(truth.states))
    for line in status_lines(truth):
        out.print(line, markup=False, soft_wrap=True)
    num_kept = len(results_without_folder(folder, list(truth.states)))
    if num_kept:
        out.print(
            f"runs.parquet holds the results of {num_kept} runs that have no folder here; "
            "`isoflop fit` keeps them, `isoflop run` would train them anew",
            soft_wrap=True,
        )


def _watch(folder: Path, plan: Plan, every_s: float, out: Console) -> Truth:
    """Shows the state again and again; the last one when nothing runs or waits any more."""
    from rich.live import Live

    from isoflop.launch.slurm.states import study_truth
    from isoflop.render.status import status_view

    truth = study_truth(folder, plan)
    with Live(status_view(truth), console=out, auto_refresh=False) as live:
        while any(state.state in _LIVE for state in truth.states):
            try:
                time.sleep(every_s)
            except KeyboardInterrupt:
                break
            truth = study_truth(folder, plan)
            live.update(status_view(truth), refresh=True)
    return truth

"""`isoflop run` and `isoflop status`."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import click

from isoflop.commands import FOLDER

SOME_RUNS_FAILED = 1
INTERRUPTED = 128 + signal.SIGINT


@click.command(short_help="Train the runs that have no result yet.")
@click.argument("folder", type=FOLDER)
@click.option("--workers", type=int, help="Runs at a time.  [default: one per core]")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
def run(folder: Path, workers: int | None, device: str) -> None:
    """Train every run of the plan in FOLDER that has no result yet.

    Interrupted or killed, the same command goes on; a finished run is never trained twice.
    Exit code 1 when some runs failed or diverged.
    """
    sys.exit(run_folder(folder, workers, device))


def run_folder(folder: Path, workers: int | None, device: str) -> int:
    """Runs a study's folder with live progress; returns the exit code."""
    from isoflop.launch.local import open_session, run_session
    from isoflop.plan.identity import shown_id
    from isoflop.render.progress import Watcher
    from isoflop.render.tables import console

    out = console()
    session = open_session(folder, num_workers=workers, device=device)
    out.print(
        f"{len(session.jobs)} runs to train, {session.num_done_before} complete already; "
        f"{session.num_workers} at a time"
    )
    # A polite kill ends like Ctrl-C: workers stop at their next step and record why.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with Watcher(session, out) as watcher:
            summary = run_session(session, watcher.on_event)
    except KeyboardInterrupt:
        out.print(f"interrupted; `isoflop run {folder}` goes on from here", soft_wrap=True)
        return INTERRUPTED
    for run_id, ending in summary.failed.items():
        out.print(
            f"{ending.status}: {shown_id(run_id)}: {ending.reason}", markup=False, soft_wrap=True
        )
    return SOME_RUNS_FAILED if summary.failed else 0


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@click.command(short_help="Say what is done, running, failed, missing.")
@click.argument("folder", type=FOLDER)
def status(folder: Path) -> None:
    """Say which runs of the plan in FOLDER are done, running, failed or missing."""
    from isoflop.launch.status import results_without_folder, study_states
    from isoflop.plan.artefact import read_plan
    from isoflop.render.tables import console, status_table, unfinished_lines

    states = study_states(folder, read_plan(folder))
    out = console()
    out.print(status_table(states))
    for line in unfinished_lines(states):
        out.print(line, markup=False, soft_wrap=True)
    num_kept = len(results_without_folder(folder, states))
    if num_kept:
        out.print(
            f"runs.parquet holds the results of {num_kept} runs that have no folder here; "
            "`isoflop fit` keeps them, `isoflop run` would train them anew",
            soft_wrap=True,
        )

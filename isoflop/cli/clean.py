"""`isoflop clean`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from isoflop.cli.options import FOLDER
from isoflop.cli.prompts import confirm
from isoflop.cli.status import SCHEDULER_UNREACHABLE
from isoflop.cli.tables import counted

if TYPE_CHECKING:
    from isoflop.launch.clean import Leftover


@click.command()
@click.argument("folder", type=FOLDER)
@click.option("--dry-run", is_flag=True, help="Show what would be removed, and remove nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def clean(folder: Path, dry_run: bool, yes: bool) -> None:
    """Remove what nothing in FOLDER needs any more; it is shown first.

    That is: copies of the code that no job runs, checkpoints of finished runs (not the weights that
    the study keeps), temporary files whose writers were killed, and the arguments of jobs that are
    over. Results, metrics and logs stay. Where the scheduler does not say which jobs there are,
    nothing is removed, and the exit code is 3.
    """
    from isoflop.launch import clean as library
    from isoflop.launch.slurm.scheduler import SchedulerError
    from isoflop.plan.artefact import read_plan

    plan = read_plan(folder)
    try:
        found = library.leftovers(folder, plan)
        for line in _lines(found, folder):
            click.echo(line)
        if not found:
            return
        if dry_run:
            click.echo("nothing was removed")
            return
        if not yes:
            confirm("Remove them?", "nothing was removed")
        gone = library.remove(folder, plan, found)
    except SchedulerError as error:
        click.echo(f"the scheduler does not answer: {error.words}; nothing was removed", err=True)
        sys.exit(SCHEDULER_UNREACHABLE)
    click.echo(f"removed {_total(gone)}")
    if len(gone) < len(found):
        click.echo(f"kept, since something needs them now: {len(found) - len(gone)}")


def _lines(found: Sequence[Leftover], folder: Path) -> Iterator[str]:
    from isoflop.plan.estimate.memory import format_bytes

    for leftover in found:
        path = leftover.path.relative_to(folder.resolve())
        yield f"{format_bytes(leftover.size_bytes):>10s}  {path}: {leftover.why}"
    yield f"{_total(found)} to remove" if found else "nothing to remove"


def _total(found: Sequence[Leftover]) -> str:
    from isoflop.plan.estimate.memory import format_bytes

    size_bytes = sum(leftover.size_bytes for leftover in found)
    return f"{counted(len(found), 'path')}, {format_bytes(size_bytes)}"

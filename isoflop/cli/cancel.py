"""`isoflop cancel`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from isoflop.cli.options import FOLDER, selected, selection
from isoflop.cli.prompts import confirm
from isoflop.cli.tables import print_damaged
from isoflop.texts import printable

if TYPE_CHECKING:
    from isoflop.launch.slurm.cancel import Cancellation

SOME_NOT_ENDED = 1

_MAX_NAMED = 10


@click.command()
@click.argument("folder", type=FOLDER)
@selection
@click.option("--yes", is_flag=True, help="Do not ask.")
def cancel(
    folder: Path, runs: tuple[str, ...], archs: str | None, budgets: str | None, yes: bool
) -> None:
    """End RUNS of the plan in FOLDER, or all of them, whether they run or wait.

    RUNS are run ids or their first digits. A run at work saves at its next step and stops; the
    scheduler gives it KillWait seconds (30, as SLURM comes), after which it is as its newest
    checkpoint has it. Results stay. `isoflop submit` or `isoflop run` goes on from there. Exit code
    1 when some could not be ended, such as another user's or another cluster's.
    """
    from isoflop.launch.slurm import cancel as library
    from isoflop.launch.slurm.scheduler import ENDING_ALREADY
    from isoflop.plan.artefact import read_plan
    from isoflop.spec import shown_id

    plan = read_plan(folder)
    wanted = selected(plan, runs, archs, budgets)
    found = library.to_cancel(folder, plan, wanted)
    print_damaged(found.damaged)
    for run_id, host in found.elsewhere.items():
        where = printable(host, "")
        click.echo(
            f"{shown_id(run_id)} runs on {where}, without a job and not visible from here (another "
            "machine or container): cancel it there"
        )
    for run_id, words in found.hidden.items():
        click.echo(f"{shown_id(run_id)} cannot be cancelled from here: {words}", err=True)
    if not (found.run_ids or found.fits):
        click.echo("nothing to cancel: no such run is at work or in the queue")
        sys.exit(SOME_NOT_ENDED if found.damaged or found.hidden else 0)
    if found.run_ids:
        click.echo(_named(found, wanted))
    for fit in found.fits:
        click.echo(f"{fit.name}, which is to fit when all runs are over, ends")
    if not yes:
        confirm("End them?", "nothing was ended")
    not_ended = library.cancel(folder, found)
    for name, words in not_ended.items():
        click.echo(f"not ended, {name}: {words}", err=True)
    if len(not_ended) < len(found.tasks) + len(found.fits) + len(found.holders):
        click.echo("asked for; `isoflop status` tells what becomes of them")
    is_left = found.damaged or found.hidden
    if is_left or any(words != ENDING_ALREADY for words in not_ended.values()):
        sys.exit(SOME_NOT_ENDED)


def _named(found: Cancellation, wanted: set[str] | None) -> str:
    from isoflop.spec import shown_id

    ids = found.run_ids
    names = ", ".join(shown_id(run_id) for run_id in ids[:_MAX_NAMED])
    more = f" and {len(ids) - _MAX_NAMED} more" if len(ids) > _MAX_NAMED else ""
    others = 0 if wanted is None else sum(run_id not in wanted for run_id in ids)
    shared = f"; {others} of them only because they share a job with these" if others else ""
    what = "1 run ends" if len(ids) == 1 else f"{len(ids)} runs end"
    return f"{what}: {names}{more}{shared}"

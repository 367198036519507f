"""`isoflop plan`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from isoflop.commands import FOLDER
from isoflop.errors import UserError

if TYPE_CHECKING:
    from isoflop.plan.planner import Plan
    from isoflop.study import Study


@click.command(short_help="Plan matched-budget runs, for review.")
@click.argument("study", required=False, type=click.Path(path_type=Path))
@click.option("--budgets", metavar="1e17,1e18", help="Training FLOPs per run, ascending.")
@click.option("--out", type=FOLDER, help="Folder for the plan.  [default: results/NAME]")
def plan(study: Path | None, budgets: str | None, out: Path | None) -> None:
    """Plan matched-budget runs and write them for review.

    STUDY is a study file (.toml). Without one, the paper's grid is planned at the given budgets:
    its ladder, batch and sequence length, all five families.
    """
    from isoflop.plan.artefact import write_plan
    from isoflop.plan.planner import make_plan

    planned = make_plan(read_study(study, budgets))
    folder = out or Path("results") / planned.study.name
    is_new = write_plan(planned, folder)
    show_plan(planned)
    click.echo(f"{'written to' if is_new else 'unchanged:'} {folder}/plan.json and plan.parquet")


def read_study(path: Path | None, budgets: str | None) -> Study:
    """The study of a file, or the paper's, with the budgets of the command line if given.

    Raises:
        UserError: neither is given, or either is wrong.
    """
    import dataclasses

    from isoflop.study import load_study, paper_study, parse_flops

    parsed = None if budgets is None else tuple(parse_flops(b) for b in budgets.split(","))
    if path is not None:
        study = load_study(path)
        return study if parsed is None else dataclasses.replace(study, budgets=parsed)
    if parsed is None:
        raise UserError(
            "--budgets", None, "given where there is no study file", "add --budgets 1e17,1e18"
        )
    return paper_study(parsed)


def show_plan(planned: Plan) -> None:
    """Prints the plan's table, totals and warnings."""
    from isoflop.render.tables import console, plan_summary, plan_table

    out = console()
    out.print(plan_table(planned))
    for line in plan_summary(planned):
        out.print(line, markup=False, soft_wrap=True)

"""`isoflop quickstart`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from isoflop.commands import FOLDER
from isoflop.commands.fit import fit_folder
from isoflop.commands.plan import show_plan
from isoflop.commands.run import INTERRUPTED, run_folder


@click.command(short_help="Plan, run and fit the built-in micro study.")
@click.option(
    "--out",
    type=FOLDER,
    default=Path("results/quickstart"),
    show_default=True,
    help="Folder of the study.",
)
@click.option("--workers", type=int, help="Runs at a time.  [default: one per core]")
def quickstart(out: Path, workers: int | None) -> None:
    """Plan, run and fit the built-in micro study on real text: five families, no GPU needed."""
    from isoflop.plan.artefact import write_plan
    from isoflop.plan.estimate import estimate_for, store_estimates
    from isoflop.plan.planner import make_plan
    from isoflop.resources import builtin
    from isoflop.study import load_study

    planned = make_plan(load_study(builtin("experiments", "quickstart.toml")))
    estimate = estimate_for(planned, out)
    write_plan(planned, out)
    store_estimates(planned, estimate, out)
    show_plan(planned, estimate)
    code = run_folder(out, workers, "cpu")
    if code != INTERRUPTED:
        fit_folder(out, out)
    sys.exit(code)

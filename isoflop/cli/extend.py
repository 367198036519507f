"""`isoflop extend`."""

from __future__ import annotations

from pathlib import Path

import click

from isoflop.cli.diff import diff_lines
from isoflop.cli.options import FOLDER, numbers_of_flops, whole_numbers
from isoflop.cli.plan_tables import new_run_lines
from isoflop.cli.tables import console, print_lines


@click.command()
@click.argument("folder", type=FOLDER)
@click.option("--budgets", metavar="1e19", help="Training FLOPs per run to add.")
@click.option("--seeds", metavar="1,2", help="Seeds to add.")
@click.option("--sizes", metavar="7,8", help="Sizes to add, for every arch.")
@click.option("--at", metavar="1e19", help="Budgets that get --sizes.  [default: all]")
def extend(
    folder: Path, budgets: str | None, seeds: str | None, sizes: str | None, at: str | None
) -> None:
    """Add budgets, seeds or sizes to the plan in FOLDER.

    Runs that are planned keep their ids, and their results stay; nothing is ever removed or
    changed. A new budget takes the sizes that the study names for all budgets, or the recipe's.
    """
    from isoflop.plan.estimate import estimate_for, load_estimates, refresh_estimates
    from isoflop.plan.grow import extend_folder
    from isoflop.plan.trunks import trunks_of

    plan, difference = extend_folder(
        folder,
        budgets=numbers_of_flops("--budgets", budgets),
        seeds=whole_numbers("--seeds", seeds),
        sizes=whole_numbers("--sizes", sizes),
        at=numbers_of_flops("--at", at),
    )
    print_lines(console(), diff_lines(difference, (plan.study.convention,) * 2))
    if difference.is_empty:
        click.echo(f"unchanged: {folder}/plan.json")
        return
    refresh_estimates(plan, folder)
    if trunks_of(plan):
        # What trains runs knows what lies in their folders.
        from isoflop.launch.prices import price_new_runs

        stored = load_estimates(folder)
        estimate = None if stored is None else estimate_for(plan, folder, stored.hardware)
        price = price_new_runs(folder, plan, difference.new_ids, estimate)
        assert price is not None
        print_lines(console(), new_run_lines(price, None if estimate is None else estimate.named))
    click.echo(f"written to {folder}/plan.json and plan.parquet; change the study file likewise")

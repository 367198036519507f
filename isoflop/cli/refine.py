"""`isoflop refine`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from isoflop.cli.options import FOLDER, WITH_CODE
from isoflop.cli.plan_tables import hours_text, new_run_lines
from isoflop.cli.tables import counted, print_damaged

if TYPE_CHECKING:
    from isoflop.analysis.refine import Refinement


@click.command()
@click.argument("folder", type=FOLDER)
@click.option(
    "--seeds",
    "num_seeds",
    type=int,
    metavar="N",
    help="Propose N more seeds, at the size nearest to each optimum only.",
)
@click.option("--apply", "is_applied", is_flag=True, help="Grow the plan by what is proposed.")
@WITH_CODE
def refine(folder: Path, num_seeds: int | None, is_applied: bool, with_code: bool) -> None:
    """Propose runs, with their cost, that would sharpen the results in FOLDER.

    Where an optimum lies at the edge of its grid: the next sizes on that side. Where none does:
    the sizes and seeds that about halve the widest interval of an optimum. With --seeds instead:
    more seeds for every arch and budget, each at one size; also where families have one size each.
    Nothing is written without --apply, which grows the plan as `isoflop extend` does. What families
    from outside the package would add takes their code: --with-code or --apply imports it.
    """
    from isoflop.analysis.compare.one_size import is_one_size
    from isoflop.analysis.fit import fit_optima
    from isoflop.analysis.optima_methods import DEFAULT_METHOD
    from isoflop.analysis.points import select_points
    from isoflop.analysis.refine import propose, propose_seeds
    from isoflop.launch.collect import collected_rows, damaged_reasons
    from isoflop.plan.artefact import read_plan, replace_plan
    from isoflop.plan.estimate import refresh_estimates

    plan = read_plan(folder, with_code=with_code or is_applied)
    rows = collected_rows(folder, plan)
    print_damaged(damaged_reasons(rows))
    selection = select_points(rows, unit=plan.study.loss_unit)
    fits = fit_optima(selection, methods=(DEFAULT_METHOD,), axes=("n_params",))
    proposal = propose(plan, fits) if num_seeds is None else propose_seeds(plan, fits, num_seeds)
    _show(proposal, folder)
    if num_seeds is None and is_one_size(fits.selection):
        click.echo("families have one size each: --seeds N adds seeds, to compare these sizes")
    if proposal.is_empty:
        return
    if is_applied:
        replace_plan(proposal.plan, folder)
        refresh_estimates(proposal.plan, folder)
        click.echo(f"written to {folder}/plan.json and plan.parquet; run `isoflop run {folder}`")
    else:
        click.echo("the plan is unchanged; add --apply to grow it")


def _show(proposal: Refinement, folder: Path) -> None:
    for line in (*proposal.reasons, *proposal.dead_ends):
        click.echo(line)
    if proposal.is_empty:
        click.echo(
            "nothing to add" if proposal.dead_ends else "no further run of this study would help"
        )
        return
    for line in _cost_lines(proposal, folder):
        click.echo(line)


def _cost_lines(proposal: Refinement, folder: Path) -> list[str]:
    """Return the runs, FLOPs and device-hours that the proposal adds."""
    from isoflop.launch.prices import price_new_runs
    from isoflop.numbers import format_flops
    from isoflop.plan.estimate import estimate_for, load_estimates

    stored = load_estimates(folder)
    estimate = estimate_for(proposal.plan, folder, None if stored is None else stored.hardware)
    added = {
        run.run_id: run
        for run in proposal.difference.added
        if run.run_id not in proposal.difference.common_ids
    }
    hours = [estimate.runs[run_id].gpu_hours for run_id in added]
    num_unknown = sum(value is None for value in hours)
    total = sum(value for value in hours if value is not None)
    unfit = f"; {num_unknown} of them do not fit it" if num_unknown else ""
    alone = (
        f"{counted(len(added), 'run')}, "
        f"{format_flops(proposal.difference.new_flops, digits=3)} FLOPs, about "
        f"{hours_text(total, digits=3)} {estimate.unit} (estimate, {estimate.hardware}{unfit})"
    )
    price = price_new_runs(folder, proposal.plan, added.keys(), estimate)
    return [alone] if price is None else [alone, *new_run_lines(price, estimate.named)]

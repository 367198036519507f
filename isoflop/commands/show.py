"""`isoflop show`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from isoflop.commands import FOLDER
from isoflop.errors import UserError, shown

if TYPE_CHECKING:
    from isoflop.plan.estimate import PlanEstimate
    from isoflop.plan.planner import Plan


@click.command(short_help="Show a plan, or one run of it whole.")
@click.argument("folder", type=FOLDER)
@click.argument("run", required=False)
@click.option("--arch", metavar="A,B", help="Only these archs.")
@click.option("--budget", metavar="1e17,1e18", help="Only these budgets.")
@click.option("--size", metavar="3,4", help="Only these sizes.")
@click.option("--sort", metavar="COLUMN", help="Sort by a column of plan.parquet.")
@click.option("--descending", is_flag=True, help="Largest first.")
@click.option("--hardware", metavar="NAME", help="Estimate for it.  [default: as planned]")
@click.option("--explain", is_flag=True, help="Say what each estimate assumes.")
def show(
    folder: Path,
    run: str | None,
    arch: str | None,
    budget: str | None,
    size: str | None,
    sort: str | None,
    descending: bool,
    hardware: str | None,
    explain: bool,
) -> None:
    """Show the plan in FOLDER, filtered and sorted, or one RUN of it whole.

    RUN is a run id or its first digits. Estimates use FOLDER/calibration.json where
    `isoflop calibrate` has written it.
    """
    from isoflop.plan.artefact import read_plan
    from isoflop.render.plans import estimate_lines, explain_lines, run_lines, total_lines
    from isoflop.render.tables import console

    plan = read_plan(folder)
    estimate = _estimate(plan, folder, hardware)
    out = console()
    if run is not None:
        from isoflop.plan.edit import find_run

        if arch or budget or size or sort:
            raise UserError("run", run, "given without filters", "leave out one of them")
        entries = find_run(plan, run)
        lines = run_lines(entries)
        if estimate is not None:
            lines += ["", *estimate_lines(estimate.runs[entries[0].run_id])]
    else:
        lines = _show_table(plan, folder, estimate, arch, budget, size, sort, descending)
        if estimate is not None:
            lines += total_lines(estimate)
    if explain:
        lines += ["", *explain_lines(plan, estimate)]
    for line in lines:
        out.print(line, markup=False, soft_wrap=True)


def _estimate(plan: Plan, folder: Path, hardware: str | None) -> PlanEstimate | None:
    """For the hardware named, else for that of the estimates beside the plan, if any."""
    from isoflop.plan.estimate import estimate_for, load_estimates

    stored = load_estimates(folder) if hardware is None else None
    if hardware is None and stored is None:
        return None
    return estimate_for(plan, folder, hardware if stored is None else stored.hardware)


def _show_table(
    plan: Plan,
    folder: Path,
    estimate: PlanEstimate | None,
    arch: str | None,
    budget: str | None,
    size: str | None,
    sort: str | None,
    descending: bool,
) -> list[str]:
    """Prints the table; returns the lines that go below it."""
    import dataclasses

    from isoflop.plan.edit import filter_runs, sort_runs
    from isoflop.render.plan_tables import left_out_lines, plan_summary, plan_table
    from isoflop.render.tables import console
    from isoflop.study import parse_flops

    runs = filter_runs(
        plan,
        archs=_words(arch),
        budgets=[parse_flops(word, "--budget") for word in _words(budget)],
        sizes=whole_numbers("--size", size),
    )
    if sort is not None:
        runs = sort_runs(runs, sort, descending=descending)
    elif descending:
        raise UserError("--descending", True, "given together with --sort", "name a column")
    part = dataclasses.replace(plan, runs=runs)
    out = console()
    # Sorted, neighbours have no cell in common: no lines between groups.
    table, left_out = plan_table(part, estimate, out.width, sections=sort is None)
    out.print(table)
    lines = left_out_lines(left_out, folder)
    if len(runs) < len(plan.runs):
        # What is said of whole grids would be wrong of parts of them.
        part = dataclasses.replace(part, left_out=(), expected=())
        lines.append(f"{len(runs)} of {len(plan.runs)} rows")
    return lines + plan_summary(part)


def _words(text: str | None) -> list[str]:
    return [] if text is None else [word.strip() for word in text.split(",")]


def whole_numbers(name: str, text: str | None) -> list[int]:
    """Return the numbers of a comma list such as 1,2.

    Raises:
        UserError: an entry is no whole number.
    """
    for word in _words(text):
        # isdecimal accepts digits of every script; int reads them all.
        if not word.isdecimal():
            raise UserError(name, shown(str(text)), "whole numbers such as 1,2", "correct it")
    return [int(word) for word in _words(text)]

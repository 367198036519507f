"""`isoflop diff`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(short_help="Say what changed between two plans.")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
def diff(a: Path, b: Path) -> None:
    """Say what plan B adds to, removes from and changes in plan A, and what that costs.

    A and B are study folders or plan.json files.
    """
    from isoflop.plan.edit import diff_plans, load_plan
    from isoflop.plan.estimate import load_estimates
    from isoflop.plan.estimate.estimates import same_hardware_hours
    from isoflop.render.plans import diff_lines
    from isoflop.render.tables import console

    before, after = load_plan(a), load_plan(b)
    estimates = [load_estimates(path if path.is_dir() else path.parent) for path in (a, b)]
    conventions = (before.study.convention, after.study.convention)
    out = console()
    for line in diff_lines(diff_plans(before, after, same_hardware_hours(*estimates)), conventions):
        out.print(line, markup=False, soft_wrap=True)

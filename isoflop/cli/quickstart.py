"""`isoflop quickstart`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from isoflop.cli.fit import fit_folder
from isoflop.cli.options import FOLDER
from isoflop.cli.plan import show_plan
from isoflop.cli.run import INTERRUPTED, run_folder

_NEXT = """
next:
  look at {folder}/plots/isoflop_profiles.png: loss against parameters, a curve per budget
  isoflop report {folder}   # the findings as one page, {folder}/report.html
  your own text: {text}
  your own architecture: {family}"""


@click.command()
@click.option(
    "--out",
    type=FOLDER,
    default=Path("results/quickstart"),
    show_default=True,
    help="Folder of the study.",
)
@click.option("--workers", type=int, help="Runs at a time.  [default: one per core]")
def quickstart(out: Path, workers: int | None) -> None:
    """Plan, run and fit the built-in micro study on real text: five families, no GPU needed.

    It takes some minutes on two cores. Interrupted, the same command goes on.
    """
    from isoflop.plan.estimate import estimate_for, write_with_estimates
    from isoflop.plan.planner import make_plan
    from isoflop.resources import builtin
    from isoflop.study.file import load_study

    planned = make_plan(load_study(builtin("experiments", "quickstart.toml")))
    estimate = estimate_for(planned, out)
    write_with_estimates(planned, estimate, out)
    show_plan(planned, estimate, out, whole=False)
    code = run_folder(out, workers, "cpu")
    if code != INTERRUPTED:
        fit_folder(out, out)
        click.echo(_next(out))
    sys.exit(code)


def _next(folder: Path) -> str:
    from isoflop import families
    from isoflop.files import from_here
    from isoflop.resources import builtin

    text = builtin("experiments", "README.md")
    family = Path(families.__file__).parent / "README.md"
    return _NEXT.format(folder=folder, text=from_here(text), family=from_here(family))

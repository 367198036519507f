"""`isoflop fit`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from isoflop.commands import FOLDER
from isoflop.errors import UserError

if TYPE_CHECKING:
    from isoflop.analysis.fit import FitOptions

METHODS = ("parabola", "parabola_window", "akima", "parabola_robust")
AXES = ("n_params", "n_tokens", "n_active")
BOOTSTRAPS = ("auto", "residual", "parametric", "case")


FIT_OPTIONS = (
    click.option(
        "--method",
        type=click.Choice(METHODS),
        default="parabola",
        show_default=True,
        help="Optima that comparisons and plots use; all are fitted.",
    ),
    click.option(
        "--axis",
        type=click.Choice(AXES),
        default="n_params",
        show_default=True,
        help="x axis that comparisons and plots use; all are fitted.",
    ),
    click.option(
        "--reference", metavar="ARCH", help="Compare others with it.  [default: swiglu, mlp]"
    ),
    click.option(
        "--bootstrap",
        type=click.Choice(BOOTSTRAPS),
        default="auto",
        show_default=True,
        help="Kind of the intervals; auto takes what the table can support.",
    ),
    click.option(
        "--n-boot",
        type=click.IntRange(min=0),
        default=1000,
        show_default=True,
        help="Bootstrap draws; 0 for no intervals.",
    ),
)


def fit_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options that say how to fit; their names are those of FitOptions."""
    for option in reversed(FIT_OPTIONS):
        command = option(command)
    return command


@click.command(short_help="Fit optima and laws with intervals, compare, check and plot.")
@click.argument("table", metavar="FOLDER_OR_TABLE", type=click.Path(path_type=Path))
@click.option("--out", type=FOLDER, help="Folder for tables and plots.  [default: the folder]")
@fit_options
def fit(table: Path, out: Path | None, **chosen: Any) -> None:
    """Fit isoFLOP optima and scaling laws to a study folder or to any table of runs.

    A study's results are collected into its runs.parquet first. Any csv or parquet file with the
    columns arch, budget_flops, n_params, n_tokens, flops and loss will do as well; it needs --out.
    An optimum at the edge of its grid is a bound ("<" or ">") and enters no law; rows that enter no
    fit are counted and named.
    """
    from isoflop.analysis.fit import FitOptions

    options = FitOptions(**chosen)
    if (table / "plan.json").is_file():
        fit_folder(table, out or table, options)
        return
    if not table.exists():
        raise UserError("table", str(table), "a study folder or a csv or parquet file", "check it")
    if out is None and not table.is_dir():
        raise UserError("--out", "none", "a folder for the tables and plots", "add --out DIR")
    _fit_and_show(table, out or table, options)


def fit_folder(folder: Path, out_folder: Path, options: FitOptions | None = None) -> None:
    """Collects a study's results, fits, plots and prints the optima and the paths written."""
    from isoflop.launch.status import collect
    from isoflop.plan.artefact import read_plan

    rows = collect(folder, read_plan(folder), out_folder)
    _fit_and_show(rows, out_folder, options, (out_folder / "runs.parquet",))


def _fit_and_show(
    runs: Path | list[dict[str, Any]],
    out_folder: Path,
    options: FitOptions | None,
    written: tuple[Path, ...] = (),
) -> None:
    from isoflop.analysis import FitOptions, excluded_note, fit_table
    from isoflop.analysis.compare_sizes import is_one_size
    from isoflop.analysis.summary import interval_note
    from isoflop.render.tables import console, laws_table, optima_table, seed_means_table

    report = fit_table(runs, out_folder, options or FitOptions())
    out = console()
    if is_one_size(report.fits.selection):
        out.print(seed_means_table(report.fits))
        notes = ["One size each: no optima and no laws; isoflop report compares the losses."]
    else:
        out.print(optima_table(report.fits))
        out.print(laws_table(report.fits))
        notes = [interval_note(report.fits)]
    for line in (*notes, excluded_note(report.fits)):
        out.print(line, markup=False, soft_wrap=True)
    for path in (*written, *report.paths):
        out.print(str(path), markup=False, soft_wrap=True)

"""`isoflop fit`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from isoflop.analysis.bootstrap import Requested
from isoflop.analysis.optima_methods import METHODS
from isoflop.analysis.points import AXES
from isoflop.cli.options import FOLDER
from isoflop.cli.tables import console, fitted_table, new_table
from isoflop.errors import UserError, shown
from isoflop.numbers import format_count, format_flops

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from isoflop.analysis.fit import FitOptions
    from isoflop.analysis.result import Fits


# Left out of a terminal that is too narrow for all, the first ones first.
_LEAST_WANTED = ("perplexity", "loss interval", "coefficient", "rmse")
_TEXT = ("arch", "law", "status", "claimed")


FIT_OPTIONS = (
    click.option(
        "--method",
        type=click.Choice(tuple(METHODS)),
        default="parabola",
        show_default=True,
        help="How optima are found for laws, comparisons and plots; the tables have all.",
    ),
    click.option(
        "--axis",
        type=click.Choice(AXES),
        default="n_params",
        show_default=True,
        help="Size that comparisons and plots are over; the tables have all.",
    ),
    click.option(
        "--reference",
        metavar="ARCH",
        help="What the others are compared with.  [default: swiglu, else mlp, else the first]",
    ),
    click.option(
        "--bootstrap",
        type=click.Choice(get_args(Requested)),
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
    """Add the options that say how to fit; their names are those of FitOptions."""
    for option in reversed(FIT_OPTIONS):
        command = option(command)
    return command


@click.command()
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

    fit_folder(table, out, FitOptions(**chosen))


def fit_folder(
    source: Path, out_folder: Path | None = None, options: FitOptions | None = None
) -> None:
    """Fit a study folder or a table, plot it, and print the optima and the paths written."""
    from isoflop.analysis import FitOptions, excluded_note, fit_table
    from isoflop.analysis.summary import excluded_lines

    runs = runs_of(source, out_folder)
    announce_fit(runs)
    made = fit_table(runs.rows, runs.out_folder, options or FitOptions())
    out = console()
    notes = _print_tables(made.fits, out)
    for note in (*notes, excluded_note(made.fits), *excluded_lines(made.fits)):
        out.print(note, soft_wrap=not out.is_terminal)
    for path in (*runs.written, *made.paths):
        out.print(str(path), soft_wrap=True)


def _print_tables(fits: Fits, out: Console) -> list[str]:
    """Print the tables that have rows; return the notes to print below them."""
    from isoflop.analysis.compare.one_size import is_one_size
    from isoflop.analysis.summary import reading_notes

    if not any(fits.groups.values()):
        return ["Nothing to fit yet: no run has a usable loss."]
    if is_one_size(fits.selection):
        out.print(seed_means_table(fits))
        return ["One size each, so no optima and no laws: `isoflop report` compares the losses."]
    absent: list[str] = []
    for make in (optima_table, laws_table, multipliers_table):
        table, left_out = make(fits, out.width)
        absent += left_out
        if table.row_count:
            out.print(table)
    notes = [f"Not in this width: {', '.join(absent)}; `isoflop report` has all."] if absent else []
    return [*notes, *reading_notes(fits)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Runs:
    """What `fit` and `report` read."""

    table: Path
    """The file of the rows."""
    rows: list[dict[str, Any]]
    out_folder: Path
    written: tuple[Path, ...]
    """The table, where it was collected from a study's runs."""


def announce_fit(runs: Runs) -> None:
    """Print at a terminal what takes the time."""
    if sys.stderr.isatty():
        click.echo(f"fitting {len(runs.rows)} rows; this takes up to a minute", err=True)


def runs_of(source: Path, out: Path | None) -> Runs:
    """Collect the runs of a study folder into its table, or read any other table.

    Raises:
        UserError: there is no such table, or it is not in order, or it has no folder for results.
    """
    if (source / "plan.json").is_file():
        from isoflop.launch.status import collect
        from isoflop.plan.artefact import read_plan

        folder = out or source
        rows = collect(source, read_plan(source), folder)
        table = folder / "runs.parquet"
        return Runs(table=table, rows=rows, out_folder=folder, written=(table,))
    from isoflop.analysis.points import load_rows, table_of

    table = table_of(source)
    if out is None and not source.is_dir():
        raise UserError("--out", shown("nothing"), "a folder for the results", "add --out DIR")
    return Runs(table=table, rows=load_rows(table), out_folder=out or source, written=())


def optima_table(fits: Fits, width: int) -> tuple[Table, tuple[str, ...]]:
    """Return the fitted optimum of each arch at each budget, with its intervals."""
    from isoflop.analysis.summary import optima_rows_for_display

    headings = {
        "arch": "arch",
        "budget": "budget",
        "n_opt": "params N*",
        "n_ci": "N* interval",
        "d_opt": "tokens D*",
        "loss": "loss",
        "loss_ci": "loss interval",
        "perplexity": "perplexity",
        "status": "status",
    }
    return _by_arch(headings, optima_rows_for_display(fits), width)


def seed_means_table(fits: Fits) -> Table:
    """Return the mean loss over the seeds of each arch that has one size at a budget."""
    from isoflop.analysis.compare.one_size import seed_means

    names = ("arch", "budget", "params", "tokens", "seeds", "loss", "sd")
    table = new_table(*((name, "<" if name == "arch" else ">") for name in names))
    for mean in seed_means(fits.selection):
        table.add_row(
            mean.arch,
            format_flops(mean.budget_flops),
            format_count(mean.n_params),
            format_count(mean.n_tokens),
            str(mean.n_seeds),
            f"{mean.loss:.4f}",
            "-" if mean.loss_sd is None else f"{mean.loss_sd:.4f}",
        )
    return table


def laws_table(fits: Fits, width: int) -> tuple[Table, tuple[str, ...]]:
    """Return the power laws of each arch, with the intervals of their exponents."""
    from isoflop.analysis.summary import law_rows_for_display

    headings = {
        "arch": "arch",
        "law": "law",
        "exponent": "exponent",
        "ci": "interval",
        "coefficient": "coefficient",
        "n": "budgets",
        "rmse": "rmse",
    }
    return _by_arch(headings, law_rows_for_display(fits), width)


def multipliers_table(fits: Fits, width: int) -> tuple[Table, tuple[str, ...]]:
    """Return the compute multiplier of each arch over the reference, at each budget."""
    from isoflop.analysis.summary import multiplier_rows_for_display

    headings = {
        "arch": "arch",
        "budget": "budget",
        "multiplier": "compute multiplier",
        "ci": "its interval",
        "claim": "claimed",
    }
    return _by_arch(headings, multiplier_rows_for_display(fits), width)


def _by_arch(
    headings: Mapping[str, str], rows: Sequence[Mapping[str, str]], width: int
) -> tuple[Table, tuple[str, ...]]:
    if not rows:
        return new_table(), ()
    cells = [{label: row[key] for key, label in headings.items()} for row in rows]
    archs = [row["arch"] for row in rows]
    return fitted_table(cells, width, least_wanted=_LEAST_WANTED, text=_TEXT, groups=archs)

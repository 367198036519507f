"""`isoflop fit`: what it reads, and the tables and notes that it shows.

In the tables ``<`` and ``>`` mark bounds, also of an interval that ends at the grid's end; ``-`` is
a value that does not exist. Columns that do not fit the terminal are left out and named.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from isoflop.cli.fit_options import LOSS_UNIT, fit_options, given_parameters
from isoflop.cli.laws import (
    against_lines,
    clusters_table,
    fit_supplied,
    notes_without_budgets,
    rows_without_budgets,
)
from isoflop.cli.optima import LOSS_INTERVAL, Row, law_row, optima_rows
from isoflop.cli.options import FOLDER_OR_TABLE, OUT_FOLDER
from isoflop.cli.rows import read_rows
from isoflop.cli.tables import MISSING, between, console, fitted_table, new_table
from isoflop.errors import UserError, shown
from isoflop.numbers import format_count, format_flops, format_multiplier
from isoflop.units import format_loss, loss_column, loss_name

if TYPE_CHECKING:
    from rich.console import Console

    from isoflop.analysis.compare.multipliers import Comparison
    from isoflop.analysis.fit import FitOptions
    from isoflop.analysis.laws import PowerLaw
    from isoflop.analysis.points import Axis, Excluded
    from isoflop.analysis.result import Fits
    from isoflop.api.rows import Rows


# Left out of a terminal that is too narrow for all, the first ones first.
_LEAST_WANTED = ("perplexity", LOSS_INTERVAL, "coefficient", "rmse")
_TEXT = ("arch", "law", "status", "claimed", "parameter")
_C_OF_LAWS = {
    "nominal": "the nominal budget in FLOPs",
    "achieved": "the mean of the FLOPs that the runs achieved",
}


@click.command()
@click.argument("table", metavar="FOLDER_OR_TABLE", type=FOLDER_OR_TABLE)
@click.option("--out", type=OUT_FOLDER, help="Folder for tables and plots.  [default: the folder]")
@LOSS_UNIT
@fit_options
@click.option(
    "--against",
    metavar="E=..,A=..,B=..,alpha=..,beta=..",
    help="Test the surface of each arch against these parameters, all at once.",
)
def fit(
    table: Path, out: Path | None, loss_unit: str | None, against: str | None, **chosen: Any
) -> None:
    """Fit isoFLOP optima and scaling laws to a study folder or to any table of runs.

    A study's results are collected into its runs.parquet first. Any csv, parquet, json or jsonl
    file (also .gz, .zst, or a pattern such as 'runs-*.csv') with the columns arch, budget_flops,
    n_params, n_tokens, flops and loss will do as well; it needs --out. An optimum at the edge of
    its grid is a bound ("<" or ">") and enters no law; rows that enter no fit are counted and
    named.
    """
    from isoflop.analysis.fit import FitOptions
    from isoflop.analysis.supplied import read_optima

    names = ("E", "A", "B", "alpha", "beta")
    if table.is_file() and (optima := read_optima(table)) is not None:
        fit_supplied(optima, out)
        return
    options, given = FitOptions(**chosen), None
    if against is not None:
        from isoflop.analysis.parametric import CHINCHILLA, check_given

        given = given_parameters("--against", against, names)
        check_given(CHINCHILLA, options.constraints, given)
    fit_folder(table, out, options, given, loss_unit)
    target = "" if out is None else f" --out {shlex.quote(str(out))}"
    click.echo(f"next: isoflop report {shlex.quote(str(table))}{target}")
    click.echo(f"in Python: isoflop.load({str(table)!r})")


def fit_folder(
    source: Path,
    out_folder: Path | None = None,
    options: FitOptions | None = None,
    against: Mapping[str, float] | None = None,
    loss_unit: str | None = None,
) -> None:
    """Fit a study folder or a table, plot it, and print the optima and the paths written.

    With parameters of a surface ``against`` there is a line per arch on the test of its own.
    """
    from isoflop.analysis import FitOptions, excluded_note, fit_table
    from isoflop.analysis.validity.attention import attention

    options = options or FitOptions()
    runs = runs_of(source, out_folder, loss_unit, options.axis)
    announce_fit(runs)
    read = runs.read
    made = fit_table(read.rows, runs.out_folder, read.options(options), unit=read.unit)
    out = console()
    if made.fits.clusters:
        out.print(clusters_table(made.fits))
    notes = _print_tables(made.fits, out)
    notes += _source_notes(made.fits)
    notes += [f"Attention: {sentence}" for sentence in attention(made.fits)]
    notes += against_lines(made.fits, against) if against is not None else []
    for note in (*notes, excluded_note(made.fits), *excluded_lines(made.fits)):
        out.print(note, soft_wrap=not out.is_terminal)
    for path in (*runs.written, *made.paths):
        out.print(str(path), soft_wrap=True)


def _source_notes(fits: Fits) -> list[str]:
    """Return what losses are, and what the mark at archs means."""
    from isoflop.analysis.result import DECLARED_MARK, DECLARED_MEANING
    from isoflop.units import unit_note

    note = unit_note(fits.unit)
    notes = [] if note is None else [note]
    if fits.declared_archs:
        notes.append(f"{DECLARED_MARK}: {DECLARED_MEANING}.")
    return notes


def _print_tables(fits: Fits, out: Console) -> list[str]:
    """Print the tables that have rows; return the notes to print below them."""
    from isoflop.analysis.compare.one_size import is_one_size

    if not any(fits.groups.values()):
        if fits.selection.loose:
            return ["No run has a budget, so no optima.", *_print_surfaces(fits, out)]
        if any(row.reason == "unexplained_repeat" for row in fits.excluded):
            return ["Nothing to fit: no run is left."]
        return ["Nothing to fit yet: no run has a usable loss."]
    if is_one_size(fits.selection):
        return _print_one_size(fits, out)
    absent: list[str] = []
    for make in (optima_table, laws_table, multipliers_table):
        table, left_out = make(fits, out.width)
        absent += left_out
        if table.row_count:
            out.print(table)
    notes = [*_left_out_note(absent), *reading_notes(fits)]
    return notes + (_print_surfaces(fits, out) if fits.options.constraints.are_set else [])


def _print_one_size(fits: Fits, out: Console) -> list[str]:
    """Print the losses that can be compared, and the surface where there are sizes for one."""
    from isoflop.analysis.compare.one_size import has_no_shared_budget, is_scattered

    notes: list[str] = []
    if not is_scattered(fits.selection):
        out.print(seed_means_table(fits))
        notes = ["One size each, so no optima and no laws: `isoflop report` compares the losses."]
    if has_no_shared_budget(fits.selection):
        notes += _print_surfaces(fits, out)
    return notes


def _print_surfaces(fits: Fits, out: Console) -> list[str]:
    absent: list[str] = []
    for rows in rows_without_budgets(fits):
        table, left_out = _by_arch(fits, rows, out.width)
        absent += left_out
        if table.row_count:
            out.print(table)
    return [*_left_out_note(absent), *notes_without_budgets(fits)]


def _left_out_note(columns: Sequence[str]) -> list[str]:
    return [f"Not in this width: {', '.join(columns)}; `isoflop report` has all."] * bool(columns)


@dataclass(frozen=True, kw_only=True, slots=True)
class Runs:
    """What `fit` and `report` read."""

    read: Rows
    table: Path
    """The file of the rows."""
    out_folder: Path

    @property
    def written(self) -> tuple[Path, ...]:
        """The table, where it was collected from a study's runs."""
        return () if self.read.plan is None else (self.table,)


def announce_fit(runs: Runs) -> None:
    """Print at a terminal what takes the time."""
    if sys.stderr.isatty():
        click.echo(f"fitting {len(runs.read.rows)} rows; this takes up to a minute", err=True)


def runs_of(
    source: Path, out: Path | None, loss_unit: str | None = None, axis: Axis = "n_params"
) -> Runs:
    """Collect the runs of a study folder into its table, or read any other table.

    Args:
        source: the folder or the table.
        out: folder for results; None: that of the study.
        loss_unit: what the losses of a table are that does not say.
        axis: a count that a table must have.

    Raises:
        UserError: there is no such table, or it is not in order, or it has no folder for results,
            or its losses are in another unit.
    """
    from isoflop.analysis.load import table_of
    from isoflop.tables import write_runs

    is_study = (source / "plan.json").is_file()
    table = (out or source) / "runs.parquet" if is_study else table_of(source)
    if out is None and not source.is_dir():
        raise UserError("--out", shown("nothing"), "a folder for the results", "add --out DIR")
    read = read_rows(source, loss_unit=loss_unit, axis=axis)
    if is_study:
        write_runs(table, read.rows, read.unit)
    return Runs(read=read, table=table, out_folder=out or source)


def optima_table(fits: Fits, width: int) -> tuple[Table, tuple[str, ...]]:
    """Return the fitted optimum of each arch at each budget, with its intervals."""
    return _by_arch(fits, optima_rows(fits), width)


def laws_table(fits: Fits, width: int) -> tuple[Table, tuple[str, ...]]:
    """Return the power laws of each arch, with the intervals of their exponents."""
    return _by_arch(fits, [law_row(law) for law in _laws(fits)], width)


def multipliers_table(fits: Fits, width: int) -> tuple[Table, tuple[str, ...]]:
    """Return the compute multiplier of each arch over the reference, at each budget."""
    return _by_arch(fits, multiplier_rows(fits), width)


def seed_means_table(fits: Fits) -> Table:
    """Return the mean loss over the seeds of each arch that has one size at a budget."""
    from isoflop.analysis.compare.one_size import seed_means

    unit = fits.unit
    names = ("arch", "budget", "params", "tokens", "seeds", loss_column(unit), "sd")
    table = new_table(*((name, "<" if name == "arch" else ">") for name in names))
    declared = fits.declared_archs
    for mean in seed_means(fits.selection):
        table.add_row(
            _marked(mean.arch, declared),
            format_flops(mean.budget_flops),
            format_count(mean.n_params),
            format_count(mean.n_tokens),
            str(mean.n_seeds),
            format_loss(mean.loss, unit),
            "-" if mean.loss_sd is None else format_loss(mean.loss_sd, unit),
        )
    return table


def multiplier_rows(fits: Fits) -> list[Row]:
    """Return one row per compute multiplier.

    ``claimed`` is better or worse where an order is claimed, - where none is, and why where there
    is no estimate.
    """
    from isoflop.analysis.validity.attention import budgets_beyond

    signs = {"lower_bound": "≥ ", "upper_bound": "≤ "}
    beyond = budgets_beyond(fits.compare)
    return [
        {
            "arch": row.arch,
            "budget": format_flops(row.budget_flops),
            "multiplier": MISSING
            if row.multiplier is None
            else f"{signs.get(row.status, '')}{format_multiplier(row.multiplier)}",
            "its interval": between(row.ci_lo, row.ci_hi, format_multiplier),
            "for all": between(row.ci_lo_simultaneous, row.ci_hi_simultaneous, format_multiplier),
            "claimed": _claim(row, row.budget_flops in beyond),
        }
        for row in fits.compare
        if row.resource == "flops" and row.arch != row.reference
    ]


def reading_notes(fits: Fits) -> list[str]:
    """Return what the tables for a terminal mean: laws, multipliers, intervals."""
    from isoflop.analysis.axes import axis_mark, fitted_axes
    from isoflop.analysis.validity.attention import claimed_notes

    c_is = _C_OF_LAWS[fits.law_budget]
    sizes = [axis_mark(axis) for axis in fitted_axes(fits.options.axis)]
    notes = [f"Laws: {', '.join(sizes)} and L* = coefficient · C^exponent, C {c_is}."]
    if not _laws(fits):
        notes = ["No laws: they need minima inside their grids at two budgets or more."]
    compared = [row for row in fits.compare if row.arch != row.reference]
    if compared:
        reference = compared[0].reference
        loss = loss_name(fits.unit)
        notes.append(
            f"Multiplier: compute that {reference} needs for the {loss} of the arch's optimum, "
            "over the arch's own; above 1 the arch is better. For all: intervals that hold "
            "together; an order is claimed where such a one leaves out 1, by losses at equal "
            "compute: none "
            f"beyond {reference}'s budgets. Extrapolated: the {loss} is beyond those measured of "
            f"{reference}."
        )
        notes += claimed_notes(fits)
    return [*notes, _interval_note(fits)]


def excluded_lines(fits: Fits, most: int = 5) -> list[str]:
    """Return lines on the excluded rows that are not just missing, some of every reason.

    Of repeats that no seed tells apart there is a sentence already.
    """
    by_reason: dict[str, list[str]] = {}
    for row in fits.excluded:
        if row.reason not in ("missing", "unexplained_repeat"):
            by_reason.setdefault(row.reason, []).append(_excluded_line(row))
    lines: list[str] = []
    for reason in fits.selection.excluded_counts():
        named = by_reason.get(reason, [])
        lines += named[:most]
        if len(named) > most:
            more = f"{len(named) - most:,} more {reason.replace('_', ' ')}"
            lines.append(f"  and {more}, listed by `isoflop report`")
    return lines


def _excluded_line(row: Excluded) -> str:
    budget = "no budget" if row.budget_flops is None else format_flops(row.budget_flops)
    size = "" if row.n_params is None else f", {format_count(row.n_params)} parameters"
    detail = "" if row.detail is None else f" ({row.detail})"
    return f"  {row.arch or 'no arch'} at {budget}{size}: {row.reason.replace('_', ' ')}{detail}"


def _interval_note(fits: Fits) -> str:
    """Return a sentence on the intervals: their level, how they were made, and failed draws."""
    from isoflop.analysis.axes import axis_mark

    options = fits.options
    drawn = fits.draws_of("n_params")
    if drawn is None:
        return "No intervals (0 bootstrap draws)."
    optima = fits.optima_by_group("n_params").values()
    note = f"Intervals: {options.confidence:.0%}, {drawn.kind} bootstrap, {drawn.n_boot:,} draws"
    worst = max(_laws(fits), key=lambda law: law.n_failed or 0, default=None)
    if worst is not None and worst.n_failed:
        note += (
            f"; {worst.n_failed:,} draws of {worst.arch}'s {axis_mark(worst.axis)} gave no law, "
            "the most of any"
        )
    without = sum(o.is_point and o.ci_lo is None for o in optima)
    if without:
        note += (
            f"; {without} interior optim{'a have' if without > 1 else 'um has'} no interval "
            "(too few points, or half of the draws failed)"
        )
    return note + "."


def _by_arch(fits: Fits, rows: Sequence[Row], width: int) -> tuple[Table, tuple[str, ...]]:
    """Return a table with a line between archs, those with declared FLOPs marked."""
    if not rows:
        return new_table(), ()
    declared = fits.declared_archs
    rows = [row | {"arch": _marked(row["arch"], declared)} for row in rows]
    archs = [row["arch"] for row in rows]
    return fitted_table(rows, width, least_wanted=_LEAST_WANTED, text=_TEXT, groups=archs)


def _marked(arch: str, declared: Sequence[str]) -> str:
    from isoflop.analysis.result import DECLARED_MARK

    return f"{arch} {DECLARED_MARK}" if arch in declared else arch


def _laws(fits: Fits) -> list[PowerLaw]:
    """Return the power laws to show that there are."""
    return [law for law in fits.shown_laws if law.exponent is not None]


def _claim(row: Comparison, is_beyond: bool) -> str:
    words = {"higher": "better", "lower": "worse", "none": MISSING}[row.order_claimed]
    if row.status != "estimate":
        status = row.status.replace("_", " ")
        return status if row.order_claimed == "none" else f"{words} ({status})"
    if row.order_claimed == "none" and is_beyond:
        return "- (beyond budgets)"
    return f"{words} (extrapolated)" if row.extrapolated else words

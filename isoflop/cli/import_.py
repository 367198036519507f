"""`isoflop import`."""

from __future__ import annotations

import dataclasses
import math
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from isoflop.cli.options import OUT_FOLDER
from isoflop.cli.progress import Bar
from isoflop.cli.prompts import confirm
from isoflop.cli.tables import console, counted, new_table, print_lines
from isoflop.errors import UserError, shown
from isoflop.numbers import format_count, format_flops

if TYPE_CHECKING:
    from rich.table import Table

    from isoflop.ingest.files import RawTable
    from isoflop.ingest.mapping import ColumnMap
    from isoflop.ingest.store import Imported, ImportRecord

_MAX_REASONS = 8
# Characters of a table of columns in a terminal of 80.
_MAX_EXAMPLE = 24
_LEAST_THEIRS = 20
# A page of W&B's runs.
_SHOWN_EVERY = 50


@click.command(name="import")
@click.argument("sources", metavar="SOURCE", nargs=-1)
@click.option("--map", "maps", metavar="OURS=THEIRS", multiple=True, help="A column, or a product.")
@click.option("--arch", metavar="COLUMN", help="The column of archs.")
@click.option("--arch-name", metavar="NAME", help="The arch of every row.")
@click.option(
    "--parse",
    metavar="COLUMN=PATTERN",
    multiple=True,
    help="Values in names: 'Name={arch}-N{n_params}'.",
)
@click.option("--where", metavar="'COLUMN OP VALUE'", multiple=True, help="Only such rows.")
@click.option(
    "--run", metavar="COLUMN|file", help="Rows are steps of the runs that it tells apart."
)
@click.option(
    "--take",
    type=click.Choice(["last", "best", "every"]),
    help="Of a run's steps.  [default: last]",
)
@click.option("--budget-from", metavar="flops|COLUMN|auto|none", help="auto: clusters of FLOPs.")
@click.option("--budgets", type=click.Choice(["auto"]), help="The same as --budget-from auto.")
@click.option("--flops-unit", metavar="UNIT", help="flop, gflop, pflop, pflop-days, …")
@click.option(
    "--loss-unit",
    metavar="UNIT",
    help="nats_per_token, bits_per_token, bits_per_byte, perplexity, NAME.",
)
@click.option(
    "--mapping", type=click.Path(path_type=Path, dir_okay=False), help="An import.json to repeat."
)
@click.option("--refresh", is_flag=True, help="Read a tracker's runs again, past the cache.")
@click.option("--out", type=OUT_FOLDER, help="Folder for the runs; without it they are only shown.")
@click.option("--replace", is_flag=True, help="Replace another import in that folder.")
@click.option("--yes", is_flag=True, help="Write without asking.")
def import_(
    sources: tuple[str, ...],
    mapping: Path | None,
    out: Path | None,
    refresh: bool,
    replace: bool,
    yes: bool,
    **chosen: Any,
) -> None:
    """Take a table of runs that somebody else wrote, in any common form.

    SOURCE is a file (csv, parquet, json, jsonl, also .gz and .zst), a pattern of files in quotes,
    wandb:ENTITY/PROJECT, wandb:FOLDER, tensorboard:DIR or hf:NAME. Which of its columns is which is
    suggested from their names, shown, and kept in import.json beside the runs.
    """
    from isoflop.ingest.store import read_import, write_import
    from isoflop.ingest.suggest import suggest
    from isoflop.ingest.table import import_table

    stored = None if mapping is None else read_import(mapping)
    source = _source(sources, stored)
    raw = _read(source, refresh=refresh)
    asked = asked_mapping(chosen, stored)
    notes: tuple[str, ...] = ()
    if stored is None:
        suggestion = suggest(raw, asked)
        asked, notes = suggestion.mapping, suggestion.notes
    imported = import_table(raw, asked)
    screen = console()
    screen.print(mapping_table(imported, raw))
    print_lines(screen, [*notes, *summary_lines(imported, raw)])
    if out is None:
        print_lines(screen, [f"to write them: {_command()} --out results/NAME"])
        return
    if not yes and sys.stdin.isatty():
        confirm(f"Write {counted(len(imported.frame), 'run')} to {out}?", "nothing written")
    is_new = write_import(imported, raw, source, out, replace=replace)
    click.echo(f"{'written to' if is_new else 'unchanged:'} {out}/runs.parquet and import.json")
    click.echo(f"next: isoflop fit {shlex.quote(str(out))}")


def _read(source: str, *, refresh: bool) -> RawTable:
    """Return the table of a source; show how far a tracker's runs are read."""
    from isoflop.ingest.sources import read_source

    with Bar(console(stderr=True)) as bar:

        def show(num_read: int, num_runs: int) -> None:
            if num_read % _SHOWN_EVERY == 0:
                bar.show_amount("reading", num_read, num_runs, " runs")

        return read_source(source, refresh=refresh, note=show)


def _source(sources: tuple[str, ...], stored: ImportRecord | None) -> str:
    """Return the source in one word: ``wandb X`` is ``wandb:X``.

    Raises:
        UserError: there is none, or several, or a stored one that was not typed lies elsewhere.
    """
    from isoflop.ingest.sources import FILE_KINDS, KINDS

    if not sources and stored is not None:
        if not stored.is_local:
            allowed = "typed, since import.json names one that does not lie below this folder"
            raise UserError("SOURCE", stored.source, allowed, "add it before --mapping")
        return stored.source
    if len(sources) == 2 and sources[0] in KINDS:
        # What kind of file it is, is seen in it.
        return sources[1] if sources[0] in FILE_KINDS else ":".join(sources)
    if len(sources) != 1:
        allowed = "one file, or a pattern in quotes such as 'runs-*.csv'"
        given = " ".join(sources[:3]) or "nothing"
        raise UserError("SOURCE", shown(given), allowed, "see isoflop import --help")
    return sources[0]


def asked_mapping(chosen: Mapping[str, Any], stored: ImportRecord | None = None) -> ColumnMap:
    """Return what the options say of the mapping; with a stored one they must be silent.

    Raises:
        UserError: they do not go together.
    """
    from isoflop.ingest.mapping import ColumnMap, read_loss_unit

    given = {name: value for name, value in chosen.items() if value}
    if stored is not None:
        if given:
            name = f"--{next(iter(given)).replace('_', '-').replace('maps', 'map')}"
            raise UserError(name, shown("given"), "left to the file of --mapping", "leave it out")
        return stored.mapping
    columns = _pairs("--map", chosen["maps"])
    if chosen["arch"]:
        columns |= _pairs("--arch", [f"arch={chosen['arch']}"], columns)
    budgets = chosen["budgets"] or chosen["budget_from"]
    if budgets is not None and budgets not in ("flops", "auto", "none"):
        columns |= _pairs("--budget-from", [f"budget_flops={budgets}"], columns)
        budgets = None
    return ColumnMap(
        columns=columns,
        arch_name=chosen["arch_name"],
        parse=_pairs("--parse", chosen["parse"]),
        where=chosen["where"],
        run=chosen["run"],
        take=chosen["take"] or "last",
        budget_from=budgets,
        flops_unit=chosen["flops_unit"] and chosen["flops_unit"].lower(),
        loss_unit=chosen["loss_unit"] and read_loss_unit(chosen["loss_unit"]),
    )


def _pairs(
    option: str, texts: list[str] | tuple[str, ...], others: dict[str, str] | None = None
) -> dict[str, str]:
    """Return what stands before and after the first ``=`` of each text."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name, value = name.strip(), value.strip()
        if not (name and equals and value):
            raise UserError(option, text, "NAME=VALUE", "write it so, in quotes")
        if name in found or name in (others or {}):
            raise UserError(option, text, f"one value for {name}", "leave one out")
        found[name] = value
    return found


def _command() -> str:
    """Return the command that was typed, for a shell."""
    return " ".join(["isoflop", *map(shlex.quote, sys.argv[1:])])


def mapping_table(imported: Imported, raw: RawTable) -> Table:
    """Return which of their columns is which of ours: a row each, with an example."""
    table = new_table(("ours", "<"), ("theirs", "<"), ("example", ">"), ("missing", ">"))
    mapping = imported.mapping
    theirs = {
        **mapping.columns,
        **{ours: f"{column} = {mapping.parse[column]}" for ours, column in mapping.parsed.items()},
        **{ours: f"computed: {how}" for ours, how in imported.derived.items()},
    }
    if mapping.arch_name is not None:
        theirs["arch"] = "a constant (--arch-name)"
    if mapping.flops_unit not in (None, "flop") and "flops" in mapping.columns:
        theirs["flops"] += f", in {mapping.flops_unit}"
    theirs["loss"] += f", {_unit_words(imported)}"
    order = ["arch", "budget_flops", "n_params", "n_tokens", "flops", "loss"]
    rest = [ours for ours in imported.frame.columns if ours in theirs and ours not in order]
    for ours in (*order, *rest):
        if ours not in imported.frame:
            table.add_row(
                ours, "none: no run has one" if ours == "budget_flops" else "none", "", ""
            )
            continue
        column = imported.frame[ours].dropna()
        example = "" if column.empty else _example(ours, column.iloc[0])
        missing = len(imported.frame) - len(column)
        table.add_row(ours, theirs.get(ours, ""), example, f"{missing:,}" if missing else "")
    # In a narrow terminal theirs takes several lines, and the others stay whole.
    widths = [max(len(str(text)) for text in (c.header, *c.cells)) for c in table.columns]
    table.columns = [
        dataclasses.replace(column, min_width=width)
        for column, width in zip(table.columns, widths, strict=True)
    ]
    table.columns[1] = dataclasses.replace(
        table.columns[1], min_width=_LEAST_THEIRS, no_wrap=False, overflow="fold"
    )
    return table


def _unit_words(imported: Imported) -> str:
    from isoflop.units import unit_words

    is_exp = imported.mapping.loss_unit == "perplexity"
    return f"{unit_words(imported.unit)}{', as the logarithm of perplexity' if is_exp else ''}"


def _example(ours: str, value: Any) -> str:
    if isinstance(value, str):
        return value if len(value) <= _MAX_EXAMPLE else f"{value[: _MAX_EXAMPLE - 1]}…"
    if not math.isfinite(value):
        return str(value)
    if "flops" in ours:
        return format_flops(value)
    return format_count(value, 4) if ours.startswith("n_") else f"{value:.6g}"


def summary_lines(imported: Imported, raw: RawTable) -> list[str]:
    """Return how many rows became runs, and why others did not."""
    num_rows = len(imported.frame) + len(imported.dropped)
    files = counted(len(raw.files), "file")
    lines = [f"{counted(num_rows, 'row')} of {files}: {counted(len(imported.frame), 'run')}"]
    lines += _reason_lines("dropped", imported.dropped["reason"])
    lines += _reason_lines("kept, but of no use to a fit", imported.frame["excluded_reason"])
    statuses = imported.frame["status"]
    lines += _reason_lines("kept without a result", statuses[statuses != "done"])
    if imported.mapping.run is not None:
        what = (
            "every step counts"
            if imported.mapping.take == "every"
            else (f"of each, the {imported.mapping.take} step with a loss counts")
        )
        lines.append(f"runs are told apart by {imported.mapping.run}; {what}")
    return [*lines, *imported.notes]


def _reason_lines(what: str, reasons: Any) -> list[str]:
    counts = reasons.dropna().str.replace(r"^a step of .*; ", "a step of a run; ", regex=True)
    found = counts.value_counts()
    lines = [f"{number:,} {what}: {reason}" for reason, number in found.items()][:_MAX_REASONS]
    more = len(found) - _MAX_REASONS
    return [*lines, f"and {more} more reasons"] if more > 0 else lines

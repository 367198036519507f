"""`isoflop report`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from isoflop.cli.fit import announce_fit, runs_of
from isoflop.cli.fit_options import LOSS_UNIT, fit_options
from isoflop.cli.options import FOLDER_OR_TABLE, OUT_FOLDER


@click.command()
@click.argument("source", metavar="FOLDER_OR_TABLE", type=FOLDER_OR_TABLE)
@click.option("--out", type=OUT_FOLDER, help="Folder for the results.  [default: the folder]")
@LOSS_UNIT
@fit_options
def report(source: Path, out: Path | None, loss_unit: str | None, **chosen: Any) -> None:
    """Fit a study folder or any table of runs and report it in words, tables and figures.

    Reads what `isoflop fit` reads and writes its tables too, so `fit` need not come first. Then
    report.md, report.html (one file, opens without a network), report.tex and plots/.
    """
    from isoflop.analysis.fit import FitOptions, fit_rows, write_tables
    from isoflop.analysis.report import write_report
    from isoflop.analysis.report.source import source_of

    asked = FitOptions(**chosen)
    runs = runs_of(source, out, loss_unit, asked.axis)
    announce_fit(runs)
    read = runs.read
    fits = fit_rows(read.rows, read.options(asked), unit=read.unit)
    about = source_of(runs.table, read.rows, source if source.is_dir() else None)
    made = write_report(fits, about, runs.out_folder)
    tables = write_tables(fits, runs.out_folder)
    for path in (*made.text_paths, *runs.written, *tables, *made.table_paths):
        click.echo(str(path))
    names = dict.fromkeys(path.stem for path in made.plot_paths)
    click.echo(f"{runs.out_folder / 'plots'}, as png, svg and pdf: {', '.join(names)}")

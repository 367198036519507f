"""`isoflop report`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from isoflop.commands.fit import fit_options


@click.command(short_help="Report a fit as Markdown, HTML and LaTeX, with figures.")
@click.argument("source", metavar="FOLDER_OR_TABLE", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the report.  [default: that of the table]",
)
@fit_options
def report(source: Path, out: Path | None, **chosen: Any) -> None:
    """Report the runs in FOLDER_OR_TABLE: report.md, report.html, report.tex and plots/.

    A study folder needs the runs.parquet that `isoflop fit` makes; a table is any csv or parquet
    file that `isoflop fit` takes. The HTML file opens from disk and needs no network.
    """
    from isoflop.analysis.fit import FitOptions
    from isoflop.analysis.report import report_table

    folder = source if source.is_dir() else source.parent
    made = report_table(source, out or folder, FitOptions(**chosen))
    for path in made.paths:
        click.echo(str(path))

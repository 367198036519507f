"""`isoflop fit`."""

from __future__ import annotations

from pathlib import Path

import click

from isoflop.commands import FOLDER


@click.command(short_help="Fit optima and power laws, and plot them.")
@click.argument("folder", type=FOLDER)
@click.option("--out", type=FOLDER, help="Folder for tables and plots.  [default: FOLDER]")
def fit(folder: Path, out: Path | None) -> None:
    """Fit isoFLOP optima and power laws to the results in FOLDER, and plot them.

    Collects the runs into runs.parquet first. An optimum at the edge of its grid is a bound
    ("<" or ">") and enters no law; runs without a result are counted and named.
    """
    fit_folder(folder, out or folder)


def fit_folder(folder: Path, out_folder: Path) -> None:
    """Collects, fits, plots and prints the optima and the paths of what was written."""
    from isoflop.analysis import excluded_note, fit_table
    from isoflop.launch.status import collect
    from isoflop.plan.artefact import read_plan
    from isoflop.render.tables import console, optima_table

    rows = collect(folder, read_plan(folder), out_folder)
    report = fit_table(rows, out_folder)
    out = console()
    out.print(optima_table(report.fits))
    out.print(excluded_note(report.fits), markup=False, soft_wrap=True)
    for path in (out_folder / "runs.parquet", *report.paths):
        out.print(str(path), markup=False, soft_wrap=True)

"""`isoflop export`."""

from __future__ import annotations

from pathlib import Path

import click

from isoflop.cli.options import OUT_FOLDER


@click.command()
@click.argument("name")
@click.option(
    "--to",
    type=click.Choice(("csv", "parquet", "hub-folder")),
    default="csv",
    show_default=True,
    help="Form of the tables; hub-folder is a data set as the Hugging Face hub takes it.",
)
@click.option("--out", type=OUT_FOLDER, help="Folder to make.  [default: NAME-FORM, here]")
@click.option("--license", "license_name", metavar="NAME", help="Licence that the card names.")
@click.option("--replace", is_flag=True, help="Replace an earlier export in its place.")
def export(
    name: str, to: str, out: Path | None, license_name: str | None, *, replace: bool
) -> None:
    """Write the tables of a study for others, with a card that describes every column.

    NAME is a folder of results, or the name of one in results/. What is exported is what
    `isoflop fit` or `isoflop report` last wrote.
    """
    from isoflop.analysis import export as exporting

    folder = exporting.results_folder(name)
    (form,) = (known for known in exporting.FORMATS if known == to)
    target = out or Path(f"{folder.resolve().name}-{form.removesuffix('-folder')}")
    for path in exporting.export(folder, form, target, license_name=license_name, replace=replace):
        click.echo(str(path))

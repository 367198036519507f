"""What a report consists of: sections of paragraphs, lists, tables and figures.

The three renderers (Markdown, HTML, LaTeX) read the same document, so they cannot disagree. All
text is plain; each renderer escapes it for its own format.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from isoflop.analysis.result import DECLARED_MARK, DECLARED_MEANING
from isoflop.numbers import format_count, format_flops
from isoflop.units import NATS, format_loss, has_perplexity

NO_VALUE = "–"

Value = str | float | int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """A column of a table."""

    key: str
    label: str
    form: Callable[[Any], str] = field(default=str, compare=False)
    """Writes a value that is not missing."""
    is_number: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """A value as written, and as sorted."""

    text: str
    value: Value = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table with a caption."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A figure written as plots/STEM.png, .svg and .pdf."""

    stem: str
    caption: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Items:
    """A list of sentences."""

    items: tuple[str, ...]


Block = str | Items | Table | Picture
"""A str is a paragraph."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A titled part of a report."""

    key: str
    """The section's anchor."""
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """A whole report."""

    title: str
    subtitle: str
    sections: tuple[Section, ...]


def text_column(key: str, label: str) -> Column:
    """Return a column of words."""
    return Column(key=key, label=label, form=lambda value: str(value).replace("_", " "))


def label_column(key: str, label: str) -> Column:
    """Return a column of names that are shown as they are."""
    return Column(key=key, label=label)


def number_column(key: str, label: str, digits: int = 4) -> Column:
    """Return a column of numbers to some significant digits."""
    return Column(key=key, label=label, form=lambda v: f"{v:.{digits}g}", is_number=True)


def loss_column(key: str, label: str, unit: str = NATS) -> Column:
    """Return a column of losses, of their ratios or differences."""
    return Column(key=key, label=label, form=partial(format_loss, unit=unit), is_number=True)


def perplexity_columns(unit: str) -> list[Column]:
    """Return the column of perplexities; none where losses have no perplexity."""
    return [number_column("perplexity", "Perplexity")] * has_perplexity(unit)


def count_column(key: str, label: str) -> Column:
    """Return a column of counts such as 1.05M."""
    return Column(key=key, label=label, form=format_count, is_number=True)


def flops_column(key: str, label: str) -> Column:
    """Return a column of FLOPs such as 1e18."""
    return Column(key=key, label=label, form=format_flops, is_number=True)


def table(caption: str, columns: Sequence[Column], rows: Iterable[Mapping[str, Any]]) -> Table:
    """Return a table of some keys of the rows; None and NaN are written as a dash.

    A value may be a Cell already, where its text is more than the number (a bound, an interval).
    """
    return Table(
        caption=caption,
        columns=tuple(columns),
        rows=tuple(tuple(_cell(row.get(c.key), c) for c in columns) for row in rows),
    )


def interval(low: float | None, high: float | None, form: Callable[[float], str]) -> Cell:
    """Return an interval as a cell sorted by its lower end."""
    if low is None or high is None:
        return Cell(text=NO_VALUE)
    return Cell(text=f"{form(low)} to {form(high)}", value=low)


def _cell(value: Any, column: Column) -> Cell:
    if isinstance(value, Cell):
        return value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return Cell(text=NO_VALUE)
    if isinstance(value, bool):
        return Cell(text="yes" if value else "no", value=int(value))
    return Cell(text=column.form(value), value=value)


def bounded(sign: str, value: float | None, form: Callable[[float], str]) -> Cell:
    """Return a number behind a sign such as "≤ ", sorted by the number."""
    return Cell(text=NO_VALUE) if value is None else Cell(text=f"{sign}{form(value)}", value=value)


def marked(section: Section, archs: Collection[str]) -> Section:
    """Return the section with a mark at each of the archs in its tables, and what it means."""
    blocks = [
        _marked(block, archs) if isinstance(block, Table) else block for block in section.blocks
    ]
    if blocks == list(section.blocks):
        return section
    return replace(section, blocks=(*blocks, f"{DECLARED_MARK}: {DECLARED_MEANING}."))


def _marked(block: Table, archs: Collection[str]) -> Table:
    places = {i for i, column in enumerate(block.columns) if column.key in ("arch", "reference")}
    rows = tuple(
        tuple(
            replace(cell, text=f"{cell.text} {DECLARED_MARK}")
            if place in places and cell.value in archs
            else cell
            for place, cell in enumerate(row)
        )
        for row in block.rows
    )
    return replace(block, rows=rows)


ARCH = label_column("arch", "Family")
BUDGET = flops_column("budget_flops", "Budget (FLOPs)")

"""What a report consists of: sections of paragraphs, lists, tables and figures.

The three renderers (Markdown, HTML, LaTeX) read the same document, so they cannot disagree. All
text is plain; each renderer escapes it for its own format.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from isoflop.numbers import format_count, format_flops

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


def loss_column(key: str, label: str) -> Column:
    """Return a column of losses, in nats per token."""
    return Column(key=key, label=label, form=lambda v: f"{v:.4f}", is_number=True)


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


ARCH = label_column("arch", "Family")
BUDGET = flops_column("budget_flops", "Budget (FLOPs)")

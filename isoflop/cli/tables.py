"""The console, and what lines and tables for the terminal share.

A study's folder, a log or a corpus may come from anybody. Escape sequences in it could hide or
invent lines, so that none of them is printed as it is: neither by `click.echo` nor in tables.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO, cast

from isoflop.texts import LINES, printable, shortened

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

MISSING = "-"
"""The cell of a value that does not exist."""

# Where output goes to a file or pipe there is no width to obey; this holds the widest table.
_PIPE_WIDTH = 140
_BETWEEN_COLUMNS = 2
# Its cells lose a part where the table is too wide: numbers are read whole or not at all.
_NAME_COLUMN = "arch"
_LEAST_NAME = 8


class _Escaping:
    """A stream that escapes what is written to it."""

    def __init__(self, stream: TextIO) -> None:
        # By this name rich finds the stream itself, to which it sends its colours.
        self.rich_proxied_file = stream

    def write(self, text: str) -> int:
        """Write text, but for line ends and tabs without control characters."""
        return self.rich_proxied_file.write(printable(text, LINES))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


@contextmanager
def escaped_output() -> Iterator[None]:
    """Escape what is written to the standard streams meanwhile, tables of rich aside."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast("TextIO", _Escaping(stream)) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


@functools.cache
def console_class() -> type[Console]:
    """Return a rich console that escapes texts; its own control sequences are as they are."""
    # Imported here: help needs no table.
    from rich.console import Console

    class EscapingConsole(Console):
        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(printable(text, LINES), **options)

    return EscapingConsole


def console(stderr: bool = False) -> Console:
    """Return a console that never folds tables in a pipe, and prints every text as it stands.

    Control characters are escaped.
    """
    made = console_class()(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not made.is_terminal:
        made.width = _PIPE_WIDTH
    return made


def print_lines(out: Console, lines: Iterable[str]) -> None:
    """Print lines of text; a narrow terminal folds them, nothing else does."""
    for line in lines:
        out.print(printable(line, ""), soft_wrap=True)


def print_damaged(errors: Iterable[object]) -> bool:
    """Print a line for each record that cannot be read; return whether there is any."""
    lines = [f"damaged: {error}" for error in errors]
    print_lines(console(stderr=True), lines)
    return bool(lines)


def counted(number: int, noun: str) -> str:
    """Return a number of things: `1 run`, `3 runs`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def between(low: float | None, high: float | None, form: Callable[[float], str]) -> str:
    """Return an interval as a cell; one without an end is missing."""
    return MISSING if low is None or high is None else f"{form(low)} to {form(high)}"


def new_table(*columns: tuple[str, str]) -> Table:
    """Return an empty table; each column is a name and ``<`` (flush left) or ``>``."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True)
    for name, align in columns:
        table.add_column(
            name, justify="right" if align == ">" else "left", no_wrap=True, overflow="ellipsis"
        )
    return table


def columns_that_fit(
    rows: Sequence[Mapping[str, str]], width: int, least_wanted: Sequence[str]
) -> list[str]:
    """Return the columns of a table that fit a width.

    Args:
        rows: cells by the name of their column, all with the same ones; at least one row.
        width: characters of the terminal.
        least_wanted: columns that may be left out, the first ones first.
    """
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
    for name in least_wanted:
        if sum(widths.values()) + _BETWEEN_COLUMNS * len(widths) <= width:
            break
        widths.pop(name, None)
    return list(widths)


def fitted_table(
    rows: Sequence[Mapping[str, str]],
    width: int,
    *,
    least_wanted: Sequence[str],
    text: Collection[str],
    groups: Sequence[object],
) -> tuple[Table, tuple[str, ...]]:
    """Return a table of the columns that fit a width, with a line between groups of rows.

    Args:
        rows: as of :func:`columns_that_fit`.
        width: characters of the terminal.
        least_wanted: as of :func:`columns_that_fit`.
        text: columns that are flush left.
        groups: of each row; where it changes a line is drawn.

    Returns:
        The table, and the names of the columns that did not fit.
    """
    shown = columns_that_fit(rows, width, least_wanted)
    names = _names_that_fit(rows, shown, width)
    table = new_table(*((name, "<" if name in text else ">") for name in shown))
    for index, (row, group) in enumerate(zip(rows, groups, strict=True)):
        if index and group != groups[index - 1]:
            table.add_section()
        table.add_row(*(names[row[name]] if name == _NAME_COLUMN else row[name] for name in shown))
    return table, tuple(name for name in rows[0] if name not in shown)


def _names_that_fit(
    rows: Sequence[Mapping[str, str]], columns: Sequence[str], width: int
) -> dict[str, str]:
    """Return the cells of the column of names, cut to what the other columns leave."""
    from rich.cells import cell_len

    others = [name for name in columns if name != _NAME_COLUMN]
    taken = sum(max(len(name), *(len(row[name]) for row in rows)) for name in others)
    room = max(_LEAST_NAME, width - taken - _BETWEEN_COLUMNS * len(columns))
    names = list(dict.fromkeys(row.get(_NAME_COLUMN, "") for row in rows))
    return dict(zip(names, shortened(names, room, cell_len), strict=True))

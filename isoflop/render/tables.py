"""What all tables for the terminal share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

# Where output goes to a file or pipe there is no width to obey; this holds the widest table.
_PIPE_WIDTH = 140
_BETWEEN_COLUMNS = 2


def console(stderr: bool = False) -> Console:
    """A console that never folds tables in a pipe, and prints every text as it stands."""
    made = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not made.is_terminal:
        made.width = _PIPE_WIDTH
    return made


def new_table(*columns: tuple[str, str]) -> Table:
    """An empty table in the house's form; each column is a name and ``<`` or ``>``."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True)
    for name, align in columns:
        table.add_column(
            name, justify="right" if align == ">" else "left", no_wrap=True, overflow="ellipsis"
        )
    return table


def columns_that_fit(
    rows: Sequence[Mapping[str, str]], width: int, least_wanted: Sequence[str]
) -> list[str]:
    """The columns of a table that fit a width.

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

"""Cells of a column of others as texts, whole columns at once, and as messages show them."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from isoflop.ingest.frames import is_missing
from isoflop.numbers import read_number

if TYPE_CHECKING:
    import pandas as pd

_MAX_MISSING = 4
_MAX_NUMBER = 40
_MAX_SHOWN = 80


def texts_of(column: pd.Series) -> pd.Series:
    """Return cells as texts without blanks around them, None where there is no value.

    A whole number has no decimal point, as where pandas made floats of a column with gaps.
    """
    import pandas as pd

    return pd.Series(list(map(_text, column.to_list())), index=column.index, dtype=object)


def _text(cell: Any) -> str | None:
    text = _plain(cell)
    if text is None or text.isascii():
        return text
    # No file takes half of a pair of surrogates, which JSON may hold.
    return text.encode(errors="backslashreplace").decode()


def _plain(cell: Any) -> str | None:
    if isinstance(cell, str):
        text = cell.strip()
        # Words for a missing value are short.
        return None if len(text) <= _MAX_MISSING and is_missing(text) else text
    if is_missing(cell):
        return None
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return str(cell).strip()


@functools.lru_cache(maxsize=2**16)
def number_or_none(text: str) -> float | None:
    """Return the number that a short text is, None where it is none."""
    try:
        return read_number(text) if len(text) <= _MAX_NUMBER else None
    except ValueError:
        return None


def short(cell: Any) -> str:
    """Return a cell as a message shows it."""
    text = repr(cell) if isinstance(cell, str) else str(cell)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"

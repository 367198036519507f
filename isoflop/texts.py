"""Texts that may come from anybody: no character is obeyed by who shows them, long ones fit."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Callable, Collection, Sequence

LINES = "\n\t"
# Characters before the first that differs, which names cut alike are shown from.
_BEFORE_DIFFERENCE = 6


def printable(text: str, keep: str = "\n") -> str:
    """Return text without control characters: a terminal would obey some of them.

    Args:
        text: of a file.
        keep: control characters that stay; "" for what has to be one line.
    """
    if text.isprintable():
        return text
    return "".join(c if c in keep or not has_control(c) else _escaped(c) for c in text)


def has_control(text: str) -> bool:
    """Return whether there are characters that no reader sees, of control or direction."""
    # Spaces of other widths are harmless, though Python does not call them printable.
    return not text.isprintable() and any(
        not (c.isprintable() or unicodedata.category(c) == "Zs") for c in text
    )


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def shortened(
    names: Sequence[str], width: float, measure: Callable[[str], float] = len
) -> list[str]:
    """Return names that fit a width: too long ones lose their middle.

    Names that would then look alike are shown from shortly before they begin to differ.

    Args:
        names: of which those that differ will do so still, where the width allows it.
        width: in the unit of the measure.
        measure: the width of a text.
    """
    shown = [_cut(name, width, measure, head=0.5) for name in names]
    # Each round tells at least two of those apart that begin to differ at one place.
    for _ in names:
        alike: dict[str, set[str]] = {}
        for name, text in zip(names, shown, strict=True):
            alike.setdefault(text, set()).add(name)
        if all(len(group) == 1 for group in alike.values()):
            break
        for index, name in enumerate(names):
            group = alike[shown[index]]
            if len(group) > 1:
                start = max(0, _num_alike(group) - _BEFORE_DIFFERENCE)
                shown[index] = _cut(f"…{name[start:]}", width, measure, head=1.0)
    return shown


def _num_alike(names: Collection[str]) -> int:
    """Return how many characters all names begin with."""
    columns = zip(*names, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))


def _cut(name: str, width: float, measure: Callable[[str], float], head: float) -> str:
    """Return a text that fits a width, the share ``head`` of what is kept being its beginning."""
    full = measure(name)
    if full <= width:
        return name
    for kept in range(min(len(name) - 1, int(len(name) * width / full) + 3), 0, -1):
        start = round(kept * head)
        short = f"{name[:start]}…{name[len(name) - (kept - start) :]}"
        if measure(short) <= width:
            return short
    return "…"

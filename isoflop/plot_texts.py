"""Texts in figures: how wide they are, where they break, which part of a name is shown."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Collection, Sequence

# Characters before the first that differs, which names cut alike are shown from.
_BEFORE_DIFFERENCE = 6
# Of the size: wider than the widest Latin letter.
_UNKNOWN_WIDTH = 1.2


def literal(text: str) -> str:
    """Return a text as matplotlib is to show it: no math, and every character in its font.

    A character that no font of `font.family` has is shown as its number; an underscore at the
    start, which hides a label from legends, comes after a space without width.
    """
    # A single dollar starts no math.
    escaped = text.replace("$", r"\$") if text.count("$") > 1 else text
    return shown(f"\u200b{escaped}" if escaped.startswith("_") else escaped)


def shown(text: str) -> str:
    """Return a text that no font lacks a character of; those show as their numbers."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if has_glyph(c) else f"U+{ord(c):04X}" for c in text)


def has_glyph(character: str) -> bool:
    """Return whether a font of `font.family` has a character."""
    from matplotlib import rcParams
    from matplotlib.font_manager import FontProperties, findfont

    return any(
        _is_in_font(findfont(FontProperties(family=[family])), character)
        for family in rcParams["font.family"]
    )


@functools.cache
def _is_in_font(path: str, character: str) -> bool:
    from matplotlib.font_manager import get_font

    return get_font(path).get_char_index(ord(character)) != 0


def text_width(text: str, size: float, *, bold: bool = False) -> float:
    """Return the inches that a line of text takes at a size in points, without kerning."""
    from matplotlib.font_manager import FontProperties, findfont

    path = findfont(FontProperties(weight="bold" if bold else "normal"))
    return size * sum(_character_width(path, character) for character in text) / 72


@functools.cache
def _character_width(path: str, character: str) -> float:
    """Return the width of a character of a font, in units of its size."""
    from matplotlib.font_manager import get_font

    if not _is_in_font(path, character):
        return _UNKNOWN_WIDTH
    font = get_font(path)
    font.set_size(1, 72)
    # In 65536ths of a point.
    return float(font.load_char(ord(character)).linearHoriAdvance) / 65536


def shortened(names: Sequence[str], width: float, size: float, *, bold: bool = False) -> list[str]:
    """Return names that fit a width in inches: too long ones lose their middle.

    Names that would then look alike are shown from shortly before they begin to differ.
    """
    shown = [_cut(name, width, size, bold, head=0.5) for name in names]
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
                shown[index] = _cut(f"…{name[start:]}", width, size, bold, head=1.0)
    return shown


def _num_alike(names: Collection[str]) -> int:
    """Return how many characters all names begin with."""
    columns = zip(*names, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))


def _cut(name: str, width: float, size: float, bold: bool, head: float) -> str:
    """Return a text that fits a width, the share ``head`` of what is kept being its beginning."""
    full = text_width(name, size, bold=bold)
    if full <= width:
        return name
    for kept in range(min(len(name) - 1, int(len(name) * width / full) + 3), 0, -1):
        start = round(kept * head)
        short = f"{name[:start]}…{name[len(name) - (kept - start) :]}"
        if text_width(short, size, bold=bold) <= width:
            return short
    return "…"


def wrap(text: str, width: float, size: float, *, bold: bool = False) -> list[str]:
    """Return a text in lines that fit a width in inches; a longer word has its own line."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(longer, size, bold=bold) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines

"""Texts in figures: how wide they are, where they break, which part of a name is shown."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from isoflop import texts

LINE_EMS = 1.5
"""Height of a line of text in units of its size."""
# Of the size: wider than the widest Latin letter.
_UNKNOWN_WIDTH = 1.2


def literal(text: str) -> str:
    """Return a text as matplotlib is to show it: no math, and every character in its font.

    A character that no font of `font.family` has is shown as its number; an underscore at the
    start, which hides a label from legends, comes after a space without width.
    """
    plain = _plain(text)
    # A single dollar starts no math.
    return plain.replace("$", r"\$") if plain.count("$") > 1 else plain


def _plain(text: str) -> str:
    """Return a text as matplotlib is to show it where no math is read."""
    return shown(f"\u200b{text}" if text.startswith("_") else text)


def shown(text: str) -> str:
    """Return a text that no font lacks a character of; those show as their numbers."""
    if text.isascii() and text.isprintable():
        return text
    fonts = _fonts()
    return "".join(
        c if any(_is_in_font(path, c) for path in fonts) else f"U+{ord(c):04X}" for c in text
    )


def _fonts() -> list[str]:
    """Return the files of the fonts of `font.family`."""
    from matplotlib import rcParams
    from matplotlib.font_manager import FontProperties, findfont

    return [findfont(FontProperties(family=[family])) for family in rcParams["font.family"]]


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
    """Return names that fit a width in inches: too long ones lose a part, and differ still.

    They are to be shown where no math is read, or by `literal`.
    """
    measure = functools.partial(text_width, size=size, bold=bold)
    return texts.shortened([_plain(name) for name in names], width, measure)


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

"""Texts that may come from anybody: none of their characters is obeyed by who shows them."""

from __future__ import annotations

import unicodedata

LINES = "\n\t"


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

"""Options and arguments that several verbs have."""

from __future__ import annotations

from pathlib import Path

import click

from isoflop.errors import UserError, shown

FOLDER = click.Path(path_type=Path, file_okay=False)
"""A folder, which may not exist yet."""


def words(text: str | None) -> list[str]:
    """Return the entries of a comma list such as mlp,swiglu; none where it was not given."""
    return [] if text is None else [word.strip() for word in text.split(",")]


def whole_numbers(name: str, text: str | None) -> list[int]:
    """Return the numbers of a comma list such as 1,2.

    Raises:
        UserError: an entry is no whole number.
    """
    for word in words(text):
        # isdecimal accepts digits of every script; int reads them all.
        if not word.isdecimal():
            raise UserError(name, shown(str(text)), "whole numbers such as 1,2", "correct it")
    return [int(word) for word in words(text)]


def numbers_of_flops(name: str, text: str | None) -> list[int]:
    """Return the budgets of a comma list such as 1e17,6e17.

    Raises:
        UserError: an entry is no whole number of FLOPs.
    """
    from isoflop.study import parse_flops

    return [parse_flops(word, name) for word in words(text)]

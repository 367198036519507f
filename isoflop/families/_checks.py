"""Checks that the families' configurations share."""

from __future__ import annotations

from isoflop.errors import UserError


def check_positive(family: str, **fields: int) -> None:
    """Refuse counts and widths below 1.

    Raises:
        UserError: names the first such field.
    """
    for name, value in fields.items():
        if value < 1:
            raise UserError(f"{family}.{name}", value, "1 or more", "correct the study")


def check_choice(family: str, field: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a word that is not among the choices.

    Raises:
        UserError: lists the choices.
    """
    if value not in choices:
        raise UserError(f"{family}.{field}", value, " or ".join(choices), "correct the study")

"""Checks of a study's plain values; each refuses in one line that names the field."""

from __future__ import annotations

import math
from collections.abc import Sequence

from isoflop.errors import UserError
from isoflop.families import family_names, is_family


def check_word(name: str, value: str, allowed: Sequence[str]) -> None:
    """Refuses what is not one of the words."""
    if value not in allowed:
        raise UserError(name, value, f"one of {', '.join(allowed)}", "correct the study")


def check_family(name: str, value: str, labels: Sequence[str]) -> None:
    """Refuses what is neither a family nor one of the labels."""
    # The list of all families is slow to make; only the message needs it.
    if value not in labels and not is_family(value):
        check_word(name, value, (*family_names(), *labels))


def check_number(name: str, value: float, *, above: float, up_to: float | None) -> None:
    """Refuses a number outside (above, up_to], NaN and infinities."""
    fits = math.isfinite(value) and value > above and (up_to is None or value <= up_to)
    if not fits:
        top = "" if up_to is None else f" and at most {up_to:g}"
        raise UserError(name, value, f"a number above {above:g}{top}", "correct the study")


def check_list(name: str, values: Sequence[int], at_least: int) -> None:
    """Refuses an empty list, an entry that is too small, and repetitions."""
    if not values:
        raise UserError(name, [], "one entry or more", "add one")
    for value in values:
        if value < at_least:
            raise UserError(name, value, f"{at_least} or more", "correct it")
    if len(set(values)) < len(values):
        raise UserError(name, list(values), "distinct", "remove the repetition")

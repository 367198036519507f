"""Units of losses: those that isoflop knows, and names of other metrics."""

from __future__ import annotations

import math
from difflib import get_close_matches

from isoflop.errors import UserError

NATS = "nats_per_token"
UNITS = (NATS, "bits_per_token", "bits_per_byte")
"""Units of a loss that isoflop knows; any other word is the name of a metric, lower is better."""

_SHORT_NAMES = {"nats": NATS, "nat": NATS, "bpt": "bits_per_token", "bpb": "bits_per_byte"}
# Words of an option alone: a study's trainer may have a metric of such a name.
_SHORT_OPTIONS = {**_SHORT_NAMES, "bits": "bits_per_token", "bit": "bits_per_token"}
PERPLEXITIES = ("perplexity", "ppl")
# One letter more, less or other; nats_per_byte and bits_per_character are other units.
_LIKENESS = 0.92


def meant_unit(word: str) -> str | None:
    """Return the known unit that another word stands for: short for it, or misspelt."""
    if word in UNITS:
        return None
    short = _SHORT_NAMES.get(word.lower())
    near = get_close_matches(word.lower(), UNITS, n=1, cutoff=_LIKENESS)
    return short or (near[0] if near else None)


def read_unit(word: str, option: str = "--loss-unit") -> str:
    """Return the unit that an option names: a known one, short for one, or a metric's name.

    Args:
        word: such as nats_per_token, nats, bits, bpb, accuracy_error.
        option: what a message calls it.

    Raises:
        UserError: blank, not one line, a known unit misspelt, or perplexity, which laws are not of.
    """
    name = word.strip()
    if (short := _SHORT_OPTIONS.get(name.lower())) is not None:
        return short
    allowed = f"{', '.join(UNITS)}, or the name of a metric of which less is better"
    if not name or not name.isprintable():
        raise UserError(option, word, allowed, "name one of them")
    if name.lower() in PERPLEXITIES:
        do = "write ln(perplexity) into the table, or `isoflop import --loss-unit perplexity`"
        raise UserError(option, word, allowed, do)
    if near := meant_unit(name):
        raise UserError(option, word, allowed, f"say {near} if that is meant")
    return name


def unit_words(unit: str) -> str:
    """Return a unit as text has it; of a named metric its name."""
    return unit.replace("_", " ") if unit in UNITS else unit


def loss_name(unit: str) -> str:
    """Return what a sentence calls a loss: the loss, or the metric by its name."""
    return "loss" if unit in UNITS else unit


def loss_label(unit: str) -> str:
    """Return what an axis calls a loss: with its unit, or the metric by its name."""
    return f"Loss ({unit_words(unit)})" if unit in UNITS else unit


def loss_heading(unit: str) -> str:
    """Return what a column calls a loss; nats per token, the usual unit, are not named."""
    return "Loss" if unit == NATS else loss_label(unit)


def loss_column(unit: str) -> str:
    """Return what a column of a terminal's table calls a loss."""
    return loss_heading(unit).replace("Loss", "loss", 1) if unit in UNITS else unit


def measure_name(unit: str) -> str:
    """Return what figures of the best losses show: perplexity where that means something."""
    if has_perplexity(unit):
        return "Perplexity"
    return "Loss" if unit in UNITS else unit


def has_perplexity(unit: str) -> bool:
    """Return whether exp(loss) is a perplexity of tokens."""
    return unit == NATS


def shown_loss(loss: float, unit: str) -> float:
    """Return what figures of the best losses show; see :func:`measure_name`."""
    return math.exp(loss) if has_perplexity(unit) else loss


def format_loss(loss: float, unit: str) -> str:
    """Return a loss as text: a metric may be of any size."""
    return f"{loss:.4f}" if unit in UNITS or 0.1 <= abs(loss) < 1000 else f"{loss:.5g}"


def unit_note(unit: str) -> str | None:
    """Return a sentence on what losses are; None of nats per token, which go without saying."""
    if unit == NATS:
        return None
    if unit in UNITS:
        return f"Losses are in {unit_words(unit)}."
    return (
        f"The loss is {unit}, of which less is better; laws with an irreducible loss take it to "
        "be above 0."
    )

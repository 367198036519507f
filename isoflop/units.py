"""Units of losses: those that isoflop knows, and names of other metrics."""

from __future__ import annotations

NATS = "nats_per_token"
UNITS = (NATS, "bits_per_token", "bits_per_byte")
"""Units of a loss that isoflop knows; any other word is the name of a metric, lower is better."""


def unit_words(unit: str) -> str:
    """Return a unit as text has it; of a named metric its name."""
    return unit.replace("_", " ") if unit in UNITS else unit


def loss_name(unit: str) -> str:
    """Return what a sentence calls a loss: the loss, or the metric by its name."""
    return "loss" if unit in UNITS else unit


def loss_label(unit: str) -> str:
    """Return what an axis or a column calls a loss: with its unit, or the metric by its name."""
    return f"Loss ({unit_words(unit)})" if unit in UNITS else unit


def has_perplexity(unit: str) -> bool:
    """Return whether exp(loss) is a perplexity of tokens."""
    return unit == NATS

"""FLOP conventions: named functions from a ledger to training FLOPs per token.

A convention never changes a formula; it says which components count (and how often), so any
convention can be applied to a stored ledger afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from isoflop.accounting.ledger import Ledger
from isoflop.errors import UserError

# The backward pass of a matrix product is two products of the same size.
TRAINING_PASSES = 3


def paper(ledger: Ledger) -> int:
    """The sgatlin paper's: matrix products, full attention, head not counted, 3 × forward."""
    return TRAINING_PASSES * ledger.flops("attn_proj", "attn_scores", "experts", "router")


def paper_head(ledger: Ledger) -> int:
    """As `paper`, with the un-embedding counted."""
    return paper(ledger) + TRAINING_PASSES * ledger.flops("head")


CONVENTIONS: Mapping[str, Callable[[Ledger], int]] = {"paper": paper, "paper+head": paper_head}


def get_convention(name: str) -> Callable[[Ledger], int]:
    """The convention called ``name``.

    Raises:
        UserError: there is no such convention.
    """
    if name not in CONVENTIONS:
        raise UserError("convention", name, " or ".join(CONVENTIONS), "correct the study")
    return CONVENTIONS[name]

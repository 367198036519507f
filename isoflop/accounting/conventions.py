"""FLOP conventions: named functions from a ledger to training FLOPs per token.

A convention never changes a formula; it says which components count (and how often), so any
convention can be applied to a stored ledger afterwards. README.md beside this file compares them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from isoflop.accounting.ledger import Ledger
from isoflop.errors import UserError

# The backward pass of a matrix product is two products of the same size.
TRAINING_PASSES = 3
# A multiply-add per parameter in each of the three passes.
FLOPS_PER_PARAMETER = 2 * TRAINING_PASSES
# Hoffmann et al. 2022, appendix F: three operations per attention score.
SOFTMAX_FLOPS = 3


def paper(ledger: Ledger) -> int:
    """Count as the sgatlin paper: products, full attention, no head; 3 × forward."""
    return TRAINING_PASSES * ledger.flops("attn_proj", "attn_scores", "experts", "router")


def paper_head(ledger: Ledger) -> int:
    """Count as `paper`, and the un-embedding too: every matrix product of the model."""
    return paper(ledger) + TRAINING_PASSES * ledger.flops("head")


def causal(ledger: Ledger) -> int:
    """Count as `paper+head`, of the scores only those a causal mask keeps: T(T+1)/2 of T².

    Position t attends to t + 1 positions, so a sequence has T(T+1)/2 pairs, the diagonal included.
    """
    full = ledger.flops("attn_scores")
    # Exact: `full` is 4·T·D per layer, a multiple of 2T.
    kept, rest = divmod(full * (ledger.seq_len + 1), 2 * ledger.seq_len)
    assert rest == 0
    return paper_head(ledger) - TRAINING_PASSES * (full - kept)


def chinchilla(ledger: Ledger) -> int:
    """Count as Hoffmann et al. 2022, appendix F: the embedding as a product, and the softmax.

    The embedding lookup counts as the product of a one-hot row (2·V·D, as the head), the softmax of
    attention as 3 FLOPs per head and score; full attention.
    """
    softmax = SOFTMAX_FLOPS * ledger.n_layers * ledger.n_heads * ledger.seq_len
    embedding = ledger.flops("head")
    return paper_head(ledger) + TRAINING_PASSES * (embedding + softmax)


def six_n(ledger: Ledger) -> int:
    """Count 6 FLOPs per parameter outside the embedding (Kaplan et al. 2020), no scores.

    Experts that a token did not choose count as well, so this is no measure of compute for sparse
    families.
    """
    return FLOPS_PER_PARAMETER * ledger.num_nonembed_params


def six_n_total(ledger: Ledger) -> int:
    """Count 6 FLOPs per parameter held, the tied embedding once; see `six_n`."""
    return FLOPS_PER_PARAMETER * ledger.num_params


CONVENTIONS: Mapping[str, Callable[[Ledger], int]] = {
    "paper": paper,
    "paper+head": paper_head,
    "causal": causal,
    "chinchilla": chinchilla,
    "6n": six_n,
    "6n_total": six_n_total,
}


def get_convention(name: str) -> Callable[[Ledger], int]:
    """Return the convention called ``name``.

    Raises:
        UserError: there is no such convention.
    """
    if name not in CONVENTIONS:
        raise UserError("convention", name, " or ".join(CONVENTIONS), "correct the study")
    return CONVENTIONS[name]

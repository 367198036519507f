"""FLOP conventions: named functions from a ledger to training FLOPs per token.

A convention never changes a formula; it says which components count (and how often), so any
convention can be applied to a stored ledger afterwards. README.md beside this file compares them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from isoflop.accounting.ledger import TRAINING_PASSES, Ledger
from isoflop.errors import UserError

# A multiply-add per parameter in each of the three passes.
FLOPS_PER_PARAMETER = 2 * TRAINING_PASSES
# Hoffmann et al. 2022, appendix F: three operations per attention score.
SOFTMAX_FLOPS = 3


def paper(ledger: Ledger) -> int:
    """Count as the sgatlin paper: products, full attention, no head; 3 × forward."""
    return ledger.training_flops("attn_proj", "attn_scores", "experts", "router", "other")


def paper_head(ledger: Ledger) -> int:
    """Count as `paper`, and the un-embedding too: every matrix product of the model."""
    return paper(ledger) + ledger.training_flops("head")


def causal(ledger: Ledger) -> int:
    """Count as `paper+head`, of the scores only those a causal mask keeps: T(T+1)/2 of T².

    Position t attends to t + 1 positions, so a sequence has T(T+1)/2 pairs, the diagonal included.

    Raises:
        UserError: the counted scores are not those of all T² pairs.
    """
    full = ledger.training_flops("attn_scores")
    # Exact: the forward pass of a layer is 4·T·D, a multiple of 2T.
    kept, rest = divmod(full * (ledger.seq_len + 1), 2 * ledger.seq_len)
    if rest:
        raise not_known("causal", "scores of every pair of tokens")
    return paper_head(ledger) - (full - kept)


def chinchilla(ledger: Ledger) -> int:
    """Count as Hoffmann et al. 2022, appendix F: the embedding as a product, and the softmax.

    The embedding lookup counts as the product of a one-hot row (2·V·D, as the head), the softmax of
    attention as 3 FLOPs per head and score; full attention.

    Raises:
        UserError: layers or heads are not known.
    """
    if ledger.n_layers is None or ledger.n_heads is None:
        raise not_known("chinchilla", "as many heads in each layer")
    softmax = SOFTMAX_FLOPS * ledger.n_layers * ledger.n_heads * ledger.seq_len
    embedding = ledger.training_flops("head")
    return paper_head(ledger) + embedding + TRAINING_PASSES * softmax


def not_known(convention: str, what: str) -> UserError:
    """Return the mistake that a convention needs what a model does not show."""
    allowed = f"one whose counts the model shows ({convention} needs {what})"
    return UserError("convention", convention, allowed, "take paper+head")


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

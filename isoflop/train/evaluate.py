"""Loss over the whole held-out set: every token once, weighted equally.

Letters: W windows, T tokens, B windows per batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from isoflop.data.tokenizer import PAD_ID
from isoflop.data.windows import shift_right
from isoflop.model.loss import token_losses
from isoflop.train.precision import compute_type

if TYPE_CHECKING:
    from isoflop.data.windows import HeldoutWindows
    from isoflop.model import Transformer


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Held-out loss and what follows from it."""

    loss: float
    """Nats per token: total negative log-likelihood / tokens."""
    loss_se: float | None
    """Standard error of ``loss`` over documents; None with fewer than two documents."""
    perplexity: float
    """exp(loss)."""
    bits_per_byte: float
    """Total negative log-likelihood in bits / bytes of text."""
    num_tokens: int
    """Tokens that carry loss."""
    reference_perplexity: float | None
    """Mean over full batches of exp(batch mean loss), the reference's biased-up metric; None where
    there is no full batch. For comparison only."""


def evaluate(
    model: Transformer, heldout: HeldoutWindows, *, batch_size: int, precision: str
) -> Evaluation:
    """Evaluates ``model`` on all held-out windows, in order.

    Args:
        model: the model, on the device where it is to run.
        heldout: windows padded with 0; see :class:`isoflop.data.windows.HeldoutWindows`.
        batch_size: windows per forward pass, which only ``reference_perplexity`` depends on.
        precision: ``fp32`` or ``bf16``.
    """
    loss_W = _window_losses(model, heldout.tokens, batch_size, precision)
    count_W = (heldout.tokens != PAD_ID).sum(axis=1)
    total = float(loss_W.sum())
    num_tokens = int(count_W.sum())
    loss = total / num_tokens
    return Evaluation(
        loss=loss,
        loss_se=_ratio_standard_error(loss_W, count_W, heldout.document_index),
        perplexity=_exp(loss),
        bits_per_byte=total / math.log(2.0) / heldout.num_bytes,
        num_tokens=num_tokens,
        reference_perplexity=_reference_perplexity(loss_W, count_W, batch_size),
    )


@torch.no_grad()
def _window_losses(
    model: Transformer, tokens_WT: NDArray[np.uint16], batch_size: int, precision: str
) -> NDArray[np.float64]:
    """Summed negative log-likelihood of each window, nats."""
    device = model.embedding.device
    losses = []
    for start in range(0, len(tokens_WT), batch_size):
        window_BT = tokens_WT[start : start + batch_size]
        inputs_BT = torch.from_numpy(shift_right(window_BT).astype(np.int64)).to(device)
        targets_BT = torch.from_numpy(window_BT.astype(np.int64)).to(device)
        with compute_type(precision, device):
            loss_BT = token_losses(model(inputs_BT), targets_BT)
        losses.append(loss_BT.double().sum(1).cpu().numpy())
    return np.concatenate(losses)


def _ratio_standard_error(
    loss_W: NDArray[np.float64], count_W: NDArray[np.int64], document_W: NDArray[np.int64]
) -> float | None:
    """Standard error of sum(loss) / sum(count), documents being the independent units.

    Linearised ratio estimator (Cochran, Sampling Techniques, section 2.11): with m documents and
    residuals e_d = loss_d - ratio * count_d, sqrt(m / (m - 1) * sum(e_d^2)) / sum(count).
    """
    loss_d = np.bincount(document_W, weights=loss_W)
    count_d = np.bincount(document_W, weights=count_W)
    loss_d, count_d = loss_d[count_d > 0], count_d[count_d > 0]
    m = len(count_d)
    if m < 2:
        return None
    residual_d = loss_d - loss_d.sum() / count_d.sum() * count_d
    return math.sqrt(m / (m - 1) * float(residual_d @ residual_d)) / float(count_d.sum())


def _reference_perplexity(
    loss_W: NDArray[np.float64], count_W: NDArray[np.int64], batch_size: int
) -> float | None:
    num_batches = len(loss_W) // batch_size
    if num_batches == 0:
        return None
    shape = (num_batches, batch_size)
    used = num_batches * batch_size
    mean = loss_W[:used].reshape(shape).sum(1) / count_W[:used].reshape(shape).sum(1)
    return sum(_exp(float(value)) for value in mean) / num_batches


def _exp(value: float) -> float:
    """exp, infinite instead of an overflow error."""
    return float(np.exp(np.minimum(value, 700.0))) if value < 700.0 else math.inf

"""Loss over the held-out set: every token once, weighted equally.

A document longer than a window is read in windows of which each starts afresh; its last one is
padded and nothing is dropped. Which tokens are read depends on the prepared data and the sequence
length alone: not on batches, ranks or architecture.

Letters: W windows, T tokens, B windows per batch, R this rank's windows of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isoflop.data.tokenizers import PAD_ID
from isoflop.data.windows import shift_right
from isoflop.recipe import get_recipe
from isoflop.train.ranks import SINGLE, Ranks
from isoflop.train.step import compute_type, tables_cast

if TYPE_CHECKING:
    from torch import nn

    from isoflop.data.windows import HeldoutWindows, TokenData, Tokens
    from isoflop.spec import RunSpec


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
    bits_per_byte_se: float | None
    """Standard error of ``bits_per_byte``: ``loss_se`` in its unit. The tokens per byte of the
    held-out set are taken as they are, not as a draw; None where ``loss_se`` is."""
    num_tokens: int
    """Tokens that carry loss."""
    reference_perplexity: float | None
    """Mean over full batches of exp(batch mean loss), the reference's biased-up metric; None where
    there is no full batch. For comparison only."""


def evaluation_windows(spec: RunSpec, data: TokenData) -> HeldoutWindows:
    """Return the held-out windows to evaluate a run on: all, or as many as its recipe reads."""
    windows = data.heldout(spec.seq_len)
    most = get_recipe(spec.recipe).most_heldout_tokens
    return windows if most is None else windows.thinned(most)


def evaluate(
    model: nn.Module,
    heldout: HeldoutWindows,
    *,
    batch_size: int,
    precision: str,
    ranks: Ranks = SINGLE,
    micro_batch: int | None = None,
    on_forward: Callable[[Tensor], None] | None = None,
) -> Evaluation:
    """Evaluate ``model`` on all held-out windows, in order.

    Nothing of the training changes: no gradient, no random number, no mode of the model.

    Args:
        model: a Transformer, or what ``ranks`` wrapped it in, on the device where it is to run.
        heldout: windows padded with 0; see :class:`isoflop.data.windows.HeldoutWindows`.
        batch_size: windows that all ranks take at a time. ``reference_perplexity`` depends on it,
            all else to the rounding of a forward pass at most.
        precision: ``fp32`` or ``bf16``.
        ranks: the processes that share the windows; all of them call this together and get the
            same result.
        micro_batch: windows that this rank takes through the model at a time; None: its share.
        on_forward: called with the targets [B, T] of each forward pass before it.
    """
    loss_W = _window_losses(model, heldout, batch_size, precision, ranks, micro_batch, on_forward)
    count_W = (heldout.tokens != PAD_ID).sum(axis=1)
    total = float(loss_W.sum())
    num_tokens = int(count_W.sum())
    loss = total / num_tokens
    loss_se = _ratio_standard_error(loss_W, count_W, heldout.document_index)
    bits_per_nat_of_loss = num_tokens / math.log(2.0) / heldout.num_bytes
    return Evaluation(
        loss=loss,
        loss_se=loss_se,
        perplexity=_exp(loss),
        bits_per_byte=total / math.log(2.0) / heldout.num_bytes,
        bits_per_byte_se=None if loss_se is None else loss_se * bits_per_nat_of_loss,
        num_tokens=num_tokens,
        reference_perplexity=_reference_perplexity(loss_W, count_W, batch_size),
    )


@torch.no_grad()
def _window_losses(
    model: nn.Module,
    heldout: HeldoutWindows,
    batch_size: int,
    precision: str,
    ranks: Ranks,
    micro_batch: int | None,
    on_forward: Callable[[Tensor], None] | None,
) -> NDArray[np.float64]:
    """Return the summed negative log-likelihood of each window, nats; the same on every rank."""
    tokens_WT = heldout.tokens
    loss_W = np.zeros(len(tokens_WT))
    with tables_cast(model, precision):
        for start in range(0, len(tokens_WT), batch_size):
            window_BT = _padded(tokens_WT[start : start + batch_size], ranks.size)
            own = ranks.rows(len(window_BT))
            loss_R = _losses(
                model, window_BT[own], heldout.begin_id, precision, micro_batch, on_forward
            )
            # Without the padding at the end.
            real = loss_W[start : start + batch_size][own]
            real[:] = loss_R[: len(real)]
    # Each window has one rank's number and zeros from the others, so no order of sums matters.
    return np.array(ranks.sum(loss_W.tolist()))


def _padded(window_BT: Tokens, multiple: int) -> Tokens:
    """Add windows of padding, which carry no loss, so that all ranks have equally many."""
    missing = -len(window_BT) % multiple
    return np.pad(window_BT, ((0, missing), (0, 0)), constant_values=PAD_ID)


def _losses(
    model: nn.Module,
    window_RT: Tokens,
    begin_id: int,
    precision: str,
    micro_batch: int | None,
    on_forward: Callable[[Tensor], None] | None,
) -> NDArray[np.float64]:
    """Return the losses of this rank's windows of a batch."""
    device = next(model.parameters()).device
    size = micro_batch or len(window_RT)
    losses = []
    for start in range(0, len(window_RT), size):
        window_BT = window_RT[start : start + size]
        inputs_BT = torch.from_numpy(shift_right(window_BT, begin_id).astype(np.int64)).to(device)
        targets_BT = torch.from_numpy(window_BT.astype(np.int64)).to(device)
        if on_forward is not None:
            on_forward(targets_BT)
        with compute_type(precision, device):
            loss_BT = model(inputs_BT, targets_BT, per_token=True)
        losses.append(loss_BT.double().sum(1).cpu().numpy())
    return np.concatenate(losses)


def _ratio_standard_error(
    loss_W: NDArray[np.float64], count_W: NDArray[np.int64], document_W: NDArray[np.int64]
) -> float | None:
    """Return the standard error of sum(loss) / sum(count); documents are the independent units.

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
    """Return exp, infinite instead of an overflow error."""
    return float(np.exp(np.minimum(value, 700.0))) if value < 700.0 else math.inf

"""The gradients of one batch: whole or in micro-batches, on one rank or several.

Letters: B sequences of the global batch, R of this rank's share, T tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from isoflop.data.tokenizers import BEGIN_ID, PAD_ID
from isoflop.data.windows import Tokens, shift_right
from isoflop.spec import RunSpec
from isoflop.train.optimizer import clip_gradients
from isoflop.train.precision import compute_type
from isoflop.train.ranks import SINGLE, Ranks


class StepGradients(NamedTuple):
    """What the backward pass of one step reports; the gradients themselves are in the model."""

    loss: float
    """Nats per target of the global batch."""
    grad_norm: float
    """Of the global batch's gradients, before clipping."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """One rank's share of a global batch."""

    inputs_RT: Tensor
    """int64: the targets shifted right."""
    targets_RT: Tensor
    """int64; padding carries no loss."""
    num_targets: int
    """Targets of the whole global batch that carry loss."""

    def to(self, device: torch.device) -> Batch:
        """Return the same on a device; from pinned memory the copy does not wait."""
        return Batch(
            inputs_RT=self.inputs_RT.to(device, non_blocking=True),
            targets_RT=self.targets_RT.to(device, non_blocking=True),
            num_targets=self.num_targets,
        )

    def pinned(self) -> Batch:
        """Return the same in page-locked memory, which a GPU copies from by itself."""
        return Batch(
            inputs_RT=self.inputs_RT.pin_memory(),
            targets_RT=self.targets_RT.pin_memory(),
            num_targets=self.num_targets,
        )

    def split(self, micro_batch: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield inputs and targets of at most ``micro_batch`` sequences at a time; None: all."""
        size = micro_batch or len(self.targets_RT)
        return zip(self.inputs_RT.split(size), self.targets_RT.split(size), strict=True)


def rank_batch(targets_BT: Tokens, ranks: Ranks = SINGLE, *, begin_id: int = BEGIN_ID) -> Batch:
    """Return a rank's share of a global batch, on the CPU; ``begin_id`` is the input at position 0.

    Raises:
        UserError: the batch does not split evenly over the ranks.
    """
    targets_RT = targets_BT[ranks.rows(len(targets_BT))]
    return Batch(
        inputs_RT=torch.from_numpy(shift_right(targets_RT, begin_id).astype(np.int64)),
        targets_RT=torch.from_numpy(targets_RT.astype(np.int64)),
        num_targets=int(np.count_nonzero(targets_BT != PAD_ID)),
    )


def gradients_of_batch(
    model: nn.Module,
    batch: Tokens | Batch,
    *,
    clip_norm: float | None,
    precision: str,
    ranks: Ranks = SINGLE,
    micro_batch: int | None = None,
) -> StepGradients:
    """Set the clipped gradients of the global batch's mean loss.

    However the batch is split, each part contributes its summed loss divided by the number of
    targets of the whole global batch, so that the split changes the order of sums and nothing
    else, also where parts differ in size or in padding.

    Args:
        model: a Transformer, or what ``ranks`` wrapped it in.
        batch: targets [B, T] of the global batch, the same on every rank; or what
            :func:`rank_batch` makes of them.
        clip_norm: limit of the gradients' norm; None: no limit.
        precision: ``fp32`` or ``bf16``.
        ranks: the processes that share the batch; all of them call this together.
        micro_batch: sequences that this rank takes through the model at a time; None: its share.

    Raises:
        UserError: the batch does not split evenly over the ranks.
    """
    device = next(model.parameters()).device
    if not isinstance(batch, Batch):
        batch = rank_batch(batch, ranks)
    batch = batch.to(device)
    model.zero_grad(set_to_none=True)
    divisor = batch.num_targets / ranks.loss_scale()
    losses = []
    parts = list(batch.split(micro_batch))
    for number, (inputs_RT, targets_RT) in enumerate(parts, start=1):
        with nothing_shared(model) if number < len(parts) else contextlib.nullcontext():
            with compute_type(precision, device):
                loss = model(inputs_RT, targets_RT) / divisor
            loss.backward()
        losses.append(loss.detach())
    total = _mean_loss(losses, batch, ranks)
    parameters = list(model.parameters())
    norm = float(ranks.grad_norm(parameters))
    clip_gradients([p.grad for p in parameters if p.grad is not None], norm, clip_norm)
    return StepGradients(total, norm)


def made_batch(spec: RunSpec) -> Tokens:
    """Uniform tokens [B, T] without padding, for measuring: the text hardly matters to a step."""
    shape = (spec.batch_size, spec.seq_len)
    tokens_BT = np.random.default_rng(0).integers(PAD_ID + 1, spec.vocab_size, shape)
    return tokens_BT.astype(np.uint32)


def nothing_shared(model: nn.Module) -> AbstractContextManager[object]:
    """Gradients stay on their rank: those of all micro-batches are shared at once, by the last.

    Only DDP knows how; sharded gradients are summed over the ranks each time, which is what keeps
    them sharded.
    """
    no_sync = getattr(model, "no_sync", contextlib.nullcontext)
    context: AbstractContextManager[object] = no_sync()
    return context


def _mean_loss(losses: list[Tensor], batch: Batch, ranks: Ranks) -> float:
    """Of the global batch. Sequences that several ranks repeat count once."""
    share = sum(loss.item() for loss in losses) / ranks.loss_scale()
    if ranks.size == 1:
        return share
    own_targets = int((batch.targets_RT != PAD_ID).sum())
    total, targets = ranks.sum([share, own_targets])
    return total * batch.num_targets / targets

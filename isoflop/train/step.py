"""The gradients of one batch, whole or in micro-batches, on one rank or several.

Letters: B sequences of the global batch, R of this rank's share, T tokens.
"""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from isoflop.data.tokenizers import PAD_ID
from isoflop.data.windows import Tokens
from isoflop.families._shared.module import cast_once, summed_in_place
from isoflop.placement import SUMMED_IN_PLACE_FROM, Placement
from isoflop.train.batch import Batch, rank_batch
from isoflop.train.optimizer import clip_gradients
from isoflop.train.ranks import SINGLE, Ranks, SingleRank


class StepGradients(NamedTuple):
    """What the backward pass of one step reports; the gradients themselves are in the model."""

    loss: float
    """Nats per target of the global batch."""
    grad_norm: float
    """Of the global batch's gradients, before clipping."""


def gradients_of_batch(
    model: nn.Module,
    batch: Tokens | Batch,
    *,
    clip_norm: float | None,
    precision: str,
    ranks: Ranks = SINGLE,
    micro_batch: int | None = None,
    in_place: bool | None = None,
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
        in_place: whether gradients of experts' tables are added in place; None: as
            :func:`adds_in_place` says.

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
    if in_place is None:
        in_place = adds_in_place(len(parts), ranks)
    summed = summed_in_place(model) if in_place else contextlib.nullcontext()
    with tables_cast(model, precision), summed:
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


def adds_in_place(num_micro_batches: int, ranks: Ranks = SINGLE) -> bool:
    """Return whether a step adds the gradients of experts' tables in place, with the same result.

    Never where several ranks share it: their layouts wait for each parameter's gradient.
    """
    return num_micro_batches >= SUMMED_IN_PLACE_FROM and type(ranks) is SingleRank


def nothing_shared(model: nn.Module) -> AbstractContextManager[object]:
    """Keep gradients on their rank: the last micro-batch shares those of all at once.

    Only DDP knows how; sharded gradients are summed over the ranks each time, which is what keeps
    them sharded.
    """
    no_sync = getattr(model, "no_sync", contextlib.nullcontext)
    context: AbstractContextManager[object] = no_sync()
    return context


def _mean_loss(losses: list[Tensor], batch: Batch, ranks: Ranks) -> float:
    """Return the mean loss of the global batch. Sequences that several ranks repeat count once."""
    share = sum(loss.item() for loss in losses) / ranks.loss_scale()
    if ranks.size == 1:
        return share
    own_targets = int((batch.targets_RT != PAD_ID).sum())
    total, targets = ranks.sum([share, own_targets])
    return total * batch.num_targets / targets


def compute_type(precision: str, device: torch.device) -> torch.autocast:
    """Return a context in which the model computes in `fp32`, or in `bf16` by autocast."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def set_float32_products(placement: Placement) -> None:
    """Set for the whole process how CUDA multiplies float32, as the placement says.

    Nothing is touched for a run on the CPU.
    """
    if placement.device.startswith("cuda"):
        # The one switch that both of torch's interfaces, and its compiler, read without complaint.
        exact = placement.head_used == "fp32"
        torch.set_float32_matmul_precision("highest" if exact else "high")


def tables_cast(model: nn.Module, precision: str) -> AbstractContextManager[None]:
    """Return a context with the experts' tables as `precision` reads them, cast once."""
    return cast_once(model, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()

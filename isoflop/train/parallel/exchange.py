"""Exchanges of tokens between ranks that gradients flow through, each the other's transpose.

Letters: R ranks, t tokens of one rank, T = R * t tokens of all (rank by rank), C channels of all
ranks, c = C / R channels of one, K experts per channel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

Exchange = Callable[[Tensor, dist.ProcessGroup], Tensor]

# torch 2.13 renamed them; versions before know the second name only.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def gather_tokens(x_tD: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Return all ranks' tokens on every rank, [t, D] -> [T, D]; gradients of a token are summed."""
    return _Exchange.apply(x_tD, group, _gathered, _summed_share)


def sum_own_tokens(y_TD: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The sum over ranks of each one's values for all tokens, at this rank's: [T, D] -> [t, D]."""
    return _Exchange.apply(y_TD, group, _summed_share, _gathered)


def own_channels(values_tCK: Tensor, group: dist.ProcessGroup) -> Tensor:
    """All tokens' values of this rank's channels: [t, C, K] -> [T, c, K], by an all-to-all."""
    return _Exchange.apply(values_tCK, group, _to_owners, _from_owners)


def _gathered(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    whole = x.new_empty((group.size() * x.shape[0], *x.shape[1:]))
    _all_gather(whole, x.contiguous(), group=group)
    return whole


def _summed_share(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    share = x.new_empty((x.shape[0] // group.size(), *x.shape[1:]))
    _reduce_scatter(share, x.contiguous(), group=group)
    return share


def _exchanged(x_R: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Entry r goes to rank r; entry r of the result is what rank r had for this one."""
    received_R = torch.empty_like(x_R)
    dist.all_to_all_single(received_R, x_R, group=group)
    return received_R


def _to_owners(values_tCK: Tensor, group: dist.ProcessGroup) -> Tensor:
    t, C, K = values_tCK.shape
    by_rank_RtcK = values_tCK.view(t, group.size(), -1, K).transpose(0, 1).contiguous()
    return _exchanged(by_rank_RtcK, group).view(-1, C // group.size(), K)


def _from_owners(values_TcK: Tensor, group: dist.ProcessGroup) -> Tensor:
    T, c, K = values_TcK.shape
    size = group.size()
    by_rank_RtcK = _exchanged(values_TcK.contiguous().view(size, -1, c, K), group)
    return by_rank_RtcK.transpose(0, 1).reshape(T // size, size * c, K)


class _Exchange(torch.autograd.Function):
    """A linear exchange; gradients flow through its transpose."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, group: dist.ProcessGroup, exchange: Exchange, transpose: Exchange
    ) -> Tensor:
        ctx.group, ctx.transpose = group, transpose
        return exchange(x, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.transpose(grad, ctx.group), None, None, None

"""Channel parallel: ranks own disjoint channels' tables of sgatlin and share everything else.

What is sent, by all R ranks together, per layer and step of T tokens, width D, with tables of C * E
rows on either side, in numbers of 4 bytes:

    channel     T * (R - 1) * (4 D + 3 C K / R)
    ddp         4 (R - 1) * C * E * D               (the all-reduce of both tables' gradients)

Of the first, 4 D are the tokens to the experts and their outputs back, in either direction of the
pass; 3 C K / R the chosen experts, their scores and the scores' gradients, sent to the channel's
owner only. A ring's all-reduce of n numbers sends 2 (R - 1) n in all. So channels send less where

    T * (1 + 3 C K / (4 D R)) < C * E

that is, where a layer has more experts than a batch has tokens, roughly. What they always
save is memory: a rank keeps 1 / R of the tables, of their gradients and of their moments, and it
computes as much as under ddp. Rings are assumed; gloo may send more.

Letters: R ranks, t tokens of one rank, T = R * t tokens of all (rank by rank), C channels of all
ranks, c = C / R channels of one, K experts per channel.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from isoflop.errors import UserError
from isoflop.families.sgatlin.module import SparselyGatedLinear
from isoflop.train.parallel.layouts import DataParallelRanks
from isoflop_kernels import gathered_linear

TABLES = ("w_in", "w_out")


class ChannelRanks(DataParallelRanks):
    """`channel`: rank r has the r-th share of each layer's channels; tokens are data parallel."""

    def __init__(self, device: torch.device, timeout: datetime.timedelta) -> None:
        super().__init__(device, timeout)
        # Apart from the gradients' buckets, which are under way in the same backward pass. A new
        # group would have the backend's timeout, half an hour for gloo.
        self._group = dist.new_group(timeout=timeout)
        self._tables: set[nn.Parameter] = set()

    def wrap(self, model: nn.Module) -> nn.Module:
        """Wrap all but the tables in DistributedDataParallel; keep the own channels of the tables.

        Raises:
            UserError: a family without channels, or channels that do not split evenly.
        """
        layers = {
            name: layer
            for name, layer in model.named_modules()
            if isinstance(layer, SparselyGatedLinear)
        }
        if not layers:
            raise UserError("parallel", "channel", "used with family sgatlin", "take ddp or fsdp")
        for layer in layers.values():
            self._keep_own_channels(layer)
        names = [f"{layer}.{table}" for layer in layers for table in TABLES]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, names)
        return super().wrap(model)

    def _keep_own_channels(self, layer: SparselyGatedLinear) -> None:
        num_tables = layer.w_in.shape[0]
        if num_tables % self.size:
            raise UserError(
                "tables of a layer",
                num_tables,
                f"a multiple of the {self.size} ranks",
                "start another number of ranks, or take ddp or fsdp",
            )
        for name in TABLES:
            table = nn.Parameter(self._own(getattr(layer, name).detach()).clone())
            # All tokens' gradients, of losses that are multiplied by loss_scale for the average.
            table.register_hook(lambda grad: grad / self.size)
            setattr(layer, name, table)
            self._tables.add(table)
        # The exchange is left out of what torch.compile takes apart.
        layer.run_experts = torch.compiler.disable(self._run_experts)

    def _own(self, table: Tensor) -> Tensor:
        return table.chunk(self.size)[self.rank]

    def _run_experts(
        self,
        x_TD: Tensor,
        idx_TCK: Tensor,
        score_TCK: Tensor,
        w_in: Tensor,
        w_out: Tensor,
        activation: str,
        gate_order: str,
        rows: tuple[Tensor, Tensor] | None = None,
        sums: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        # Their hooks see every gradient.
        assert sums is None
        y_TD = gathered_linear(
            gather_tokens(x_TD, self._group),
            own_channels(idx_TCK, self._group),
            own_channels(score_TCK, self._group),
            w_in,
            w_out,
            activation,
            gate_order,
            rows,
        )
        return sum_own_tokens(y_TD, self._group)

    def grad_norm(self, parameters: Sequence[nn.Parameter]) -> Tensor:
        """Return the shared gradients' norm and, once, all ranks' tables'."""
        tables = [p for p in parameters if p in self._tables]
        shared = [p for p in parameters if p not in self._tables]
        square = super().grad_norm(tables).square()
        dist.all_reduce(square)
        return (square + super().grad_norm(shared).square()).sqrt()

    def whole(self, value: Tensor, parameter: nn.Parameter) -> Tensor:
        """Return all ranks' channels, on the main rank only."""
        if parameter not in self._tables:
            return value
        parts = [torch.empty_like(value) for _ in range(self.size)] if self.is_main else None
        dist.gather(value.contiguous(), parts)
        return value if parts is None else torch.cat(parts)

    def own_rows(self, parameter: nn.Parameter) -> range | None:
        """Return the own channels of a table; None for the rest."""
        if parameter not in self._tables:
            return None
        num_own = parameter.shape[0]
        return range(self.rank * num_own, (self.rank + 1) * num_own)


Exchange = Callable[[Tensor, dist.ProcessGroup], Tensor]

# torch 2.13 renamed them; versions before know the second name only.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def gather_tokens(x_tD: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Return all ranks' tokens on every rank, [t, D] -> [T, D]; gradients of a token are summed."""
    return _Exchange.apply(x_tD, group, _gathered, _summed_share)


def sum_own_tokens(y_TD: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Return the sum over ranks of the values for this rank's tokens: [T, D] -> [t, D]."""
    return _Exchange.apply(y_TD, group, _summed_share, _gathered)


def own_channels(values_tCK: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Return all tokens' values of this rank's channels: [t, C, K] -> [T, c, K] (all-to-all)."""
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
    """Send entry r to rank r; entry r of the result is what rank r had for this one."""
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

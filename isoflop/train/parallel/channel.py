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
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from isoflop.errors import UserError
from isoflop.families.sgatlin.module import SparselyGatedLinear
from isoflop.train.parallel.ddp import DataParallelRanks
from isoflop.train.parallel.exchange import gather_tokens, own_channels, sum_own_tokens
from isoflop_kernels import gathered_linear

TABLES = ("w_in", "w_out")


class ChannelRanks(DataParallelRanks):
    """`channel`: rank r has the r-th share of each layer's channels; tokens are data parallel."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        # Apart from the gradients' buckets, which are under way in the same backward pass.
        self._group = dist.new_group()
        self._tables: set[nn.Parameter] = set()

    def wrap(self, model: nn.Module) -> nn.Module:
        """DistributedDataParallel around all but the tables, of which only the own channels stay.

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
    ) -> Tensor:
        y_TD = gathered_linear(
            gather_tokens(x_TD, self._group),
            own_channels(idx_TCK, self._group),
            own_channels(score_TCK, self._group),
            w_in,
            w_out,
            activation,
            gate_order,
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

    def part(self, whole: Tensor, parameter: nn.Parameter) -> Tensor:
        """Return the own channels of a table; a copy."""
        own = self._own(whole) if parameter in self._tables else whole
        return super().part(own, parameter)

"""Fully sharded: parameters, gradients and moments are split over the ranks by their first axis."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from isoflop.errors import UserError
from isoflop.train.parallel.base import SeveralRanks


class ShardedRanks(SeveralRanks):
    """`fsdp`: torch's FSDP2, one unit per block and one for the rest.

    A unit's parameters are whole only while it computes. Parameters, sums of gradients and moments
    are float32; a forward pass is an exchange, so all ranks make the same number of them.
    """

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return ``model`` itself, its parameters now DTensors split over the ranks.

        Raises:
            UserError: blocks share a parameter, which could be in one unit only.
        """
        blocks = model.blocks
        assert isinstance(blocks, nn.ModuleList)
        own = [set(block.parameters()) for block in blocks]
        if sum(map(len, own)) > len(set().union(*own)):
            raise UserError(
                "parallel", "fsdp", "used with a model whose blocks share no parameter", "take ddp"
            )
        mesh = init_device_mesh(self.device.type, (self.size,))
        for block in blocks:
            fully_shard(block, mesh=mesh)
        whole = fully_shard(model, mesh=mesh)
        # A backward pass splits the last unit again. Where none follows, the model would be left
        # with whole parameters that are not the optimizer's, whose gradients nobody would clear.
        model.register_forward_hook(lambda *_: None if torch.is_grad_enabled() else whole.reshard())
        return model

    def grad_norm(self, parameters: Sequence[nn.Parameter]) -> Tensor:
        """Return the norm over all ranks' parts."""
        norm = super().grad_norm(parameters)
        assert isinstance(norm, DTensor)
        return norm.full_tensor()

    def whole(self, value: Tensor, parameter: nn.Parameter) -> Tensor:
        """Return all ranks' parts, on every rank."""
        assert isinstance(value, DTensor)
        return value.full_tensor()

    def part(self, whole: Tensor, parameter: nn.Parameter) -> Tensor:
        """This rank's part, as a DTensor; nothing is sent."""
        assert isinstance(parameter, DTensor)
        return distribute_tensor(
            whole.to(self.device, copy=True),
            parameter.device_mesh,
            parameter.placements,
            src_data_rank=None,
        )

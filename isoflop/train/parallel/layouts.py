"""The layouts of several ranks: their base class, data parallel, and fully sharded.

Data parallel: every rank has all parameters, gradients are averaged in buckets as they come.
Fully sharded: parameters, gradients and moments are split over the ranks by their first axis.

Letters: B global batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from isoflop.errors import UserError
from isoflop.model.weights import stored_buffers


class SeveralRanks(ABC):
    """One of several processes of the default process group; see isoflop.train.ranks.Ranks.

    As a context manager it leaves the group in the end, without waiting for the others: after an
    error they fail in their next exchange instead of waiting for this rank.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        dist.destroy_process_group()

    @property
    def is_main(self) -> bool:
        """Whether this rank writes: rank 0."""
        return self.rank == 0

    @abstractmethod
    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the module to call; ``model`` itself keeps its parameters' names.

        The optimizer is built from ``model.named_parameters()`` afterwards: a layout may replace
        parameters by this rank's part of them.
        """

    @abstractmethod
    def whole(self, value: Tensor, parameter: nn.Parameter) -> Tensor:
        """Return ``parameter``, or optimizer state like it, whole, on the main rank."""

    @abstractmethod
    def part(self, whole: Tensor, parameter: nn.Parameter) -> Tensor:
        """Return this rank's part of ``whole``, which every rank has, on the parameter's device."""

    def rows(self, batch_size: int) -> slice:
        """Return this rank's sequences of a global batch: rank r has the r-th share, in order.

        Raises:
            UserError: the batch does not split evenly.
        """
        if batch_size % self.size:
            raise UserError(
                "batch_size",
                batch_size,
                f"a multiple of the {self.size} ranks",
                "start another number of ranks",
            )
        share = batch_size // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def loss_scale(self) -> float:
        """Return the number of ranks, since shared gradients are means over the ranks."""
        return float(self.size)

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return the element-wise sum over the ranks, float64; the same on every rank."""
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def broadcast(self, value: float) -> float:
        """Return the main rank's value, on every rank."""
        sent = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.broadcast(sent, 0)
        return sent.item()

    def grad_norm(self, parameters: Sequence[nn.Parameter]) -> Tensor:
        """Return the global L2 norm of the gradients, a float32 scalar, the same on every rank."""
        return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])

    def gather(
        self, model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return whole weights and optimizer state on the main rank's CPU, perhaps not copied.

        One tensor is whole at a time on a rank that is not main, which returns nothing. Names and
        shapes are those of a single rank.
        """
        weights: dict[str, Tensor] = {}
        state: dict[str, Tensor] = {}
        for name, parameter in model.named_parameters():
            values = {name: (weights, parameter.detach())}
            for key, value in sorted(optimizer.state.get(parameter, {}).items()):
                values[f"{name}/{key}"] = (state, value)
            for full_name, (kept, value) in values.items():
                whole = value if value.ndim == 0 < parameter.ndim else self.whole(value, parameter)
                if self.is_main:
                    kept[full_name] = whole.cpu()
        if self.is_main:
            weights |= {name: buffer.cpu() for name, buffer in stored_buffers(model).items()}
        return weights, state

    @torch.no_grad()
    def load(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        weights: Mapping[str, Tensor],
        state: Mapping[str, Tensor],
    ) -> None:
        """Load what :meth:`gather` returned; every rank is given the whole."""
        entries: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
        for full_name, value in state.items():
            name, _, key = full_name.rpartition("/")
            entries[name][key] = value
        for name, parameter in model.named_parameters():
            parameter.copy_(self.part(weights[name], parameter))
            for key, value in entries[name].items():
                scalar = value.ndim == 0 < parameter.ndim
                optimizer.state[parameter][key] = (
                    value.to(self.device, copy=True) if scalar else self.part(value, parameter)
                )
        for name, buffer in stored_buffers(model).items():
            buffer.copy_(weights[name])


class DataParallelRanks(SeveralRanks):
    """`ddp`. A checkpoint is what a single rank's is, and no exchange is needed for one."""

    def wrap(self, model: nn.Module) -> nn.Module:
        """Wrap ``model`` in DistributedDataParallel; it begins with the main rank's values."""
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices)

    def whole(self, value: Tensor, parameter: nn.Parameter) -> Tensor:
        """Return the value: all ranks have the same."""
        return value

    def part(self, whole: Tensor, parameter: nn.Parameter) -> Tensor:
        """Return a copy of the whole."""
        return whole.to(parameter.device, copy=True)


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
        # with whole parameters that are not the optimizer's, whose gradients would not be cleared.
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
        """Return this rank's part, as a DTensor; nothing is sent."""
        assert isinstance(parameter, DTensor)
        return distribute_tensor(
            whole.to(self.device, copy=True),
            parameter.device_mesh,
            parameter.placements,
            src_data_rank=None,
        )

"""The layouts of several ranks: their base class, data parallel, and fully sharded.

Data parallel: every rank has all parameters, gradients are averaged in buckets as they come.
Fully sharded: parameters, gradients and moments are split over the ranks by their first axis.

Letters: B global batch.
"""

from __future__ import annotations

import datetime
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from isoflop.errors import UserError
from isoflop.model.weights import stored_buffers
from isoflop.train.shards import Rows, Shard, stored_rows


class SeveralRanks(ABC):
    """One of several processes of the default process group; see isoflop.train.ranks.Ranks.

    As a context manager it leaves the group in the end; after an error, or :meth:`abandon`, without
    waiting for what is under way between the ranks.

    Args:
        device: of this rank.
        timeout: of an exchange; of the default group already.
    """

    def __init__(self, device: torch.device, timeout: datetime.timedelta) -> None:
        self.device = device
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is not None:
            self.abandon()
        elif dist.is_initialized():
            dist.destroy_process_group()

    def abandon(self) -> None:
        """Leave the group at once, since this rank cannot go on; the others fail or time out.

        gloo closes its connections, so that the others fail in their next exchange. Destroying
        nccl's group would first end what was begun, which waits for ranks that may wait for this
        one: it is aborted.
        """
        if not dist.is_initialized():
            return
        if dist.get_backend() == "nccl":
            dist.distributed_c10d._abort_process_group()
        else:
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
    def own_rows(self, parameter: nn.Parameter) -> range | None:
        """Return the rows of the whole that this rank alone has; None: every rank has the whole."""

    @abstractmethod
    def whole(self, value: Tensor, parameter: nn.Parameter) -> Tensor:
        """Return ``parameter``, or optimizer state like it, whole, on the main rank."""

    @abstractmethod
    def placed(self, own: Tensor, parameter: nn.Parameter) -> Tensor:
        """Return the own rows as this layout has them, on the parameter's device; a copy."""

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
        self, model: nn.Module, optimizer: torch.optim.Optimizer | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return whole weights and optimizer state on the main rank's CPU, perhaps not copied.

        One tensor is whole at a time on a rank that is not main, which returns nothing. Names and
        shapes are those of a single rank.
        """
        weights: dict[str, Tensor] = {}
        state: dict[str, Tensor] = {}
        for name, parameter in model.named_parameters():
            values = {name: (weights, parameter.detach())}
            for key, value in _state_of(parameter, optimizer):
                values[f"{name}/{key}"] = (state, value)
            for full_name, (kept, value) in values.items():
                whole = value if _is_shared(value, parameter) else self.whole(value, parameter)
                if self.is_main:
                    kept[full_name] = whole.cpu()
        if self.is_main:
            weights |= {name: buffer.cpu() for name, buffer in stored_buffers(model).items()}
        return weights, state

    def shard(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Shard | None:
        """Return this rank's part of a checkpoint, without an exchange; None: nothing is split."""
        if all(self.own_rows(parameter) is None for parameter in model.parameters()):
            return None
        weights: dict[str, Rows] = {}
        state: dict[str, Rows] = {}
        for name, parameter in model.named_parameters():
            own = self.own_rows(parameter)
            if own is not None:
                weights[name] = Rows(own.start, _local(parameter.detach()))
            elif self.is_main:
                weights[name] = Rows(0, parameter.detach().cpu())
            for key, value in _state_of(parameter, optimizer):
                if own is not None and not _is_shared(value, parameter):
                    state[f"{name}/{key}"] = Rows(own.start, _local(value))
                elif self.is_main:
                    state[f"{name}/{key}"] = Rows(0, value.cpu())
        if self.is_main:
            buffers = stored_buffers(model).items()
            weights |= {name: Rows(0, buffer.cpu()) for name, buffer in buffers}
        return Shard(weights=weights, optimizer=state)

    @torch.no_grad()
    def load(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        weights: Mapping[str, Tensor],
        state: Mapping[str, Tensor],
    ) -> None:
        """Load what :meth:`gather` returned, or a checkpoint; a rank reads only its own rows."""
        keys: defaultdict[str, list[str]] = defaultdict(list)
        for full_name in state:
            name, _, key = full_name.rpartition("/")
            keys[name].append(key)
        for name, parameter in model.named_parameters():
            own = self.own_rows(parameter)
            parameter.copy_(self.placed(stored_rows(weights, name, own), parameter))
            for key in keys[name]:
                value = stored_rows(state, f"{name}/{key}", own)
                optimizer.state[parameter][key] = (
                    value.to(self.device, copy=True)
                    if _is_shared(value, parameter)
                    else self.placed(value, parameter)
                )
        for name, buffer in stored_buffers(model).items():
            buffer.copy_(weights[name])


def _state_of(
    parameter: nn.Parameter, optimizer: torch.optim.Optimizer | None
) -> list[tuple[str, Tensor]]:
    return [] if optimizer is None else sorted(optimizer.state.get(parameter, {}).items())


def _is_shared(value: Tensor, parameter: nn.Parameter) -> bool:
    """Return whether optimizer state is one number for a whole parameter, as its steps are."""
    return value.ndim == 0 < parameter.ndim


def _local(value: Tensor) -> Tensor:
    """Return this rank's rows on the CPU."""
    return (value.to_local() if isinstance(value, DTensor) else value).cpu()


class DataParallelRanks(SeveralRanks):
    """`ddp`. A checkpoint is what a single rank's is, and no exchange is needed for one."""

    def wrap(self, model: nn.Module) -> nn.Module:
        """Wrap ``model`` in DistributedDataParallel; it begins with the main rank's values."""
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices)

    def whole(self, value: Tensor, parameter: nn.Parameter) -> Tensor:
        """Return the value: all ranks have the same."""
        return value

    def own_rows(self, parameter: nn.Parameter) -> range | None:
        """Return None: every rank has the whole."""
        return None

    def placed(self, own: Tensor, parameter: nn.Parameter) -> Tensor:
        """Return a copy."""
        return own.to(parameter.device, copy=True)


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

    def own_rows(self, parameter: nn.Parameter) -> range | None:
        """Return the rank's share of the rows: as torch splits, the last ranks may have fewer."""
        assert isinstance(parameter, DTensor)
        num_rows = parameter.shape[0]
        share = -(-num_rows // self.size)
        first = min(self.rank * share, num_rows)
        own = range(first, min(first + share, num_rows))
        assert len(own) == parameter.to_local().shape[0]
        return own

    def placed(self, own: Tensor, parameter: nn.Parameter) -> Tensor:
        """Return the rows as a DTensor; nothing is sent."""
        assert isinstance(parameter, DTensor)
        return DTensor.from_local(
            own.to(self.device, copy=True),
            parameter.device_mesh,
            parameter.placements,
            run_check=False,
            shape=parameter.shape,
            stride=parameter.stride(),
        )

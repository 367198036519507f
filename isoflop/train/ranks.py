"""The processes that train one run together, as the loop sees them: one, or several.

The loop is written once, against `Ranks`. `SingleRank` is the one-process case; several processes
are in isoflop.train.parallel (never imported for one).

Letters: B global batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from isoflop.model.weights import load_weights, stored_weights

if TYPE_CHECKING:
    # It needs safetensors, and one rank that saves nothing does not.
    from isoflop.train.shards import Shard


class Ranks(Protocol):
    """How one run is shared. Every method is called by all ranks, in the same order."""

    rank: int
    size: int

    @property
    def is_main(self) -> bool:
        """Whether this rank writes: checkpoints, metrics, the result."""

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the module to call, sharing gradients or parameters by the layout."""

    def rows(self, batch_size: int) -> slice:
        """Return this rank's sequences of a global batch.

        Raises:
            UserError: the batch does not split evenly.
        """

    def loss_scale(self) -> float:
        """Return the factor on a rank's loss that makes shared gradients the batch's."""

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return the element-wise sum over the ranks, float64; the same on every rank."""

    def broadcast(self, value: float) -> float:
        """Return the main rank's value, on every rank: whether to begin, where to resume."""

    def grad_norm(self, parameters: Sequence[nn.Parameter]) -> Tensor:
        """Return the global L2 norm of the gradients, a float32 scalar."""

    def gather(
        self, model: nn.Module, optimizer: torch.optim.Optimizer | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return whole weights by name, and optimizer state as `NAME/exp_avg` etc., on the CPU.

        Without an optimizer, weights alone. A parameter with several names has the first of them
        (isoflop.model.weights). Empty on ranks that are not main. The tensors may share memory with
        the model's: they are to be used before the next step.
        """

    def shard(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Shard | None:
        """Return what this rank writes of a checkpoint; None: all of it is the main rank's.

        As with :meth:`gather`, the tensors are to be used before the next step.
        """

    def load(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        weights: Mapping[str, Tensor],
        state: Mapping[str, Tensor],
    ) -> None:
        """Load what :meth:`gather` returned, or a checkpoint of any number of ranks."""


class SingleRank:
    """One process that does all of a run."""

    rank = 0
    size = 1
    is_main = True

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the model itself."""
        return model

    def rows(self, batch_size: int) -> slice:
        """Return the whole batch."""
        return slice(0, batch_size)

    def loss_scale(self) -> float:
        """Return 1."""
        return 1.0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return the values."""
        return list(values)

    def broadcast(self, value: float) -> float:
        """Return the value."""
        return value

    def grad_norm(self, parameters: Sequence[nn.Parameter]) -> Tensor:
        """Return the L2 norm of the gradients there are."""
        return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])

    def gather(
        self, model: nn.Module, optimizer: torch.optim.Optimizer | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return weights and optimizer state by name; on the CPU they are the model's memory."""
        weights = {name: value.detach().cpu() for name, value in stored_weights(model).items()}
        if optimizer is None:
            return weights, {}
        state = {
            f"{name}/{key}": value.detach().cpu()
            for name, parameter in model.named_parameters()
            for key, value in optimizer.state[parameter].items()
        }
        return weights, state

    def shard(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Shard | None:
        """Return None."""
        return None

    def load(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        weights: Mapping[str, Tensor],
        state: Mapping[str, Tensor],
    ) -> None:
        """Copy weights and optimizer state in; names must match exactly."""
        load_weights(model, weights)
        parameters = dict(model.named_parameters())
        for entry, value in state.items():
            name, _, key = entry.rpartition("/")
            parameter = parameters[name]
            optimizer.state[parameter][key] = value.to(parameter.device, copy=True)


SINGLE = SingleRank()

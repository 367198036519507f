"""The choices of experts in a model's forward passes: recorded, or replaced by others.

Letters: T tokens (those of a batch flattened), C channels, K experts chosen per channel, P
patched tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from isoflop.errors import UserError
from isoflop.train.routing import gated_modules


@dataclass(frozen=True, kw_only=True, slots=True)
class Gates:
    """The choices of the newest forward pass: layers in order, each [T, C, K]."""

    idx: list[Tensor] = field(default_factory=list)
    """int32, within the table of the channel."""
    score: list[Tensor] = field(default_factory=list)
    """The router's scores: before a softmax, if the family has one; moe's are its weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Patch:
    """Choices that take the place of a layer's own at some tokens."""

    positions: Sequence[int]
    """Places of the tokens in the flattened batch: row * tokens per row + position."""
    idx_PCK: Tensor
    score_PCK: Tensor


@contextmanager
def recorded_gates(model: nn.Module) -> Iterator[Gates]:
    """Keep the choices of the newest forward pass inside; patched ones are seen as patched."""
    modules = gated_modules(model)
    gates = Gates(idx=[torch.empty(0)] * len(modules), score=[torch.empty(0)] * len(modules))
    before = [module.gates for module in modules]
    for layer, module in enumerate(modules):
        module.gates = _keeper(gates, layer)  # type: ignore[assignment]
    try:
        yield gates
    finally:
        for module, hook in zip(modules, before, strict=True):
            module.gates = hook


def _keeper(gates: Gates, layer: int) -> Callable[[Tensor, Tensor], None]:
    def keep(idx_TCK: Tensor, score_TCK: Tensor) -> None:
        gates.idx[layer], gates.score[layer] = idx_TCK, score_TCK

    return keep


@contextmanager
def patched_gates(model: nn.Module, patches: Mapping[int, Patch]) -> Iterator[None]:
    """Replace the router's choices at some tokens of some layers in the forward passes inside.

    Raises:
        UserError: the layers have no router module, as in moe.
    """
    modules = gated_modules(model)
    check_patchable(model)
    with ExitStack() as stack:
        for layer, patch in patches.items():
            router = modules[layer].router
            assert isinstance(router, nn.Module)
            handle = router.register_forward_hook(_replacer(patch))
            stack.callback(handle.remove)
        yield


def check_patchable(model: nn.Module) -> None:
    """Refuse a model whose choices can be seen but not changed.

    Raises:
        UserError: it has layers without a router module.
    """
    for module in gated_modules(model):
        if not isinstance(getattr(module, "router", None), nn.Module):
            raise UserError(
                "family",
                type(module).__name__,
                "one with a router module, as sgatlin and peer have",
                "record its choices; they cannot be patched",
            )


def _replacer(patch: Patch) -> Callable[..., tuple[Tensor, Tensor]]:
    positions = torch.as_tensor(patch.positions, dtype=torch.int64)

    def replace(
        router: nn.Module, inputs: Any, outputs: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        score_TCK, idx_TCK = outputs
        score = score_TCK.index_copy(0, positions, patch.score_PCK.to(score_TCK.dtype))
        return score, idx_TCK.index_copy(0, positions, patch.idx_PCK.to(idx_TCK.dtype))

    return replace

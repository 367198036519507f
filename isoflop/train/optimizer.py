"""AdamW with the reference implementation's clipping and weight-decay mask."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from isoflop.recipe import Recipe

# Leaf names with one of these words in them are not decayed, whatever their shape: a stack of
# biases [E, F] is a bias.
UNDECAYED = ("bias", "scale")


def is_decayed(name: str) -> bool:
    """Return whether weight decay applies to the parameter of this (dotted) name."""
    leaf = name.rpartition(".")[2]
    return not any(word in leaf for word in UNDECAYED)


def build_adamw(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    weight_decay: float,
    beta1: float,
    beta2: float,
    eps: float,
) -> torch.optim.AdamW:
    """Return AdamW in two groups: kernels, embedding and tables decay; biases and scales do not.

    ``weight_decay`` is decoupled and multiplied by each step's learning rate, which
    :func:`set_learning_rate` sets. Moments are dense: experts that were not chosen keep moving
    (reference implementation, section "Training").
    """
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in named_parameters:
        groups[is_decayed(name)].append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "weight_decay": weight_decay if decayed else 0.0}
            for decayed, parameters in groups.items()
            if parameters
        ],
        lr=0.0,
        betas=(beta1, beta2),
        eps=eps,
        fused=True,
    )


def recipe_adamw(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """Return the optimizer of a recipe, learning rate 0 until it is set."""
    return build_adamw(
        model.named_parameters(),
        weight_decay=recipe.weight_decay,
        beta1=recipe.beta1,
        beta2=recipe.beta2,
        eps=recipe.eps,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all groups for the next step."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def clip_gradients(gradients: list[Tensor], norm: float, max_norm: float | None) -> None:
    """Scale gradients of global L2 norm ``norm`` in place where it reaches the limit.

    Only a norm of at least ``max_norm`` is scaled, by max_norm / norm, with no epsilon. None: no
    limit. With a norm that is not finite nothing is scaled.
    """
    if max_norm is not None and max_norm <= norm < float("inf"):
        torch._foreach_mul_(gradients, max_norm / norm)

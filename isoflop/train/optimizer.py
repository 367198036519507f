"""AdamW with the reference implementation's clipping, weight-decay mask and learning rates.

The learning rate of a step is a pure function of its number. Shapes as in the reference
implementation, section "Training": a linear warm-up from 0, a constant phase, then a decay over the
last share of the steps. The first step has learning rate 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from isoflop.errors import UserError
from isoflop.recipe import Recipe, num_decay_steps

# Leaf names with one of these words in them are not decayed, whatever their shape: a stack of
# biases [E, F] is a bias.
UNDECAYED = ("bias", "scale")

KINDS = ("sqrt", "linear", "cosine", "constant")
# The cosine ends at this share of the peak.
COSINE_FLOOR = 0.1


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


def check_schedule(*, steps: int, warmup_steps: int, decay_fraction: float, kind: str) -> None:
    """Refuse a schedule whose phases do not fit into the run.

    The reference implementation lets the constant phase become negative: the decay then starts
    from a learning rate that was never reached.

    Raises:
        UserError: an unknown kind, or warm-up and decay longer than the run.
    """
    if kind not in KINDS:
        raise UserError("schedule", kind, " or ".join(KINDS), "correct the recipe")
    if kind in ("sqrt", "linear"):
        needed = warmup_steps + num_decay_steps(steps, decay_fraction)
    elif kind == "cosine":
        # Its cosine runs over steps - 2 * warmup_steps.
        needed = 2 * warmup_steps + 1
    else:
        needed = 0
    if steps < max(needed, 1):
        raise UserError(
            "steps",
            steps,
            f"at least {max(needed, 1)} for {warmup_steps} warm-up steps and its decay",
            "raise the budget, or take a smaller batch or size",
        )


def learning_rate(
    step: int, steps: int, peak_lr: float, warmup_steps: int, decay_fraction: float, kind: str
) -> float:
    """Return the learning rate of optimizer step ``step``, counted from 0, of a run of ``steps``.

    Args:
        step: number of the optimizer step; from ``steps`` on, the value the schedule ends at.
        steps: optimizer steps of the run.
        peak_lr: the constant phase's learning rate.
        warmup_steps: linear from 0 over this many steps (not for constant).
        decay_fraction: share of ``steps`` in the decay (sqrt and linear).
        kind: ``sqrt`` (peak * (1 - sqrt(i / n))), ``linear`` (peak * (1 - i / n)), ``cosine``
            (to a tenth of the peak, reached ``warmup_steps`` early as in the reference) or
            ``constant`` (the peak from step 0, no warm-up).

    Raises:
        UserError: an unknown kind, or the phases do not fit into the run.
    """
    check_schedule(steps=steps, warmup_steps=warmup_steps, decay_fraction=decay_fraction, kind=kind)
    if kind == "constant":
        return peak_lr
    if step < warmup_steps:
        return peak_lr * step / warmup_steps
    if kind == "cosine":
        done = min(1.0, (step - warmup_steps) / (steps - 2 * warmup_steps))
        share = 0.5 * (1.0 + math.cos(math.pi * done))
        return peak_lr * (COSINE_FLOOR + (1.0 - COSINE_FLOOR) * share)
    decay_steps = num_decay_steps(steps, decay_fraction)
    decayed = step - (steps - decay_steps)
    if decayed <= 0:
        return peak_lr
    done = min(1.0, decayed / decay_steps)
    return peak_lr * (1.0 - (math.sqrt(done) if kind == "sqrt" else done))

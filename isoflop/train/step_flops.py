"""FLOPs of one real training step, strictly counted, against the plan's figure."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from torch.nn.attention import SDPBackend, sdpa_kernel

from isoflop.accounting.conventions import paper_head
from isoflop.model import build_model
from isoflop.model.flop_counter import StrictFlopCounter
from isoflop.placement import Placement
from isoflop.plan.runs import run_ledger
from isoflop.recipe import get_recipe
from isoflop.spec import RunSpec
from isoflop.train.optimizer import recipe_adamw, set_learning_rate
from isoflop.train.step import gradients_of_batch, made_batch
from isoflop_kernels import use_implementation


@dataclass(frozen=True, kw_only=True, slots=True)
class StepFlops:
    """FLOPs of one optimizer step of the global batch."""

    planned: int
    """Every matrix product of the ledger (convention `paper+head`) x tokens."""
    executed: int
    """What ran, recomputing included."""
    recomputed: int
    """The part of ``executed`` that repeats the forward pass, where activations are not kept."""


def measure_step_flops(
    spec: RunSpec, placement: Placement, *, implementation: str = "reference"
) -> StepFlops:
    """Run one training step on the CPU (forward, backward, clipping, AdamW) and counts.

    Attention runs as plain matrix products, which is what can be counted. With checkpointing a
    second step without tells the recomputed part apart.

    Args:
        spec: the run; its size is what is built, so give a small one.
        placement: of which micro_batch and checkpoint_activations count.
        implementation: of the isoflop_kernels operators.

    Raises:
        UncountedOperatorError: an operator ran whose FLOPs nobody counts.
    """
    planned = paper_head(run_ledger(spec)) * spec.batch_size * spec.seq_len
    executed = _step_flops(spec, placement, implementation)
    once = executed
    if placement.checkpoint_activations:
        kept = dataclasses.replace(placement, checkpoint_activations=False)
        once = _step_flops(spec, kept, implementation)
    return StepFlops(planned=planned, executed=executed, recomputed=executed - once)


def _step_flops(spec: RunSpec, placement: Placement, implementation: str) -> int:
    model = build_model(spec)
    model.checkpoint_activations = placement.checkpoint_activations
    recipe = get_recipe(spec.recipe)
    optimizer = recipe_adamw(model, recipe)
    set_learning_rate(optimizer, recipe.peak_lr)
    targets_BT = made_batch(spec)
    with (
        StrictFlopCounter() as counter,
        sdpa_kernel(SDPBackend.MATH),
        use_implementation(implementation),
    ):
        gradients_of_batch(
            model,
            targets_BT,
            clip_norm=recipe.clip_norm,
            precision=spec.precision,
            micro_batch=placement.micro_batch,
        )
        optimizer.step()
    return counter.total

"""Specs for tests of estimates, without a plan around them."""

from __future__ import annotations

import dataclasses
from typing import Any

from isoflop.families import get_spec
from isoflop.plan.estimate.memory import PlacementEstimate
from isoflop.recipe import get_recipe
from isoflop.spec import RunSpec

FAMILIES = ("mlp", "moe", "peer", "sgatlin", "swiglu")


def rung_spec(family: str, size: int, recipe_name: str = "paper-v1", **changes: Any) -> RunSpec:
    """Rung ``size`` of a recipe's ladder: the paper's batch, sequences and vocabulary, or micro."""
    recipe = get_recipe(recipe_name)
    shape = recipe.shape(size)
    batch_size, seq_len = recipe.large_batch
    values: dict[str, Any] = {
        "family": family,
        "config": dataclasses.asdict(get_spec(family).ladder(recipe, size)),
        "d_model": shape.d_model,
        "n_layers": shape.n_layers,
        "n_heads": shape.n_heads,
        "vocab_size": 50258 if recipe_name == "paper-v1" else 256,
        "seq_len": seq_len,
        "batch_size": batch_size,
        "steps": 1000,
        "data_id": "made",
        "tokenizer_hash": "made",
        "seed": 0,
        "recipe": recipe_name,
        "precision": recipe.precision,
    }
    return RunSpec(**(values | changes))


def placed(micro_batch: int = 128, grad_accum: int = 1, **changes: Any) -> PlacementEstimate:
    """How a step is laid out: on one device, where it fits."""
    values: dict[str, Any] = {
        "num_devices": 1,
        "parallel": "single",
        "checkpointing": False,
        "peak_mem_bytes": 0,
        "fits": True,
        "reason": "",
    }
    return PlacementEstimate(micro_batch=micro_batch, grad_accum=grad_accum, **(values | changes))

"""Shapes, ledger and ladder of the gated dense feed-forward (reference implementation, `glu`)."""

from __future__ import annotations

from dataclasses import dataclass

from isoflop.accounting import Component, dense_component
from isoflop.families._shared.spec import (
    check_positive,
    glu_flops_per_token,
    glu_num_params,
    parameter_counts,
)
from isoflop.recipe import Recipe

free_dimension = ("hidden_width",)


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Shape of one layer."""

    hidden_width: int
    """Hidden units F of the gate and of the linear half."""

    def __post_init__(self) -> None:
        check_positive("swiglu", hidden_width=self.hidden_width)


def ledger(config: Config, d_model: int, seq_len: int) -> tuple[Component, ...]:
    """Return D × 2F and F × D with biases: 6·D·F FLOPs per token; adding biases counts 0."""
    width = config.hidden_width
    flops_per_token = glu_flops_per_token(d_model, width)
    return (dense_component("experts", flops_per_token, glu_num_params(d_model, width)),)


num_params, num_active_params = parameter_counts(ledger)


def ladder(recipe: Recipe, size: int) -> Config:
    """Return rung ``size``: F about 8/3 of the width."""
    return Config(**recipe.config("swiglu", size))

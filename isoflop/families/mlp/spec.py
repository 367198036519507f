"""Shapes, ledger and ladder of the dense gelu feed-forward (reference implementation, `mlp`)."""

from __future__ import annotations

from dataclasses import dataclass

from isoflop.accounting import Component, dense_component
from isoflop.families._shared.spec import check_positive, parameter_counts
from isoflop.recipe import Recipe

free_dimension = ("hidden_width",)


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Shape of one layer."""

    hidden_width: int
    """Hidden units F."""

    def __post_init__(self) -> None:
        check_positive("mlp", hidden_width=self.hidden_width)


def ledger(config: Config, d_model: int, seq_len: int) -> tuple[Component, ...]:
    """Return two matrices D × F without biases: 4·D·F FLOPs per token."""
    num_params = 2 * d_model * config.hidden_width
    return (dense_component("experts", 2 * num_params, num_params),)


num_params, num_active_params = parameter_counts(ledger)


def ladder(recipe: Recipe, size: int) -> Config:
    """Return rung ``size``: F about 8/3 of the width."""
    return Config(**recipe.config("mlp", size))

"""Shapes, ledger and ladder of the coarse mixture of experts (reference implementation, `moe`)."""

from __future__ import annotations

from dataclasses import dataclass

from isoflop.accounting import Component
from isoflop.errors import UserError
from isoflop.families._shared.spec import (
    Routing,
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

    num_experts: int
    """Experts, each a gated layer as in swiglu."""
    num_active: int
    """Experts that a token runs through."""
    hidden_width: int
    """Hidden units F of one expert."""

    def __post_init__(self) -> None:
        check_positive(
            "moe",
            num_experts=self.num_experts,
            num_active=self.num_active,
            hidden_width=self.hidden_width,
        )
        if self.num_active > self.num_experts:
            raise UserError(
                "moe.num_active",
                self.num_active,
                f"at most num_experts ({self.num_experts})",
                "lower it or raise num_experts",
            )


def ledger(config: Config, d_model: int, seq_len: int) -> tuple[Component, ...]:
    """Return the gate (2·D·E FLOPs per token) and the chosen experts (6·D·F each)."""
    gate_params = d_model * config.num_experts
    expert_params = glu_num_params(d_model, config.hidden_width)
    return (
        Component(
            name="router",
            flops_per_token=2 * gate_params,
            num_params=gate_params,
            num_active_params=gate_params,
        ),
        Component(
            name="experts",
            flops_per_token=config.num_active * glu_flops_per_token(d_model, config.hidden_width),
            num_params=config.num_experts * expert_params,
            num_active_params=config.num_active * expert_params,
        ),
    )


num_params, num_active_params = parameter_counts(ledger)


def routing(config: Config) -> Routing:
    """Return what is known of the gate's choice; its few scores do not count."""
    return Routing(num_experts=config.num_experts, num_chosen=config.num_active)


def ladder(recipe: Recipe, size: int) -> Config:
    """Return rung ``size``: on the paper's ladder F = D and 2 of 16 experts."""
    return Config(**recipe.config("moe", size))

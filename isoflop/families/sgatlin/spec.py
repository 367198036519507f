"""Shapes, ledger and ladder of sparsely gated tiny linear experts (arXiv 2606.07414)."""

from __future__ import annotations

from dataclasses import dataclass

from isoflop.accounting import Component
from isoflop.families._checks import check_choice
from isoflop.families._counts import parameter_counts
from isoflop.families._routing.ladder import routed_rung
from isoflop.families._routing.spec import (
    ACTIVATIONS,
    GATE_ORDERS,
    check_routing,
    routed_ledger,
)
from isoflop.recipe import Recipe

free_dimension = ("num_channels", "num_neighbours", "router_width")


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Shape of one layer; each channel has its own table of experts."""

    num_channels: int
    """Channels C."""
    num_neighbours: int
    """Experts K that each channel chooses."""
    num_experts: int
    """Experts E per channel's table."""
    router_width: int
    """Router width Q (the paper's d_key)."""
    router: str = "product_dense"
    """product_dense (the paper's), product_key_value, dense or key_value."""
    activation: str = "identity"
    """identity (the paper's), relu, gelu_tanh or silu."""
    gate_order: str = "gate_then_act"
    """Whether the activation follows the gate (the paper's code) or comes before it."""

    def __post_init__(self) -> None:
        check_routing("sgatlin", self.router, self)
        check_choice("sgatlin", "activation", self.activation, ACTIVATIONS)
        check_choice("sgatlin", "gate_order", self.gate_order, GATE_ORDERS)


def ledger(config: Config, d_model: int, seq_len: int) -> tuple[Component, ...]:
    """Router and chosen experts of one layer."""
    return routed_ledger(config, config.router, num_tables=config.num_channels, d_model=d_model)


num_params, num_active_params = parameter_counts(ledger)


def ladder(recipe: Recipe, size: int) -> Config:
    """Rung ``size``: (16 + 12 s)² experts per channel on the paper's ladder."""
    rung = routed_rung(recipe, size)
    return Config(
        num_channels=rung.num_channels,
        num_neighbours=rung.num_neighbours,
        num_experts=rung.num_subkeys**2,
        router_width=rung.router_width,
    )

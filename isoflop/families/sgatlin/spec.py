"""Shapes, ledger and ladder of sparsely gated tiny linear experts (arXiv 2606.07414)."""

from __future__ import annotations

from dataclasses import dataclass

from isoflop.accounting import Component
from isoflop.families._shared.spec import (
    ACTIVATIONS,
    GATE_ORDERS,
    GATES,
    TABLES,
    Routing,
    check_choice,
    check_routing,
    parameter_counts,
    routed_ledger,
    table_routing,
)
from isoflop.recipe import Recipe

free_dimension = ("num_channels", "num_neighbours", "router_width")


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Shape of one layer, and the choices in which it differs from PEER.

    With router product_key_value, activation gelu_tanh, gate_order act_then_gate, gate softmax and
    tables shared it is the family peer.
    """

    num_channels: int
    """Channels C."""
    num_neighbours: int
    """Experts K that each channel chooses."""
    num_experts: int
    """Experts E of a table."""
    router_width: int
    """Router width Q (the paper's d_key)."""
    router: str = "product_dense"
    """product_dense (the paper's), product_key_value, dense or key_value."""
    activation: str = "identity"
    """identity (the paper's), relu, gelu_tanh or silu."""
    gate_order: str = "gate_then_act"
    """Whether the activation follows the gate (the paper's code) or comes before it."""
    gate: str = "raw"
    """raw: the router's scores as they are (the paper's); softmax: over the K of a channel."""
    tables: str = "separate"
    """separate: a table for each channel (the paper's); shared: one for all channels."""

    def __post_init__(self) -> None:
        check_routing("sgatlin", self.router, self)
        check_choice("sgatlin", "activation", self.activation, ACTIVATIONS)
        check_choice("sgatlin", "gate_order", self.gate_order, GATE_ORDERS)
        check_choice("sgatlin", "gate", self.gate, GATES)
        check_choice("sgatlin", "tables", self.tables, TABLES)

    @property
    def num_tables(self) -> int:
        """Tables of experts in a layer."""
        return 1 if self.tables == "shared" else self.num_channels


def ledger(config: Config, d_model: int, seq_len: int) -> tuple[Component, ...]:
    """Return the router and the chosen experts of one layer."""
    return routed_ledger(config, config.router, d_model)


num_params, num_active_params = parameter_counts(ledger)


def routing(config: Config) -> Routing:
    """Return what is known of the choice."""
    return table_routing(config, config.router, raw_scores=config.gate == "raw")


def ladder(recipe: Recipe, size: int) -> Config:
    """Return rung ``size``: (16 + 12 s)² experts per channel on the paper's ladder."""
    return Config(**recipe.config("sgatlin", size))

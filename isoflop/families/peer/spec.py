"""Shapes, ledger and ladder of PEER as the reference implementation has it (`peer`)."""

from __future__ import annotations

from dataclasses import dataclass

from isoflop.accounting import Component
from isoflop.families._shared.spec import (
    Routing,
    check_routing,
    parameter_counts,
    routed_ledger,
    table_routing,
)
from isoflop.recipe import Recipe

free_dimension = ("num_channels", "num_neighbours", "router_width")

ROUTER = "product_key_value"


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Shape of one layer; the router is always product_key_value, the table shared."""

    num_channels: int
    """Routing channels C (PEER's heads)."""
    num_neighbours: int
    """Experts K that each channel chooses."""
    num_experts: int
    """Experts E of the one shared table."""
    router_width: int
    """Width Q of a query."""

    def __post_init__(self) -> None:
        check_routing("peer", ROUTER, self)

    @property
    def num_tables(self) -> int:
        """One: the channels share it."""
        return 1


def ledger(config: Config, d_model: int, seq_len: int) -> tuple[Component, ...]:
    """Return the router and the chosen experts of one layer."""
    return routed_ledger(config, ROUTER, d_model)


num_params, num_active_params = parameter_counts(ledger)


def routing(config: Config) -> Routing:
    """Return what is known of the choice."""
    return table_routing(config, ROUTER, raw_scores=False)


def ladder(recipe: Recipe, size: int) -> Config:
    """Return rung ``size``: on the paper's ladder 4 · (16 + 12 s)² experts in one table."""
    return Config(**recipe.config("peer", size))

"""Router shapes and their ledger: the four routers of the paper's official implementation.

Letters: D width, C channels, K neighbours, E experts per table, N = sqrt(E), Q router width.
"""

from __future__ import annotations

import math
from typing import Protocol

from isoflop.accounting import Component, dense_component
from isoflop.errors import UserError
from isoflop.families._checks import check_choice, check_positive

ROUTERS = ("product_dense", "product_key_value", "dense", "key_value")
ACTIVATIONS = ("identity", "relu", "gelu_tanh", "silu")
GATE_ORDERS = ("gate_then_act", "act_then_gate")
GATES = ("raw", "softmax")
TABLES = ("separate", "shared")


class RoutedConfig(Protocol):
    """The fields that every routed family's Config has."""

    @property
    def num_channels(self) -> int:
        """Channels C."""

    @property
    def num_neighbours(self) -> int:
        """Experts K that each channel chooses."""

    @property
    def num_experts(self) -> int:
        """Experts E of a table."""

    @property
    def router_width(self) -> int:
        """Router width Q."""

    @property
    def num_tables(self) -> int:
        """Tables of experts in a layer: one for each channel, or one for all."""


def is_product(router: str) -> bool:
    """Return whether the router scores N + N sub-keys instead of E experts."""
    return router.startswith("product")


def check_routing(family: str, router: str, config: RoutedConfig) -> None:
    """Refuse impossible routed shapes.

    Raises:
        UserError: a count below 1, an unknown router, experts that are not a square or too few
            experts to choose the neighbours from.
    """
    check_positive(
        family,
        num_channels=config.num_channels,
        num_neighbours=config.num_neighbours,
        num_experts=config.num_experts,
        router_width=config.router_width,
    )
    check_choice(family, "router", router, ROUTERS)
    pool = config.num_experts
    if is_product(router):
        pool = math.isqrt(config.num_experts)
        if pool * pool != config.num_experts:
            raise UserError(
                f"{family}.num_experts",
                config.num_experts,
                "a square number for a product-key router",
                f"take {pool**2} or {(pool + 1) ** 2}",
            )
    if config.num_neighbours >= pool:
        of = "the square root of num_experts" if is_product(router) else "num_experts"
        raise UserError(
            f"{family}.num_neighbours",
            config.num_neighbours,
            f"below {of} ({pool})",
            "lower it or raise num_experts",
        )


def routed_ledger(config: RoutedConfig, router: str, d_model: int) -> tuple[Component, ...]:
    """Router and chosen single-neuron experts of one layer."""
    return (
        router_component(config, router, d_model),
        expert_component(config, d_model),
    )


def router_component(config: RoutedConfig, router: str, d_model: int) -> Component:
    """Return FLOPs per token and parameters of one layer's router.

    product_dense 2·Q·D + 4·C·N·Q; product_key_value 4·C·Q·D + 4·C·N·Q; dense 2·D·Q + 2·Q·E·C
    (reference implementation, FLOP table); key_value 2·C·Q·D + 2·C·E·Q by the same rule (the
    reference leaves it undefined). Top-k and the sums of pairs count 0; every parameter is active.
    """
    halves = 2 if is_product(router) else 1
    keys_per_half = math.isqrt(config.num_experts) if is_product(router) else config.num_experts
    queries = halves * config.num_channels if router.endswith("key_value") else 1
    keys = halves * config.num_channels * keys_per_half
    num_params = (queries * d_model + keys) * config.router_width
    # Each router parameter takes part in one multiply-add per token.
    return dense_component("router", 2 * num_params, num_params)


def expert_component(config: RoutedConfig, d_model: int) -> Component:
    """FLOPs per token and parameters of single-neuron experts: 4·K·C·D (paper, FLOP table)."""
    chosen_params = 2 * config.num_channels * config.num_neighbours * d_model
    return Component(
        name="experts",
        flops_per_token=2 * chosen_params,
        num_params=2 * config.num_tables * config.num_experts * d_model,
        num_active_params=chosen_params,
        # Each token reads the rows it chose; it shares them with another token only by chance.
        gathered_values_per_token=chosen_params,
    )

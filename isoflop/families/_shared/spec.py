"""What the specs of several families share: checks, counts, and the shapes and ledger of routers.

The routers are the four of the paper's official implementation. Letters: D width, C channels, K
neighbours, E experts per table, N = sqrt(E), Q router width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from isoflop.accounting import Component, dense_component
from isoflop.errors import UserError


def check_positive(family: str, **fields: int) -> None:
    """Refuse counts and widths below 1.

    Raises:
        UserError: names the first such field.
    """
    for name, value in fields.items():
        if value < 1:
            raise UserError(f"{family}.{name}", value, "1 or more", "correct the study")


def check_choice(family: str, field: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a word that is not among the choices.

    Raises:
        UserError: lists the choices.
    """
    if value not in choices:
        raise UserError(f"{family}.{field}", value, " or ".join(choices), "correct the study")


@dataclass(frozen=True, kw_only=True, slots=True)
class Routing:
    """How a layer chooses experts, as far as estimates, usage logs and `isoflop interpret` ask.

    Raises:
        UserError: an impossible count.
    """

    num_experts: int
    """Experts that a channel chooses from."""
    num_chosen: int
    """Experts that each channel chooses for a token."""
    num_channels: int = 1
    """Choices that are made side by side."""
    shared: bool = False
    """Whether all channels choose from the same experts."""
    raw_scores: bool = False
    """Whether an expert's score weighs it as it is, so that one of zero takes it out; else a
    softmax comes before."""
    num_scores: int = 0
    """Similarities per token that the router forms and keeps for the backward pass; 0: too few to
    matter."""
    num_query_values: int = 0
    """Values per token that the router compares with its keys, kept likewise."""

    def __post_init__(self) -> None:
        check_positive(
            "routing",
            num_experts=self.num_experts,
            num_chosen=self.num_chosen,
            num_channels=self.num_channels,
        )


Ledger = Callable[[Any, int, int], tuple[Component, ...]]
Count = Callable[[Any, int], int]


def parameter_counts(ledger: Ledger) -> tuple[Count, Count]:
    """Return a family's ``num_params`` and ``num_active_params`` (config, d_model) of one layer."""

    def num_params(config: Any, d_model: int) -> int:
        """Return parameters of one layer."""
        return sum(c.num_params for c in ledger(config, d_model, 1))

    def num_active_params(config: Any, d_model: int) -> int:
        """Return parameters of one layer that a token uses."""
        return sum(c.num_active_params for c in ledger(config, d_model, 1))

    return num_params, num_active_params


def glu_flops_per_token(d_model: int, hidden_width: int) -> int:
    """Return the FLOPs of a gated layer, D × 2F and F × D: 6·D·F (reference, FLOP table)."""
    return 6 * d_model * hidden_width


def glu_num_params(d_model: int, hidden_width: int) -> int:
    """Return the parameters of a gated layer: two matrices and their biases [2F] and [D]."""
    return 3 * d_model * hidden_width + 2 * hidden_width + d_model


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
    """Return the router and the chosen single-neuron experts of one layer."""
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
    """Return FLOPs per token, 4·K·C·D, and parameters of single-neuron experts (paper, table)."""
    chosen_params = 2 * config.num_channels * config.num_neighbours * d_model
    return Component(
        name="experts",
        flops_per_token=2 * chosen_params,
        num_params=2 * config.num_tables * config.num_experts * d_model,
        num_active_params=chosen_params,
        # Each token reads the rows it chose; it shares them with another token only by chance.
        gathered_values_per_token=chosen_params,
    )


def table_routing(config: RoutedConfig, router: str, *, raw_scores: bool) -> Routing:
    """Return what is known of routing to tables of single-neuron experts."""
    halves = 2 if is_product(router) else 1
    keys_per_half = math.isqrt(config.num_experts) if is_product(router) else config.num_experts
    queries = halves * config.num_channels if router.endswith("key_value") else 1
    return Routing(
        num_experts=config.num_experts,
        num_chosen=config.num_neighbours,
        num_channels=config.num_channels,
        shared=config.num_tables == 1,
        raw_scores=raw_scores,
        num_scores=halves * config.num_channels * keys_per_half,
        num_query_values=queries * config.router_width,
    )

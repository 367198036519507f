"""What the specs of several families share: checks, counts, and the shapes and ledger of routers.

The routers are the four of the paper's official implementation. Letters: D width, C channels, K
neighbours, E experts per table, N = sqrt(E), Q router width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from isoflop.accounting import Component, dense_component
from isoflop.errors import UserError
from isoflop.recipe import Recipe


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


# The reference rounds 8/3 of the width down to a multiple of 256; micro models are narrower than
# that, so they round down to 8, on a finer ladder to 2.
_HIDDEN_MULTIPLE = {"paper-v1": 256, "micro-v1": 8, "micro-v2": 2}

# The width of the reference's TinyStories models, four times theirs in every family.
TINYSTORIES_HIDDEN_WIDTH = 1024


def dense_hidden_width(recipe: Recipe, size: int) -> int:
    """Return F = 8/3 · D, rounded down to the recipe's multiple; the same for mlp and swiglu."""
    if recipe.base_name == "tinystories-v1":
        return TINYSTORIES_HIDDEN_WIDTH
    multiple = _HIDDEN_MULTIPLE[recipe.base_name]
    return recipe.shape(size).d_model * 8 // (3 * multiple) * multiple


def glu_flops_per_token(d_model: int, hidden_width: int) -> int:
    """One gated layer, D × 2F and F × D: 6·D·F FLOPs (reference implementation, FLOP table)."""
    return 6 * d_model * hidden_width


def glu_num_params(d_model: int, hidden_width: int) -> int:
    """Its parameters: the two matrices and their biases [2F] and [D]."""
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


@dataclass(frozen=True, kw_only=True, slots=True)
class RoutedRung:
    """Channels, neighbours, sub-keys per half and router width of one size."""

    num_channels: int
    num_neighbours: int
    num_subkeys: int
    """Of each of sgatlin's tables."""
    router_width: int
    num_shared_subkeys: int
    """Of peer's one table."""


def _paper_rung(size: int, d_model: int) -> RoutedRung:
    # Official configurations: N = (16 + 12 s)^2, 16 channels, 8 neighbours, d_key 128.
    return RoutedRung(
        num_channels=16,
        num_neighbours=8,
        num_subkeys=16 + 12 * size,
        router_width=128,
        num_shared_subkeys=2 * (16 + 12 * size),
    )


def _micro_rung(size: int, d_model: int) -> RoutedRung:
    # Scaled down so that the router stays the larger part of the layer, as in the paper.
    return RoutedRung(
        num_channels=4,
        num_neighbours=4,
        num_subkeys=8 + d_model // 4,
        router_width=8 if d_model < 16 else 16 if d_model < 32 else 32,
        num_shared_subkeys=2 * (8 + d_model // 4),
    )


def _fine_rung(size: int, d_model: int) -> RoutedRung:
    # As _micro_rung, without its jumps of the router width: they would bend an isoFLOP profile.
    router_width = 2 * round(1.5 * math.sqrt(d_model))
    return replace(_micro_rung(size, d_model), router_width=router_width)


def _tinystories_rung(size: int, d_model: int) -> RoutedRung:
    # Official configurations: N = 1,024 for both, 8 channels, 8 neighbours, d_key 128.
    return RoutedRung(
        num_channels=8, num_neighbours=8, num_subkeys=32, router_width=128, num_shared_subkeys=32
    )


_RUNGS = {
    "paper-v1": _paper_rung,
    "micro-v1": _micro_rung,
    "micro-v2": _fine_rung,
    "tinystories-v1": _tinystories_rung,
}


def routed_rung(recipe: Recipe, size: int) -> RoutedRung:
    """Return rung ``size`` of a recipe's routed ladder."""
    return _RUNGS[recipe.base_name](size, recipe.shape(size).d_model)

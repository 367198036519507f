"""The routed rungs of the ladders, shared by peer and sgatlin."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from isoflop.recipe import Recipe


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

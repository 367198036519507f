"""What an estimate needs to know of a run's model: sizes per token and per layer, from the ledger.

Letters: D width, V vocabulary, C channels, K experts chosen per channel, N keys of one half.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from isoflop.accounting import Component
from isoflop.families import config_from_mapping
from isoflop.plan.runs import run_ledger
from isoflop.spec import RunSpec

# Parameters, gradients and optimizer moments are float32 whatever the compute type.
PARAM_BYTES = 4
COMPUTE_BYTES = {"bf16": 2, "fp32": 4}

# What product-key routing keeps for the backward pass of one choice: score and dot product
# (float32), expert number (int32), and its two sub-keys (int64).
CHOICE_BYTES = 4 + 4 + 4 + 2 * 8
# The same for an expert with matrices: score, expert number, order by expert and its inverse.
GROUP_ROW_BYTES = 4 + 4 + 2 * 8


@dataclass(frozen=True, kw_only=True, slots=True)
class RoutedShape:
    """Per token and layer, what routing touches; zeros for dense families."""

    num_choices: int = 0
    """C·K single-neuron experts."""
    num_scores: int = 0
    """Similarities that the router forms and selects from: 2·C·N, or C·E without product keys."""
    num_query_values: int = 0
    """What the router compares with its keys."""
    num_groups: int = 0
    """Experts with matrices of their own, computed one after the other."""
    num_active_groups: int = 0
    """Those of them that a token runs through."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """A model with its batch, as far as time and memory depend on it."""

    d_model: int
    n_layers: int
    vocab_size: int
    seq_len: int
    batch_size: int
    precision: str
    components: tuple[Component, ...]
    """Of the whole model, by name; see isoflop.accounting."""
    num_params: int
    routed: RoutedShape

    @property
    def compute_bytes(self) -> int:
        """Bytes of a value in the compute type."""
        return COMPUTE_BYTES[self.precision]

    @property
    def num_embedding_params(self) -> int:
        """Of the tied embedding."""
        return self.vocab_size * self.d_model

    @property
    def num_layer_params(self) -> int:
        """Of one layer."""
        return (self.num_params - self.num_embedding_params) // self.n_layers

    @property
    def gathered_values(self) -> int:
        """Table values that a token reads in one layer, both rows of each chosen expert."""
        return self.component("experts").gathered_values_per_token // self.n_layers

    def component(self, name: str) -> Component:
        """Return the component called ``name``."""
        return next(c for c in self.components if c.name == name)


def model_shape(spec: RunSpec) -> ModelShape:
    """Return the shape of the model that a run trains.

    Raises:
        UserError: the family is unknown or its configuration impossible.
    """
    ledger = run_ledger(spec)
    return ModelShape(
        d_model=spec.d_model,
        n_layers=spec.n_layers,
        vocab_size=spec.vocab_size,
        seq_len=spec.seq_len,
        batch_size=spec.batch_size,
        precision=spec.precision,
        components=ledger.components,
        num_params=ledger.num_params,
        routed=_routed_shape(config_from_mapping(spec.family, spec.config)),
    )


def _routed_shape(config: Any) -> RoutedShape:
    """Read off the fields of the built-in routed Configs; a family without them counts as dense."""
    if _has_counts(config, "num_experts", "num_active"):
        return RoutedShape(num_groups=config.num_experts, num_active_groups=config.num_active)
    if not _has_counts(config, "num_channels", "num_neighbours", "num_experts", "router_width"):
        return RoutedShape()
    # The family whose Config names no router has PEER's.
    router = str(getattr(config, "router", "product_key_value"))
    product = router.startswith("product")
    keys = 2 * math.isqrt(config.num_experts) if product else config.num_experts
    queries = config.num_channels * (2 if product else 1) if router.endswith("key_value") else 1
    return RoutedShape(
        num_choices=config.num_channels * config.num_neighbours,
        num_scores=config.num_channels * keys,
        num_query_values=queries * config.router_width,
    )


def _has_counts(config: Any, *names: str) -> bool:
    return all(type(getattr(config, name, None)) is int for name in names)


def saved_bytes_per_token(shape: ModelShape) -> int:
    """Return bytes that one layer keeps per token between its forward and its backward pass.

    Read off isoflop/model and the families' modules (D values each). Attention: float32 normalised
    inputs of the two norms and of the query-key norm (4D in all); the inputs of the two matrix
    products (one copy in float32, one each in bf16), queries, keys, values and the mixed values in
    the compute type. Feed-forward: its input, and what `_feed_forward_bytes` says.
    """
    width, compute = shape.d_model, shape.compute_bytes
    copies = 2 if shape.precision == "bf16" else 1
    attention = 4 * 4 * width + (copies + 4) * compute * width
    return attention + compute * width + _feed_forward_bytes(shape, copies)


def _feed_forward_bytes(shape: ModelShape, copies: int) -> int:
    """Two values for each row or column of the matrices that a token passes (mlp, swiglu, moe).

    moe also keeps its sorted input, its unweighted output and its choices; product-key routing
    keeps queries, similarities and choices, and no hidden values.
    """
    routed, width, compute = shape.routed, shape.d_model, shape.compute_bytes
    if routed.num_choices:
        router = compute * (routed.num_query_values + routed.num_scores)
        return router + routed.num_choices * CHOICE_BYTES + 4 * width * (copies - 1)
    experts = shape.component("experts").num_active_params // shape.n_layers
    groups = routed.num_active_groups * GROUP_ROW_BYTES + 4 * routed.num_groups
    return compute * (2 * experts // width + 2 * routed.num_active_groups * width) + groups


def shape_key(spec: RunSpec) -> Hashable:
    """Equal for runs whose steps take the same time: all but steps, seed, data and recipe."""
    return (
        spec.family,
        tuple(sorted(spec.config.items())),
        spec.d_model,
        spec.n_layers,
        spec.n_heads,
        spec.vocab_size,
        spec.seq_len,
        spec.batch_size,
        spec.precision,
    )

"""What a model computes and holds, by component; every FLOP formula outside a family is here.

A FLOP count here is exact matrix-product work: a multiply-add is 2 FLOPs; softmax, norms, rotary,
gathers, top-k and activations count 0 (reference implementation; notes in README.md beside this
file). Everything is a Python int, so budgets of any size add up without overflow.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

COMPONENT_NAMES = ("attn_proj", "attn_scores", "experts", "router", "head", "norms", "other")
"""`other` is work of a counted module that none of the parts before it does."""

# The backward pass of a matrix product is two products of the same size.
TRAINING_PASSES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Component:
    """One part of a layer or of a whole model."""

    name: str
    """One of COMPONENT_NAMES. The feed-forward of a dense family is `experts` too."""
    flops_per_token: int
    """Forward FLOPs per token at the sequence length asked for."""
    num_params: int
    """Parameters held."""
    num_active_params: int
    """Parameters a token uses: all but the table rows of experts it did not choose."""
    gathered_values_per_token: int = 0
    """Table entries read for each token in the forward pass, by rows that the token itself chose:
    both rows of each chosen single-neuron expert. Matrices that many tokens share count 0."""
    counted_training_flops_per_token: int | None = None
    """Forward and backward FLOPs as they were counted; None: three times the forward pass."""

    @property
    def training_flops_per_token(self) -> int:
        """FLOPs per token of the forward and the backward pass."""
        if self.counted_training_flops_per_token is not None:
            return self.counted_training_flops_per_token
        return TRAINING_PASSES * self.flops_per_token

    def times(self, count: int) -> Component:
        """Return the same component, ``count`` times over."""
        counted = self.counted_training_flops_per_token
        return Component(
            name=self.name,
            counted_training_flops_per_token=None if counted is None else counted * count,
            **{field: getattr(self, field) * count for field in _COUNTS},
        )

    def plus(self, other: Component) -> Component:
        """Return two components of one name added up."""
        follows = (
            self.counted_training_flops_per_token is None
            and other.counted_training_flops_per_token is None
        )
        both = self.training_flops_per_token + other.training_flops_per_token
        return Component(
            name=self.name,
            counted_training_flops_per_token=None if follows else both,
            **{field: getattr(self, field) + getattr(other, field) for field in _COUNTS},
        )


_COUNTS = tuple(
    f.name
    for f in dataclasses.fields(Component)
    if f.name not in ("name", "counted_training_flops_per_token")
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ledger:
    """A whole model's components, one entry per name, all layers added up."""

    components: tuple[Component, ...]
    num_embedding_params: int
    """Parameters of the (tied) embedding: vocabulary times width."""
    n_layers: int | None
    """Blocks; with the next two, what conventions need beyond the components. None where a counted
    module does not show it."""
    n_heads: int | None
    """Attention heads of a block; None as above."""
    seq_len: int
    """Tokens per sequence T that the attention scores were counted at."""

    def component(self, name: str) -> Component:
        """Return the component called ``name``."""
        return next(c for c in self.components if c.name == name)

    def flops(self, *names: str) -> int:
        """Forward FLOPs per token of the named components together."""
        return sum(c.flops_per_token for c in self.components if c.name in names)

    def training_flops(self, *names: str) -> int:
        """Forward and backward FLOPs per token of the named components together."""
        return sum(c.training_flops_per_token for c in self.components if c.name in names)

    @property
    def num_params(self) -> int:
        """All parameters; the tied embedding once."""
        return sum(c.num_params for c in self.components)

    @property
    def num_active_params(self) -> int:
        """Parameters a token uses, the tied embedding included once."""
        return sum(c.num_active_params for c in self.components)

    @property
    def num_nonembed_params(self) -> int:
        """All parameters but the embedding."""
        return self.num_params - self.num_embedding_params


def dense_component(name: str, flops_per_token: int, num_params: int) -> Component:
    """Return a part whose parameters every token uses."""
    return Component(
        name=name,
        flops_per_token=flops_per_token,
        num_params=num_params,
        num_active_params=num_params,
    )


def attention(d_model: int, n_heads: int, seq_len: int) -> tuple[Component, ...]:
    """Return one layer's attention and its norms; full (not causally halved) scores.

    Per token: q, k, v and output projections 4 · 2·D², scores and values 2 · 2·L·D
    (reference implementation, FLOP accounting table).
    """
    head_width = d_model // n_heads
    return (
        dense_component("attn_proj", 8 * d_model * d_model, 4 * d_model * d_model),
        dense_component("attn_scores", 4 * seq_len * d_model, 0),
        # Two pre-norms of the block and the query and key norms shared by the heads.
        dense_component("norms", 0, 2 * d_model + 2 * head_width),
    )


def head(d_model: int, vocab_size: int) -> tuple[Component, ...]:
    """Return the tied un-embedding (2·D·V FLOPs per token) and the norm before it."""
    return (
        dense_component("head", 2 * d_model * vocab_size, vocab_size * d_model),
        dense_component("norms", 0, d_model),
    )


def add_up(components: Iterable[Component]) -> tuple[Component, ...]:
    """Return one entry per name, in the order of COMPONENT_NAMES.

    Absent names are zero, but `other`, which only counted modules have, is left out.
    """
    totals = {name: dense_component(name, 0, 0) for name in COMPONENT_NAMES}
    added = set()
    for c in components:
        totals[c.name] = totals[c.name].plus(c)
        added.add(c.name)
    return tuple(c for c in totals.values() if c.name != "other" or c.name in added)


def model_ledger(
    feed_forward: Iterable[Component],
    *,
    d_model: int,
    n_layers: int,
    n_heads: int,
    vocab_size: int,
    seq_len: int,
) -> Ledger:
    """Return the ledger of the decoder-only transformer with this feed-forward in each layer.

    Args:
        feed_forward: one layer's components, from a family's ``ledger``.
        d_model: residual width D.
        n_layers: number of blocks.
        n_heads: attention heads; D is a multiple of it.
        vocab_size: tokens V of the tied embedding.
        seq_len: tokens per sequence, for the attention scores.
    """
    layer = (*attention(d_model, n_heads, seq_len), *feed_forward)
    whole = [c.times(n_layers) for c in layer] + list(head(d_model, vocab_size))
    return Ledger(
        components=add_up(whole),
        num_embedding_params=vocab_size * d_model,
        n_layers=n_layers,
        n_heads=n_heads,
        seq_len=seq_len,
    )


def bytes_gathered_per_token(ledger: Ledger, bytes_per_value: int) -> int:
    """Return bytes of table rows read for each token in the forward pass, all layers together.

    A lower bound on traffic when no row is reused between tokens; caches can only lower it.
    """
    return bytes_per_value * sum(c.gathered_values_per_token for c in ledger.components)


def arithmetic_intensity(component: Component, bytes_per_value: int) -> float | None:
    """Forward FLOPs per gathered byte of a component; None where it gathers nothing.

    The gather of single-neuron experts is 2 FLOPs per value: 1 FLOP per byte in bf16.
    """
    if component.gathered_values_per_token == 0:
        return None
    return component.flops_per_token / (component.gathered_values_per_token * bytes_per_value)


def stored_ledger(row: Mapping[str, Any]) -> Ledger:
    """Return the ledger of a planned or finished run, so that any convention can be applied.

    ``get_convention("causal")(stored_ledger(row)) * row["n_tokens"]``

    Parameters are stored for the whole model only: they are entered under `norms`, which has no
    FLOPs, so the totals are right and the components' own parameters are not to be read.

    Args:
        row: columns `flops_*` (exact: below 2^53), n_params, n_active, n_nonembed, n_layers,
            n_heads and seq_len.
    """
    components = tuple(
        Component(
            name=name,
            flops_per_token=int(row.get(f"flops_{name}") or 0),
            num_params=row["n_params"] if name == "norms" else 0,
            num_active_params=row["n_active"] if name == "norms" else 0,
        )
        for name in COMPONENT_NAMES
    )
    return Ledger(
        components=components,
        num_embedding_params=row["n_params"] - row["n_nonembed"],
        n_layers=row["n_layers"],
        n_heads=row["n_heads"],
        seq_len=row["seq_len"],
    )

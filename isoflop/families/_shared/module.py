"""What families of tiny experts share: their tables, and the four routers of the paper.

A router takes tokens to the chosen experts of each channel and their scores.

Letters: T tokens, D width, C channels, K experts chosen per channel, E experts per table,
N = sqrt(E) sub-keys per half, Q router width.

Every router maps x_TD to (score_TCK, idx_TCK): scores descending, lowest index first among equal
ones, idx int32 within the channel's table. Gradients flow through the chosen scores only
(reference implementation, section "Routers").
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from isoflop.families._shared.spec import RoutedConfig, is_product
from isoflop.model.init import Initialiser, trunc_normal, trunc_normal_uncorrected
from isoflop_kernels import product_key_topk, stable_topk
from isoflop_kernels.precision import autocast_dtype

Rows = tuple[Tensor, Tensor]


class ExpertTables(nn.Module):
    """The tables of a layer's experts, an input and an output row each, and how they are read.

    Under autocast tables are read in its type, as the official code does with the rows that it
    gathers, and so are the tokens: half the bytes of every gather. Their gradients stay float32.
    """

    def __init__(self, num_tables: int, num_experts: int, d_model: int) -> None:
        super().__init__()
        self.w_in = nn.Parameter(torch.empty(num_tables, num_experts, d_model))
        self.w_out = nn.Parameter(torch.empty(num_tables, num_experts, d_model))
        # The tables in another type and their versions, while `cast_once` is open. No buffers: they
        # are in no state, and what is not compiled makes them.
        self._rows: Rows | None = None
        self._versions: tuple[int, int] | None = None
        # Where passes add the tables' gradients, while `summed_in_place` is open.
        self.sums: Rows | None = None

    def initialisers(self) -> Mapping[str, Initialiser]:
        """Return both tables: std 1/sqrt(experts per table), whatever the width."""
        table = trunc_normal(self.w_in.shape[1] ** -0.5)
        return {"w_in": table, "w_out": table}

    def tokens_read(self, x_TD: Tensor) -> Tensor:
        """Return the tokens in the type that is computed in."""
        dtype = autocast_dtype(x_TD.device)
        return x_TD if dtype is None else x_TD.to(dtype)

    def rows_read(self) -> Rows | None:
        """Return the tables in the type that is computed in; None: they are in it.

        They are those of :func:`cast_once` while it is open and the tables are what they were.
        """
        dtype = autocast_dtype(self.w_in.device)
        if dtype is None or dtype == self.w_in.dtype:
            return None
        held = self._rows
        if held is None or held[0].dtype != dtype:
            return self._cast(dtype)
        # A compiler knows no versions; nobody changes tables within a compiled call.
        unchanged = torch.compiler.is_compiling() or self._versions == self._versions_now()
        return held if unchanged else self._cast(dtype)

    def hold_rows(self, dtype: torch.dtype) -> None:
        """Cast the tables now, for every pass from here on.

        Sharded tables are cast in each pass, when they are whole; what was cast stays whole until
        its backward pass, unless activations are recomputed there.
        """
        if type(self.w_in) is nn.Parameter:
            self._rows, self._versions = self._cast(dtype), self._versions_now()

    def let_go_of_rows(self) -> None:
        """Let go of what was cast."""
        self._rows = None

    def hold_sums(self) -> None:
        """Make the tables' gradients, zero, for backward passes to add to."""
        for table in (self.w_in, self.w_out):
            if table.grad is None:
                table.grad = torch.zeros_like(table)
        assert self.w_in.grad is not None
        assert self.w_out.grad is not None
        self.sums = (self.w_in.grad, self.w_out.grad)

    def _cast(self, dtype: torch.dtype) -> Rows:
        return self.w_in.detach().to(dtype), self.w_out.detach().to(dtype)

    def _versions_now(self) -> tuple[int, int]:
        return self.w_in._version, self.w_out._version


@contextmanager
def cast_once(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Cast the tables of all experts once for what runs inside, all micro-batches of a step."""
    layers = [layer for layer in model.modules() if isinstance(layer, ExpertTables)]
    try:
        for layer in layers:
            layer.hold_rows(dtype)
        yield
    finally:
        for layer in layers:
            layer.let_go_of_rows()


@contextmanager
def summed_in_place(model: nn.Module) -> Iterator[None]:
    """Have the backward passes inside add the tables' gradients in place, as of several parts.

    Otherwise each makes a dense gradient, and autograd adds it to those of the parts before. The
    tables must be plain parameters without hooks, which would see no gradient.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, ExpertTables)]
    try:
        for layer in layers:
            layer.hold_sums()
        yield
    finally:
        for layer in layers:
            layer.sums = None


class DenseRouter(nn.Module):
    """Two linear maps with nothing between: D -> Q -> all keys. `product_dense` and `dense`."""

    def __init__(
        self, d_model: int, channels: int, k: int, experts: int, width: int, *, product: bool
    ) -> None:
        super().__init__()
        self.keys = _Keys(channels, k, experts, product=product)
        self.w1 = nn.Parameter(torch.empty(d_model, width))
        self.w2 = nn.Parameter(torch.empty(width, math.prod(self.keys.shape)))

    def initialisers(self) -> Mapping[str, Initialiser]:
        """Return draws with standard deviations 1/sqrt(fan-in)."""
        return {name: trunc_normal(getattr(self, name).shape[0] ** -0.5) for name in ("w1", "w2")}

    def forward(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Return (score_TCK, idx_TCK) of ``x_TD``."""
        return self.keys.choose((x_TD @ self.w1 @ self.w2).view(-1, *self.keys.shape))


class KeyValueRouter(nn.Module):
    """A query per channel (and half) against learned keys. `product_key_value` and `key_value`.

    Similarities are divided by sqrt(2Q) with two halves, by sqrt(Q) with one. No query norm.
    """

    def __init__(
        self, d_model: int, channels: int, k: int, experts: int, width: int, *, product: bool
    ) -> None:
        super().__init__()
        self.key_shape = _Keys(channels, k, experts, product=product)
        *groups, num_keys = self.key_shape.shape
        num_groups = math.prod(groups)
        # Columns: one query of Q per group, a group being a half and channel, half first.
        self.queries = nn.Parameter(torch.empty(d_model, num_groups * width))
        self.keys = nn.Parameter(torch.empty(num_groups, num_keys, width))
        self.scale = (width * (2 if product else 1)) ** -0.5

    def initialisers(self) -> Mapping[str, Initialiser]:
        """Return queries of std 1/sqrt(D), keys of a unit normal cut at two sigma, not rescaled."""
        return {
            "queries": trunc_normal(self.queries.shape[0] ** -0.5),
            "keys": trunc_normal_uncorrected(1.0),
        }

    def forward(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Return (score_TCK, idx_TCK) of ``x_TD``."""
        num_groups, _, width = self.keys.shape
        query_GTQ = (x_TD @ self.queries).view(-1, num_groups, width).transpose(0, 1)
        similarity_GTN = query_GTQ @ (self.keys * self.scale).transpose(1, 2)
        return self.key_shape.choose(
            similarity_GTN.transpose(0, 1).reshape(-1, *self.key_shape.shape)
        )


class _Keys:
    """How similarities are laid out per token, and the choice of the top K from them."""

    def __init__(self, channels: int, k: int, experts: int, *, product: bool) -> None:
        self.k = k
        self.product = product
        self.shape = (2, channels, math.isqrt(experts)) if product else (channels, experts)

    def choose(self, similarity: Tensor) -> tuple[Tensor, Tensor]:
        """Return [T, 2, C, N] or [T, C, E] -> (score_TCK, idx_TCK)."""
        if self.product:
            return product_key_topk(similarity, self.k)
        score_TCK, idx_TCK = stable_topk(similarity, self.k)
        return score_TCK, idx_TCK.int()


def build_router(config: RoutedConfig, router: str, d_model: int) -> DenseRouter | KeyValueRouter:
    """Return the router called ``router``; the shape has been checked by the family's Config."""
    router_class = KeyValueRouter if router.endswith("key_value") else DenseRouter
    return router_class(
        d_model,
        config.num_channels,
        config.num_neighbours,
        config.num_experts,
        config.router_width,
        product=is_product(router),
    )


def softmax_of_sorted(score_TCK: Tensor) -> Tensor:
    """Return the softmax over the K experts of a channel, whose first score is the largest.

    torch's own softmax takes four times as long over an axis this short (CPU, K = 4).
    """
    exp_TCK = torch.exp(score_TCK - score_TCK[..., :1].detach())
    return exp_TCK / exp_TCK.sum(-1, keepdim=True)

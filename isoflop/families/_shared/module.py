"""The four routers of the paper: tokens to the chosen experts of each channel and their scores.

Letters: T tokens, D width, C channels, K experts chosen per channel, E experts per table,
N = sqrt(E) sub-keys per half, Q router width.

Every router maps x_TD to (score_TCK, idx_TCK): scores descending, lowest index first among equal
ones, idx int32 within the channel's table. Gradients flow through the chosen scores only
(reference implementation, section "Routers").
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from isoflop.families._shared.spec import RoutedConfig, is_product
from isoflop.model.init import Initialiser, trunc_normal, trunc_normal_uncorrected
from isoflop_kernels import product_key_topk, stable_topk


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

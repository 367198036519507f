"""Selection in C++ on CPU: sorted insertion without branches, eight or sixteen rows side by side.

The choice is exactly that of the other implementations, ties included. What the library does not
take goes to `packed.py`: half precision and float64, other devices, k above 32, no compiler.
"""

# T tokens, C channels, N sub-keys per half, K chosen

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from isoflop_kernels.cpp import build
from isoflop_kernels.product_key_topk import packed

# What the library keeps per row; insertion costs k steps per value, so more would not be faster.
MAX_K = 32


@torch.library.custom_op(
    "isoflop_kernels::topk_indices_cpp", mutates_args=(), schema="(Tensor values, int k) -> Tensor"
)
def topk_indices(values: Tensor, k: int) -> Tensor:
    """Return what `reference.topk_indices` does."""
    if not _takes(values, k):
        return packed.topk_indices(values, k)
    rows = values.contiguous()
    idx = rows.new_empty((*values.shape[:-1], k), dtype=torch.int64)
    num_values = values.shape[-1]
    build.call("topk_indices", rows, idx, rows.numel() // num_values, num_values, k)
    return idx


@topk_indices.register_fake
def _(values: Tensor, k: int) -> Tensor:
    return values.new_empty((*values.shape[:-1], k), dtype=torch.int64)


@torch.library.custom_op(
    "isoflop_kernels::product_key_pairs_cpp",
    mutates_args=(),
    schema="(Tensor sim, int k) -> Tensor",
)
def product_key_pairs(sim_T2CN: Tensor, k: int) -> Tensor:
    """Return the sub-keys that `reference.product_key_pairs` does, int64 [T, 2, C, K]."""
    if not _takes(sim_T2CN, k):
        return packed.product_key_pairs(sim_T2CN, k)
    num_tokens, _, num_channels, num_keys = sim_T2CN.shape
    inside, edge = packed.rank_pairs(k, min(k + 1, num_keys))
    pairs = torch.tensor(inside + edge, dtype=torch.int32)
    pair_T2CK = torch.empty((num_tokens, 2, num_channels, k), dtype=torch.int64)
    counts = (len(inside), len(edge))
    sizes = (num_tokens, num_channels, num_keys, k)
    build.call("product_key_pairs", sim_T2CN.contiguous(), pairs, *counts, pair_T2CK, *sizes)
    return pair_T2CK


@product_key_pairs.register_fake
def _(sim_T2CN: Tensor, k: int) -> Tensor:
    return sim_T2CN.new_empty((*sim_T2CN.shape[:3], k), dtype=torch.int64)


@register_flop_formula(
    [torch.ops.isoflop_kernels.topk_indices_cpp, torch.ops.isoflop_kernels.product_key_pairs_cpp]
)
def selection_flops(*args: object, **kwargs: object) -> int:
    """Return comparisons and additions count nothing, by the project's convention."""
    return 0


def _takes(values: Tensor, k: int) -> bool:
    return values.dtype == torch.float32 and k <= MAX_K and build.usable(values)

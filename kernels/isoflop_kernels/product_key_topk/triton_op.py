"""Product-key selection in Triton, for GPUs: exact, in one kernel and without waiting for it."""

# T tokens, C channels, N sub-keys per half, K chosen

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from isoflop_kernels import triton_config
from isoflop_kernels.product_key_topk import packed
from isoflop_kernels.product_key_topk.triton_kernels import INTERPRETED, pairs_kernel

# Larger problems do not fit a program's registers; `packed` takes them.
MAX_SUB_KEYS = 1024
MAX_CHOSEN = 16


@torch.library.custom_op(
    "isoflop_kernels::product_key_pairs_triton",
    mutates_args=(),
    schema="(Tensor sim, int k) -> Tensor",
)
def product_key_pairs(sim_T2CN: Tensor, k: int) -> Tensor:
    """Return the sub-keys that `reference.product_key_pairs` does, int64 [T, 2, C, K]."""
    return select_pairs(sim_T2CN, k)


@product_key_pairs.register_fake
def _(sim_T2CN: Tensor, k: int) -> Tensor:
    return sim_T2CN.new_empty((*sim_T2CN.shape[:3], k), dtype=torch.int64)


def select_pairs(sim_T2CN: Tensor, k: int) -> Tensor:
    """Launch the kernel, or take the packed path where it would not fit."""
    num_tokens, _, num_channels, num_keys = sim_T2CN.shape
    if sim_T2CN.dtype == torch.float64 or num_keys > MAX_SUB_KEYS or k > MAX_CHOSEN:
        return packed.product_key_pairs(sim_T2CN, k)
    if sim_T2CN.device.type == "cpu" and not INTERPRETED:
        triton_config.refuse_cpu()
    sim_T2CN = sim_T2CN.contiguous()
    pair_T2CK = sim_T2CN.new_empty((num_tokens, 2, num_channels, k), dtype=torch.int64)
    launch = triton_config.pairs(triton_config.architecture_of(sim_T2CN.device), num_keys, k)
    with triton_config.launching(sim_T2CN.device):
        pairs_kernel[num_tokens, num_channels](
            sim_T2CN,
            pair_T2CK,
            num_channels,
            num_keys,
            K=k,
            BN=launch.BN,
            BM=launch.BM,
            RANKS=min(k + 1, num_keys),
            num_warps=launch.num_warps,
        )
    return pair_T2CK


@register_flop_formula(torch.ops.isoflop_kernels.product_key_pairs_triton)
def selection_flops(*args: object, **kwargs: object) -> int:
    """Return comparisons and additions count nothing, by the project's convention."""
    return 0

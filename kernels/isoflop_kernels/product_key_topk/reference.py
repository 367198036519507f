"""The definition by brute force: a stable descending sort of everything that could be chosen."""

# T tokens, C channels, N sub-keys per half, K chosen

from __future__ import annotations

import torch
from torch import Tensor

from isoflop_kernels.precision import compute_dtype


def topk_indices(values: Tensor, k: int) -> Tensor:
    """Return positions of the k largest along the last axis, lowest first on ties; int64."""
    return values.sort(dim=-1, descending=True, stable=True).indices[..., :k]


def product_key_pairs(sim_T2CN: Tensor, k: int) -> Tensor:
    """Return sub-keys, int64 [T, 2, C, K], of the k largest of all N * N sums of the halves."""
    sim_T2CN = sim_T2CN.to(compute_dtype(sim_T2CN))
    sum_TCNN = sim_T2CN[:, 0].unsqueeze(3) + sim_T2CN[:, 1].unsqueeze(2)
    flat_TCK = topk_indices(sum_TCNN.flatten(2), k)
    num_keys = sim_T2CN.shape[3]
    return torch.stack([flat_TCK // num_keys, flat_TCK % num_keys], dim=1)

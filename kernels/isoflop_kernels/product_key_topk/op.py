"""The public operators: validate, select without gradients, then read the scores with them."""

# T tokens, C channels, N sub-keys per half, K chosen

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from isoflop_kernels import dispatch
from isoflop_kernels.precision import FLOAT_DTYPES
from isoflop_kernels.product_key_topk import cpp, packed, reference

# The flat expert numbers of N * N experts are int32.
MAX_SUB_KEYS = 46340
# On CPU: compiled where there is a compiler. The choice is exact in all implementations, so results
# do not depend on it.
DEFAULT = "cpp"

_Select = Callable[[Tensor, int], Tensor]


def _triton_pairs(sim_T2CN: Tensor, k: int) -> Tensor:
    from isoflop_kernels.product_key_topk import triton_op

    return triton_op.product_key_pairs(sim_T2CN, k)


_PAIRS: dict[str, _Select] = {
    "reference": reference.product_key_pairs,
    "bag": packed.product_key_pairs,
    "cpp": cpp.product_key_pairs,
    "triton": _triton_pairs,
}
# One row is a single maximum after another, as in packed.py; Triton has nothing to add.
_INDICES: dict[str, _Select] = {
    "reference": reference.topk_indices,
    "bag": packed.topk_indices,
    "cpp": cpp.topk_indices,
    "triton": packed.topk_indices,
}


def product_key_topk(sim_T2CN: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Choose the k experts with the largest sums of one similarity of each half.

    Expert e = first * N + second scores sim[0, first] + sim[1, second]. Scores come in descending
    order; among equal ones the lowest expert number comes first. The choice is exactly that of a
    stable sort of all N * N float32 sums (float64 for float64), though few of them are formed.
    Gradients flow through the chosen scores alone. FLOPs count 0: there are only additions.
    Source: product keys (arXiv 1907.05242), as routed in PEER and arXiv 2606.07414.

    Args:
        sim_T2CN: similarities of both halves, [T, 2, C, N], any float dtype; T may be 0.
        k: how many experts to choose per token and channel, 1 <= k <= N.

    Returns:
        score_TCK in the dtype of `sim_T2CN`, and idx_TCK int32; no expert repeats within [t, c].

    Raises:
        ValueError: the shape, the dtype or k does not fit.
    """
    # There may be no tokens.
    if sim_T2CN.dim() != 4 or sim_T2CN.shape[1] != 2 or 0 in sim_T2CN.shape[2:]:
        raise ValueError(
            f"sim_T2CN has shape {list(sim_T2CN.shape)}: must be [T, 2, C, N], no axis of size 0"
        )
    num_keys = sim_T2CN.shape[3]
    if num_keys > MAX_SUB_KEYS:
        raise ValueError(
            f"N = {num_keys}: must be at most {MAX_SUB_KEYS}, so that N * N fits int32"
        )
    _check("sim_T2CN", sim_T2CN, k)
    with torch.no_grad():
        nothing = sim_T2CN.shape[0] == 0
        name = "reference" if nothing else dispatch.implementation(sim_T2CN.device.type, DEFAULT)
        pair_T2CK = _PAIRS[name](sim_T2CN, k)
        idx_TCK = (pair_T2CK[:, 0] * num_keys + pair_T2CK[:, 1]).to(torch.int32)
    return sim_T2CN.gather(3, pair_T2CK).sum(1), idx_TCK


def stable_topk(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest along the last axis, descending, the lowest position first on ties.

    `torch.topk` promises no order on ties, so its choice may differ between devices and versions.
    Gradients flow through the chosen values alone. FLOPs count 0.

    Args:
        values: [..., N], any float dtype.
        k: how many to choose, 1 <= k <= N.

    Returns:
        The chosen values, [..., K], and their positions, int64.

    Raises:
        ValueError: the shape, the dtype or k does not fit.
    """
    if values.dim() == 0 or values.numel() == 0:
        raise ValueError(f"values has shape {list(values.shape)}: must be [..., N], none of size 0")
    _check("values", values, k)
    with torch.no_grad():
        idx = _INDICES[dispatch.implementation(values.device.type, DEFAULT)](values, k)
    return values.gather(-1, idx), idx


def _check(name: str, tensor: Tensor, k: int) -> None:
    if tensor.dtype not in FLOAT_DTYPES:
        raise ValueError(f"{name} is {tensor.dtype}: must be one of {FLOAT_DTYPES}")
    if not 1 <= k <= tensor.shape[-1]:
        raise ValueError(
            f"k = {k}: must be within 1 to {tensor.shape[-1]}, the size of the last axis"
        )


@register_flop_formula(
    [torch.ops.isoflop_kernels.topk_indices, torch.ops.isoflop_kernels.product_key_pairs]
)
def selection_flops(*args: object, **kwargs: object) -> int:
    """Return comparisons and additions count nothing, by the project's convention."""
    return 0

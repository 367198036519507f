"""FLOP formulas of the operator for torch's FlopCounterMode; one multiply-add counts 2."""

# T tokens, D width, C channels, K experts chosen per channel

from __future__ import annotations

from collections.abc import Sequence


def product_flops(x_shape: Sequence[int], idx_shape: Sequence[int]) -> int:
    """Return FLOPs of one of the operator's products over all choices: 2 T C K D."""
    num_tokens, num_channels, num_chosen = idx_shape
    return 2 * num_tokens * num_channels * num_chosen * x_shape[1]


def forward_flops(
    x_shape: Sequence[int], idx_shape: Sequence[int], *args: object, **kwargs: object
) -> int:
    """Return 4 T C K D: the dot products and the weighted sum; gate and activation count 0."""
    return 2 * product_flops(x_shape, idx_shape)


def backward_flops(
    dy_shape: Sequence[int],
    x_shape: Sequence[int],
    idx_shape: Sequence[int],
    score_shape: Sequence[int],
    w_in_shape: Sequence[int],
    w_out_shape: Sequence[int],
    h_shape: Sequence[int],
    activation: str,
    gate_order: str,
    need: Sequence[bool],
    *dtypes: object,
    **kwargs: object,
) -> int:
    """Return 8 T C K D for all four gradients, 2 T C K D less for each product not needed."""
    need_x, need_score, need_in, need_out = need
    num_products = (need_x or need_score or need_in) + need_x + need_in + need_out
    return num_products * product_flops(x_shape, idx_shape)

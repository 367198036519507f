"""Query-key normalisation and rotary position embedding, half-split layout.

Letters: T tokens, G groups of heads with a scale of their own (queries, keys), H heads per group;
h head width; `W` = G * H * h the width of a row.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from isoflop.model.norm import inverse_rms, unnormalise_gradient

BASE = 10_000.0


@lru_cache(maxsize=32)
def tables(seq_len: int, head_width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return cosines and signed sines, each float32 [T, h].

    Angle j of position t is t * 10000^(-2j/h) for j < h/2, tiled twice. The sine's first half is
    negated, so that ``x * cos + swap_halves(x) * sin`` rotates pairs (x_j, x_{j+h/2}).
    """
    rate = BASE ** (-torch.arange(0, head_width, 2, dtype=torch.float64) / head_width)
    angle = torch.outer(torch.arange(seq_len, dtype=torch.float64), rate)
    cos_Th = torch.cat((angle.cos(), angle.cos()), dim=1).float()
    sin_Th = torch.cat((-angle.sin(), angle.sin()), dim=1).float()
    return cos_Th.to(device), sin_Th.to(device)


@lru_cache(maxsize=32)
def _row_tables(
    seq_len: int, head_width: int, num_heads: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The tables repeated for all heads of a row, [T, W]: whole rows multiply without strides."""
    cos_Th, sin_Th = tables(seq_len, head_width, device)
    return cos_Th.repeat(1, num_heads), sin_Th.repeat(1, num_heads)


def swap_halves(x: Tensor, head_width: int) -> Tensor:
    """Return [x1, x2] -> [x2, x1] within each head of the last axis; same shape, contiguous."""
    first, second = x.view(-1, head_width).chunk(2, dim=-1)
    return torch.cat((second, first), dim=-1).view_as(x)


def normalise_and_rotate(x_BTW: Tensor, scale_Gh: Tensor) -> Tensor:
    """RMSNorm of each head vector, times its group's scale, rotated by its position's angles.

    Args:
        x_BTW: float32, contiguous; a row holds the groups one after the other, each with its heads
            one after the other.
        scale_Gh: one scale per group.
    """
    return _NormaliseAndRotate.apply(x_BTW, scale_Gh)


class _NormaliseAndRotate(torch.autograd.Function):
    """One function, so that all passes but the swap are over contiguous memory."""

    @staticmethod
    def forward(ctx: Any, x_BTW: Tensor, scale_Gh: Tensor) -> Tensor:
        num_groups, head_width = scale_Gh.shape
        width = x_BTW.shape[2]
        heads_per_group = width // (num_groups * head_width)
        cos_TW, sin_TW = _row_tables(
            x_BTW.shape[1], head_width, num_groups * heads_per_group, x_BTW.device
        )
        x_h = x_BTW.view(-1, head_width)
        inverse = inverse_rms(x_h)
        normed_h = x_h * inverse
        scale_W = scale_Gh.repeat_interleave(heads_per_group, 0).view(width)
        scaled_BTW = normed_h.view_as(x_BTW) * scale_W
        ctx.save_for_backward(normed_h, inverse, scale_W, cos_TW, sin_TW)
        ctx.group_shape = (num_groups, heads_per_group, head_width)
        return (scaled_BTW * cos_TW).addcmul_(swap_halves(scaled_BTW, head_width), sin_TW)

    @staticmethod
    def backward(ctx: Any, grad_BTW: Tensor) -> tuple[Tensor, Tensor]:
        normed_h, inverse, scale_W, cos_TW, sin_TW = ctx.saved_tensors
        head_width = normed_h.shape[1]
        swapped_BTW = swap_halves(grad_BTW * sin_TW, head_width)
        grad_BTW = swapped_BTW.addcmul_(grad_BTW, cos_TW)
        product_RW = (grad_BTW * normed_h.view_as(grad_BTW)).flatten(0, 1)
        grad_scale_Gh = product_RW.sum(0).view(ctx.group_shape).sum(1)
        grad_normed_h = (grad_BTW * scale_W).view(-1, head_width)
        grad_x = unnormalise_gradient(grad_normed_h, normed_h, inverse)
        return grad_x.view_as(grad_BTW), grad_scale_Gh

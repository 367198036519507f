"""Causal self-attention with normalised, rotated queries and keys.

The rotary embedding is in the half-split layout. Letters: B batch, T tokens, D width, H heads (of a
group, where heads come in groups); h head width; G groups of heads with a scale of their own
(queries, keys); W = G * H * h the width of a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop.errors import UserError
from isoflop.model.init import Initialiser, constant, trunc_normal
from isoflop.model.norm import inverse_rms, unnormalise_gradient

ROTARY_BASE = 10_000.0


def same_document(inputs_BT: Tensor, end_of_text_id: int) -> Tensor:
    """Return which keys a query sees where attention ends with the document: bool [B, 1, T, T].

    All up to its own position, back to the last end-of-text at most. An end-of-text that is read
    belongs to the document it opens: from it that document's first token is predicted, as that of
    a window is from the begin token. Positions go on counting through the window.
    """
    document_BT = (inputs_BT == end_of_text_id).cumsum(1)
    same_BTT = document_BT[:, :, None] == document_BT[:, None, :]
    return same_BTT.tril()[:, None]


class Attention(nn.Module):
    """Multi-head causal attention, no biases (reference implementation, section "Model").

    Queries and keys pass an RMSNorm over the head width (one scale each, shared by the heads) and
    the rotary embedding; values do neither. Scores are divided by sqrt(h).
    """

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        if d_model % (2 * n_heads):
            raise UserError(
                "d_model", d_model, f"a multiple of 2 * n_heads = {2 * n_heads}", "change n_heads"
            )
        self.n_heads = n_heads
        self.head_width = d_model // n_heads
        # Columns: all heads' queries, then all heads' keys; the initial distribution is that of
        # two kernels.
        self.query_key = nn.Parameter(torch.empty(d_model, 2 * d_model))
        self.value = nn.Parameter(torch.empty(d_model, d_model))
        self.output = nn.Parameter(torch.empty(d_model, d_model))
        # Row 0 for queries, row 1 for keys.
        self.query_key_scale = nn.Parameter(torch.empty(2, self.head_width))

    def initialisers(self) -> Mapping[str, Initialiser]:
        """Return std 1/sqrt(D) for kernels, 1 for scales."""
        kernel = trunc_normal(self.output.shape[0] ** -0.5)
        return {
            "query_key": kernel,
            "value": kernel,
            "output": kernel,
            "query_key_scale": constant(1.0),
        }

    def forward(self, x_BTD: Tensor, visible_B1TT: Tensor | None = None) -> Tensor:
        """Return attention over the sequence: [B, T, D] -> [B, T, D].

        ``visible_B1TT`` says which keys (last) a query sees; None: all up to its own position.
        """
        B, T, D = x_BTD.shape
        value = x_BTD @ self.value
        # Normalised and rotated in float32 whatever the compute type.
        query_key = normalise_and_rotate((x_BTD @ self.query_key).float(), self.query_key_scale)
        heads = (B, T, 2, self.n_heads, self.head_width)
        query, key = query_key.to(value.dtype).view(heads).unbind(2)
        value = value.view_as(query)
        mixed_BHTh = F.scaled_dot_product_attention(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            attn_mask=visible_B1TT,
            is_causal=visible_B1TT is None,
        )
        return mixed_BHTh.transpose(1, 2).reshape(B, T, D) @ self.output


@lru_cache(maxsize=32)
def tables(seq_len: int, head_width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return cosines and signed sines, each float32 [T, h].

    Angle j of position t is t * 10000^(-2j/h) for j < h/2, tiled twice. The sine's first half is
    negated, so that ``x * cos + swap_halves(x) * sin`` rotates pairs (x_j, x_{j+h/2}).
    """
    rate = ROTARY_BASE ** (-torch.arange(0, head_width, 2, dtype=torch.float64) / head_width)
    angle = torch.outer(torch.arange(seq_len, dtype=torch.float64), rate)
    cos_Th = torch.cat((angle.cos(), angle.cos()), dim=1).float()
    sin_Th = torch.cat((-angle.sin(), angle.sin()), dim=1).float()
    return cos_Th.to(device), sin_Th.to(device)


@lru_cache(maxsize=32)
def _row_tables(
    seq_len: int, head_width: int, num_heads: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the tables for all heads of a row, [T, W]: whole rows multiply without strides."""
    cos_Th, sin_Th = tables(seq_len, head_width, device)
    return cos_Th.repeat(1, num_heads), sin_Th.repeat(1, num_heads)


def swap_halves(x: Tensor, head_width: int) -> Tensor:
    """Return [x1, x2] -> [x2, x1] within each head of the last axis; same shape, contiguous."""
    return x.view(-1, head_width).roll(head_width // 2, -1).view_as(x)


def normalise_and_rotate(x_BTW: Tensor, scale_Gh: Tensor) -> Tensor:
    """Return each head vector's RMSNorm, times its group's scale, rotated by its position.

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
        swapped_BTW = swap_halves(scaled_BTW, head_width)
        # The result itself never in place: torch.compile of torch 2.11 gives one that was written
        # in place the gradient zero (tests/model/test_autograd_functions.py).
        return torch.addcmul(scaled_BTW.mul_(cos_TW), swapped_BTW, sin_TW)

    @staticmethod
    def backward(ctx: Any, grad_BTW: Tensor) -> tuple[Tensor, Tensor]:
        normed_h, inverse, scale_W, cos_TW, sin_TW = ctx.saved_tensors
        head_width = normed_h.shape[1]
        swapped_BTW = swap_halves(grad_BTW * sin_TW, head_width)
        grad_BTW = swapped_BTW.addcmul_(grad_BTW, cos_TW)
        product_RW = (grad_BTW * normed_h.view_as(grad_BTW)).flatten(0, 1)
        grad_scale_Gh = product_RW.sum(0).view(ctx.group_shape).sum(1)
        grad_normed_h = grad_BTW.mul_(scale_W).view(-1, head_width)
        grad_x = unnormalise_gradient(grad_normed_h, normed_h, inverse)
        return grad_x.view_as(grad_BTW), grad_scale_Gh

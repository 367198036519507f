"""The operator in C++ on CPU: the six passes of `bag.py`, each a loop over gathered rows.

Channels are visited one after the other as far as a channel's table fits a core's cache, and long
rows in slices; experts' gradients are summed after a counting sort, each expert by one thread in
the order of its tokens. So results are bit-identical on repeats and for any number of threads.
Gate and activation stay torch's: they touch one number per choice.

float64, other devices and machines without a compiler take the bag.
"""

# T tokens, D width, C channels, K experts chosen per channel, N = T * C * K choices,
# Ct tables (C, or 1 shared), E experts per table, R = Ct * E rows

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from isoflop_kernels.cpp import build
from isoflop_kernels.gathered_linear import bag
from isoflop_kernels.gathered_linear.gates import check_range, flat_rows, gate, gate_backward
from isoflop_kernels.gathered_linear.registered import Dtypes, register
from isoflop_kernels.precision import autocast_disabled, compute_dtype


def _forward(
    x_TD: Tensor,
    idx_TCK: Tensor,
    score_TCK: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    activation: str,
    gate_order: str,
) -> tuple[Tensor, Tensor]:
    dtype = compute_dtype(x_TD, score_TCK, w_in, w_out)
    if dtype == torch.float64 or not build.usable(x_TD):
        return bag._forward(x_TD, idx_TCK, score_TCK, w_in, w_out, activation, gate_order)
    check_range(idx_TCK, w_in.shape[1])
    with autocast_disabled(x_TD.device):
        row_TCK = _rows(idx_TCK, w_in)
        h_TCK = _gathered_dot(_dense(x_TD), _dense(w_in), row_TCK)
        z_TCK = gate(h_TCK, _dense(score_TCK), activation, gate_order)
        y_TD = _combine(_dense(w_out), row_TCK, z_TCK)
    return y_TD.to(x_TD.dtype), h_TCK


def _backward(
    dy_TD: Tensor,
    x_TD: Tensor,
    idx_TCK: Tensor,
    score_TCK: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    h_TCK: Tensor,
    activation: str,
    gate_order: str,
    need: Sequence[bool],
    dtypes: Dtypes,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if h_TCK.dtype == torch.float64 or not build.usable(x_TD):
        tensors = (dy_TD, x_TD, idx_TCK, score_TCK, w_in, w_out, h_TCK)
        return bag._backward(*tensors, activation, gate_order, need, dtypes)
    need_x, need_score, need_in, need_out = need
    dx, dscore, dw_in, dw_out = (t.new_empty(0) for t in (x_TD, score_TCK, w_in, w_out))
    dy, h, score = _dense(dy_TD), _dense(h_TCK), _dense(score_TCK)
    with autocast_disabled(x_TD.device):
        row_TCK = _rows(idx_TCK, w_in)
        if need_x or need_score or need_in:
            dz_TCK = _gathered_dot(dy, _dense(w_out), row_TCK)
            dh_TCK, dscore_TCK = gate_backward(dz_TCK, h, score, activation, gate_order)
        if need_score:
            dscore = dscore_TCK.to(score_TCK.dtype)
        if need_x:
            dx = _combine(_dense(w_in), row_TCK, dh_TCK).to(x_TD.dtype)
        if need_in or need_out:
            places = _by_expert(row_TCK, w_in)
        if need_in:
            dw_in = _sum_by_expert(_dense(x_TD), dh_TCK, places, w_in).to(dtypes[0])
        if need_out:
            z_TCK = gate(h, score, activation, gate_order)
            dw_out = _sum_by_expert(dy, z_TCK, places, w_out).to(dtypes[1])
    return dx, dscore, dw_in, dw_out


gathered_linear = register("gathered_linear_cpp", _forward, _backward)


def _dense(tensor: Tensor) -> Tensor:
    return tensor.detach().float().contiguous()


def _rows(idx_TCK: Tensor, w: Tensor) -> Tensor:
    """Return rows of the choices in the table of all channels, int32."""
    return flat_rows(idx_TCK.int(), w.shape[0], w.shape[1]).view(idx_TCK.shape).contiguous()


def _sizes(row_TCK: Tensor, w: Tensor) -> tuple[int, int, int, int]:
    """Return T, tables, choices per token and table, E; a shared table is one channel of C * K."""
    num_tokens, num_channels, num_chosen = row_TCK.shape
    num_tables, num_experts = w.shape[:2]
    return num_tokens, num_tables, num_channels * num_chosen // num_tables, num_experts


def _gathered_dot(x_TD: Tensor, w: Tensor, row_TCK: Tensor) -> Tensor:
    num_tokens, *sizes = _sizes(row_TCK, w)
    dot_TCK = x_TD.new_empty(row_TCK.shape)
    build.call("gathered_dot", x_TD, w, row_TCK, dot_TCK, num_tokens, x_TD.shape[1], *sizes)
    return dot_TCK


def _combine(w: Tensor, row_TCK: Tensor, weight_TCK: Tensor) -> Tensor:
    num_tokens, *sizes = _sizes(row_TCK, w)
    width = w.shape[2]
    sum_TD = w.new_empty(num_tokens, width)
    weight_TCK = weight_TCK.contiguous()
    build.call("combine", w, row_TCK, weight_TCK, sum_TD, num_tokens, width, *sizes)
    return sum_TD


def _by_expert(row_TCK: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sort choices by table row, stably: return their numbers, their tokens, each row's start."""
    choice_N, token_N = torch.empty_like(row_TCK).view(-1), torch.empty_like(row_TCK).view(-1)
    start_R = row_TCK.new_empty(w.shape[0] * w.shape[1] + 1)
    build.call("sort_choices", row_TCK, start_R, choice_N, token_N, *_sizes(row_TCK, w))
    return choice_N, token_N, start_R


def _sum_by_expert(
    rows_TD: Tensor, weight_TCK: Tensor, places: tuple[Tensor, Tensor, Tensor], w: Tensor
) -> Tensor:
    """Return a table's gradient, float32: each expert's weighted sum of its tokens' rows."""
    choice_N, token_N, start_R = places
    weight_N = weight_TCK.reshape(-1).index_select(0, choice_N)
    sum_RD = torch.empty(w.shape, dtype=torch.float32)
    num_rows = w.shape[0] * w.shape[1]
    build.call("segment_sum", rows_TD, token_N, start_R, weight_N, sum_RD, w.shape[2], num_rows)
    return sum_RD

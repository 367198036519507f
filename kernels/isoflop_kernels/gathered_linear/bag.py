"""The operator as six embedding-bag shaped calls, registered as one differentiable torch operation.

Nothing of size T * C * K * D is ever made: a bag sums weighted rows while it reads them.

    forward   1  h      = dot of x with the chosen rows of w_in
              2  y      = bag over w_out, weights z = gate(h, score)
    backward  3  dz     = dot of dy with the chosen rows of w_out
              4  dx     = bag over w_in, weights dh
              5  dw_in  = bag over x: one bag per expert, of the tokens that chose it, weights dh
              6  dw_out = the same bags over dy, weights z

Experts that no token chose own empty bags, so their gradient is exactly zero. Every sum runs in a
fixed order, so repeated CPU calls agree bit for bit.
"""

# T tokens, D width, C channels, K experts chosen per channel, M = C * K, N = T * M choices,
# E experts per table, R = rows of all tables together (C * E, or E when shared)

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from isoflop_kernels.gathered_linear.gates import check_range, flat_rows, gate, gate_backward
from isoflop_kernels.gathered_linear.registered import Dtypes, register
from isoflop_kernels.precision import autocast_disabled, compute_dtype

# Largest number of table rows whose numbers fit int16, which sorts 1.5 times faster than int32.
INT16_ROWS = 2**15
# How torch's own bag operations number the mode "sum".
BAG_SUM = 0

# torch says once per process that CSR tensors are in beta; this one takes the notice.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor(torch.tensor([0, 0]), torch.empty(0).long(), torch.empty(0), (1, 1))


def _forward(
    x_TD: Tensor,
    idx_TCK: Tensor,
    score_TCK: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    activation: str,
    gate_order: str,
) -> tuple[Tensor, Tensor]:
    """Call 1 and 2; h, in the dtype of the arithmetic, is kept for the backward pass."""
    if idx_TCK.device.type == "cpu":
        check_range(idx_TCK, w_in.shape[1])
    dtype = compute_dtype(x_TD, score_TCK, w_in, w_out)
    with autocast_disabled(x_TD.device):
        row_N, offset_T1 = _choices(idx_TCK, w_in)
        h_N = _gathered_dot(_dense(x_TD, dtype), _table(w_in, dtype), row_N, offset_T1)
        z_N = gate(h_N, _dense(score_TCK, dtype).view(-1), activation, gate_order)
        y_TD = _bag(_table(w_out, dtype), row_N, offset_T1[:-1], z_N)
    return y_TD.to(x_TD.dtype), h_N.view(idx_TCK.shape)


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
    """Call 3 to 6: gradients of x, score, w_in and w_out; empty where `need` is false.

    `dtypes` are those of the gradients of w_in and w_out.
    """
    need_x, need_score, need_in, need_out = need
    dtype = h_TCK.dtype
    x_TD_, dy_TD_ = _dense(x_TD, dtype), _dense(dy_TD, dtype)
    score_N, h_N = _dense(score_TCK, dtype).view(-1), h_TCK.reshape(-1)
    dx, dscore, dw_in, dw_out = (t.new_empty(0) for t in (x_TD, score_TCK, w_in, w_out))
    with autocast_disabled(x_TD.device):
        row_N, offset_T1 = _choices(idx_TCK, w_in)
        if need_x or need_score or need_in:
            dz_N = _gathered_dot(dy_TD_, _table(w_out, dtype), row_N, offset_T1)
            dh_N, dscore_N = gate_backward(dz_N, h_N, score_N, activation, gate_order)
        if need_score:
            dscore = dscore_N.view(score_TCK.shape).to(score_TCK.dtype)
        if need_x:
            dx = _bag(_table(w_in, dtype), row_N, offset_T1[:-1], dh_N).to(x_TD.dtype)
        if need_in or need_out:
            order_N, token_N, offset_R = _by_expert(row_N, idx_TCK, w_in)
        if need_in:
            dw = _bag(x_TD_, token_N, offset_R, dh_N.index_select(0, order_N))
            dw_in = dw.view(w_in.shape).to(dtypes[0])
        if need_out:
            z_N = gate(h_N, score_N, activation, gate_order)
            dw = _bag(dy_TD_, token_N, offset_R, z_N.index_select(0, order_N))
            dw_out = dw.view(w_out.shape).to(dtypes[1])
    return dx, dscore, dw_in, dw_out


gathered_linear = register("gathered_linear", _forward, _backward)


def _dense(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a detached, contiguous copy in `dtype`; a bag prepares for its gradient otherwise."""
    return tensor.detach().to(dtype).contiguous()


def _table(w: Tensor, dtype: torch.dtype) -> Tensor:
    """Return all tables as one contiguous [R, D]."""
    return _dense(w, dtype).view(-1, w.shape[2])


def _choices(idx_TCK: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Return each choice's table row, token by token, and where a token's choices start and end."""
    row_TM = flat_rows(idx_TCK.int(), w.shape[0], w.shape[1])
    num_tokens, per_token = row_TM.shape
    end = num_tokens * per_token + 1
    offset_T1 = torch.arange(0, end, per_token, dtype=torch.int32, device=row_TM.device)
    return row_TM.reshape(-1), offset_T1


def _by_expert(row_N: Tensor, idx_TCK: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sort choices by table row, stably: return their order, their tokens, each row's start."""
    num_tokens, num_rows = idx_TCK.shape[0], w.shape[0] * w.shape[1]
    key_N = row_N.to(torch.int16) if num_rows <= INT16_ROWS else row_N
    order_N = torch.sort(key_N, stable=True).indices
    token_N = _token_of_choice(num_tokens, row_N.shape[0], row_N.device).index_select(0, order_N)
    count_R = torch.bincount(row_N, minlength=num_rows)
    return order_N, token_N, (count_R.cumsum(0) - count_R).int()


def _bag(table_RD: Tensor, row_N: Tensor, offset_T: Tensor, weight_N: Tensor) -> Tensor:
    """Return each bag's weighted sum of table rows; an empty bag gives zeros."""
    return F.embedding_bag(row_N, table_RD, offset_T, mode="sum", per_sample_weights=weight_N)


def _gathered_dot(x_TD: Tensor, table_RD: Tensor, row_N: Tensor, offset_T1: Tensor) -> Tensor:
    """Return the dot product of each token with each of its table rows, [N].

    On CPU a sampled matrix product is 2 to 4 times faster than the gradient of a bag with respect
    to its weights, which is the same number. Its kernel takes column numbers as they come, so
    unsorted and repeated ones, which CSR as a storage format forbids, are fine; but it refuses
    more entries than the matrix has places.
    """
    num_tokens, num_rows = x_TD.shape[0], table_RD.shape[0]
    num_choices = row_N.shape[0]
    if x_TD.device.type == "cpu" and num_choices <= num_tokens * num_rows:
        chosen_TR = torch.sparse_csr_tensor(
            offset_T1,
            row_N,
            x_TD.new_zeros(num_choices),
            (num_tokens, num_rows),
            check_invariants=False,
        )
        torch.sparse.sampled_addmm(chosen_TR, x_TD, table_RD.t(), beta=0.0, out=chosen_TR)
        return chosen_TR.values()
    token_N = _token_of_choice(num_tokens, num_choices, x_TD.device)
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(
        x_TD, table_RD, row_N, offset_T1[:-1], token_N, BAG_SUM
    )


def _token_of_choice(num_tokens: int, num_choices: int, device: torch.device) -> Tensor:
    token_T = torch.arange(num_tokens, dtype=torch.int32, device=device)
    return token_T.repeat_interleave(num_choices // num_tokens)

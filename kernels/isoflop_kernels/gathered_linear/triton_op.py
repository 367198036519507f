"""The operator in Triton, for GPUs: launches the kernels and registers the torch operation.

    forward    dot_kernel      h and z, one channel of one token per program
               combine_kernel  y, one slice of one token per program
    backward   expert_kernel   dz, dh, dscore, dw_in, dw_out: choices sorted by expert, so that a
                               program keeps its expert's row and streams tokens past it
               reduce_kernel   adds up experts so popular that they were split
               combine_kernel  dx

Per choice the forward pass gathers two rows and the backward pass three: x, dy and the input row.
That is v1; where `choice.py` says so, all but the combine kernel is replaced by `triton_v2.py`.
"""

# T tokens, D width, C channels, K experts chosen per channel, N = T * C * K choices,
# R rows of all tables together

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from isoflop_kernels import triton_config
from isoflop_kernels.gathered_linear import bag, triton_v2
from isoflop_kernels.gathered_linear.choice import version
from isoflop_kernels.gathered_linear.gates import check_range, gate_backward
from isoflop_kernels.gathered_linear.groups import cut, sort_by_row
from isoflop_kernels.gathered_linear.registered import Dtypes, added_up, register
from isoflop_kernels.gathered_linear.triton_kernels import (
    INTERPRETED,
    combine_kernel,
    dot_kernel,
    expert_kernel,
    reduce_kernel,
)
from isoflop_kernels.precision import compute_dtype


def _forward(
    x_TD: Tensor,
    idx_TCK: Tensor,
    score_TCK: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    activation: str,
    gate_order: str,
) -> tuple[Tensor, Tensor]:
    """Return the output and h; float64, which is for checks and not for speed, is the bag's."""
    if compute_dtype(x_TD, score_TCK, w_in, w_out) == torch.float64:
        return bag._forward(x_TD, idx_TCK, score_TCK, w_in, w_out, activation, gate_order)
    if x_TD.device.type == "cpu" and not INTERPRETED:
        triton_config.refuse_cpu()
    if idx_TCK.device.type == "cpu":
        check_range(idx_TCK, w_in.shape[1])
    x_TD, idx_TCK, w_in = x_TD.contiguous(), idx_TCK.contiguous(), w_in.contiguous()
    score_TCK = score_TCK.contiguous()
    with triton_config.launching(x_TD.device):
        if version(x_TD, idx_TCK, w_in, w_out) == "v2":
            names = (activation, gate_order)
            h_TCK, z_TCK = triton_v2.forward(x_TD, idx_TCK, score_TCK, w_in, names)
        else:
            h_TCK, z_TCK = _dot(x_TD, w_in, idx_TCK, score_TCK, activation, gate_order)
        return _combine(w_out.contiguous(), idx_TCK, z_TCK, x_TD), h_TCK


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
    """Return gradients of x, score, w_in and w_out; empty where `need` is false."""
    tensors = (dy_TD, x_TD, idx_TCK, score_TCK, w_in, w_out, h_TCK)
    names = (activation, gate_order)
    if h_TCK.dtype == torch.float64:
        return bag._backward(*tensors, *names, need, dtypes)
    *_, need_in, need_out = need
    # Sums are float32 in the kernels; the store rounds them to these types and no other.
    dw_in = w_in.new_empty(w_in.shape if need_in else 0, dtype=dtypes[0])
    dw_out = w_out.new_empty(w_out.shape if need_out else 0, dtype=dtypes[1])
    dx, dscore = _gradients(tensors, names, need, (dw_in, dw_out), add=False)
    return dx, dscore, dw_in, dw_out


def _add_backward(
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
    sums: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """Return gradients of x and score; add those of w_in and w_out to `sums`."""
    tensors = (dy_TD, x_TD, idx_TCK, score_TCK, w_in, w_out, h_TCK)
    names = (activation, gate_order)
    if h_TCK.dtype == torch.float64:
        return added_up(bag._backward)(*tensors, *names, need, sums)
    return _gradients(tensors, names, need, sums, add=True)


gathered_linear = register("gathered_linear_triton", _forward, _backward, _add_backward)


def _gradients(
    tensors: tuple[Tensor, ...],
    names: tuple[str, str],
    need: Sequence[bool],
    into: tuple[Tensor, Tensor],
    *,
    add: bool,
) -> tuple[Tensor, Tensor]:
    """Return gradients of x and score, empty where `need` is false; fill or add to the tables'."""
    dy_TD, x_TD, idx_TCK, score_TCK, w_in, w_out, h_TCK = tensors
    if x_TD.device.type == "cpu" and not INTERPRETED:
        triton_config.refuse_cpu()
    dy_TD, x_TD, idx_TCK = dy_TD.contiguous(), x_TD.contiguous(), idx_TCK.contiguous()
    score_TCK, h_TCK = score_TCK.contiguous(), h_TCK.contiguous()
    w_out = w_out.contiguous()
    two = version(x_TD, idx_TCK, w_in, w_out) == "v2"
    choices = triton_v2.backward if two else _choices_backward
    need_x, need_score, *_ = need
    with triton_config.launching(x_TD.device):
        dh_TCK, dscore = choices(
            dy_TD, x_TD, idx_TCK, score_TCK, w_out, h_TCK, into, names, need, add
        )
        dx = _combine(w_in.contiguous(), idx_TCK, dh_TCK, x_TD) if need_x else x_TD.new_empty(0)
    dscore = dscore.to(score_TCK.dtype) if need_score else score_TCK.new_empty(0)
    return dx, dscore


def _choices_backward(
    dy_TD: Tensor,
    x_TD: Tensor,
    idx_TCK: Tensor,
    score_TCK: Tensor,
    w_out: Tensor,
    h_TCK: Tensor,
    into: tuple[Tensor, Tensor],
    names: tuple[str, str],
    need: Sequence[bool],
    add: bool,
) -> tuple[Tensor, Tensor]:
    """Return gradients of h and score, undefined where `need` is false; fill those of tables.

    With ``add``, those of tables are added to what is there.
    """
    need_x, need_score, need_in, need_out = need
    need_dz = need_x or need_score or need_in
    need_tables = need_in or need_out
    fused = need_tables and triton_config.gathers_whole_rows(_arch(x_TD), x_TD.shape[1])
    dz_TCK = h_TCK
    if need_dz and not fused:
        dz_TCK, _ = _dot(dy_TD, w_out, idx_TCK)
    if not need_tables:
        dh_TCK, dscore = gate_backward(dz_TCK, h_TCK, score_TCK.float(), *names)
        return dh_TCK, dscore
    mode = ("gather" if fused else "load") if need_dz else "none"
    return _experts(
        dy_TD,
        x_TD,
        idx_TCK,
        score_TCK,
        w_out,
        h_TCK,
        dz_TCK,
        into,
        names,
        (mode, need_in, need_out, add),
    )


def _dot(
    x_TD: Tensor,
    w: Tensor,
    idx_TCK: Tensor,
    score_TCK: Tensor | None = None,
    activation: str = "identity",
    gate_order: str = "gate_then_act",
) -> tuple[Tensor, Tensor]:
    """Return dot products h and, given scores, z; otherwise h twice."""
    num_tokens, num_channels, num_chosen = idx_TCK.shape
    width = x_TD.shape[1]
    h_TCK = x_TD.new_empty(idx_TCK.shape, dtype=torch.float32)
    z_TCK = h_TCK if score_TCK is None else torch.empty_like(h_TCK)
    launch = triton_config.dot(_arch(x_TD), width, num_chosen)
    dot_kernel[num_tokens, num_channels](
        x_TD,
        w,
        idx_TCK,
        h_TCK if score_TCK is None else score_TCK,
        h_TCK,
        z_TCK,
        num_channels,
        width,
        _table_rows(w),
        K=num_chosen,
        BK=launch.BK,
        BD=launch.BD,
        ACTIVATION=activation,
        GATE_ORDER=gate_order,
        WITH_Z=score_TCK is not None,
        num_warps=launch.num_warps,
    )
    return h_TCK, z_TCK


def _combine(w: Tensor, idx_TCK: Tensor, z_TCK: Tensor, like_TD: Tensor) -> Tensor:
    """Sum of each token's chosen rows of `w`, weighted by z, in the dtype of `like_TD`."""
    num_tokens, num_channels, num_chosen = idx_TCK.shape
    width = like_TD.shape[1]
    y_TD = torch.empty_like(like_TD)
    launch = triton_config.combine(_arch(w), width, num_chosen)
    combine_kernel[num_tokens, _slices(width, launch)](
        w,
        idx_TCK,
        z_TCK,
        y_TD,
        num_channels,
        width,
        _table_rows(w),
        K=num_chosen,
        BK=launch.BK,
        BD=launch.BD,
        num_warps=launch.num_warps,
    )
    return y_TD


def _experts(
    dy_TD: Tensor,
    x_TD: Tensor,
    idx_TCK: Tensor,
    score_TCK: Tensor,
    w_out: Tensor,
    h_TCK: Tensor,
    dz_TCK: Tensor,
    into: tuple[Tensor, Tensor],
    names: tuple[str, str],
    wanted: tuple[str, bool, bool, bool],
) -> tuple[Tensor, Tensor]:
    """Return gradients of h and the score; fill those of w_in and w_out that are wanted."""
    mode, with_in, with_out, add = wanted
    width, num_rows = x_TD.shape[1], w_out.shape[0] * w_out.shape[1]
    arch = _arch(x_TD)
    order_N, start_R1 = sort_by_row(idx_TCK, w_out.shape[0], w_out.shape[1])
    per_token = idx_TCK.shape[1] * idx_TCK.shape[2]
    size = triton_config.chunk_size(idx_TCK.numel(), num_rows)
    chunks = cut(start_R1, size, idx_TCK.numel())
    dh_TCK, dscore_TCK = torch.empty_like(h_TCK), torch.empty_like(score_TCK)
    dw_in, dw_out = into
    split = idx_TCK.numel() > chunks.size
    partial = h_TCK.new_empty(chunks.num_slots if split else 0, 2, width)
    launch = triton_config.expert(arch, width, gather=mode == "gather")
    expert_kernel[chunks.owner_S.shape[0], _slices(width, launch)](
        x_TD,
        dy_TD,
        w_out,
        h_TCK,
        score_TCK,
        dz_TCK,
        order_N,
        chunks.start_R1,
        chunks.first_R1,
        chunks.slot_R,
        chunks.owner_S,
        dh_TCK,
        dscore_TCK,
        dw_in,
        dw_out,
        partial,
        num_rows,
        per_token,
        per_token // w_out.shape[0],
        w_out.shape[1],
        width,
        chunks.size,
        BJ=launch.BJ,
        BD=launch.BD,
        DZ=mode,
        WITH_IN=with_in,
        WITH_OUT=with_out,
        ADD=add,
        ACTIVATION=names[0],
        GATE_ORDER=names[1],
        num_warps=launch.num_warps,
    )
    if split:
        launch = triton_config.reduce(arch, width)
        reduce_kernel[num_rows, _slices(width, launch)](
            chunks.first_R1,
            chunks.slot_R,
            partial,
            dw_in,
            dw_out,
            width,
            BD=launch.BD,
            WITH_IN=with_in,
            WITH_OUT=with_out,
            ADD=add,
            num_warps=launch.num_warps,
        )
    return dh_TCK, dscore_TCK


def _arch(tensor: Tensor) -> str:
    return triton_config.architecture_of(tensor.device)


def _table_rows(w: Tensor) -> int:
    """Return rows from one channel's table to the next: none where they share it."""
    return w.shape[1] if w.shape[0] > 1 else 0


def _slices(width: int, launch: triton_config.Launch) -> int:
    return -(-width // launch.BD)

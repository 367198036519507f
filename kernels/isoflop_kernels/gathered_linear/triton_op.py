"""The operator in Triton, for GPUs: launches the kernels and registers the torch operation.

    forward    dot_kernel      h and z, one channel of one token per program
               combine_kernel  y, one slice of one token per program
    backward   expert_kernel   dz, dh, dscore, dw_in, dw_out: choices sorted by expert, so that a
                               program keeps its expert's row and streams tokens past it
               reduce_kernel   adds up experts so popular that they were split
               combine_kernel  dx

Per choice the forward pass gathers two rows and the backward pass three: x, dy and the input row.
"""

# T tokens, D width, C channels, K experts chosen per channel, N = T * C * K choices,
# R rows of all tables together, S chunks of sorted choices

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from isoflop_kernels import triton_config
from isoflop_kernels.gathered_linear import bag
from isoflop_kernels.gathered_linear.gates import flat_rows, gate_backward
from isoflop_kernels.gathered_linear.ranges import check_range
from isoflop_kernels.gathered_linear.registered import register
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
    """The output and h; float64, which is for checks and not for speed, is the bag's."""
    if compute_dtype(x_TD, score_TCK, w_in, w_out) == torch.float64:
        return bag._forward(x_TD, idx_TCK, score_TCK, w_in, w_out, activation, gate_order)
    if x_TD.device.type == "cpu" and not INTERPRETED:
        triton_config.refuse_cpu()
    if idx_TCK.device.type == "cpu":
        check_range(idx_TCK, w_in.shape[1])
    x_TD, idx_TCK, w_in = x_TD.contiguous(), idx_TCK.contiguous(), w_in.contiguous()
    with triton_config.launching(x_TD.device):
        h_TCK, z_TCK = _dot(x_TD, w_in, idx_TCK, score_TCK.contiguous(), activation, gate_order)
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, score, w_in and w_out; empty where `need` is false."""
    names = (activation, gate_order)
    if h_TCK.dtype == torch.float64:
        return bag._backward(dy_TD, x_TD, idx_TCK, score_TCK, w_in, w_out, h_TCK, *names, need)
    if x_TD.device.type == "cpu" and not INTERPRETED:
        triton_config.refuse_cpu()
    need_x, need_score, need_in, need_out = need
    dy_TD, x_TD, idx_TCK = dy_TD.contiguous(), x_TD.contiguous(), idx_TCK.contiguous()
    score_TCK, h_TCK = score_TCK.contiguous(), h_TCK.contiguous()
    w_out = w_out.contiguous()
    need_dz = need_x or need_score or need_in
    need_tables = need_in or need_out
    fused = need_tables and triton_config.gathers_whole_rows(_arch(x_TD), x_TD.shape[1])
    dz_TCK = h_TCK
    with triton_config.launching(x_TD.device):
        if need_dz and not fused:
            dz_TCK, _ = _dot(dy_TD, w_out, idx_TCK)
        if need_tables:
            mode = ("gather" if fused else "load") if need_dz else "none"
            dh_TCK, dscore, dw_in, dw_out = _experts(
                dy_TD,
                x_TD,
                idx_TCK,
                score_TCK,
                w_in,
                w_out,
                h_TCK,
                dz_TCK,
                names,
                (mode, need_in, need_out),
            )
        else:
            dh_TCK, dscore = gate_backward(dz_TCK, h_TCK, score_TCK.float(), *names)
            dw_in, dw_out = w_in.new_empty(0), w_out.new_empty(0)
        dx = _combine(w_in.contiguous(), idx_TCK, dh_TCK, x_TD) if need_x else x_TD.new_empty(0)
    dscore = dscore.to(score_TCK.dtype) if need_score else score_TCK.new_empty(0)
    return dx, dscore, dw_in, dw_out


gathered_linear = register("gathered_linear_triton", _forward, _backward)


def _dot(
    x_TD: Tensor,
    w: Tensor,
    idx_TCK: Tensor,
    score_TCK: Tensor | None = None,
    activation: str = "identity",
    gate_order: str = "gate_then_act",
) -> tuple[Tensor, Tensor]:
    """Dot products h and, given scores, z; otherwise h twice."""
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


@dataclasses.dataclass(frozen=True, slots=True)
class _Chunks:
    """Choices sorted by table row and cut into chunks, on the device and without asking it.

    Row r owns the sorted choices start[r] to start[r + 1] and the chunks first[r] to first[r + 1],
    at least one; a row of several owns as many slots from slot[r] on.
    """

    order_N: Tensor
    start_R1: Tensor
    first_R1: Tensor
    slot_R: Tensor
    row_S: Tensor
    size: int
    num_slots: int


def _chunks(idx_TCK: Tensor, w: Tensor) -> _Chunks:
    num_rows = w.shape[0] * w.shape[1]
    row_N = flat_rows(idx_TCK.int(), w.shape[0], w.shape[1]).reshape(-1)
    num_choices = row_N.shape[0]
    size = triton_config.chunk_size(num_choices, num_rows)
    sorted_N, order_N = torch.sort(row_N, stable=True)
    boundary_R1 = torch.arange(num_rows + 1, dtype=torch.int32, device=row_N.device)
    start_R1 = torch.searchsorted(sorted_N, boundary_R1, out_int32=True)
    needed_R = (start_R1.diff() + (size - 1)).div(size, rounding_mode="floor").clamp_(min=1)
    first_R1 = torch.zeros_like(start_R1)
    torch.cumsum(needed_R, 0, dtype=torch.int32, out=first_R1[1:])
    slots_R = torch.where(needed_R > 1, needed_R, 0)
    slot_R = (slots_R.cumsum(0) - slots_R).int()
    # Rounding up adds less than one chunk per row, and an empty row has one.
    chunk_S = torch.arange(num_choices // size + num_rows, dtype=torch.int32, device=row_N.device)
    row_S = torch.searchsorted(first_R1[1:], chunk_S, right=True, out_int32=True)
    # A row that is split has more than `size` choices, so its chunks are at most twice as many as
    # its choices would fill.
    return _Chunks(order_N, start_R1, first_R1, slot_R, row_S, size, 2 * num_choices // size)


def _experts(
    dy_TD: Tensor,
    x_TD: Tensor,
    idx_TCK: Tensor,
    score_TCK: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    h_TCK: Tensor,
    dz_TCK: Tensor,
    names: tuple[str, str],
    wanted: tuple[str, bool, bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of h, the score, w_in and w_out, the last two empty where not wanted."""
    mode, with_in, with_out = wanted
    width, num_rows = x_TD.shape[1], w_out.shape[0] * w_out.shape[1]
    arch = _arch(x_TD)
    chunks = _chunks(idx_TCK, w_out)
    dh_TCK, dscore_TCK = torch.empty_like(h_TCK), torch.empty_like(score_TCK)
    dw_in = w_in.new_empty(w_in.shape if with_in else 0)
    dw_out = w_out.new_empty(w_out.shape if with_out else 0)
    split = idx_TCK.numel() > chunks.size
    partial = h_TCK.new_empty(chunks.num_slots if split else 0, 2, width)
    launch = triton_config.expert(arch, width, gather=mode == "gather")
    expert_kernel[chunks.row_S.shape[0], _slices(width, launch)](
        x_TD,
        dy_TD,
        w_out,
        h_TCK,
        score_TCK,
        dz_TCK,
        chunks.order_N,
        chunks.start_R1,
        chunks.first_R1,
        chunks.slot_R,
        chunks.row_S,
        dh_TCK,
        dscore_TCK,
        dw_in,
        dw_out,
        partial,
        num_rows,
        idx_TCK.shape[1] * idx_TCK.shape[2],
        width,
        chunks.size,
        BJ=launch.BJ,
        BD=launch.BD,
        DZ=mode,
        WITH_IN=with_in,
        WITH_OUT=with_out,
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
            num_warps=launch.num_warps,
        )
    return dh_TCK, dscore_TCK, dw_in, dw_out


def _arch(tensor: Tensor) -> str:
    return triton_config.architecture_of(tensor.device)


def _table_rows(w: Tensor) -> int:
    """Rows from one channel's table to the next: none where they share it."""
    return w.shape[1] if w.shape[0] > 1 else 0


def _slices(width: int, launch: triton_config.Launch) -> int:
    return -(-width // launch.BD)

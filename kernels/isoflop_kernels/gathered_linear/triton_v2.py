"""v2 of the operator's Triton passes: launches the kernels of `triton_v2_kernels.py`.

    forward    group_dot_kernel    h and z, by pairs of a token's channel and a group
    backward   group_dot_kernel    dh, dscore and z
               group_table_kernel  dw_in, dw_out, one launch each
               reduce_kernel       adds up groups so popular that they were split

y and dx stay the weighted sums of v1.
"""

# T tokens, D width, C channels, K experts chosen per channel, N = T * C * K choices

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from isoflop_kernels import triton_config
from isoflop_kernels.gathered_linear.gates import gate
from isoflop_kernels.gathered_linear.groups import Chunks, Groups, by_group, cut
from isoflop_kernels.gathered_linear.triton_kernels import INTERPRETED, reduce_kernel
from isoflop_kernels.gathered_linear.triton_v2_kernels import group_dot_kernel, group_table_kernel

# Places in a slot of partial sums, as `reduce_kernel` reads them.
IN, OUT = 0, 1


def forward(
    x_TD: Tensor, idx_TCK: Tensor, score_TCK: Tensor, w_in: Tensor, names: tuple[str, str]
) -> tuple[Tensor, Tensor]:
    """Return dot products h and weights z of the output rows; arguments are contiguous."""
    groups = by_group(idx_TCK, w_in.shape[0], w_in.shape[1])
    h_TCK = score_TCK.new_empty(score_TCK.shape, dtype=torch.float32)
    z_TCK = torch.empty_like(h_TCK)
    _dot(groups, x_TD, w_in, score_TCK, h_TCK, z_TCK, names, gradients=None)
    return h_TCK, z_TCK


def backward(
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
    groups = by_group(idx_TCK, w_out.shape[0], w_out.shape[1])
    dh_TCK, dscore_TCK = torch.empty_like(h_TCK), torch.empty_like(score_TCK)
    if need_x or need_score or need_in:
        z_TCK = torch.empty_like(h_TCK)
        _dot(groups, dy_TD, w_out, score_TCK, h_TCK, z_TCK, names, gradients=(dh_TCK, dscore_TCK))
    else:
        z_TCK = gate(h_TCK, score_TCK.float(), *names)
    dw_in, dw_out = into
    if need_in or need_out:
        _tables(groups, (x_TD, dh_TCK, dw_in), (dy_TD, z_TCK, dw_out), need[2:], add)
    return dh_TCK, dscore_TCK


def _dot(
    groups: Groups,
    x_TD: Tensor,
    w: Tensor,
    score_TCK: Tensor,
    h_TCK: Tensor,
    z_TCK: Tensor,
    names: tuple[str, str],
    *,
    gradients: tuple[Tensor, Tensor] | None,
) -> None:
    """Fill h and z; or, given where gradients go, read h and fill z and those of h and score."""
    arch, width = triton_config.architecture_of(x_TD.device), x_TD.shape[1]
    launch = triton_config.group_dot(arch, width, groups.num_keys, score_TCK.shape[2])
    chunks = cut(groups.start_G1, launch.BM, score_TCK.numel(), at_least=0)
    dh_TCK, dscore_TCK = gradients or (h_TCK, score_TCK)
    group_dot_kernel[chunks.owner_S.shape[0],](
        x_TD,
        w,
        h_TCK,
        score_TCK,
        groups.order_N,
        groups.column_N,
        groups.first_P1,
        groups.token_P,
        groups.start_G1,
        chunks.first_R1,
        chunks.owner_S,
        z_TCK,
        dh_TCK,
        dscore_TCK,
        chunks.slot_R.shape[0],
        width,
        groups.num_keys,
        BM=launch.BM,
        BN=launch.BN,
        BK=launch.BK,
        BD=launch.BD,
        ACTIVATION=names[0],
        GATE_ORDER=names[1],
        BACKWARD=gradients is not None,
        UPCAST=INTERPRETED,
        num_warps=launch.num_warps,
    )


def _tables(
    groups: Groups,
    into_in: tuple[Tensor, Tensor, Tensor],
    into_out: tuple[Tensor, Tensor, Tensor],
    need: Sequence[bool],
    add: bool,
) -> None:
    """Fill the gradients of the tables that are needed, given tokens, weights and where it goes."""
    arch, width = triton_config.architecture_of(into_in[0].device), into_in[0].shape[1]
    num_choices, num_groups = groups.order_N.shape[0], groups.start_G1.shape[0] - 1
    chunks = cut(
        groups.start_G1, triton_config.group_chunk_size(num_choices, num_groups), num_choices
    )
    split = num_choices > chunks.size
    group_size = groups.num_keys * width
    partial = into_in[1].new_empty(chunks.num_slots if split else 0, 2, group_size)
    for table, tensors in ((IN, into_in), (OUT, into_out)):
        if need[table]:
            _table(groups, chunks, *tensors, partial, table, add)
    if split:
        launch = triton_config.group_reduce(arch, group_size)
        reduce_kernel[num_groups, -(-group_size // launch.BD)](
            chunks.first_R1,
            chunks.slot_R,
            partial,
            into_in[2],
            into_out[2],
            group_size,
            BD=launch.BD,
            WITH_IN=need[IN],
            WITH_OUT=need[OUT],
            ADD=add,
            num_warps=launch.num_warps,
        )


def _table(
    groups: Groups,
    chunks: Chunks,
    rows_TD: Tensor,
    weight_TCK: Tensor,
    dw: Tensor,
    partial: Tensor,
    table: int,
    add: bool,
) -> None:
    """Fill one table's gradient, or its partial sums."""
    arch, width = triton_config.architecture_of(rows_TD.device), rows_TD.shape[1]
    launch = triton_config.group_table(arch, width, groups.num_keys)
    group_table_kernel[chunks.owner_S.shape[0], -(-width // launch.BD)](
        rows_TD,
        weight_TCK.reshape(-1).index_select(0, groups.order_N),
        groups.column_N,
        groups.first_P1,
        groups.token_P,
        groups.start_G1,
        chunks.first_R1,
        chunks.slot_R,
        chunks.owner_S,
        dw,
        partial,
        chunks.slot_R.shape[0],
        width,
        groups.num_keys,
        chunks.size,
        TABLE=table,
        ADD=add,
        BM=launch.BM,
        BN=launch.BN,
        BD=launch.BD,
        UPCAST=INTERPRETED,
        num_warps=launch.num_warps,
    )

"""Plain torch, differentiated by autograd: the definition that the other implementations meet."""

# T tokens, D width, C channels, K experts chosen per channel, M = C * K, E experts per table

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from isoflop_kernels.gathered_linear.gates import check_range, flat_rows, gate
from isoflop_kernels.precision import autocast_disabled, compute_dtype


def gathered_linear(
    x_TD: Tensor,
    idx_TCK: Tensor,
    score_TCK: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    activation: str,
    gate_order: str,
    rows: tuple[Tensor, Tensor] | None = None,
    sums: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Gather both rows of every chosen expert, then two batched matrix products.

    Materialises 2 * T * C * K * D numbers, so it suits small shapes. Its matrix products are what
    the FLOP formula counts: 4 T C K D forward, 8 T C K D more backward.
    """
    # In a trace and in fake tensors there are no values to look at.
    has_values = type(idx_TCK) is Tensor and not torch.compiler.is_compiling()
    if idx_TCK.device.type == "cpu" and has_values:
        check_range(idx_TCK, w_in.shape[1])
    rows_in, rows_out = rows or (None, None)
    if sums is not None:
        w_in, w_out = _AddTo.apply(w_in, sums[0]), _AddTo.apply(w_out, sums[1])
    dtype = compute_dtype(x_TD, score_TCK, *(rows or (w_in, w_out)))
    num_tokens, width = x_TD.shape
    rows_TM = flat_rows(idx_TCK.long(), w_in.shape[0], w_in.shape[1])
    with autocast_disabled(x_TD.device):
        # Widened before the gather, so that its gradient, a sum per row, is taken in this type too.
        in_TMD = _widened(w_in, rows_in, dtype).flatten(0, 1)[rows_TM]
        out_TMD = _widened(w_out, rows_out, dtype).flatten(0, 1)[rows_TM]
        h_TM = (in_TMD @ x_TD.to(dtype).view(num_tokens, width, 1)).squeeze(2)
        z_TM = gate(h_TM, score_TCK.to(dtype).flatten(1), activation, gate_order)
        y_TD = (z_TM.unsqueeze(1) @ out_TMD).squeeze(1)
    return y_TD.to(x_TD.dtype)


def _widened(w: Tensor, rows: Tensor | None, dtype: torch.dtype) -> Tensor:
    if rows is None:
        return w.to(dtype)
    read: Tensor = _ReadAs.apply(w, rows.to(dtype))
    return read


class _ReadAs(torch.autograd.Function):
    """The values of the rows, whose gradients are those of the table; so it has no other output."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, rows: Tensor) -> Tensor:
        ctx.dtype = w.dtype
        return rows.view_as(rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.to(ctx.dtype), None


class _AddTo(torch.autograd.Function):
    """The table itself, whose gradient is added to a tensor and goes no further."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, total: Tensor) -> Tensor:
        ctx.total = total
        return w.view_as(w)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None]:
        ctx.total.add_(grad)
        return None, None

"""Registration shared by all fused implementations: fake tensors, gradients and FLOP formulas.

An implementation brings two functions, forward and backward, with the signatures below; it becomes
one differentiable torch operation that compiles, counts its FLOPs and passes `opcheck`.
"""

# T tokens, D width, C channels, K experts chosen per channel

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from isoflop_kernels.gathered_linear.flops import backward_flops, forward_flops
from isoflop_kernels.precision import compute_dtype

FORWARD_SCHEMA = (
    "(Tensor x, Tensor idx, Tensor score, Tensor w_in, Tensor w_out, str activation, "
    "str gate_order, Tensor? rows_in=None, Tensor? rows_out=None, Tensor? sum_in=None, "
    "Tensor? sum_out=None) -> (Tensor y, Tensor h)"
)
BACKWARD_SCHEMA = (
    "(Tensor dy, Tensor x, Tensor idx, Tensor score, Tensor rows_in, Tensor rows_out, Tensor h, "
    "str activation, str gate_order, bool[] need, ScalarType? in_dtype=None, "
    "ScalarType? out_dtype=None) -> (Tensor, Tensor, Tensor, Tensor)"
)
SUM_SCHEMA = (
    "(Tensor dy, Tensor x, Tensor idx, Tensor score, Tensor rows_in, Tensor rows_out, Tensor h, "
    "str activation, str gate_order, bool[] need, Tensor(a!) sum_in, Tensor(b!) sum_out) -> "
    "(Tensor, Tensor)"
)

Rows = tuple[Tensor, Tensor]
Dtypes = tuple[torch.dtype, torch.dtype]
Operator = Callable[..., Tensor]


def register(
    name: str,
    forward: Callable[..., tuple[Tensor, Tensor]],
    backward: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]],
    add_backward: Callable[..., tuple[Tensor, Tensor]] | None = None,
) -> Operator:
    """Register `isoflop_kernels::NAME`, `isoflop_kernels::NAME_backward` and `…_backward_sum`.

    The tables that an implementation gets are those it reads: `rows` where they are given. These
    are what the backward pass keeps, and the gradients of w_in and w_out have their own dtypes.

    Args:
        name: of the forward operation.
        forward: the tensors, activation and gate order to y [T, D] in the dtype of x, and
            h [T, C, K] in the dtype of the arithmetic, which is kept for the backward pass.
        backward: dy, the same tensors, h, activation, gate order, which of the gradients of x,
            score, w_in and w_out are needed, and the dtypes of the last two, to those gradients;
            empty where not needed.
        add_backward: the same with, in place of the dtypes, a pair of tensors that the gradients of
            w_in and w_out are added to, to those of x and score; None: made of `backward`.

    Returns:
        The operation without its second output; arguments are those of the public operator.
    """
    forward_op = torch.library.custom_op(
        f"isoflop_kernels::{name}", _forward_of(forward), mutates_args=(), schema=FORWARD_SCHEMA
    )
    backward_op = torch.library.custom_op(
        f"isoflop_kernels::{name}_backward",
        _backward_of(backward),
        mutates_args=(),
        schema=BACKWARD_SCHEMA,
    )
    sum_op = torch.library.custom_op(
        f"isoflop_kernels::{name}_backward_sum",
        _sum_of(add_backward or added_up(backward)),
        mutates_args=("sum_in", "sum_out"),
        schema=SUM_SCHEMA,
    )
    forward_op.register_fake(_forward_fake)
    backward_op.register_fake(_backward_fake)
    sum_op.register_fake(_sum_fake)
    namespace = torch.ops.isoflop_kernels
    register_flop_formula(getattr(namespace, name))(forward_flops)
    for each in (f"{name}_backward", f"{name}_backward_sum"):
        register_flop_formula(getattr(namespace, each))(backward_flops)

    forward_op.register_autograd(_derivative(backward_op, sum_op), setup_context=_setup_context)

    def gathered_linear(
        x_TD: Tensor,
        idx_TCK: Tensor,
        score_TCK: Tensor,
        w_in: Tensor,
        w_out: Tensor,
        activation: str,
        gate_order: str,
        rows: Rows | None = None,
        sums: Rows | None = None,
    ) -> Tensor:
        tensors = (x_TD, idx_TCK, score_TCK, w_in, w_out)
        others = (*(rows or (None, None)), *(sums or (None, None)))
        y_TD, _ = forward_op(*tensors, activation, gate_order, *others)
        return y_TD

    return gathered_linear


def _derivative(
    backward_op: Callable[..., Any], sum_op: Callable[..., Any]
) -> Callable[..., tuple[Any, ...]]:
    """Return the derivative of a forward operation by its backward operations."""

    def differentiate(ctx: Any, dy_TD: Tensor | None, dh_TCK: Tensor | None) -> tuple[Any, ...]:
        needs = ctx.needs_input_grad
        need = [needs[0], *needs[2:5]]
        if dy_TD is None or not any(need):
            return (None,) * 11
        if ctx.sums is None:
            grads = backward_op(dy_TD, *ctx.saved_tensors, *ctx.gate, need, *ctx.dtypes)
        else:
            dx, dscore = sum_op(dy_TD, *ctx.saved_tensors, *ctx.gate, need, *ctx.sums)
            grads, need = (dx, dscore, None, None), [*need[:2], False, False]
        dx, dscore, dw_in, dw_out = (
            grad if needed else None for grad, needed in zip(grads, need, strict=True)
        )
        return dx, None, dscore, dw_in, dw_out, *(None,) * 6

    return differentiate


def _forward_of(forward: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Any]:
    """Return the forward operation of an implementation: it is given the tables that are read."""

    def forward_of_rows(
        x_TD: Tensor,
        idx_TCK: Tensor,
        score_TCK: Tensor,
        w_in: Tensor,
        w_out: Tensor,
        activation: str,
        gate_order: str,
        rows_in: Tensor | None = None,
        rows_out: Tensor | None = None,
        sum_in: Tensor | None = None,
        sum_out: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        read_in, read_out = _tables_read(w_in, w_out, rows_in, rows_out)
        return forward(x_TD, idx_TCK, score_TCK, read_in, read_out, activation, gate_order)

    return forward_of_rows


def _backward_of(
    backward: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]],
) -> Callable[..., Any]:
    """Return the backward operation of an implementation, whose gradients' types are settled."""

    def backward_of_rows(
        dy_TD: Tensor,
        x_TD: Tensor,
        idx_TCK: Tensor,
        score_TCK: Tensor,
        rows_in: Tensor,
        rows_out: Tensor,
        h_TCK: Tensor,
        activation: str,
        gate_order: str,
        need: Sequence[bool],
        in_dtype: torch.dtype | None = None,
        out_dtype: torch.dtype | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        tensors = (dy_TD, x_TD, idx_TCK, score_TCK, rows_in, rows_out, h_TCK)
        dtypes = (in_dtype or rows_in.dtype, out_dtype or rows_out.dtype)
        return backward(*tensors, activation, gate_order, need, dtypes)

    return backward_of_rows


def added_up(
    backward: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]],
) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return a backward pass that adds the tables' gradients, once made, to sums."""

    def add_backward(*args: Any) -> tuple[Tensor, Tensor]:
        *others, need, sums = args
        dx, dscore, *tables = backward(*others, need, (sums[0].dtype, sums[1].dtype))
        for total, table, needed in zip(sums, tables, need[2:], strict=True):
            if needed:
                total.add_(table)
        return dx, dscore

    return add_backward


def _sum_of(add_backward: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Any]:
    """Return the backward operation of an implementation that adds to sums."""

    def backward_to_sums(*args: Any) -> tuple[Tensor, Tensor]:
        *others, sum_in, sum_out = args
        return add_backward(*others, (sum_in, sum_out))

    return backward_to_sums


def _tables_read(
    w_in: Tensor, w_out: Tensor, rows_in: Tensor | None, rows_out: Tensor | None
) -> Rows:
    return (w_in if rows_in is None else rows_in, w_out if rows_out is None else rows_out)


def _forward_fake(
    x_TD: Tensor,
    idx_TCK: Tensor,
    score_TCK: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    activation: str,
    gate_order: str,
    rows_in: Tensor | None = None,
    rows_out: Tensor | None = None,
    sum_in: Tensor | None = None,
    sum_out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    dtype = compute_dtype(x_TD, score_TCK, *_tables_read(w_in, w_out, rows_in, rows_out))
    return x_TD.new_empty(x_TD.shape), x_TD.new_empty(idx_TCK.shape, dtype=dtype)


def _backward_fake(
    dy_TD: Tensor,
    x_TD: Tensor,
    idx_TCK: Tensor,
    score_TCK: Tensor,
    rows_in: Tensor,
    rows_out: Tensor,
    h_TCK: Tensor,
    activation: str,
    gate_order: str,
    need: Sequence[bool],
    in_dtype: torch.dtype | None = None,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    inputs = (x_TD, score_TCK, rows_in, rows_out)
    dtypes = (None, None, in_dtype, out_dtype)
    dx, dscore, dw_in, dw_out = (
        t.new_empty(t.shape if needed else 0, dtype=dtype or t.dtype)
        for t, needed, dtype in zip(inputs, need, dtypes, strict=True)
    )
    return dx, dscore, dw_in, dw_out


def _sum_fake(*args: Any) -> tuple[Tensor, Tensor]:
    *others, _, _ = args
    dx, dscore, _, _ = _backward_fake(*others)
    return dx, dscore


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x_TD, idx_TCK, score_TCK, w_in, w_out, activation, gate_order, *others = inputs
    rows_in, rows_out, sum_in, sum_out = others
    _, h_TCK = output
    ctx.mark_non_differentiable(h_TCK)
    ctx.set_materialize_grads(False)
    tables = _tables_read(w_in, w_out, rows_in, rows_out)
    ctx.save_for_backward(x_TD, idx_TCK, score_TCK, *tables, h_TCK)
    ctx.gate = (activation, gate_order)
    ctx.dtypes = (w_in.dtype, w_out.dtype)
    # Not saved for the backward pass: tensors that are may not change before it.
    ctx.sums = None if sum_in is None else (sum_in, sum_out)

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
    "str gate_order) -> (Tensor y, Tensor h)"
)
BACKWARD_SCHEMA = (
    "(Tensor dy, Tensor x, Tensor idx, Tensor score, Tensor w_in, Tensor w_out, Tensor h, "
    "str activation, str gate_order, bool[] need) -> (Tensor, Tensor, Tensor, Tensor)"
)

Operator = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, str, str], Tensor]


def register(
    name: str,
    forward: Callable[..., tuple[Tensor, Tensor]],
    backward: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]],
) -> Operator:
    """Register `isoflop_kernels::NAME` and `isoflop_kernels::NAME_backward`.

    Args:
        name: of the forward operation.
        forward: the tensors, activation and gate order to y [T, D] in the dtype of x, and
            h [T, C, K] in the dtype of the arithmetic, which is kept for the backward pass.
        backward: dy, the same tensors, h, activation, gate order and which of the gradients of x,
            score, w_in and w_out are needed, to those gradients; empty where not needed.

    Returns:
        The operation without its second output; arguments are those of the public operator.
    """
    forward_op = torch.library.custom_op(
        f"isoflop_kernels::{name}", forward, mutates_args=(), schema=FORWARD_SCHEMA
    )
    backward_op = torch.library.custom_op(
        f"isoflop_kernels::{name}_backward", backward, mutates_args=(), schema=BACKWARD_SCHEMA
    )
    forward_op.register_fake(_forward_fake)
    backward_op.register_fake(_backward_fake)
    namespace = torch.ops.isoflop_kernels
    register_flop_formula(getattr(namespace, name))(forward_flops)
    register_flop_formula(getattr(namespace, f"{name}_backward"))(backward_flops)

    def differentiate(ctx: Any, dy_TD: Tensor | None, dh_TCK: Tensor | None) -> tuple[Any, ...]:
        needs = ctx.needs_input_grad
        need = [needs[0], *needs[2:5]]
        if dy_TD is None or not any(need):
            return (None,) * 7
        grads = backward_op(dy_TD, *ctx.saved_tensors, *ctx.gate, need)
        dx, dscore, dw_in, dw_out = (
            grad if needed else None for grad, needed in zip(grads, need, strict=True)
        )
        return dx, None, dscore, dw_in, dw_out, None, None

    forward_op.register_autograd(differentiate, setup_context=_setup_context)

    def gathered_linear(
        x_TD: Tensor,
        idx_TCK: Tensor,
        score_TCK: Tensor,
        w_in: Tensor,
        w_out: Tensor,
        activation: str,
        gate_order: str,
    ) -> Tensor:
        y_TD, _ = forward_op(x_TD, idx_TCK, score_TCK, w_in, w_out, activation, gate_order)
        return y_TD

    return gathered_linear


def _forward_fake(
    x_TD: Tensor,
    idx_TCK: Tensor,
    score_TCK: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    activation: str,
    gate_order: str,
) -> tuple[Tensor, Tensor]:
    dtype = compute_dtype(x_TD, score_TCK, w_in, w_out)
    return x_TD.new_empty(x_TD.shape), x_TD.new_empty(idx_TCK.shape, dtype=dtype)


def _backward_fake(
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
    inputs = (x_TD, score_TCK, w_in, w_out)
    dx, dscore, dw_in, dw_out = (
        t.new_empty(t.shape if needed else 0) for t, needed in zip(inputs, need, strict=True)
    )
    return dx, dscore, dw_in, dw_out


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, activation, gate_order = inputs
    _, h_TCK = output
    ctx.mark_non_differentiable(h_TCK)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, h_TCK)
    ctx.gate = (activation, gate_order)

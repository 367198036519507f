"""The public operator: validates its arguments, then calls the chosen implementation."""

# T tokens, D width, C channels, K experts chosen per channel, Ct tables (C, or 1 shared),
# E experts per table

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from isoflop_kernels import dispatch
from isoflop_kernels.gathered_linear import bag, cpp, reference
from isoflop_kernels.gathered_linear.gates import ACTIVATIONS, GATE_ORDERS, check_range
from isoflop_kernels.precision import FLOAT_DTYPES


def _triton(*args: Any) -> Tensor:
    from isoflop_kernels.gathered_linear import triton_op

    return triton_op.gathered_linear(*args)


_IMPLEMENTATIONS = {
    "reference": reference.gathered_linear,
    "bag": bag.gathered_linear,
    "cpp": cpp.gathered_linear,
    "triton": _triton,
}


def gathered_linear(
    x_TD: Tensor,
    idx_TCK: Tensor,
    score_TCK: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    activation: str = "identity",
    gate_order: str = "gate_then_act",
    rows: tuple[Tensor, Tensor] | None = None,
    sums: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Run each token through the linear experts that were chosen for it.

    For every token, channel c and choice k, with e = idx[c, k]:

        h = <x, w_in[c, e]>      z = act(h * score) or act(h) * score      y += z * w_out[c, e]

    Arithmetic is float32, or float64 if anything read is float64; autocast changes nothing inside.
    A softmax over the scores is the caller's. Not differentiable twice.
    Source: section "Sparsely gated linear" of arXiv 2606.07414; PEER (arXiv 2407.04153) is
    `w_in`, `w_out` of one shared table, `gelu_tanh` and `act_then_gate`.

    Args:
        x_TD: tokens, [T, D]; T may be 0, which gives gradients of zeros.
        idx_TCK: expert numbers within their table, [T, C, K], int32 or int64; repeats add up.
        score_TCK: gate of each choice, [T, C, K].
        w_in: input rows, [C, E, D], or [1, E, D] when all channels share one table.
        w_out: output rows, the same shape as `w_in`.
        activation: identity, relu, gelu_tanh or silu.
        gate_order: gate_then_act for act(h * score), act_then_gate for act(h) * score.
        rows: `w_in` and `w_out` as they are read, forward and backward, for example rounded to
            bfloat16, which halves what a pass gathers. They have no gradients: those of the
            tables go to `w_in` and `w_out`, in their dtypes and not rounded to that of the rows.
        sums: tensors like `w_in` and `w_out` that the backward pass adds their gradients to, in
            place; `w_in` and `w_out` are given none then. For steps of several micro-batches: a
            dense gradient of each, and its sum with the others, take twice the bytes.

    Returns:
        y_TD in the dtype of `x_TD`; gradients come in the dtype of their argument.

    Raises:
        ValueError: a shape, dtype, device or name does not fit; an expert number is out of range
            (always checked on CPU in eager code, everywhere when ISOFLOP_KERNELS_DEBUG=1).
        NotImplementedError: forward-mode differentiation of another implementation than
            "reference".
    """
    _check_names(activation, gate_order)
    _check_shapes(x_TD, idx_TCK, score_TCK, w_in, w_out)
    _check_dtypes(idx_TCK, x_TD=x_TD, score_TCK=score_TCK, w_in=w_in, w_out=w_out)
    if rows is not None:
        rows = _checked_rows(idx_TCK, w_in, *rows)
    if sums is not None:
        _check_sums(w_in, *sums)
    if dispatch.debug():
        check_range(idx_TCK, w_in.shape[1])
    # Without tokens there is nothing to launch, and plain torch knows what the gradients are.
    nothing = x_TD.shape[0] == 0
    name = "reference" if nothing else dispatch.implementation(x_TD.device.type)
    if name != "reference":
        _refuse_forward_mode(name, x_TD, score_TCK, w_in, w_out)
    run = _IMPLEMENTATIONS[name]
    return run(x_TD, idx_TCK, score_TCK, w_in, w_out, activation, gate_order, rows, sums)


def _check_sums(w_in: Tensor, *sums: Tensor) -> None:
    for name, total in zip(("sums[0]", "sums[1]"), sums, strict=True):
        if total.shape != w_in.shape or not total.is_contiguous() or total.requires_grad:
            raise ValueError(
                f"{name}: must have shape {list(w_in.shape)}, be contiguous and need no gradient"
            )


def _refuse_forward_mode(name: str, *tensors: Tensor) -> None:
    """Raise if a tensor has a tangent: torch would take that of a registered operator for zero."""
    if torch.compiler.is_compiling():
        return
    if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
        raise NotImplementedError(
            f"gathered_linear by {name!r} has no forward-mode derivative (torch.func.jvp): "
            "use_implementation('reference') has one"
        )


def _check_names(activation: str, gate_order: str) -> None:
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation = {activation!r}: must be one of {', '.join(ACTIVATIONS)}")
    if gate_order not in GATE_ORDERS:
        raise ValueError(f"gate_order = {gate_order!r}: must be one of {', '.join(GATE_ORDERS)}")


def _check_shapes(
    x_TD: Tensor, idx_TCK: Tensor, score_TCK: Tensor, w_in: Tensor, w_out: Tensor
) -> None:
    shapes = {"x_TD": x_TD, "idx_TCK": idx_TCK, "w_in": w_in}
    for (name, tensor), num_dims in zip(shapes.items(), (2, 3, 3), strict=True):
        # There may be no tokens.
        sizes = tensor.shape if name == "w_in" else tensor.shape[1:]
        if tensor.dim() != num_dims or 0 in sizes:
            raise ValueError(
                f"{name} has shape {list(tensor.shape)}: must have {num_dims} axes, none of size 0"
            )
    expected = {
        "idx_TCK": (idx_TCK, [x_TD.shape[0], *idx_TCK.shape[1:]]),
        "score_TCK": (score_TCK, list(idx_TCK.shape)),
        "w_in": (
            w_in,
            [1 if w_in.shape[0] == 1 else idx_TCK.shape[1], w_in.shape[1], x_TD.shape[1]],
        ),
        "w_out": (w_out, list(w_in.shape)),
    }
    for name, (tensor, shape) in expected.items():
        if list(tensor.shape) != shape:
            raise ValueError(f"{name} has shape {list(tensor.shape)}: must be {shape}")
    if max(idx_TCK.numel(), w_in.shape[0] * w_in.shape[1]) >= 2**31:
        raise ValueError(
            "idx_TCK and the table rows must each number less than 2**31: split tokens"
        )


def _checked_rows(
    idx_TCK: Tensor, w_in: Tensor, rows_in: Tensor, rows_out: Tensor
) -> tuple[Tensor, Tensor]:
    for name, tensor in (("rows[0]", rows_in), ("rows[1]", rows_out)):
        if tensor.shape != w_in.shape:
            raise ValueError(
                f"{name} has shape {list(tensor.shape)}: must be {list(w_in.shape)} as w_in is"
            )
    _check_dtypes(idx_TCK, **{"rows[0]": rows_in, "rows[1]": rows_out})
    return rows_in.detach(), rows_out.detach()


def _check_dtypes(idx_TCK: Tensor, **floats: Tensor) -> None:
    if idx_TCK.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"idx_TCK is {idx_TCK.dtype}: must be torch.int32 or torch.int64")
    for name, tensor in floats.items():
        if tensor.dtype not in FLOAT_DTYPES:
            raise ValueError(f"{name} is {tensor.dtype}: must be one of {FLOAT_DTYPES}")
        if tensor.device != idx_TCK.device:
            raise ValueError(f"{name} is on {tensor.device}: must be on {idx_TCK.device}")

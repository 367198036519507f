"""One matrix product per group of rows: torch's grouped product on GPUs, a loop elsewhere.

Letters: R rows sorted by group, E groups, I and O the widths of a row before and after.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import flop_registry, register_flop_formula


def grouped_linear(x_RI: Tensor, weight_EIO: Tensor, bias_EO: Tensor, group_R: Tensor) -> Tensor:
    """Return each row times its group's matrix plus its group's bias, in autocast's type: [R, O].

    ``group_R`` is each row's group, int32, ascending.
    A group without rows costs nothing and its gradients are 0. All sums, gradients' too, have a
    fixed order. In bf16 on GPUs nothing waits for the sizes of the groups.
    """
    device = x_RI.device.type
    if device == "meta":
        # Shapes do not say how many rows a group has.
        return _uncompiled(x_RI, weight_EIO, bias_EO, group_R)
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x_RI, weight_EIO, bias_EO = x_RI.to(dtype), weight_EIO.to(dtype), bias_EO.to(dtype)
    if device == "cuda" and fits_grouped_mm(x_RI.dtype, *weight_EIO.shape[1:]):
        return one_product(x_RI, weight_EIO, bias_EO, group_R)
    return product_loop(x_RI, weight_EIO, bias_EO, group_R)


def fits_grouped_mm(dtype: torch.dtype, *widths: int) -> bool:
    """Return whether torch has a kernel of its own for this: bf16, rows that start on 16 bytes."""
    return dtype == torch.bfloat16 and all(width * 2 % 16 == 0 for width in widths)


def one_product(x_RI: Tensor, weight_EIO: Tensor, bias_EO: Tensor, group_R: Tensor) -> Tensor:
    """Return all groups in one `grouped_mm`, which takes float32 too, but as a loop of its own."""
    return _OneProduct.apply(x_RI, weight_EIO, bias_EO, group_R)


def product_loop(x_RI: Tensor, weight_EIO: Tensor, bias_EO: Tensor, group_R: Tensor) -> Tensor:
    """Return one product per group that has rows."""
    if torch.compiler.is_compiling():
        return _uncompiled(x_RI, weight_EIO, bias_EO, group_R)
    return _ProductLoop.apply(x_RI, weight_EIO, bias_EO, _groups(group_R, len(weight_EIO)))


class _OneProduct(torch.autograd.Function):
    """With a gradient of its own: torch's takes neither every layout nor, on all GPUs, no rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, group: Tensor) -> Tensor:
        numbers = torch.arange(len(weight), dtype=group.dtype, device=group.device)
        ends = torch.searchsorted(group, numbers, right=True, out_int32=True)
        ctx.save_for_backward(x, weight, group, ends)
        return F.grouped_mm(x, weight, offs=ends) + bias.index_select(0, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, group, ends = ctx.saved_tensors
        grad = grad.contiguous()
        grad_x = F.grouped_mm(grad, weight.mT, offs=ends)
        # Some GPUs write anything where a group has no rows (pytorch issue #172439).
        empty_E = ends.diff(prepend=ends.new_zeros(1)) == 0
        grad_weight = F.grouped_mm(x.T, grad, offs=ends).masked_fill(empty_E[:, None, None], 0)
        # Adds rows in order and in float32, where index_add uses atomics.
        grad_bias = torch.ops.aten.embedding_dense_backward(grad, group, len(weight), -1, False)
        return grad_x, grad_weight, grad_bias, None


class _ProductLoop(torch.autograd.Function):
    """A group without rows is neither read nor computed."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: list[tuple[int, slice]]
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.groups = groups
        return _products(x, weight, bias, groups)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        return (*_gradients(grad, x, weight, ctx.groups), None)


def _products(x: Tensor, weight: Tensor, bias: Tensor, groups: list[tuple[int, slice]]) -> Tensor:
    out = x.new_empty(x.shape[0], weight.shape[2])
    for group, rows in groups:
        torch.addmm(bias[group], x[rows], weight[group], out=out[rows])
    return out


def _gradients(
    grad: Tensor, x: Tensor, weight: Tensor, groups: list[tuple[int, slice]]
) -> tuple[Tensor, Tensor, Tensor]:
    grad_x = torch.empty_like(x)
    grad_weight = torch.zeros_like(weight)
    grad_bias = weight.new_zeros(weight.shape[0], weight.shape[2])
    for group, rows in groups:
        torch.mm(grad[rows], weight[group].T, out=grad_x[rows])
        torch.mm(x[rows].T, grad[rows], out=grad_weight[group])
        torch.sum(grad[rows], 0, out=grad_bias[group])
    return grad_x, grad_weight, grad_bias


# The same as two operators that torch.compile does not look into: the sizes of the groups depend on
# the tokens, so that it would break its graph at them and compile again for others.
@torch.library.custom_op(
    "isoflop::product_loop",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor bias, Tensor group) -> Tensor",
)
def _uncompiled(x: Tensor, weight: Tensor, bias: Tensor, group: Tensor) -> Tensor:
    return _products(x, weight, bias, _groups(group, len(weight)))


@torch.library.custom_op(
    "isoflop::product_loop_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor x, Tensor weight, Tensor group) -> (Tensor, Tensor, Tensor)",
)
def _uncompiled_backward(
    grad: Tensor, x: Tensor, weight: Tensor, group: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return _gradients(grad, x, weight, _groups(group, len(weight)))


@_uncompiled.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, group: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[2])


@_uncompiled_backward.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, group: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    grad_bias = weight.new_empty(weight.shape[0], weight.shape[2])
    return torch.empty_like(x), torch.empty_like(weight), grad_bias


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    x, weight, _, group = inputs
    ctx.save_for_backward(x, weight, group)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    x, weight, group = ctx.saved_tensors
    return (*_uncompiled_backward(grad.contiguous(), x, weight, group), None)


_uncompiled.register_autograd(_differentiate, setup_context=_keep)


@register_flop_formula(torch.ops.isoflop.product_loop)
def _product_loop_flops(
    x_shape: tuple[int, ...], weight_shape: tuple[int, ...], *args: object, **kwargs: object
) -> int:
    """Return multiplications and additions of all rows, each times the matrix of its group."""
    return 2 * x_shape[0] * weight_shape[1] * weight_shape[2]


@register_flop_formula(torch.ops.isoflop.product_loop_backward)
def _product_loop_backward_flops(
    grad_shape: tuple[int, ...],
    x_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    *args: object,
    **kwargs: object,
) -> int:
    """Return those of the gradients of the rows and of the matrices."""
    return 2 * _product_loop_flops(x_shape, weight_shape)


def _groups(group_R: Tensor, num_groups: int) -> list[tuple[int, slice]]:
    """Group number and rows of each group that has any; this waits for a GPU."""
    groups, start = [], 0
    for group, size in enumerate(torch.bincount(group_R, minlength=num_groups).tolist()):
        if size:
            groups.append((group, slice(start, start + size)))
        start += size
    return groups


def grouped_mm_flops(
    a_shape: tuple[int, ...], b_shape: tuple[int, ...], *args: object, **kwargs: object
) -> int:
    """Return multiplications and additions of a grouped product of rows, or columns by groups."""
    rows, inner = a_shape
    return 2 * rows * inner * b_shape[-1]


if torch.ops.aten._grouped_mm not in flop_registry:
    register_flop_formula(torch.ops.aten._grouped_mm)(grouped_mm_flops)

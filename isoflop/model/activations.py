"""The activations of the families: gelu in its tanh form, and the clamped GLU of swiglu and moe."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

GELU_CUBIC = 0.044715
GELU_SLOPE = 2.0 * math.sqrt(2.0 / math.pi)
GLU_LIMIT = 7.0
GLU_SLOPE = 1.702


def gelu_tanh(x: Tensor) -> Tensor:
    """Return x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3))), elementwise."""
    if x.is_cuda:
        return F.gelu(x, approximate="tanh")
    return _SigmoidForm.apply(x)


class _SigmoidForm(torch.autograd.Function):
    """The same function as x * sigmoid(u), u = 2 sqrt(2/pi) * (x + 0.044715 x^3).

    On the CPU torch's sigmoid is three times as fast as its tanh, and the backward pass reuses it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        square = x * x
        gate = (square * (GELU_CUBIC * GELU_SLOPE)).add_(GELU_SLOPE).mul_(x).sigmoid_()
        ctx.save_for_backward(x, square, gate)
        return x * gate

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x, square, gate = ctx.saved_tensors
        # d(x * sigmoid(u)) = gate + gate * (1 - gate) * x u'
        x_slope = (square * (3.0 * GELU_CUBIC * GELU_SLOPE)).add_(GELU_SLOPE).mul_(x)
        return torch.addcmul(gate, gate, gate, value=-1.0).mul_(x_slope).add_(gate).mul_(grad)


def clamped_glu(z: Tensor) -> Tensor:
    """Return gate * sigmoid(1.702 gate) * (linear + 1): gate and linear halve the last axis.

    The gate is cut above 7, the linear half to [-7, 7] (reference implementation, `glu`).

    Args:
        z: [..., 2F], the gate's half first.

    Returns:
        [..., F].
    """
    gate, linear = z.chunk(2, dim=-1)
    # The same function in fewer passes: hardtanh clamps with a cheaper gradient than clamp, and
    # silu(1.702 gate) / 1.702 = gate * sigmoid(1.702 gate).
    gate = F.hardtanh(gate, -math.inf, GLU_LIMIT)
    linear = F.hardtanh(linear, -GLU_LIMIT, GLU_LIMIT)
    return F.silu(GLU_SLOPE * gate) * torch.add(1.0 / GLU_SLOPE, linear, alpha=1.0 / GLU_SLOPE)

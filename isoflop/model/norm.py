"""RMSNorm: scale only, statistics in float32.

Letters: D the normalised width; `...` any leading axes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from isoflop.model.init import Initialiser, constant

EPS = 1e-6


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + 1e-6) * scale over the last axis.

    The result has the input's type; the computation is in float32
    (reference implementation, section "Model").
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(width))

    def initialisers(self) -> Mapping[str, Initialiser]:
        """Return 1 for the scales."""
        return {"scale": constant(1.0)}

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis of ``x`` [..., D]."""
        return _RMSNorm.apply(x.float(), self.scale).to(x.dtype)


def inverse_rms(x: Tensor) -> Tensor:
    """Return 1 / sqrt(mean(x^2) + eps) over the last axis, which is kept with size 1."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return norm.square_().mul_(1.0 / x.shape[-1]).add_(EPS).rsqrt_()


def unnormalise_gradient(grad: Tensor, normed: Tensor, inverse: Tensor) -> Tensor:
    """Turn the gradient of ``normed`` = x * ``inverse`` (inverse_rms) into that of x, in place."""
    dot = (grad * normed).mean(-1, keepdim=True)
    return grad.addcmul_(normed, dot, value=-1.0).mul_(inverse)


class _RMSNorm(torch.autograd.Function):
    """The composite that torch runs on the CPU, with half the passes over memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale_D: Tensor) -> Tensor:
        inverse = inverse_rms(x)
        normed = x * inverse
        ctx.save_for_backward(normed, inverse, scale_D)
        return normed * scale_D

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        normed, inverse, scale_D = ctx.saved_tensors
        grad_scale_D = (grad * normed).flatten(0, -2).sum(0)
        return unnormalise_gradient(grad * scale_D, normed, inverse), grad_scale_D

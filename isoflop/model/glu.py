"""The gated activation of swiglu and of the experts of moe."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LIMIT = 7.0
SLOPE = 1.702


def clamped_glu(z: Tensor) -> Tensor:
    """Gate * sigmoid(1.702 gate) * (linear + 1), with gate and linear the halves of the last axis.

    The gate is cut above 7, the linear half to [-7, 7] (reference implementation, `glu`).

    Args:
        z: [..., 2F], the gate's half first.

    Returns:
        [..., F].
    """
    gate, linear = z.chunk(2, dim=-1)
    # The same function in fewer passes: hardtanh clamps with a cheaper gradient than clamp, and
    # silu(1.702 gate) / 1.702 = gate * sigmoid(1.702 gate).
    gate = F.hardtanh(gate, -math.inf, LIMIT)
    linear = F.hardtanh(linear, -LIMIT, LIMIT)
    return F.silu(SLOPE * gate) * torch.add(1.0 / SLOPE, linear, alpha=1.0 / SLOPE)

"""Dense gated feed-forward, the clamped form of GPT-OSS.

Letters: T tokens, D width, F hidden width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from isoflop.families.swiglu.spec import Config
from isoflop.model.activations import clamped_glu
from isoflop.model.init import Initialiser, constant, trunc_normal


class GatedLinearUnit(nn.Module):
    """glu(x W1 + b1) W2 + b2 (reference implementation, `glu`).

    W1's first F columns make the gate, the last F the linear half.
    """

    def __init__(self, d_model: int, hidden_width: int) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.empty(d_model, 2 * hidden_width))
        self.bias1 = nn.Parameter(torch.empty(2 * hidden_width))
        self.w2 = nn.Parameter(torch.empty(hidden_width, d_model))
        self.bias2 = nn.Parameter(torch.empty(d_model))

    def initialisers(self) -> Mapping[str, Initialiser]:
        """Return draws with standard deviations 1/sqrt(fan-in); biases are 0."""
        return {
            "w1": trunc_normal(self.w1.shape[0] ** -0.5),
            "bias1": constant(0.0),
            "w2": trunc_normal(self.w2.shape[0] ** -0.5),
            "bias2": constant(0.0),
        }

    def forward(self, x_TD: Tensor) -> Tensor:
        """Return [T, D] -> [T, D]."""
        hidden_TF = clamped_glu(torch.addmm(self.bias1, x_TD, self.w1))
        return torch.addmm(self.bias2, hidden_TF, self.w2)


def build(config: Config, d_model: int) -> GatedLinearUnit:
    """Return one feed-forward layer."""
    return GatedLinearUnit(d_model, config.hidden_width)

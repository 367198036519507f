"""Dense feed-forward with gelu.

Letters: T tokens, D width, F hidden width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from isoflop.families.mlp.spec import Config
from isoflop.model.activations import gelu_tanh
from isoflop.model.init import Initialiser, trunc_normal


class MLP(nn.Module):
    """gelu(x W1) W2 with the tanh form of gelu, no biases (reference implementation, `mlp`)."""

    def __init__(self, d_model: int, hidden_width: int) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.empty(d_model, hidden_width))
        self.w2 = nn.Parameter(torch.empty(hidden_width, d_model))

    def initialisers(self) -> Mapping[str, Initialiser]:
        """Return draws with standard deviations 1/sqrt(fan-in)."""
        return {name: trunc_normal(getattr(self, name).shape[0] ** -0.5) for name in ("w1", "w2")}

    def forward(self, x_TD: Tensor) -> Tensor:
        """Return [T, D] -> [T, D]."""
        return gelu_tanh(x_TD @ self.w1) @ self.w2


def build(config: Config, d_model: int) -> MLP:
    """Return one feed-forward layer."""
    return MLP(d_model, config.hidden_width)

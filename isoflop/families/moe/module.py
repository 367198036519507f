"""Coarse mixture of experts: each token runs through the few gated layers it chose.

Letters: T tokens, D width, F hidden width, E experts, K experts chosen per token, R = T * K rows,
one per token and chosen expert, sorted by expert.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from isoflop.families.moe.grouped import grouped_linear
from isoflop.families.moe.spec import Config
from isoflop.model.activations import clamped_glu
from isoflop.model.init import Initialiser, constant, trunc_normal
from isoflop_kernels import stable_topk


class MixtureOfExperts(nn.Module):
    """Softmax over all experts, the top K of them computed and weighted by it, not renormalised.

    An expert is a gated layer as in swiglu; its weight multiplies its output bias too. No
    balancing loss, no capacity limit (reference implementation, `moe`, which computes every
    expert and masks; here only the chosen ones are computed).

    ``gates``, when set, is called in each forward with the chosen experts ``idx_TCK`` (int32) and
    their softmax weights ``score_TCK``, detached; C is 1.
    """

    def __init__(self, d_model: int, num_experts: int, num_active: int, hidden_width: int) -> None:
        super().__init__()
        self.num_active = num_active
        self.gates: Callable[[Tensor, Tensor], None] | None = None
        self.gate = nn.Parameter(torch.empty(d_model, num_experts))
        self.w1 = nn.Parameter(torch.empty(num_experts, d_model, 2 * hidden_width))
        self.bias1 = nn.Parameter(torch.empty(num_experts, 2 * hidden_width))
        self.w2 = nn.Parameter(torch.empty(num_experts, hidden_width, d_model))
        self.bias2 = nn.Parameter(torch.empty(num_experts, d_model))

    def initialisers(self) -> Mapping[str, Initialiser]:
        """Return draws with standard deviations 1/sqrt(fan-in); biases are 0."""
        return {
            "gate": trunc_normal(self.gate.shape[0] ** -0.5),
            "w1": trunc_normal(self.w1.shape[1] ** -0.5),
            "bias1": constant(0.0),
            "w2": trunc_normal(self.w2.shape[1] ** -0.5),
            "bias2": constant(0.0),
        }

    def forward(self, x_TD: Tensor) -> Tensor:
        """Return [T, D] -> [T, D]."""
        weight_TE = torch.softmax(x_TD @ self.gate, dim=-1, dtype=torch.float32)
        score_TK, idx_TK = stable_topk(weight_TE, self.num_active)
        # Narrow integers sort faster.
        idx_TK = idx_TK.int()
        if self.gates is not None:
            self.gates(idx_TK[:, None], score_TK.detach()[:, None])
        y_TKD = self._chosen_experts(x_TD, idx_TK)
        return (y_TKD * score_TK[..., None].to(y_TKD.dtype)).sum(1)

    def _chosen_experts(self, x_TD: Tensor, idx_TK: Tensor) -> Tensor:
        """Return the output of each token's chosen experts [T, K, D], not yet weighted."""
        expert_R, row_of_choice = torch.sort(idx_TK.flatten(), stable=True)
        choice_of_row = torch.empty_like(row_of_choice)
        choice_of_row[row_of_choice] = torch.arange(len(expert_R), device=x_TD.device)
        x_RD = _SortByExpert.apply(x_TD, row_of_choice, choice_of_row, self.num_active)
        hidden_RF = clamped_glu(grouped_linear(x_RD, self.w1, self.bias1, expert_R))
        y_RD = grouped_linear(hidden_RF, self.w2, self.bias2, expert_R)
        return _Permute.apply(y_RD, choice_of_row, row_of_choice).view(*idx_TK.shape, -1)


class _SortByExpert(torch.autograd.Function):
    """Rows of ``x`` repeated K times and sorted; the gradient gathers instead of scattering.

    So the sum over a token's K rows has a fixed order on every device.
    """

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, row_of: Tensor, choice_of: Tensor, k: int) -> Tensor:
        ctx.save_for_backward(choice_of)
        ctx.k = k
        return x_TD.index_select(0, row_of // k)

    @staticmethod
    def backward(ctx: Any, grad_RD: Tensor) -> tuple[Tensor, None, None, None]:
        (choice_of,) = ctx.saved_tensors
        grad_TKD = grad_RD.index_select(0, choice_of).view(-1, ctx.k, grad_RD.shape[1])
        return grad_TKD.sum(1), None, None, None


class _Permute(torch.autograd.Function):
    """``x[order]``, whose gradient gathers by the inverse order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return grad.index_select(0, inverse), None, None


def build(config: Config, d_model: int) -> MixtureOfExperts:
    """Return one feed-forward layer."""
    return MixtureOfExperts(d_model, config.num_experts, config.num_active, config.hidden_width)

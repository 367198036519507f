"""PEER: many single-neuron experts in one table that all channels share.

Letters: T tokens, D width, C channels, K experts chosen per channel, E experts.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from isoflop.families._shared.module import ExpertTables, build_router, softmax_of_sorted
from isoflop.families.peer.spec import ROUTER, Config
from isoflop_kernels import gathered_linear


class PEER(ExpertTables):
    """Sum over channels and neighbours of gelu(<x, w_in>) * softmax_K(score) * w_out.

    Reference implementation, `peer`: the softmax runs over the K experts of a channel, gelu is
    the tanh form and comes before the gate.

    ``gates``, when set, is called in each forward with the chosen experts ``idx_TCK`` (int32) and
    the router's scores ``score_TCK`` (before the softmax), detached. To change the choice, use a
    forward hook on ``router``.
    """

    def __init__(self, config: Config, d_model: int) -> None:
        super().__init__(1, config.num_experts, d_model)
        self.gates: Callable[[Tensor, Tensor], None] | None = None
        self.router = build_router(config, ROUTER, d_model)

    def forward(self, x_TD: Tensor) -> Tensor:
        """Return [T, D] -> [T, D]."""
        x_TD = self.tokens_read(x_TD)
        score_TCK, idx_TCK = self.router(x_TD)
        if self.gates is not None:
            self.gates(idx_TCK, score_TCK.detach())
        weight_TCK = softmax_of_sorted(score_TCK)
        return gathered_linear(
            x_TD,
            idx_TCK,
            weight_TCK,
            self.w_in,
            self.w_out,
            "gelu_tanh",
            "act_then_gate",
            self.rows_read(),
            self.sums,
        )


def build(config: Config, d_model: int) -> PEER:
    """Return one feed-forward layer."""
    return PEER(config, d_model)

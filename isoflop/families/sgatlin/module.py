"""Sparsely gated tiny linear experts: single-neuron experts, one table per channel.

Letters: T tokens, D width, C channels, K experts chosen per channel, E experts per table.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from isoflop.families._shared.module import ExpertTables, build_router, softmax_of_sorted
from isoflop.families.sgatlin.spec import Config
from isoflop_kernels import gathered_linear


class SparselyGatedLinear(ExpertTables):
    """Sum over channels and neighbours of act(<x, w_in> * score) * w_out (arXiv 2606.07414).

    The activation is the identity in the paper; ``gate_order`` says whether it follows the gate.
    With the gate ``softmax``, scores pass a softmax over the K experts of a channel first; with
    ``shared`` tables, all channels choose from one.

    ``gates``, when set, is called in each forward with the chosen experts ``idx_TCK`` (int32) and
    the router's scores ``score_TCK`` (before a softmax), detached. To change the choice, use a
    forward hook on ``router``.
    """

    def __init__(self, config: Config, d_model: int) -> None:
        super().__init__(config.num_tables, config.num_experts, d_model)
        self.gates: Callable[[Tensor, Tensor], None] | None = None
        # Replaced where several devices share the tables: isoflop.train.parallel.channel.
        self.run_experts: Callable[..., Tensor] = gathered_linear
        self.activation = config.activation
        self.gate_order = config.gate_order
        self.gate = config.gate
        self.router = build_router(config, config.router, d_model)

    def forward(self, x_TD: Tensor) -> Tensor:
        """Return [T, D] -> [T, D]."""
        x_TD = self.tokens_read(x_TD)
        score_TCK, idx_TCK = self.router(x_TD)
        if self.gates is not None:
            self.gates(idx_TCK, score_TCK.detach())
        weight_TCK = softmax_of_sorted(score_TCK) if self.gate == "softmax" else score_TCK
        return self.run_experts(
            x_TD,
            idx_TCK,
            weight_TCK,
            self.w_in,
            self.w_out,
            self.activation,
            self.gate_order,
            self.rows_read(),
            self.sums,
        )


def build(config: Config, d_model: int) -> SparselyGatedLinear:
    """Return one feed-forward layer."""
    return SparselyGatedLinear(config, d_model)

"""The experts that move a token's residual stream most, by the length of what each adds to it.

Letters: T tokens, D width, C channels, K experts chosen per channel, J = C * K, S strongest kept,
E experts of a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isoflop.interpret.attribution import trace
from isoflop.interpret.linear import TinyExperts, contributions, layers_of, rows_of
from isoflop.model.transformer import Transformer

# Contributions that exist at once, in numbers.
_CHUNK = 2**24


@dataclass(frozen=True, kw_only=True, slots=True)
class Strongest:
    """Of each token of a layer the experts with the largest contributions, largest first."""

    layer: int
    channel_TS: NDArray[np.int64]
    expert_TS: NDArray[np.int64]
    """In the table of the channel."""
    share_TS: NDArray[np.float32]
    """Length of the contribution over the sum of the lengths of all experts of the layer."""
    is_negative_TS: NDArray[np.bool_]
    """Whether the contribution points against the expert's w_out."""


def strongest_experts(
    model: Transformer, input_T: NDArray[np.int32], layers: Sequence[int], num: int
) -> list[Strongest]:
    """Of some layers, after one pass over a window from its begin token on.

    Raises:
        UserError: the model's experts are no single neurons.
    """
    traced = trace(model, torch.from_numpy(input_T.astype(np.int64))[None])
    modules = layers_of(model)
    return [
        _of_layer(
            layer, modules[layer], traced.x[layer], traced.idx[layer], traced.score[layer], num
        )
        for layer in layers
    ]


def _of_layer(
    layer: int, module: TinyExperts, x_TD: Tensor, idx_TCK: Tensor, score_TCK: Tensor, num: int
) -> Strongest:
    size = max(1, _CHUNK // (idx_TCK[0].numel() * x_TD.shape[1]))
    pieces = zip(x_TD.split(size), idx_TCK.split(size), score_TCK.split(size), strict=True)
    parts = [_lengths(module, *piece) for piece in pieces]
    length_TJ, negative_TJ = (torch.cat(part) for part in zip(*parts, strict=True))
    order_TS = length_TJ.topk(min(num, length_TJ.shape[1]), dim=1).indices
    # All are zero where a layer writes nothing.
    total_T1 = length_TJ.sum(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return Strongest(
        layer=layer,
        channel_TS=(order_TS // idx_TCK.shape[2]).numpy(),
        expert_TS=idx_TCK.flatten(1).long().gather(1, order_TS).numpy(),
        share_TS=(length_TJ / total_T1).gather(1, order_TS).numpy(),
        is_negative_TS=negative_TJ.gather(1, order_TS).numpy(),
    )


def _lengths(
    module: TinyExperts, x_TD: Tensor, idx_TCK: Tensor, score_TCK: Tensor
) -> tuple[Tensor, Tensor]:
    """Return lengths of the contributions [T, J], and whether they point against w_out."""
    added_TCKD = contributions(module, x_TD, idx_TCK, score_TCK)
    along_TCK = (added_TCKD * rows_of(module.w_out, idx_TCK)).sum(-1)
    return added_TCKD.norm(dim=-1).flatten(1), (along_TCK < 0).flatten(1)

"""Given its gates a layer of sgatlin is linear: its matrix, and what each expert adds.

Letters: T tokens, D width, C channels, K experts chosen per channel, M = C * K, E experts per
table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from isoflop.errors import UserError
from isoflop.families._shared.module import softmax_of_sorted
from isoflop.families.peer.module import PEER
from isoflop.families.sgatlin.module import SparselyGatedLinear
from isoflop.model.transformer import Transformer
from isoflop.tables import schema_of
from isoflop_kernels.gathered_linear.gates import gate

TinyExperts = SparselyGatedLinear | PEER

# Of matrices or contributions in memory at a time.
_CHUNK_NUMBERS = 2**24


def layers_of(model: Transformer) -> list[TinyExperts]:
    """Return the feed-forward layers of a model with single-neuron experts.

    Raises:
        UserError: its family has other experts, or none.
    """
    layers = [block.feedforward for block in model.blocks]
    for layer in layers:
        if not isinstance(layer, SparselyGatedLinear | PEER):
            raise UserError(
                "family",
                type(layer).__name__,
                "sgatlin or peer, whose experts are single neurons",
                "choose another run",
            )
    return layers  # type: ignore[return-value]


def is_linear(layer: TinyExperts) -> bool:
    """Return whether a layer is linear while its gates are held."""
    return _activation(layer)[0] == "identity"


def _activation(layer: TinyExperts) -> tuple[str, str]:
    """Return the activation's name, and whether it follows the gate or comes before it."""
    if isinstance(layer, PEER):
        return "gelu_tanh", "act_then_gate"
    return layer.activation, layer.gate_order


def check_linear(layer: TinyExperts) -> None:
    """Refuse a layer that is not linear even with its gates held.

    Raises:
        UserError: its experts have an activation other than the identity.
    """
    if not is_linear(layer):
        raise UserError(
            "activation",
            _activation(layer)[0],
            "identity: with another one a layer is not linear, whatever its gates",
            "use the contributions of its experts, which add up to its output for any activation",
        )


def effective_matrix(layer: TinyExperts, idx_TCK: Tensor, score_TCK: Tensor) -> Tensor:
    """Return the matrix [T, D, D] with y = matrix @ x while gates are held (paper, section 4.4).

    Sum over channels and neighbours of weight * w_out w_in^T. Takes D * D numbers per token.

    Raises:
        UserError: the layer is not linear.
    """
    check_linear(layer)
    weight_TCK = weights_of(layer, score_TCK)
    in_TCKD, out_TCKD = (rows_of(table, idx_TCK) for table in (layer.w_in, layer.w_out))
    weighted_TMD = (weight_TCK[..., None] * out_TCKD).flatten(1, 2)
    return weighted_TMD.transpose(1, 2) @ in_TCKD.flatten(1, 2)


def contributions(layer: TinyExperts, x_TD: Tensor, idx_TCK: Tensor, score_TCK: Tensor) -> Tensor:
    """Return what each chosen expert adds to the output, [T, C, K, D]; for any activation."""
    in_TCKD, out_TCKD = (rows_of(table, idx_TCK) for table in (layer.w_in, layer.w_out))
    hidden_TCK = torch.einsum("td,tckd->tck", x_TD, in_TCKD)
    z_TCK = gate(hidden_TCK, weights_of(layer, score_TCK), *_activation(layer))
    return z_TCK[..., None] * out_TCKD


def weights_of(layer: TinyExperts, score_TCK: Tensor) -> Tensor:
    """Return the experts' weights: the scores, or their softmax over those of a channel."""
    raw = isinstance(layer, SparselyGatedLinear) and layer.gate == "raw"
    return score_TCK if raw else softmax_of_sorted(score_TCK)


def rows_of(table: Tensor, idx_TCK: Tensor) -> Tensor:
    """Return rows [T, C, K, D] of a table [tables, E, D]: one table per channel, or one for all."""
    channel_C1 = torch.arange(idx_TCK.shape[1])[:, None]
    return table[channel_C1 % len(table), idx_TCK.long()]


@dataclass(frozen=True, kw_only=True, slots=True)
class Linearity:
    """How far a layer's output is from its parts, at the worst token.

    Distances are over the root mean square of all tokens' outputs: where the parts of one token
    cancel, float32 leaves few digits of its own output.
    """

    layer: int
    num_tokens: int
    matrix_error: float | None
    """Distance of y and matrix @ x; None: the layer is not linear."""
    sum_error: float
    """Distance of y and the sum of the experts' contributions."""


LINEARITY = schema_of("linearity", Linearity)


def linearity(
    model: Transformer,
    x: Sequence[Tensor],
    y: Sequence[Tensor],
    idx: Sequence[Tensor],
    score: Sequence[Tensor],
) -> list[Linearity]:
    """Check every layer on traced tokens (isoflop.interpret.attribution.trace)."""
    return [
        _linearity(number, layer, *seen)
        for number, (layer, *seen) in enumerate(
            zip(layers_of(model), x, y, idx, score, strict=True)
        )
    ]


def _linearity(
    number: int, layer: TinyExperts, x_TD: Tensor, y_TD: Tensor, idx_TCK: Tensor, score_TCK: Tensor
) -> Linearity:
    linear, width = is_linear(layer), x_TD.shape[1]
    size = max(1, _CHUNK_NUMBERS // (width * max(width, idx_TCK[0].numel())))
    by_matrix, by_sum = [], []
    for x, idx, score in zip(
        x_TD.split(size), idx_TCK.split(size), score_TCK.split(size), strict=True
    ):
        by_sum.append(contributions(layer, x, idx, score).sum((1, 2)))
        if linear:
            by_matrix.append((effective_matrix(layer, idx, score) @ x[..., None]).squeeze(2))
    return Linearity(
        layer=number,
        num_tokens=len(x_TD),
        matrix_error=_worst(torch.cat(by_matrix), y_TD) if linear else None,
        sum_error=_worst(torch.cat(by_sum), y_TD),
    )


def _worst(found_TD: Tensor, y_TD: Tensor) -> float:
    distance_T = torch.linalg.vector_norm(found_TD - y_TD, dim=1)
    return float(distance_T.max() / torch.linalg.vector_norm(y_TD, dim=1).square().mean().sqrt())

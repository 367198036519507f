"""What a page shows of tokens and experts, measured in bounded memory.

For a token: the experts that move its residual stream most, by the length of what each adds to it,
and the recorded tokens whose gates are most like its own. For an expert: where in the recording it
was chosen with its highest scores, and what it writes, the tokens whose logits its output weights
raise or lower directly. That path runs from w_out past all later layers through the output norm and
the unembedding; the norm divides all logits of a token by one number, which changes no order.

Letters: T tokens, D width, V vocabulary, C channels, K experts chosen per channel, J = C * K, E
experts of a table, S strongest kept or candidate choices, N experts or neighbours, R rows of a
piece of the gates, Q shown tokens, P tokens of the sample, M columns of the gate matrix.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from isoflop.data.tokenizers import PAD_ID
from isoflop.interpret.attribution import trace
from isoflop.interpret.geometry.neighbours import BLOCK_ROWS, in_order, unit_rows
from isoflop.interpret.geometry.patterns import Ints, read_patterns, sample_tokens, token_rows
from isoflop.interpret.linear import TinyExperts, contributions, layers_of, rows_of
from isoflop.interpret.load import GateShape
from isoflop.interpret.recording import GateRows, RecordedTokens
from isoflop.model.transformer import Transformer

Candidates = tuple[Ints, NDArray[np.float32], Ints]
"""Keys, scores and tokens of choices, each [S]."""
Found = list[tuple[float, int]]
"""(cosine, token) of neighbours, nearest first."""
# Contributions or logits that exist at once, in numbers.
_CHUNK_NUMBERS = 2**24


@dataclass(frozen=True, kw_only=True, slots=True)
class Strongest:
    """The experts of a layer with the largest contributions at each token, largest first."""

    layer: int
    channel_TS: NDArray[np.int64]
    expert_TS: NDArray[np.int64]
    """Places in the table of the channel."""
    share_TS: NDArray[np.float32]
    """Length of the contribution over the sum of the lengths of all experts of the layer."""
    is_negative_TS: NDArray[np.bool_]
    """Whether the contribution points against the expert's w_out."""


def strongest_experts(
    model: Transformer, input_T: NDArray[np.int32], layers: Sequence[int], num: int
) -> list[Strongest]:
    """Return the strongest experts of some layers, from one pass over a window.

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
    size = max(1, _CHUNK_NUMBERS // (idx_TCK[0].numel() * x_TD.shape[1]))
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


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertKeys:
    """One number for each expert of a model: (layer · tables + table) · experts + expert."""

    shape: GateShape
    shared: bool
    """Whether all channels choose from one table of a layer."""

    def of(self, layer: Ints | int, channel: Ints, expert: Ints) -> Ints:
        """Return keys of experts that channels chose; the arguments broadcast."""
        table = np.zeros_like(channel) if self.shared else channel
        return (layer * self._num_tables + table) * self.shape.num_experts + expert

    def name(self, key: int) -> tuple[int, int, int]:
        """Return (layer, table, expert) of a key."""
        place, expert = divmod(key, self.shape.num_experts)
        return *divmod(place, self._num_tables), expert

    @property
    def _num_tables(self) -> int:
        return 1 if self.shared else self.shape.num_channels


def find_contexts(
    pieces: Iterable[GateRows], keys: ExpertKeys, wanted: Ints, num_contexts: int
) -> dict[int, list[int]]:
    """Return the tokens at which each wanted expert had its highest scores, best first.

    At most ``num_contexts`` each.

    Of equal scores the earlier token comes first. Channels that share a table count together.
    """
    best: Candidates = (np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.int64))
    for piece in pieces:
        key_RK = keys.of(
            piece.layer_R[:, None].astype(np.int64),
            piece.channel_R[:, None].astype(np.int64),
            piece.expert_RK.astype(np.int64),
        )
        best = _highest(best, _wanted(key_RK, piece, wanted), num_contexts)
    rows: dict[int, list[int]] = {}
    for key, row in zip(best[0].tolist(), best[2].tolist(), strict=True):
        rows.setdefault(key, []).append(row)
    return rows


def _wanted(key_RK: Ints, piece: GateRows, wanted: Ints) -> Candidates:
    kept_RK = np.isin(key_RK, wanted)
    row_RK = np.broadcast_to(piece.row_R[:, None], key_RK.shape)
    return key_RK[kept_RK], piece.score_RK[kept_RK], row_RK[kept_RK]


def _highest(before: Candidates, found: Candidates, num: int) -> Candidates:
    """Return the ``num`` candidates of each key with the highest scores, by key and score."""
    key_S = np.concatenate([before[0], found[0]])
    score_S = np.concatenate([before[1], found[1]])
    row_S = np.concatenate([before[2], found[2]])
    order_S = np.lexsort((row_S, -score_S, key_S))
    sorted_S = key_S[order_S]
    rank_S = np.arange(sorted_S.size) - np.searchsorted(sorted_S, sorted_S)
    kept_S = order_S[rank_S < num]
    return key_S[kept_S], score_S[kept_S], row_S[kept_S]


@dataclass(frozen=True, kw_only=True, slots=True)
class Neighbours:
    """The neighbours of the shown tokens, in their order."""

    any_token: list[Found]
    other_token: list[Found]
    """Neighbours at which another token was read."""
    num_searched: int
    """Size of the sample."""


def find_neighbours(
    recording: Path,
    tokens: RecordedTokens,
    row_Q: NDArray[np.int64],
    shape: GateShape,
    *,
    num_neighbours: int,
    max_tokens: int,
) -> Neighbours:
    """Find the nearest neighbours of tokens among a sample of whole documents.

    A token is not its own neighbour. Nearness is the cosine of the scores of all layers' experts.
    """
    sample = sample_tokens(recording, max_tokens=max_tokens, seed=0)
    sample_P = tokens.rows(sample.window_P, sample.position_P)
    gates_QM = unit_rows(read_patterns(recording, token_rows(tokens, row_Q), shape).of(None))
    gates_PM = unit_rows(read_patterns(recording, sample, shape).of(None))
    found: list[list[Found]] = [[], []]
    for first in range(0, len(row_Q), BLOCK_ROWS):
        block_Q = row_Q[first : first + BLOCK_ROWS]
        cosine_QP = csr_array(gates_QM[first : first + BLOCK_ROWS] @ gates_PM.T).toarray()
        same_QP = tokens.input_T[block_Q][:, None] == tokens.input_T[sample_P]
        cosine_QP[block_Q[:, None] == sample_P] = -np.inf
        other_QP = np.where(same_QP, -np.inf, cosine_QP)
        for pool, nearness_QP in zip(found, (cosine_QP, other_QP), strict=True):
            near = in_order(nearness_QP, num_neighbours)
            pool += [[(cosine, int(sample_P[at])) for at, cosine in row] for row in near]
    return Neighbours(any_token=found[0], other_token=found[1], num_searched=len(sample_P))


@dataclass(frozen=True, kw_only=True, slots=True)
class Writes:
    """The tokens that a unit of an expert's output moves most."""

    raises: tuple[tuple[int, float], ...]
    """(token, z): z is the change of its logit in standard deviations over the vocabulary."""
    lowers: tuple[tuple[int, float], ...]
    """The same, lowest first."""


def direct_writes(
    w_out_ND: Tensor, scale_D: Tensor, embedding_VD: Tensor, num_tokens: int
) -> list[Writes]:
    """Return the ``num_tokens`` tokens that each expert raises and lowers most; never the pad."""
    size = max(1, _CHUNK_NUMBERS // len(embedding_VD))
    return [
        writes
        for chunk_ND in (w_out_ND * scale_D).split(size)
        for writes in _of_chunk(chunk_ND @ embedding_VD.T, num_tokens)
    ]


def _of_chunk(change_NV: Tensor, num_tokens: int) -> list[Writes]:
    kept_NV = torch.cat([change_NV[:, :PAD_ID], change_NV[:, PAD_ID + 1 :]], dim=1)
    mean_N1 = kept_NV.mean(1, keepdim=True)
    z_NV = (change_NV - mean_N1) / kept_NV.std(1, keepdim=True).clamp_min(1e-30)
    z_NV[:, PAD_ID] = 0.0
    num = min(num_tokens, kept_NV.shape[1])
    highest, lowest = z_NV.topk(num, 1), (-z_NV).topk(num, 1)
    return [
        Writes(
            raises=tuple(zip(up_token, up, strict=True)),
            lowers=tuple(zip(down_token, [-z for z in down], strict=True)),
        )
        for up_token, up, down_token, down in zip(
            highest.indices.tolist(),
            highest.values.tolist(),
            lowest.indices.tolist(),
            lowest.values.tolist(),
            strict=True,
        )
    ]

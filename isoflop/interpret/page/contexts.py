"""Where in a recording each expert was chosen with its highest scores, in bounded memory.

Letters: K experts chosen per channel, R rows of a piece of the gates, S candidate choices.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isoflop.interpret.gates import GateShape
from isoflop.interpret.recording import GateRows

Ints = NDArray[np.int64]
Candidates = tuple[Ints, NDArray[np.float32], Ints]
"""Keys, scores and tokens of choices, each [S]."""


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
    """The ``num_contexts`` tokens at which each wanted expert had its highest scores, those first.

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
    """The ``num`` candidates of each key with the highest scores, sorted by key and score."""
    key_S = np.concatenate([before[0], found[0]])
    score_S = np.concatenate([before[1], found[1]])
    row_S = np.concatenate([before[2], found[2]])
    order_S = np.lexsort((row_S, -score_S, key_S))
    sorted_S = key_S[order_S]
    rank_S = np.arange(sorted_S.size) - np.searchsorted(sorted_S, sorted_S)
    kept_S = order_S[rank_S < num]
    return key_S[kept_S], score_S[kept_S], row_S[kept_S]

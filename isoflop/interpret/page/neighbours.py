"""The recorded tokens whose gates are most like those of the tokens that a page shows.

Letters: Q shown tokens, P tokens of the sample, M columns of the gate matrix, N neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from isoflop.interpret.gates import GateShape
from isoflop.interpret.geometry.patterns import read_patterns, sample_tokens, token_rows
from isoflop.interpret.geometry.similarity import BLOCK_ROWS, unit_rows
from isoflop.interpret.recording import RecordedTokens

Found = list[tuple[float, int]]
"""(cosine, token) of neighbours, nearest first."""

# Cosines that differ by less are equal; the earlier token comes first then.
_DIGITS = 9


@dataclass(frozen=True, kw_only=True, slots=True)
class Neighbours:
    """Of each shown token, in order."""

    any_token: list[Found]
    other_token: list[Found]
    """Those at which another token was read."""
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
    """Looks for the nearest neighbours of tokens among a sample of whole documents.

    A token is not its own neighbour. Nearness is the cosine of the scores of all layers' experts.
    """
    sample = sample_tokens(recording, max_tokens=max_tokens, seed=0)
    sample_P = tokens.rows(sample.window_P, sample.position_P)
    gates_QM = unit_rows(read_patterns(recording, token_rows(tokens, row_Q), shape).all_layers())
    gates_PM = unit_rows(read_patterns(recording, sample, shape).all_layers())
    found: list[list[Found]] = [[], []]
    for first in range(0, len(row_Q), BLOCK_ROWS):
        block_Q = row_Q[first : first + BLOCK_ROWS]
        cosine_QP = csr_array(gates_QM[first : first + BLOCK_ROWS] @ gates_PM.T).toarray()
        same_QP = tokens.input_T[block_Q][:, None] == tokens.input_T[sample_P]
        cosine_QP[block_Q[:, None] == sample_P] = -np.inf
        found[0] += _nearest(cosine_QP, sample_P, num_neighbours)
        found[1] += _nearest(np.where(same_QP, -np.inf, cosine_QP), sample_P, num_neighbours)
    return Neighbours(any_token=found[0], other_token=found[1], num_searched=len(sample_P))


def _nearest(cosine_QP: NDArray[np.float64], sample_P: NDArray[np.int64], num: int) -> list[Found]:
    far_QP = -cosine_QP.round(_DIGITS)
    k = min(num, far_QP.shape[1])
    last_Q = np.partition(far_QP, k - 1, axis=1)[:, k - 1]
    found: list[Found] = []
    for cosine_P, far_P, last in zip(cosine_QP, far_QP, last_Q, strict=True):
        # Only those no farther than the last one wanted are sorted.
        near = np.flatnonzero((far_P <= last) & (far_P < np.inf))
        near = near[np.argsort(far_P[near], kind="stable")][:k]
        found.append(list(zip(cosine_P[near].tolist(), sample_P[near].tolist(), strict=True)))
    return found

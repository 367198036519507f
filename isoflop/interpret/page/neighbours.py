"""The recorded tokens whose gates are most like those of the tokens that a page shows.

Letters: Q shown tokens, P tokens of the sample, M columns of the gate matrix, N neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from isoflop.interpret.geometry.patterns import GateShape, TokenRows, read_patterns, sample_tokens
from isoflop.interpret.geometry.similarity import BLOCK_ROWS, unit_rows
from isoflop.interpret.page.recorded import RecordedTokens

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
    gates_QM = unit_rows(read_patterns(recording, _places(tokens, row_Q), shape).all_layers())
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
    order_QN = np.argsort(-cosine_QP.round(_DIGITS), axis=1, kind="stable")[:, :num]
    found_QN = np.take_along_axis(cosine_QP, order_QN, axis=1)
    return [
        [(cosine, row) for cosine, row in zip(cosines, rows, strict=True) if cosine > -np.inf]
        for cosines, rows in zip(found_QN.tolist(), sample_P[order_QN].tolist(), strict=True)
    ]


def _places(tokens: RecordedTokens, row_Q: NDArray[np.int64]) -> TokenRows:
    return TokenRows(
        document_P=tokens.document_T[row_Q],
        window_P=tokens.window_T[row_Q],
        position_P=tokens.position_T[row_Q].astype(np.int64),
        input_P=tokens.input_T[row_Q].astype(np.int64),
        target_P=tokens.target_T[row_Q].astype(np.int64),
    )

"""The tokens whose gates are most like those of a token, by cosine, some rows at a time.

Letters: P patterns, M columns, Q patterns of one block, K neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, diags_array

from isoflop.arrays import Floats
from isoflop.interpret.geometry.patterns import Ints, Matrix, TokenRows
from isoflop.tables import Schema

AROUND = 5
"""Tokens of an excerpt on either side."""

NEIGHBOURS = Schema(
    table="neighbours",
    columns=(
        ("layer", "int64"),
        ("query", "int64"),
        ("rank", "int64"),
        ("cosine", "float64"),
        ("document", "int64"),
        ("window", "int64"),
        ("position", "int64"),
        ("token", "string"),
        ("before", "string"),
        ("after", "string"),
        ("predicted", "string"),
    ),
)

Text = Callable[[Sequence[int]], str]
"""Successive token ids as text."""
Allowed = Callable[[slice], NDArray[np.bool_]]
"""Says which patterns may be the neighbours of a block of rows [Q, P]."""
BLOCK_ROWS = 512
# Cosines that differ by less are equal: which of them are nearest is drawn, and in a list the
# earlier row comes first.
_EQUAL = 1e-9
_DIGITS = 9


def neighbour_rows(
    matrix_PM: Matrix,
    tokens: TokenRows,
    queries: Sequence[int],
    text: Text,
    predicted: Sequence[int],
    *,
    layer: int | None,
    num_neighbours: int,
) -> list[dict[str, Any]]:
    """Return rows of each query: itself with rank 0, then its nearest by the cosine of gates.

    Args:
        matrix_PM: gates.
        tokens: where each row stands; whole windows in order.
        queries: rows.
        text: the text of token ids.
        predicted: the model's most probable next token at each row.
        layer: that the gates are of; None: all.
        num_neighbours: how many of each query.
    """
    found = _cosines(matrix_PM, queries, num_neighbours)
    rows = []
    for query, near in zip(queries, found, strict=True):
        for rank, (row, cosine) in enumerate([(query, 1.0), *near]):
            place = {"layer": layer, "query": int(query), "rank": rank, "cosine": cosine}
            rows.append({**place, **_shown(tokens, row, text, int(predicted[row]))})
    return rows


def _cosines(matrix: Matrix, queries: Sequence[int], k: int) -> list[list[tuple[int, float]]]:
    """Return (row, cosine) of the nearest others of each query."""
    unit = unit_rows(matrix)
    found = []
    for query in queries:
        product = unit[[query]] @ unit.T
        cosine_QP = np.asarray(product if isinstance(product, np.ndarray) else product.toarray())
        cosine_QP[0, query] = -np.inf
        found += in_order(cosine_QP, k)
    return found


def in_order(cosine_QP: Floats, num: int) -> list[list[tuple[int, float]]]:
    """Return (column, cosine) of the ``num`` nearest of each row, best first; never those of -inf.

    Of equal cosines the first column comes first.
    """
    far_QP = -cosine_QP.round(_DIGITS)
    k = min(num, far_QP.shape[1])
    last_Q = np.partition(far_QP, k - 1, axis=1)[:, k - 1]
    found = []
    for cosine_P, far_P, last in zip(cosine_QP, far_QP, last_Q, strict=True):
        # Only those no farther than the last one wanted are sorted.
        near = np.flatnonzero((far_P <= last) & (far_P < np.inf))
        near = near[np.argsort(far_P[near], kind="stable")][:k]
        found.append(list(zip(near.tolist(), cosine_P[near].tolist(), strict=True)))
    return found


def _shown(tokens: TokenRows, row: int, text: Text, predicted: int) -> dict[str, Any]:
    before, after = excerpt(tokens, row)
    return {
        "document": int(tokens.document_P[row]),
        "window": int(tokens.window_P[row]),
        "position": int(tokens.position_P[row]),
        "token": text([int(tokens.input_P[row])]),
        "before": text(before.tolist()),
        "after": text(after.tolist()),
        "predicted": text([predicted]),
    }


def excerpt(tokens: TokenRows, row: int, around: int = AROUND) -> tuple[Ints, Ints]:
    """Return up to ``around`` tokens before a row's and after it, of the same window."""
    window = tokens.window_P[row]
    near = np.arange(max(0, row - around), min(len(tokens), row + around))
    near = near[tokens.window_P[near] == window]
    return tokens.input_P[near[near < row]], tokens.target_P[near[near >= row]]


def unit_rows(matrix_PM: Matrix) -> Matrix:
    """Return each row over its length; a row of zeros stays one."""
    length_P = np.sqrt(np.asarray((matrix_PM * matrix_PM).sum(axis=1), dtype=np.float64)).ravel()
    scale_P = np.divide(1.0, length_P, out=np.zeros(len(length_P)), where=length_P > 0)
    if isinstance(matrix_PM, np.ndarray):
        return matrix_PM.astype(np.float64) * scale_P[:, None]
    return csr_array(diags_array(scale_P) @ matrix_PM)


def cosine_blocks(matrix_PM: Matrix) -> Iterator[tuple[slice, Floats]]:
    """Yield blocks of rows, in order, and their cosine with every row [Q, P]."""
    unit_PM = unit_rows(matrix_PM)
    num_rows = unit_PM.shape[0]
    for first in range(0, num_rows, BLOCK_ROWS):
        block = slice(first, min(first + BLOCK_ROWS, num_rows))
        cosine_QP = unit_PM[block] @ unit_PM.T
        yield (
            block,
            np.asarray(cosine_QP if isinstance(cosine_QP, np.ndarray) else _dense(cosine_QP)),
        )


def nearest(
    matrix_PM: Matrix, pools: Mapping[str, Allowed], *, num_neighbours: int, seed: int
) -> dict[str, Ints]:
    """Return by pool: indices of each row's nearest rows among those allowed, unordered [P, K].

    -1 where fewer are allowed. Among equal cosines the choice is random, so that rows with the same
    gates, or with none in common, do not favour the beginning of the text.
    """
    rng = np.random.default_rng(seed)
    parts: dict[str, list[Ints]] = {pool: [] for pool in pools}
    for block, cosine_QP in cosine_blocks(matrix_PM):
        cosine_QP += _EQUAL * rng.random(cosine_QP.shape)
        for pool, allowed in pools.items():
            far_QP = np.where(allowed(block), -cosine_QP, np.inf)
            parts[pool].append(_smallest(far_QP, num_neighbours))
    return {pool: np.concatenate(found) for pool, found in parts.items()}


def _smallest(far_QP: Floats, num: int) -> Ints:
    """Return columns of the smallest finite values of each row; -1 where there are fewer."""
    k = min(num, far_QP.shape[1])
    found_QK = np.argpartition(far_QP, k - 1, axis=1)[:, :k]
    missing_QK = np.isposinf(np.take_along_axis(far_QP, found_QK, axis=1))
    return np.where(missing_QK, -1, found_QK)


def _dense(matrix: csr_array) -> Floats:
    return np.asarray(matrix.toarray(), dtype=np.float64)

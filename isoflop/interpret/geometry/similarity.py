"""Cosines between patterns, some rows at a time, and the nearest neighbours by them.

Letters: P patterns, M columns, Q patterns of one block, K neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, diags_array

from isoflop.arrays import Floats
from isoflop.interpret.geometry.patterns import Ints, Matrix

Allowed = Callable[[slice], NDArray[np.bool_]]
"""Of a block of rows: which patterns may be their neighbours [Q, P]."""

BLOCK_ROWS = 512
# Cosines that differ by less are equal; which of them come first is drawn.
_EQUAL = 1e-9


def unit_rows(matrix_PM: Matrix) -> Matrix:
    """Return each row over its length; a row of zeros stays one."""
    length_P = np.sqrt(np.asarray((matrix_PM * matrix_PM).sum(axis=1), dtype=np.float64)).ravel()
    scale_P = np.divide(1.0, length_P, out=np.zeros(len(length_P)), where=length_P > 0)
    if isinstance(matrix_PM, np.ndarray):
        return matrix_PM.astype(np.float64) * scale_P[:, None]
    return csr_array(diags_array(scale_P) @ matrix_PM)


def cosine_blocks(matrix_PM: Matrix) -> Iterator[tuple[slice, Floats]]:
    """Of blocks of rows, in order: their cosine with every row [Q, P]."""
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
    """By pool: indices of each row's nearest rows among those allowed, in any order [P, K].

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

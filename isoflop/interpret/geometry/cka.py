"""Linear CKA between the input embeddings and the gates of a layer (Kornblith et al., 2019).

Letters: P rows (tokens), D width, M columns of gates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from isoflop.arrays import Floats
from isoflop.interpret.geometry.patterns import Ints, Matrix, Patterns
from isoflop.tables import Schema

CKA = Schema(
    table="cka",
    columns=(
        ("layer", "int64"),
        ("channel", "int64"),
        ("model", "string"),
        ("cka", "float64"),
        ("shuffled_mean", "float64"),
        ("shuffled_hi", "float64"),
        ("num_tokens", "int64"),
    ),
)

_SHUFFLED_SHARE = 0.95
_ROUNDING = 1e-13


@dataclass(frozen=True, kw_only=True, slots=True)
class Cka:
    """A CKA and what it is by chance."""

    value: float | None
    """None where a matrix does not vary."""
    shuffled_mean: float | None
    """The mean with one matrix's rows in random order: not 0, and near 1 where columns are many and
    rows are few."""
    shuffled_hi: float | None
    """Its 95th percentile."""


def cka_with_chance(x_PD: Matrix, y_PM: Matrix, *, num_shuffles: int, seed: int) -> Cka:
    """Return the linear CKA, and those of ``num_shuffles`` random orders of the rows of ``x_PD``.

    ||Xc^T Yc||_F^2 / (||Xc^T Xc||_F ||Yc^T Yc||_F), columns centred: 1 for a matrix with itself,
    times any scale and rotation. Either matrix may be sparse and stays so: the centring is
    subtracted from the products.
    """
    rng = np.random.default_rng(seed)
    own_x, own_y = _own(x_PD), _own(y_PM)
    shuffled = [
        _ratio(_cross(x_PD[rng.permutation(x_PD.shape[0])], y_PM), own_x, own_y)
        for _ in range(num_shuffles)
    ]
    known = [value for value in shuffled if value is not None]
    return Cka(
        value=_ratio(_cross(x_PD, y_PM), own_x, own_y),
        shuffled_mean=float(np.mean(known)) if known else None,
        shuffled_hi=float(np.quantile(known, _SHUFFLED_SHARE)) if known else None,
    )


def _ratio(cross: float, own_x: float, own_y: float) -> float | None:
    if own_x == 0.0 or own_y == 0.0:
        return None
    return cross / math.sqrt(own_x) / math.sqrt(own_y)


def _own(x_PD: Matrix) -> float:
    """Return ||Xc^T Xc||_F^2; 0 where that is what rounding leaves of a constant matrix."""
    mean_D = _mean(x_PD)
    squares, of_means = _cross(x_PD, x_PD), (x_PD.shape[0] * float(mean_D @ mean_D)) ** 2
    return squares if squares > _ROUNDING * of_means else 0.0


def _cross(x_PD: Matrix, y_PM: Matrix) -> float:
    """Return ||Xc^T Yc||_F^2 = ||X^T Y - P m_x m_y^T||_F^2."""
    num_rows = x_PD.shape[0]
    mean_D, mean_M = _mean(x_PD), _mean(y_PM)
    product = x_PD.T @ y_PM
    if not isinstance(product, np.ndarray):
        return _centred_squares(csr_array(product), mean_D, mean_M, num_rows)
    centred = product - num_rows * np.outer(mean_D, mean_M)
    return float((centred**2).sum())


def _centred_squares(product: csr_array, mean_x: Floats, mean_y: Floats, num_rows: int) -> float:
    """Return the same of a sparse product, without the dense outer product of the means."""
    squares = float((product.data**2).sum())
    between = float(mean_x @ (product @ mean_y))
    means = float(mean_x @ mean_x) * float(mean_y @ mean_y)
    return squares - 2 * num_rows * between + num_rows**2 * means


def _mean(matrix: Matrix) -> Floats:
    return np.asarray(matrix.mean(axis=0), dtype=np.float64).ravel()


def first_occurrences(token_P: Ints) -> Ints:
    """Return rows at which a token stands for the first time, ascending."""
    return np.sort(np.unique(token_P, return_index=True)[1]).astype(np.int64)


def cka_rows(
    patterns: Patterns,
    embedding_VD: NDArray[np.floating[Any]],
    *,
    model: str,
    num_shuffles: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Return a row per layer (``channel`` None: all its channels) and per channel of it.

    Rows of the matrices are the first occurrences of the sample's input tokens.
    """
    first = patterns.take(first_occurrences(patterns.tokens.input_P))
    x_PD = embedding_VD[first.tokens.input_P].astype(np.float64)
    rows = []
    for layer, gates in enumerate(first.layers):
        parts: list[tuple[int | None, csr_array]] = [(None, gates)]
        if patterns.shape.num_channels > 1:
            parts += [(c, first.channel(layer, c)) for c in range(patterns.shape.num_channels)]
        for channel, y_PM in parts:
            found = cka_with_chance(x_PD, y_PM, num_shuffles=num_shuffles, seed=seed)
            rows.append(
                {
                    "layer": layer,
                    "channel": channel,
                    "model": model,
                    "cka": found.value,
                    "shuffled_mean": found.shuffled_mean,
                    "shuffled_hi": found.shuffled_hi,
                    "num_tokens": len(first.tokens),
                }
            )
    return rows

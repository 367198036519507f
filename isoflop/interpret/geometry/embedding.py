"""Patterns as points of a plane, for looking at: UMAP where it is installed, else PCA.

Letters: P patterns, M columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, svds

from isoflop.arrays import Floats
from isoflop.errors import UserError
from isoflop.interpret.geometry.neighbours import unit_rows
from isoflop.interpret.geometry.patterns import Matrix, Patterns
from isoflop.tables import Schema

Method = Literal["umap", "pca"]

# As in the paper: cosine, 15 neighbours.
_UMAP_NEIGHBOURS = 15


POINTS = Schema(
    table="points",
    columns=(
        ("layer", "int64"),
        ("method", "string"),
        ("x", "float64"),
        ("y", "float64"),
        ("document", "int64"),
        ("window", "int64"),
        ("position", "int64"),
        ("input_token", "int64"),
        ("word_class", "string"),
    ),
)


def choose_method(wanted: str) -> Method:
    """Return ``umap``, ``pca``, or for ``auto`` UMAP if it is there.

    Raises:
        UserError: ``umap`` without umap-learn, or no such method.
    """
    installed = find_spec("umap") is not None
    if wanted == "auto":
        return "umap" if installed else "pca"
    if wanted == "umap" and not installed:
        raise UserError("--embedding", wanted, "pca without umap-learn", "`pip install umap-learn`")
    if wanted not in ("umap", "pca"):
        raise UserError("--embedding", wanted, "auto, umap or pca", "name one of them")
    return "umap" if wanted == "umap" else "pca"


def embed(matrix_PM: Matrix, method: Method, *, seed: int) -> NDArray[np.float64]:
    """Return coordinates [P, 2] of the patterns' directions (rows are scaled to length 1 first).

    UMAP keeps neighbours and invents distances; PCA shows the two directions of most variance.
    """
    return _umap(matrix_PM, seed) if method == "umap" else principal(unit_rows(matrix_PM), seed)


def point_rows(
    patterns: Patterns, classes: Sequence[str], method: Method, *, seed: int
) -> list[dict[str, Any]]:
    """Return a row for each pattern and layer (None: all layers together)."""
    tokens = patterns.tokens
    rows = []
    for layer in (*range(patterns.shape.num_layers), None):
        for row, (x, y) in enumerate(embed(patterns.of(layer), method, seed=seed).tolist()):
            place = {
                "document": int(tokens.document_P[row]),
                "window": int(tokens.window_P[row]),
                "position": int(tokens.position_P[row]),
                "input_token": int(tokens.input_P[row]),
                "word_class": classes[row],
            }
            rows.append({"layer": layer, "method": method, "x": x, "y": y, **place})
    return rows


def principal(matrix_PM: Matrix, seed: int) -> Floats:
    """Return scores [P, 2] of the two first principal components; 0 for what does not vary.

    The larger part of each component's scores is positive, so that the signs are fixed.
    """
    num_rows, num_columns = matrix_PM.shape
    mean_M = np.asarray(matrix_PM.mean(axis=0), dtype=np.float64).ravel()
    if min(num_rows, num_columns) <= 2:
        dense = matrix_PM if isinstance(matrix_PM, np.ndarray) else matrix_PM.toarray()
        u_PK, size_K, _ = np.linalg.svd(dense - mean_M, full_matrices=False)
    else:
        start = np.random.default_rng(seed).standard_normal(min(num_rows, num_columns))
        u_PK, size_K, _ = svds(_centred(matrix_PM, mean_M), k=2, v0=start)
    order = np.argsort(-size_K)[:2]
    score_PK = u_PK[:, order] * size_K[order]
    score_PK *= np.where((score_PK**3).sum(axis=0) < 0, -1.0, 1.0)
    return np.pad(score_PK, ((0, 0), (0, 2 - score_PK.shape[1])))


def _centred(matrix_PM: Matrix, mean_M: Floats) -> Any:
    """Return the matrix less its column means, without making it dense."""
    num_rows = matrix_PM.shape[0]

    def forward(x: Floats) -> Floats:
        return matrix_PM @ x - np.full((num_rows, *x.shape[1:]), mean_M @ x)

    def backward(y: Floats) -> Floats:
        return matrix_PM.T @ y - mean_M[(...,) + (None,) * (y.ndim - 1)] * y.sum(axis=0)

    return LinearOperator(
        matrix_PM.shape, matvec=forward, rmatvec=backward, dtype=np.dtype(np.float64)
    )


def _umap(matrix_PM: Matrix, seed: int) -> Floats:
    import umap

    reducer = umap.UMAP(
        n_components=2,
        metric="cosine",
        n_neighbors=min(_UMAP_NEIGHBOURS, matrix_PM.shape[0] - 1),
        random_state=seed,
        n_jobs=1,
    )
    return np.asarray(reducer.fit_transform(matrix_PM), dtype=np.float64)

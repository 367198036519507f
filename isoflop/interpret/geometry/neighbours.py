"""The tokens whose gates are most like those of a token, with what is written around them.

Letters: P patterns, K neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from isoflop.interpret.geometry.patterns import Ints, Matrix, TokenRows
from isoflop.interpret.geometry.similarity import unit_rows
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
    """Rows of each query: itself with rank 0, then its nearest neighbours by the cosine of gates.

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
    """(row, cosine) of the nearest others of each query; equal ones in the order of the text."""
    unit = unit_rows(matrix)
    found = []
    for query in queries:
        product = unit[[query]] @ unit.T
        cosine_P = np.asarray(product if isinstance(product, np.ndarray) else product.toarray())[0]
        order = np.argsort(-cosine_P.round(9), kind="stable")
        near = order[order != query][:k]
        found.append([(int(row), float(cosine_P[row])) for row in near])
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
    """Up to ``around`` tokens before a row's and after it, of the same window."""
    window = tokens.window_P[row]
    near = np.arange(max(0, row - around), min(len(tokens), row + around))
    near = near[tokens.window_P[near] == window]
    return tokens.input_P[near[near < row]], tokens.target_P[near[near >= row]]

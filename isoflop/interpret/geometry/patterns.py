"""Sparse matrices of gates: a row per token, a column per channel and expert, from a record.

Only a sample of whole documents is held in memory; the record is read one row group at a time.

Letters: L layers, C channels, E experts a channel chooses from, K chosen of them, P patterns (one
per token of the sample), M = C * E columns of a layer, R rows of a record.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, hstack

from isoflop.interpret.schema import GATES_FILE, TOKENS_FILE

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Matrix: TypeAlias = "csr_array | NDArray[np.floating[Any]]"
"""Vectors as rows, sparse or dense."""

TOKEN_COLUMNS = ("document", "window", "position", "input_token", "target_token")


@dataclass(frozen=True, kw_only=True, slots=True)
class GateShape:
    """How many layers, channels and experts the gates of a model have."""

    num_layers: int
    num_channels: int
    num_experts: int
    """That a channel chooses from."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TokenRows:
    """Where each pattern stands in the text."""

    document_P: Ints
    window_P: Ints
    position_P: Ints
    input_P: Ints
    """The token that was read."""
    target_P: Ints
    """The token that follows it."""

    def __len__(self) -> int:
        return len(self.document_P)

    def take(self, rows: NDArray[Any]) -> TokenRows:
        """Those of an index or a mask."""
        return TokenRows(
            **{name: getattr(self, name)[rows] for name in TokenRows.__dataclass_fields__}
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Patterns:
    """The gates of a sample of tokens."""

    tokens: TokenRows
    layers: tuple[csr_array, ...]
    """Of each layer [P, C * E]: the score where an expert was chosen, nothing elsewhere."""
    shape: GateShape

    def channel(self, layer: int, channel: int) -> csr_array:
        """The gates of one channel of a layer [P, E]."""
        first = channel * self.shape.num_experts
        return self.layers[layer][:, first : first + self.shape.num_experts]

    def all_layers(self) -> csr_array:
        """Those of all layers side by side [P, L * C * E]."""
        return csr_array(hstack(self.layers, format="csr"))

    def take(self, rows: NDArray[Any]) -> Patterns:
        """Those of an index or a mask."""
        layers = tuple(matrix[rows] for matrix in self.layers)
        return replace(self, tokens=self.tokens.take(rows), layers=layers)


def as_chosen(matrix: csr_array) -> csr_array:
    """1 where an expert was chosen, whatever its score."""
    ones = np.ones(matrix.nnz)
    return csr_array((ones, matrix.indices.copy(), matrix.indptr.copy()), shape=matrix.shape)


def gate_matrix(idx_PCK: NDArray[Any], score_PCK: NDArray[Any], num_experts: int) -> csr_array:
    """The matrix [P, C * E] of the experts that each token chose and their scores."""
    num_tokens, num_channels, num_chosen = idx_PCK.shape
    first_C1 = np.arange(num_channels, dtype=np.int64)[:, None] * num_experts
    columns = (idx_PCK.astype(np.int64) + first_C1).reshape(-1)
    starts = np.arange(num_tokens + 1, dtype=np.int64) * (num_channels * num_chosen)
    data = score_PCK.astype(np.float64).reshape(-1)
    matrix = csr_array((data, columns, starts), shape=(num_tokens, num_channels * num_experts))
    matrix.sort_indices()
    return matrix


def sample_tokens(folder: Path, *, max_tokens: int, seed: int) -> TokenRows:
    """Tokens of a record in whole documents, in the record's order.

    Documents are drawn for as long as they fit into ``max_tokens``; there is always one. The first
    position of a window is left out: its input is the begin token, which is no text.
    """
    import pyarrow.parquet as pq

    table = pq.read_table(folder / TOKENS_FILE, columns=list(TOKEN_COLUMNS))
    columns = [table[name].to_numpy().astype(np.int64) for name in TOKEN_COLUMNS]
    rows = TokenRows(**dict(zip(TokenRows.__dataclass_fields__, columns, strict=True)))
    rows = rows.take(rows.position_P > 0)
    return rows.take(np.isin(rows.document_P, _some_documents(rows, max_tokens, seed)))


def _some_documents(rows: TokenRows, max_tokens: int, seed: int) -> Ints:
    document_M, count_M = np.unique(rows.document_P, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(document_M))
    fits = np.cumsum(count_M[order]) <= max_tokens
    return document_M[order[: max(1, int(fits.sum()))]]


def read_patterns(folder: Path, tokens: TokenRows, shape: GateShape) -> Patterns:
    """The recorded gates of a sample of tokens, in the order of ``tokens``."""
    parts: list[list[tuple[Ints, Ints, Floats]]] = [[] for _ in range(shape.num_layers)]
    key_P = _key(tokens.window_P, tokens.position_P)
    order = np.argsort(key_P)
    key_P = key_P[order]
    for row_R, layer_R, column_RK, score_RK in _recorded(folder, shape.num_experts):
        at_R, found_R = _find(key_P, row_R)
        for layer in np.unique(layer_R[found_R]):
            mine_R = found_R & (layer_R == layer)
            parts[layer].append((order[at_R[mine_R]], column_RK[mine_R], score_RK[mine_R]))
    layers = tuple(_assemble(part, len(tokens), shape) for part in parts)
    return Patterns(tokens=tokens, layers=layers, shape=shape)


def read_predictions(folder: Path, tokens: TokenRows) -> Ints:
    """The model's most probable next token at each of a sample of tokens."""
    import pyarrow.parquet as pq

    key_P = _key(tokens.window_P, tokens.position_P)
    order = np.argsort(key_P)
    predicted_P = np.full(len(tokens), -1, dtype=np.int64)
    with pq.ParquetFile(folder / TOKENS_FILE) as file:
        for batch in file.iter_batches(columns=["window", "position", "top_tokens"]):
            window, position = (_ints(batch[name]) for name in ("window", "position"))
            at, found = _find(key_P[order], _key(window, position))
            top_RK = batch["top_tokens"].flatten().to_numpy().reshape(batch.num_rows, -1)
            predicted_P[order[at[found]]] = top_RK[found, 0]
    return predicted_P


def _find(key_P: Ints, wanted_R: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    """Where each wanted key is among ascending ones, and whether it is there."""
    at_R = np.searchsorted(key_P, wanted_R)
    found_R = at_R < len(key_P)
    found_R[found_R] = key_P[at_R[found_R]] == wanted_R[found_R]
    return at_R, found_R


def _ints(column: Any) -> Ints:
    values: Ints = column.to_numpy().astype(np.int64)
    return values


def _recorded(folder: Path, num_experts: int) -> Iterator[tuple[Ints, Ints, Ints, Floats]]:
    """Of each row group: the tokens' keys [R], layers [R], columns and scores [R, K]."""
    import pyarrow.parquet as pq

    names = ["window", "position", "layer", "channel", "experts", "scores"]
    with pq.ParquetFile(folder / GATES_FILE) as file:
        for batch in file.iter_batches(columns=names):
            window, position, layer, channel = (_ints(batch[name]) for name in names[:4])
            shape = (batch.num_rows, -1)
            expert_RK = _ints(batch["experts"].flatten()).reshape(shape)
            score_RK = batch["scores"].flatten().to_numpy().astype(np.float64).reshape(shape)
            column_RK = expert_RK + channel[:, None] * num_experts
            yield _key(window, position), layer, column_RK, score_RK


def _key(window: Ints, position: Ints) -> Ints:
    """One number for a token; ascending by window, then position."""
    return window * 2**31 + position


def _assemble(
    parts: Sequence[tuple[Ints, Ints, Floats]], num_tokens: int, shape: GateShape
) -> csr_array:
    size = (num_tokens, shape.num_channels * shape.num_experts)
    if not parts:
        return csr_array(size, dtype=np.float64)
    row_N = np.concatenate([np.repeat(row, column.shape[1]) for row, column, _ in parts])
    column_N = np.concatenate([column.reshape(-1) for _, column, _ in parts])
    score_N = np.concatenate([score.reshape(-1) for _, _, score in parts])
    order = np.lexsort((column_N, row_N))
    starts = np.concatenate([[0], np.cumsum(np.bincount(row_N, minlength=num_tokens))])
    return csr_array((score_N[order], column_N[order], starts), shape=size)

"""The vectors that are compared: gates, and the controls for what their geometry shows.

Gates are sparse matrices: a row per token, a column per channel and expert.

Only those of a sample of whole documents are held in memory.

Letters: L layers, C channels, E experts a channel chooses from, K chosen of them, P patterns (one
per token of the sample), M = C * E columns of a layer, R rows of a piece of the recording.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array, hstack, vstack
from torch import Tensor, nn

from isoflop.arrays import Floats
from isoflop.data.windows import Tokens, shift_right
from isoflop.interpret.gates import recorded_gates
from isoflop.interpret.load import GateShape, LoadedRun, shape_of
from isoflop.interpret.recording import GateRows, RecordedTokens, read_gates, read_tokens

Ints = NDArray[np.int64]
Matrix: TypeAlias = "csr_array | NDArray[np.floating[Any]]"
"""Vectors as rows, sparse or dense."""
WINDOWS_AT_ONCE = 4


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TokenRows:
    """The places of patterns in the text."""

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
        """Return those of an index or a mask."""
        return TokenRows(
            **{name: getattr(self, name)[rows] for name in TokenRows.__dataclass_fields__}
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Patterns:
    """The gates of a sample of tokens."""

    tokens: TokenRows
    layers: tuple[csr_array, ...]
    """A matrix [P, C * E] for each layer: the scores where experts were chosen, else nothing."""
    shape: GateShape

    def channel(self, layer: int, channel: int) -> csr_array:
        """Return the gates of one channel of a layer [P, E]."""
        first = channel * self.shape.num_experts
        return self.layers[layer][:, first : first + self.shape.num_experts]

    def of(self, layer: int | None) -> csr_array:
        """Return the gates of a layer; None: of all layers side by side [P, L * C * E]."""
        if layer is None:
            return csr_array(hstack(self.layers, format="csr"))
        return self.layers[layer]

    def take(self, rows: NDArray[Any]) -> Patterns:
        """Return those of an index or a mask."""
        layers = tuple(matrix[rows] for matrix in self.layers)
        return replace(self, tokens=self.tokens.take(rows), layers=layers)


def as_chosen(matrix: csr_array) -> csr_array:
    """Return 1 where an expert was chosen, whatever its score."""
    ones = np.ones(matrix.nnz)
    return csr_array((ones, matrix.indices.copy(), matrix.indptr.copy()), shape=matrix.shape)


def gate_matrix(idx_PCK: NDArray[Any], score_PCK: NDArray[Any], num_experts: int) -> csr_array:
    """Return the matrix [P, C * E] of the experts that each token chose and their scores."""
    num_tokens, num_channels, num_chosen = idx_PCK.shape
    first_C1 = np.arange(num_channels, dtype=np.int64)[:, None] * num_experts
    columns = (idx_PCK.astype(np.int64) + first_C1).reshape(-1)
    starts = np.arange(num_tokens + 1, dtype=np.int64) * (num_channels * num_chosen)
    data = score_PCK.astype(np.float64).reshape(-1)
    matrix = csr_array((data, columns, starts), shape=(num_tokens, num_channels * num_experts))
    matrix.sort_indices()
    return matrix


def token_rows(tokens: RecordedTokens, row_P: NDArray[Any]) -> TokenRows:
    """Return some tokens of a recording, by an index or a mask."""
    columns = (
        *(tokens.document_T, tokens.window_T, tokens.position_T),
        *(tokens.input_T, tokens.target_T),
    )
    taken = (column[row_P].astype(np.int64) for column in columns)
    return TokenRows(**dict(zip(TokenRows.__dataclass_fields__, taken, strict=True)))


def sample_tokens(folder: Path, *, max_tokens: int, seed: int) -> TokenRows:
    """Return tokens of a recording in whole documents, in the recording's order.

    Documents are drawn for as long as they fit into ``max_tokens``; there is always one. The first
    position of a window is left out: its input is the begin token, which is no text.
    """
    tokens = read_tokens(folder)
    rows = token_rows(tokens, tokens.position_T > 0)
    return rows.take(np.isin(rows.document_P, _some_documents(rows, max_tokens, seed)))


def _some_documents(rows: TokenRows, max_tokens: int, seed: int) -> Ints:
    document_M, count_M = np.unique(rows.document_P, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(document_M))
    fits = np.cumsum(count_M[order]) <= max_tokens
    return document_M[order[: max(1, int(fits.sum()))]]


def read_patterns(folder: Path, tokens: TokenRows, shape: GateShape) -> Patterns:
    """Return the recorded gates of a sample of tokens, in the order of ``tokens``."""
    parts: list[list[tuple[Ints, Ints, Floats]]] = [[] for _ in range(shape.num_layers)]
    recorded = read_tokens(folder)
    row_P = recorded.rows(tokens.window_P, tokens.position_P)
    order = np.argsort(row_P)
    sorted_P = row_P[order]
    for piece in read_gates(folder, recorded):
        at_R, found_R = _find(sorted_P, piece.row_R)
        column_RK = _columns(piece, shape)
        for layer in np.unique(piece.layer_R[found_R]):
            mine_R = found_R & (piece.layer_R == layer)
            score_RK = piece.score_RK[mine_R].astype(np.float64)
            parts[layer].append((order[at_R[mine_R]], column_RK[mine_R], score_RK))
    layers = tuple(_assemble(part, len(tokens), shape) for part in parts)
    return Patterns(tokens=tokens, layers=layers, shape=shape)


def _columns(piece: GateRows, shape: GateShape) -> Ints:
    """Return the columns of the experts in their layer's matrix [R, K]."""
    first_R = piece.channel_R.astype(np.int64) * shape.num_experts
    return first_R[:, None] + piece.expert_RK


def _find(row_P: Ints, wanted_R: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    """Return where each wanted row is among ascending ones, and whether it is there."""
    at_R = np.searchsorted(row_P, wanted_R)
    found_R = at_R < len(row_P)
    found_R[found_R] = row_P[at_R[found_R]] == wanted_R[found_R]
    return at_R, found_R


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


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Activations:
    """The gates and residual streams of a model on a sample of tokens."""

    patterns: Patterns
    residual: tuple[NDArray[np.float32], ...]
    """The residual stream [P, D] that each layer's feed-forward reads, before the norm."""


def activations_of(loaded: LoadedRun, tokens: TokenRows) -> Activations:
    """Run the model on the held-out windows of a sample of tokens."""
    assert loaded.heldout is not None
    shape = shape_of(loaded)
    gates: list[list[csr_array]] = [[] for _ in range(shape.num_layers)]
    residual: list[list[NDArray[np.float32]]] = [[] for _ in loaded.model.blocks]
    order = []
    windows = np.unique(tokens.window_P)
    for first in range(0, len(windows), WINDOWS_AT_ONCE):
        batch = windows[first : first + WINDOWS_AT_ONCE]
        mine, row = _rows_of(tokens, batch, loaded.heldout.tokens.shape[1])
        order.append(mine)
        window_WT = loaded.heldout.tokens[batch]
        idx, score, x = _forward(loaded, window_WT, loaded.heldout.begin_id)
        for layer in range(shape.num_layers):
            of_layer = gate_matrix(
                idx[layer][row].numpy(), score[layer][row].float().numpy(), shape.num_experts
            )
            gates[layer].append(of_layer)
        for layer, x_TD in enumerate(x):
            residual[layer].append(x_TD[row].numpy())
    back = np.argsort(np.concatenate(order), kind="stable")
    layers = tuple(csr_array(vstack(part, format="csr"))[back] for part in gates)
    return Activations(
        patterns=Patterns(tokens=tokens, layers=layers, shape=shape),
        residual=tuple(np.concatenate(part)[back] for part in residual),
    )


def _rows_of(tokens: TokenRows, windows: Ints, seq_len: int) -> tuple[Ints, Tensor]:
    """Return patterns that are in some windows, and where in the flattened batch they are."""
    mine = np.flatnonzero(np.isin(tokens.window_P, windows))
    row = np.searchsorted(windows, tokens.window_P[mine]) * seq_len + tokens.position_P[mine]
    return mine, torch.from_numpy(row)


@torch.no_grad()
def _forward(
    loaded: LoadedRun, window_WT: Tokens, begin_id: int
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    inputs_WT = torch.from_numpy(shift_right(window_WT, begin_id).astype(np.int64))
    with recorded_gates(loaded.model) as gates, _residuals(loaded.model) as residual:
        loaded.model(inputs_WT)
    return gates.idx, gates.score, residual


@contextmanager
def _residuals(model: nn.Module) -> Iterator[list[Tensor]]:
    """Yield what enters the norm of each feed-forward, tokens flattened."""
    seen: list[Tensor] = []
    handles = [
        block.feedforward_norm.register_forward_pre_hook(
            lambda module, inputs: seen.append(inputs[0].detach().flatten(0, 1).clone())
        )
        for block in model.blocks  # type: ignore[union-attr]
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def one_hot(token_P: Ints) -> csr_array:
    """Return the token as a vector [P, different tokens]: its neighbours are its equals, drawn."""
    column_P = np.unique(token_P, return_inverse=True)[1]
    starts = np.arange(len(token_P) + 1)
    size = (len(token_P), int(column_P.max()) + 1)
    return csr_array((np.ones(len(token_P)), column_P, starts), shape=size)


def shuffled_rows(matrix: csr_array, seed: int) -> csr_array:
    """Return each pattern with the gates of another token."""
    return matrix[np.random.default_rng(seed).permutation(matrix.shape[0])]


def input_embedding(loaded: LoadedRun) -> NDArray[np.float32]:
    """Return the input embedding [V, D]."""
    return loaded.model.embedding.detach().float().numpy()


def layer_spaces(
    seen: Activations, blank: Activations, layer: int | None, seed: int
) -> dict[str, Matrix]:
    """Return gates of a layer (None: all) and the controls that have one each."""
    gates = seen.patterns.of(layer)
    spaces: dict[str, Matrix] = {
        "gates": gates,
        "shuffled": shuffled_rows(gates, seed),
        "untrained": blank.patterns.of(layer),
    }
    if layer is None:
        return spaces
    return {**spaces, "residual": seen.residual[layer]}

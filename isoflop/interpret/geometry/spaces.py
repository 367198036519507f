"""The vectors that are compared: gates, and the controls for what their geometry shows.

Letters: P patterns, D width, L layers, V vocabulary, W windows of a batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array, vstack
from torch import Tensor, nn

from isoflop.data.windows import Tokens, shift_right
from isoflop.interpret.gates import recorded_gates, shape_of
from isoflop.interpret.geometry.patterns import Ints, Matrix, Patterns, TokenRows, gate_matrix
from isoflop.interpret.load import Subject

WINDOWS_AT_ONCE = 4


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Seen:
    """What a model does on a sample of tokens."""

    patterns: Patterns
    residual: tuple[NDArray[np.float32], ...]
    """Of each layer [P, D]: the residual stream that its feed-forward reads, before the norm."""


def see(subject: Subject, tokens: TokenRows) -> Seen:
    """Run the model on the held-out windows that a sample of tokens is of."""
    assert subject.heldout is not None
    shape = shape_of(subject)
    gates: list[list[csr_array]] = [[] for _ in range(shape.num_layers)]
    residual: list[list[NDArray[np.float32]]] = [[] for _ in subject.model.blocks]
    order = []
    windows = np.unique(tokens.window_P)
    for first in range(0, len(windows), WINDOWS_AT_ONCE):
        batch = windows[first : first + WINDOWS_AT_ONCE]
        mine, row = _rows_of(tokens, batch, subject.heldout.tokens.shape[1])
        order.append(mine)
        window_WT = subject.heldout.tokens[batch]
        idx, score, x = _forward(subject, window_WT, subject.heldout.begin_id)
        for layer in range(shape.num_layers):
            of_layer = gate_matrix(
                idx[layer][row].numpy(), score[layer][row].float().numpy(), shape.num_experts
            )
            gates[layer].append(of_layer)
        for layer, x_TD in enumerate(x):
            residual[layer].append(x_TD[row].numpy())
    back = np.argsort(np.concatenate(order), kind="stable")
    layers = tuple(csr_array(vstack(part, format="csr"))[back] for part in gates)
    return Seen(
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
    subject: Subject, window_WT: Tokens, begin_id: int
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    inputs_WT = torch.from_numpy(shift_right(window_WT, begin_id).astype(np.int64))
    with recorded_gates(subject.model) as gates, _residuals(subject.model) as residual:
        subject.model(inputs_WT)
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
    """The token itself as a vector [P, different tokens]: neighbours are drawn among its equals."""
    column_P = np.unique(token_P, return_inverse=True)[1]
    starts = np.arange(len(token_P) + 1)
    size = (len(token_P), int(column_P.max()) + 1)
    return csr_array((np.ones(len(token_P)), column_P, starts), shape=size)


def shuffled_rows(matrix: csr_array, seed: int) -> csr_array:
    """Return each pattern with the gates of another token."""
    return matrix[np.random.default_rng(seed).permutation(matrix.shape[0])]


def input_embedding(subject: Subject) -> NDArray[np.float32]:
    """Return [V, D]."""
    return subject.model.embedding.detach().float().numpy()


def layer_spaces(seen: Seen, blank: Seen, layer: int | None, seed: int) -> dict[str, Matrix]:
    """Return gates of a layer (None: all) and the controls that have one each."""
    gates = seen.patterns.all_layers() if layer is None else seen.patterns.layers[layer]
    before = blank.patterns.all_layers() if layer is None else blank.patterns.layers[layer]
    spaces: dict[str, Matrix] = {
        "gates": gates,
        "shuffled": shuffled_rows(gates, seed),
        "untrained": before,
    }
    if layer is None:
        return spaces
    return {**spaces, "residual": seen.residual[layer]}

"""What `isoflop interpret record` wrote, read for a page: all tokens, and the gates in pieces.

Letters: T recorded tokens, R rows of a piece of the gates, K experts chosen per channel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordedTokens:
    """Recorded tokens in the order of the text: 28 bytes each."""

    document_T: NDArray[np.int64]
    window_T: NDArray[np.int64]
    position_T: NDArray[np.int32]
    input_T: NDArray[np.int32]
    target_T: NDArray[np.int32]
    loss_T: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.input_T)

    def rows(
        self, window_R: NDArray[np.int64], position_R: NDArray[np.integer[Any]]
    ) -> NDArray[np.int64]:
        """Where the tokens of windows at positions are: [R]."""
        return np.searchsorted(self.window_T, window_R) + position_R

    def window_rows(self, row: int) -> tuple[int, int]:
        """Range of the rows in the window of a row."""
        window = self.window_T[row]
        first, end = np.searchsorted(self.window_T, [window, window + 1])
        return int(first), int(end)


@dataclass(frozen=True, kw_only=True, slots=True)
class GateRows:
    """Some rows of gates.parquet."""

    row_R: NDArray[np.int64]
    """The token of each."""
    layer_R: NDArray[np.int16]
    channel_R: NDArray[np.int16]
    expert_RK: NDArray[np.int32]
    score_RK: NDArray[np.float32]


def read_tokens(folder: Path) -> RecordedTokens:
    """The tokens of a recording."""
    import pyarrow.parquet as pq

    names = ["document", "window", "position", "input_token", "target_token", "loss"]
    table = pq.read_table(folder / "tokens.parquet", columns=names)
    document, window, position, inputs, targets, loss = (table[name].to_numpy() for name in names)
    return RecordedTokens(
        document_T=document,
        window_T=window,
        position_T=position,
        input_T=inputs,
        target_T=targets,
        loss_T=loss,
    )


def read_predictions(folder: Path, rows: Sequence[int]) -> list[list[tuple[int, float]]]:
    """(token, probability) of the top predictions at some tokens, best first."""
    import pyarrow.parquet as pq

    table = pq.read_table(folder / "tokens.parquet", columns=["top_tokens", "top_probs"])
    top_tokens, top_probs = (column.take(rows).to_pylist() for column in table.columns)
    return [
        list(zip(tokens, probs, strict=True))
        for tokens, probs in zip(top_tokens, top_probs, strict=True)
    ]


def read_gates(folder: Path, tokens: RecordedTokens) -> Iterator[GateRows]:
    """The gates of a recording, one row group at a time."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(folder / "gates.parquet") as file:
        for group in range(file.num_row_groups):
            yield _gate_rows(file.read_row_group(group), tokens)


def _gate_rows(table: Any, tokens: RecordedTokens) -> GateRows:
    layer, channel, window, position = (
        table[name].to_numpy() for name in ("layer", "channel", "window", "position")
    )
    shape = (table.num_rows, -1)
    return GateRows(
        row_R=tokens.rows(window, position),
        layer_R=layer,
        channel_R=channel,
        expert_RK=table["experts"].combine_chunks().flatten().to_numpy().reshape(shape),
        score_RK=table["scores"].combine_chunks().flatten().to_numpy().reshape(shape),
    )

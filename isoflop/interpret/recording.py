"""A recording: gates.parquet and tokens.parquet, their columns, and how to read them.

isoflop.interpret.recorder writes them; they are read here alone. Rows are tokens that carry loss,
in the order of the evaluation: by document, window of the document's text, position in the window.

Letters: T recorded tokens, R rows of a piece of the gates, K experts chosen per channel.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from isoflop.errors import UserError
from isoflop.spec import shown_id

if TYPE_CHECKING:
    import pyarrow as pa

    from isoflop.interpret.load import LoadedRun

VERSION = 1
GATES_FILE = "gates.parquet"
TOKENS_FILE = "tokens.parquet"

META_KEY = b"isoflop_recording"
"""Metadata of both files: JSON, the same in both; see isoflop.interpret.recording.Recording."""

PLACE = (("document", "int64"), ("window", "int64"), ("position", "int32"))
"""A token: the document's index in held-out order, the window's among all windows, and the position
in the window (0: its input is the begin token)."""

GATES: tuple[tuple[str, str], ...] = (
    *PLACE,
    ("layer", "int16"),
    ("channel", "int16"),
    ("experts", "list<int32>"),
    ("scores", "list<float32>"),
)
"""A row for each token, layer and channel. ``experts`` are the K chosen, best first, indices in the
table of the channel; ``scores`` what the router gave them (of moe: the softmax weights). A row
group holds one layer of one batch."""

TOKENS: tuple[tuple[str, str], ...] = (
    *PLACE,
    ("input_token", "int32"),
    ("target_token", "int32"),
    ("loss", "float32"),
    ("top_tokens", "list<int32>"),
    ("top_probs", "list<float32>"),
)
"""A row for each token: what the model read there and was to predict, the loss of that in nats, and
its most probable predictions, best first."""


def arrow_schema(columns: tuple[tuple[str, str], ...], meta: Mapping[str, Any]) -> pa.Schema:
    """Return the pyarrow schema of one of the tables, with ``meta`` in its metadata."""
    import pyarrow as pa

    lists = {"list<int32>": pa.list_(pa.int32()), "list<float32>": pa.list_(pa.float32())}
    fields = [(name, lists.get(kind) or pa.type_for_alias(kind)) for name, kind in columns]
    return pa.schema(fields, metadata={META_KEY: json.dumps(dict(meta), sort_keys=True).encode()})


@dataclass(frozen=True, kw_only=True, slots=True)
class Recording:
    """The description of a recording, which is in the metadata of both its files."""

    version: int
    run_id: str
    layers: tuple[int, ...]
    num_tokens: int
    complete: bool
    """Whether these are all held-out tokens."""
    num_top: int
    """Predictions kept for each token."""
    num_experts: int | None
    """Experts that a channel chooses from; None: the family does not say."""
    shared: bool
    """Whether all channels choose from the same table."""


def read_recording(folder: Path) -> Recording:
    """Return what a recording holds, once both its files prove whole and of one recording.

    Raises:
        UserError: a file is missing or damaged, of another version, or of another recording.
    """
    texts = [_metadata(folder / name) for name in (GATES_FILE, TOKENS_FILE)]
    if texts[0] != texts[1]:
        raise UserError("recording", str(folder), "one recording's two files", "record again")
    values = json.loads(texts[0])
    if values.get("version") != VERSION:
        raise UserError("recording", str(folder), f"of version {VERSION}", "record again")
    return Recording(**{**values, "layers": tuple(values["layers"])})


def _metadata(path: Path) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        found: bytes = (pq.read_schema(path).metadata or {})[META_KEY]
    except (pa.ArrowException, OSError, KeyError):
        do = "run `isoflop interpret record` first"
        raise UserError("recording", str(path), "a whole recorded file", do) from None
    return found


def recording_of(loaded: LoadedRun, folder: Path) -> Recording:
    """Return what a folder's recording holds, which must be of this run.

    Raises:
        UserError: it is damaged, missing or of another run.
    """
    meta = read_recording(folder)
    if meta.run_id != loaded.run_id:
        raise UserError(
            "recording",
            f"{folder}, of run {shown_id(meta.run_id)}",
            f"of run {shown_id(loaded.run_id)}",
            "run `isoflop interpret record` for this run",
        )
    return meta


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
        """Return where the tokens of windows at positions are: [R]."""
        return np.searchsorted(self.window_T, window_R) + position_R

    def window_rows(self, row: int) -> tuple[int, int]:
        """Return the range of the rows in the window of a row."""
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
    """Return the tokens of a recording."""
    import pyarrow.parquet as pq

    names = ["document", "window", "position", "input_token", "target_token", "loss"]
    table = pq.read_table(folder / TOKENS_FILE, columns=names)
    document, window, position, inputs, targets, loss = (table[name].to_numpy() for name in names)
    return RecordedTokens(
        document_T=document,
        window_T=window,
        position_T=position,
        input_T=inputs,
        target_T=targets,
        loss_T=loss,
    )


def read_predictions(
    folder: Path, rows: Sequence[int] | NDArray[np.int64]
) -> list[list[tuple[int, float]]]:
    """Return (token, probability) of the top predictions at some tokens, best first."""
    import pyarrow.parquet as pq

    table = pq.read_table(folder / TOKENS_FILE, columns=["top_tokens", "top_probs"])
    top_tokens, top_probs = (column.take(rows).to_pylist() for column in table.columns)
    return [
        list(zip(tokens, probs, strict=True))
        for tokens, probs in zip(top_tokens, top_probs, strict=True)
    ]


def read_gates(folder: Path, tokens: RecordedTokens) -> Iterator[GateRows]:
    """Yield the gates of a recording, one row group at a time."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(folder / GATES_FILE) as file:
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

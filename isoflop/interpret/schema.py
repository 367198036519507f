"""The tables of a recording: gates.parquet and tokens.parquet.

isoflop.interpret.record writes them, isoflop.interpret.recording reads them. Rows are tokens that
carry loss, in the order of the evaluation: by document, window of the document's text, position in
the window. Importing this module stays cheap, as with isoflop.tables.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

VERSION = 1
GATES_FILE = "gates.parquet"
TOKENS_FILE = "tokens.parquet"
FOLDER_NAME = "interpret"
"""Of what is found in a run, inside its folder."""

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

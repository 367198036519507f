"""Reads prepared tokens: training windows in keyed order, and the whole held-out set.

Inputs are a window shifted right with the begin token at position 0; the window itself is the
target and pads (id 0) carry no loss.
"""

# B windows of a batch, W windows of a split, T tokens of a window

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoflop.data.catalog import DataIdentity
from isoflop.data.permutation import permute
from isoflop.data.storage import read_manifest
from isoflop.data.tokenizer import BEGIN_ID, PAD_ID, TOKEN_DTYPE
from isoflop.errors import UserError
from isoflop.files import sha256_file

DATA_SCHEMA = "isoflop-tokens/1"


def open_data(folder: Path) -> TokenData:
    """Opens a prepared folder after checking the manifest and each shard's size and sha256.

    Raises:
        UserError: something is missing or was changed.
    """
    do = "delete the folder and prepare again"
    manifest = read_manifest(folder, DATA_SCHEMA, do)
    for split in manifest["splits"].values():
        for shard in split["shards"]:
            _check_shard(folder / shard["file"], shard, do)
    return TokenData(folder, manifest)


def shift_right(window_BT: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Model inputs [B, T] of target windows [B, T]: begin, then all tokens but the last."""
    inputs_BT = np.empty_like(window_BT)
    inputs_BT[:, 0] = BEGIN_ID
    inputs_BT[:, 1:] = window_BT[:, :-1]
    return inputs_BT


class TokenData:
    """A verified prepared folder; made by :func:`open_data`."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest
        self.identity = DataIdentity(
            data_id=manifest["data_id"],
            tokenizer_hash=manifest["tokenizer_hash"],
            vocab_size=manifest["vocab_size"],
            num_train_tokens=manifest["splits"]["train"]["num_tokens"],
            source=manifest["source"],
            tokenizer=manifest["tokenizer"],
        )

    def train_windows(self, seq_len: int) -> TrainWindows:
        """The training windows of ``seq_len`` tokens.

        Raises:
            UserError: there are fewer training tokens than one window.
        """
        return TrainWindows(self._stream("train"), seq_len)

    def heldout(self, seq_len: int) -> HeldoutWindows:
        """The held-out documents in windows of ``seq_len`` tokens."""
        return HeldoutWindows(
            self._stream("heldout"), self.manifest["splits"]["heldout"]["documents"], seq_len
        )

    def _stream(self, split: str) -> _TokenStream:
        shards = self.manifest["splits"][split]["shards"]
        return _TokenStream([self.folder / shard["file"] for shard in shards])


class TrainWindows:
    """Windows that tile the training tokens (a last partial window is dropped).

    A batch is a function of (step, batch size, seed) alone: not of ranks, workers, micro-batches,
    architecture or what was read before. Each epoch visits every window once.
    """

    def __init__(self, stream: _TokenStream, seq_len: int) -> None:
        _check_seq_len(seq_len)
        if stream.num_tokens < seq_len:
            raise UserError(
                "seq_len",
                seq_len,
                f"at most the {stream.num_tokens} training tokens",
                "use shorter windows or a larger corpus",
            )
        self._stream = stream
        self.seq_len = seq_len
        self.num_windows = stream.num_tokens // seq_len

    def window_index(self, step: int, batch_size: int, seed: int) -> NDArray[np.int64]:
        """Which windows [B] the global batch of ``step`` (from 0) reads."""
        if step < 0 or batch_size < 1:
            raise ValueError(f"step = {step}, batch_size = {batch_size}: must be >= 0 and >= 1")
        position_B = step * batch_size + np.arange(batch_size, dtype=np.int64)
        epoch_B = position_B // self.num_windows
        index_B = position_B % self.num_windows
        for epoch in np.unique(epoch_B).tolist():
            now_B = epoch_B == epoch
            index_B[now_B] = permute(index_B[now_B], self.num_windows, seed, epoch)
        return index_B

    def batch(self, step: int, batch_size: int, seed: int) -> NDArray[np.uint16]:
        """Target windows [B, T] of the global batch of ``step`` (from 0)."""
        index_B = self.window_index(step, batch_size, seed)
        window_BT = np.empty((batch_size, self.seq_len), dtype=np.uint16)
        for row, index in enumerate(index_B.tolist()):
            self._stream.read_into(index * self.seq_len, window_BT[row])
        return window_BT


class HeldoutWindows:
    """Every held-out token once: each document starts a window, its last one is padded with 0.

    Attributes:
        tokens: uint16 [W, T].
        document_index: int64 [W], the window's document in the manifest's held-out list.
        num_tokens: tokens that carry loss: text bytes and one end-of-text per document.
        num_bytes: bytes of text, for bits per byte.
        num_documents: held-out documents.
    """

    def __init__(
        self, stream: _TokenStream, documents: Sequence[dict[str, Any]], seq_len: int
    ) -> None:
        _check_seq_len(seq_len)
        num_windows = [-(-document["num_tokens"] // seq_len) for document in documents]
        self.seq_len = seq_len
        self.tokens: NDArray[np.uint16] = np.full(
            (sum(num_windows), seq_len), PAD_ID, dtype=np.uint16
        )
        self.document_index: NDArray[np.int64] = np.repeat(
            np.arange(len(documents), dtype=np.int64), num_windows
        )
        first = 0
        for document, count in zip(documents, num_windows, strict=True):
            flat = self.tokens[first : first + count].reshape(-1)
            stream.read_into(document["token_offset"], flat[: document["num_tokens"]])
            first += count
        self.num_tokens: int = sum(document["num_tokens"] for document in documents)
        self.num_bytes: int = sum(document["num_bytes"] for document in documents)
        self.num_documents = len(documents)


class _TokenStream:
    """Shards read as one memory-mapped sequence."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._shards = [np.memmap(path, dtype=TOKEN_DTYPE, mode="r") for path in paths]
        sizes = [shard.size for shard in self._shards]
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        self.num_tokens = int(self._starts[-1])

    def read_into(self, start: int, out: NDArray[np.uint16]) -> None:
        """Copies tokens [start, start + out.size) to ``out``, across shards where needed."""
        shard = int(np.searchsorted(self._starts, start, side="right")) - 1
        done = 0
        while done < out.size:
            at = start + done - int(self._starts[shard])
            part = self._shards[shard][at : at + out.size - done]
            out[done : done + part.size] = part
            done += part.size
            shard += 1


def _check_seq_len(seq_len: int) -> None:
    if seq_len < 1:
        raise UserError("seq_len", seq_len, "at least 1", "give the window length in tokens")


def _check_shard(path: Path, shard: dict[str, Any], do: str) -> None:
    if not path.is_file():
        raise UserError("data shard", str(path), "an existing file", do)
    if path.stat().st_size != shard["num_bytes"]:
        raise UserError("data shard", str(path), f"of {shard['num_bytes']} bytes", do)
    if sha256_file(path) != shard["sha256"]:
        raise UserError("data shard", str(path), "as it was written (its sha256 differs)", do)

"""Reads prepared tokens: training windows in keyed order, and the whole held-out set.

Inputs are a window shifted right with the begin token at position 0; the window itself is the
target and pads (id 0) carry no loss.

Two layouts are read. In ``isoflop-tokens/1`` each split of the manifest has the rows of its
documents. In ``isoflop-tokens/2`` there is the row of a parquet file with them in their place.
"""

# B windows of a batch, W windows of a split, T tokens of a window, M documents of a split

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoflop.data.catalog import identity_of
from isoflop.data.storage import DELETE_IT, PREPARED_SCHEMAS, read_manifest
from isoflop.data.tokenizers.spec import BEGIN_ID, PAD_ID, TOKENIZERS, TokenizerSpec
from isoflop.data.verify import check_on_open
from isoflop.errors import UserError

__all__ = ["HeldoutWindows", "TokenData", "Tokens", "TrainWindows", "open_data", "shift_right"]

TOKEN_DTYPES = {"<u2": 2**16, "<u4": 2**32}
"""How tokens are stored, each with the vocabulary that fits."""

Tokens = NDArray[np.integer[Any]]
"""uint16 where the vocabulary fits into it, else uint32."""


def open_data(folder: Path) -> TokenData:
    """Open a prepared folder after checking the manifest and its files.

    Every file's size is checked, and its sha256 too; of large sets only the first time
    (:mod:`isoflop.data.verify`).

    Raises:
        UserError: something is missing or was changed, or needs another version.
    """
    manifest = read_manifest(folder, PREPARED_SCHEMAS, DELETE_IT)
    _check_manifest(folder, manifest)
    check_on_open(folder, manifest, DELETE_IT)
    return TokenData(folder, manifest)


def shift_right(window_BT: Tokens, begin_id: int = BEGIN_ID) -> Tokens:
    """Return model inputs [B, T] of target windows [B, T]: begin, then all tokens but the last."""
    inputs_BT = np.empty_like(window_BT)
    inputs_BT[:, 0] = begin_id
    inputs_BT[:, 1:] = window_BT[:, :-1]
    return inputs_BT


class TokenData:
    """A verified prepared folder; made by :func:`open_data`."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest
        self.dtype = np.dtype(manifest["dtype"])
        self.begin_id: int = manifest["begin_id"]
        self.end_of_text_id: int = manifest["end_of_text_id"]
        self.identity = identity_of(manifest)

    def train_windows(self, seq_len: int) -> TrainWindows:
        """Return the training windows of ``seq_len`` tokens.

        Raises:
            UserError: there are fewer training tokens than one window.
        """
        return TrainWindows(self.stream("train"), seq_len, self.begin_id)

    def heldout(self, seq_len: int) -> HeldoutWindows:
        """Return the held-out documents in windows of ``seq_len`` tokens."""
        return HeldoutWindows(
            self.stream("heldout"), self.documents("heldout"), seq_len, self.begin_id
        )

    def documents(self, split: str) -> Documents:
        """Return where the documents of ``train`` or ``heldout`` begin and how long they are."""
        listed = self.manifest["splits"][split]["documents"]
        if isinstance(listed, list):
            return Documents.from_rows(listed)
        return Documents.from_table(
            self._read_table(split, ["token_offset", "num_tokens", "num_bytes"])
        )

    def document_names(self, split: str, first: int, end: int) -> list[str]:
        """Return what the source calls documents [first, end) of a split."""
        listed = self.manifest["splits"][split]["documents"]
        if isinstance(listed, list):
            return [row["id"] for row in listed[first:end]]
        names: list[str] = self._read_table(split, ["id"])["id"][first:end].to_pylist()
        return names

    def tokenizer_spec(self) -> TokenizerSpec:
        """Return the tokenizer's definition, all but the files that it needs."""
        name = self.manifest["tokenizer"]
        definition = self.manifest.get("tokenizer_definition")
        spec = TokenizerSpec(
            name=name,
            vocab_size=self.manifest["vocab_size"],
            pad_id=self.manifest["pad_id"],
            end_of_text_id=self.end_of_text_id,
            begin_id=self.begin_id,
            definition=TOKENIZERS[name].definition if definition is None else definition,
        )
        if spec.hash != self.manifest["tokenizer_hash"]:
            raise UserError(
                f"{self.folder}: tokenizer_hash",
                self.manifest["tokenizer_hash"],
                f"{spec.hash}, that of {name}",
                "prepare again with this version",
            )
        return spec

    def _read_table(self, split: str, columns: list[str]) -> Any:
        import pyarrow.parquet as pq

        file = self.manifest["splits"][split]["documents"]["file"]
        return pq.read_table(self.folder / file, columns=columns)

    def stream(self, split: str) -> TokenStream:
        """Return all tokens of ``train`` or ``heldout``."""
        shards = self.manifest["splits"][split]["shards"]
        return TokenStream([self.folder / shard["file"] for shard in shards], self.dtype)


class TrainWindows:
    """Windows that tile the training tokens (a last partial window is dropped).

    A batch is a function of (step, batch size, seed) alone: not of ranks, workers, micro-batches,
    architecture or what was read before. Each epoch visits every window once. ``begin_id`` is the
    input at position 0.
    """

    def __init__(self, stream: TokenStream, seq_len: int, begin_id: int) -> None:
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
        self.begin_id = begin_id
        self.num_windows = stream.num_tokens // seq_len

    def window_index(self, step: int, batch_size: int, seed: int) -> NDArray[np.int64]:
        """Return which windows [B] the global batch of ``step`` (from 0) reads."""
        if step < 0 or batch_size < 1:
            raise ValueError(f"step = {step}, batch_size = {batch_size}: must be >= 0 and >= 1")
        position_B = step * batch_size + np.arange(batch_size, dtype=np.int64)
        epoch_B = position_B // self.num_windows
        index_B = position_B % self.num_windows
        for epoch in np.unique(epoch_B).tolist():
            now_B = epoch_B == epoch
            index_B[now_B] = permute(index_B[now_B], self.num_windows, seed, epoch)
        return index_B

    def batch(self, step: int, batch_size: int, seed: int) -> Tokens:
        """Return target windows [B, T] of the global batch of ``step`` (from 0)."""
        index_B = self.window_index(step, batch_size, seed)
        window_BT = np.empty((batch_size, self.seq_len), dtype=self._stream.dtype)
        for row, index in enumerate(index_B.tolist()):
            self._stream.read_into(index * self.seq_len, window_BT[row])
        return window_BT

    def read(self, first: int, end: int) -> Tokens:
        """Return windows [first, end) in the order of the text."""
        count = end - first
        flat = self._stream.read(first * self.seq_len, count * self.seq_len)
        return flat.reshape(count, self.seq_len)

    def epochs(self, num_tokens: int) -> float:
        """Return how often ``num_tokens`` training tokens pass over the windows."""
        return num_tokens / (self.num_windows * self.seq_len)


class HeldoutWindows:
    """Every held-out token once: each document starts a window, its last one is padded with 0.

    Attributes:
        tokens: uint16 or uint32 [W, T].
        document_index: int64 [W], the window's document in the held-out order.
        num_tokens: tokens that carry loss: those of the text and one end-of-text per document.
        num_bytes: bytes of text, for bits per byte.
        num_documents: held-out documents.
        num_windows: W.
        begin_id: the input at position 0.
    """

    def __init__(
        self,
        stream: TokenStream,
        documents: Documents,
        seq_len: int,
        begin_id: int,
    ) -> None:
        _check_seq_len(seq_len)
        num_windows_M = -(-documents.num_tokens_M // seq_len)
        self.seq_len = seq_len
        self.tokens: Tokens = np.full(
            (int(num_windows_M.sum()), seq_len), PAD_ID, dtype=stream.dtype
        )
        self.document_index: NDArray[np.int64] = np.repeat(
            np.arange(len(documents), dtype=np.int64), num_windows_M
        )
        self.begin_id = begin_id
        flat, first = self.tokens.reshape(-1), 0
        for offset, count, num_windows in zip(
            documents.token_offset_M.tolist(),
            documents.num_tokens_M.tolist(),
            num_windows_M.tolist(),
            strict=True,
        ):
            stream.read_into(offset, flat[first : first + count])
            first += num_windows * seq_len
        self.num_tokens = int(documents.num_tokens_M.sum())
        self.num_bytes = int(documents.num_bytes_M.sum())
        self.num_documents = len(documents)
        self.num_windows = len(self.tokens)
        self._num_bytes_M = documents.num_bytes_M

    def thinned(self, most_tokens: int) -> HeldoutWindows:
        """Return every k-th window, k as small as ``most_tokens`` allow; itself where k is 1.

        Spread evenly over all documents. Of a document's bytes as large a share counts as of its
        tokens: where text was cut into tokens, a window's own bytes are not known.
        """
        every = -(-self.num_tokens // most_tokens)
        if every == 1:
            return self
        kept = copy.copy(self)
        kept.tokens = self.tokens[::every]
        kept.document_index = self.document_index[::every]
        whole_M, kept_M = (
            np.bincount(
                windows.document_index,
                weights=(windows.tokens != PAD_ID).sum(axis=1),
                minlength=self.num_documents,
            )
            for windows in (self, kept)
        )
        kept.num_tokens = int(kept_M.sum())
        kept.num_bytes = round(float((self._num_bytes_M * kept_M / whole_M).sum()))
        kept.num_documents = int(np.count_nonzero(kept_M))
        kept.num_windows = len(kept.tokens)
        return kept

    def read(self, first: int, end: int) -> Tokens:
        """Return windows [first, end)."""
        return self.tokens[first:end]


@dataclass(frozen=True, kw_only=True, slots=True)
class Documents:
    """The documents of a split, in the order of their tokens."""

    token_offset_M: NDArray[np.int64]
    """Index of the first token in the split."""
    num_tokens_M: NDArray[np.int64]
    """Its end-of-text included."""
    num_bytes_M: NDArray[np.int64]
    """Of text."""

    @staticmethod
    def from_rows(rows: Sequence[dict[str, Any]]) -> Documents:
        """Return the documents of a manifest's rows."""
        return Documents(
            token_offset_M=_column(row["token_offset"] for row in rows),
            num_tokens_M=_column(row["num_tokens"] for row in rows),
            num_bytes_M=_column(row["num_bytes"] for row in rows),
        )

    @staticmethod
    def from_table(table: Any) -> Documents:
        """Return the documents of a pyarrow table with the same columns."""
        return Documents(
            token_offset_M=table["token_offset"].to_numpy(),
            num_tokens_M=table["num_tokens"].to_numpy(),
            num_bytes_M=table["num_bytes"].to_numpy(),
        )

    def __len__(self) -> int:
        return self.num_tokens_M.size

    def groups(self, num_tokens: int) -> Iterator[tuple[int, int]]:
        """Yield ranges of successive documents of at most ``num_tokens``, or of a longer one."""
        first = 0
        ends_M = self.token_offset_M + self.num_tokens_M
        while first < len(self):
            limit = self.token_offset_M[first] + num_tokens
            end = max(first + 1, int(np.searchsorted(ends_M, limit, side="right")))
            yield first, end
            first = end


class TokenStream:
    """Shards read as one memory-mapped sequence."""

    def __init__(
        self,
        paths: Sequence[Path],
        dtype: np.dtype[Any],
    ) -> None:
        self.dtype = dtype
        self._shards = [np.memmap(path, dtype=dtype, mode="r") for path in paths]
        sizes = [shard.size for shard in self._shards]
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        self.num_tokens = int(self._starts[-1])

    def read(self, start: int, count: int) -> Tokens:
        """Return a copy of tokens [start, start + count)."""
        out = np.empty(count, dtype=self.dtype)
        self.read_into(start, out)
        return out

    def read_into(self, start: int, out: Tokens) -> None:
        """Copy tokens [start, start + out.size) to ``out``, across shards where needed."""
        shard = int(np.searchsorted(self._starts, start, side="right")) - 1
        done = 0
        while done < out.size:
            at = start + done - int(self._starts[shard])
            part = self._shards[shard][at : at + out.size - done]
            out[done : done + part.size] = part
            done += part.size
            shard += 1


def _column(values: Iterable[int]) -> NDArray[np.int64]:
    return np.fromiter(values, dtype=np.int64)


def _check_seq_len(seq_len: int) -> None:
    if seq_len < 1:
        raise UserError("seq_len", seq_len, "at least 1", "give the window length in tokens")


def _check_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Refuse a manifest whose tokenizer cannot be read."""
    dtype = manifest["dtype"]
    if dtype not in TOKEN_DTYPES:
        raise UserError(f"{folder}: dtype", dtype, f"one of {', '.join(TOKEN_DTYPES)}", DELETE_IT)
    if manifest["vocab_size"] > TOKEN_DTYPES[dtype]:
        raise UserError(
            f"{folder}: vocab_size", manifest["vocab_size"], f"within {dtype}", DELETE_IT
        )
    if manifest["pad_id"] != PAD_ID:
        raise UserError(f"{folder}: pad_id", manifest["pad_id"], f"{PAD_ID}", DELETE_IT)


# The order of training windows: a keyed permutation of range(length) that needs no table.
#
# FROZEN: results already written depend on these values. A change needs a new function.
#
# A balanced Feistel network permutes the 2h-bit numbers for any round function; values that fall
# outside range(length) walk along their cycle until they are inside, which keeps the map a
# bijection on range(length) (Black and Rogaway 2002, "Ciphers with arbitrary finite domains",
# cycle walking). 2**(2h) <= 4 * length, so a walk takes at most 4 passes on average.
#
# B positions asked for at once

NUM_ROUNDS = 8
_MAX_LENGTH = 2**62


def permute(position: NDArray[np.int64], length: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return where each position of an epoch points: a bijection on range(length).

    Args:
        position: any shape, values in [0, length).
        length: size of the permuted range, 1 to 2**62.
        seed: any integer.
        epoch: any integer; each (seed, epoch) has its own permutation.

    Returns:
        Values in [0, length), the shape of ``position``.

    Raises:
        ValueError: length or a position is out of its range.
    """
    if not 1 <= length <= _MAX_LENGTH:
        raise ValueError(f"length = {length}: must be in [1, 2**62]")
    position = np.asarray(position, dtype=np.int64)
    if position.size and not (position.min() >= 0 and position.max() < length):
        raise ValueError(f"position: must be in [0, {length})")
    half_bits = max(1, ((length - 1).bit_length() + 1) // 2)
    keys = [_round_key(seed, epoch, index) for index in range(NUM_ROUNDS)]
    value_B = _feistel(position.reshape(-1).astype(np.uint64), half_bits, keys)
    outside_B = value_B >= length
    while outside_B.any():
        value_B[outside_B] = _feistel(value_B[outside_B], half_bits, keys)
        outside_B = value_B >= length
    return value_B.astype(np.int64).reshape(position.shape)


def _feistel(
    value_B: NDArray[np.uint64], half_bits: int, keys: list[np.uint64]
) -> NDArray[np.uint64]:
    shift = np.uint64(half_bits)
    mask = np.uint64((1 << half_bits) - 1)
    left_B, right_B = value_B >> shift, value_B & mask
    for key in keys:
        left_B, right_B = right_B, left_B ^ (_mix(right_B + key) & mask)
    return (left_B << shift) | right_B


def _mix(value_B: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Apply splitmix64's finaliser (Steele, Lea, Flood 2014): each bit depends on all input."""
    value_B = (value_B ^ (value_B >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value_B = (value_B ^ (value_B >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value_B ^ (value_B >> np.uint64(31))


def _round_key(seed: int, epoch: int, index: int) -> np.uint64:
    text = f"isoflop/permutation/1 seed={seed} epoch={epoch} round={index}"
    digest = hashlib.sha256(text.encode("ascii")).digest()
    return np.uint64(int.from_bytes(digest[:8], "little"))

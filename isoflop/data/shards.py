"""Shards: the token stream of a split, cut into files wherever a document ends up."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoflop.data.pool import ordered_map
from isoflop.files import read_json, sha256_file, sha256_json, write_bytes_atomic, write_json_atomic

MAX_SHARD_TOKENS = 2**26
"""128 MiB of uint16: one fits in memory while it is written."""
_COPY_TOKENS = 2**22

Piece = tuple[str, int, int]
"""Block, first token in it, number of tokens."""


class ShardWriter:
    """Writes tokens as they come, each shard in one go.

    Args:
        folder: where the shards go.
        split: ``train`` or ``heldout``.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self._folder = folder
        self._split = split
        self._pending: list[NDArray[Any]] = []
        self._num_pending = 0
        self._rows: list[dict[str, Any]] = []
        self.num_tokens = 0

    def add(self, tokens: NDArray[Any]) -> None:
        """Append a document's tokens [T]."""
        self.num_tokens += tokens.size
        while tokens.size:
            part = tokens[: MAX_SHARD_TOKENS - self._num_pending]
            self._pending.append(part)
            self._num_pending += part.size
            tokens = tokens[part.size :]
            if self._num_pending == MAX_SHARD_TOKENS:
                self._flush()

    def finish(self) -> list[dict[str, Any]]:
        """Write what is left; the manifest's row of each shard."""
        if self._num_pending:
            self._flush()
        return self._rows

    def _flush(self) -> None:
        data = np.concatenate(self._pending).tobytes()
        file = _file_name(self._split, len(self._rows))
        write_bytes_atomic(self._folder / file, data)
        digest = hashlib.sha256(data).hexdigest()
        self._rows.append(_row(file, self._num_pending, len(data), digest))
        self._pending, self._num_pending = [], 0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Shard:
    """One shard that is to be copied together."""

    file: str
    pieces: tuple[Piece, ...]
    itemsize: int

    @property
    def num_tokens(self) -> int:
        return sum(count for _, _, count in self.pieces)


def copy_shards(
    work: Path, out: Path, split: str, pieces: Sequence[Piece], itemsize: int, workers: int
) -> Iterator[dict[str, Any]]:
    """Copy a split's shards together from blocks; the manifest's row of each.

    Args:
        work: has ``BLOCK.tokens``; shards that a killed run had finished are not copied again.
        out: where the shards go.
        split: ``train`` or ``heldout``.
        pieces: of the blocks, in order.
        itemsize: bytes of a token.
        workers: processes.
    """
    shards = [
        _Shard(file=_file_name(split, number), pieces=tuple(part), itemsize=itemsize)
        for number, part in enumerate(_cut(pieces))
    ]
    yield from ordered_map(_copy_shard, (work, out), shards, min(workers, len(shards)))


def _cut(pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
    shard: list[Piece] = []
    room = MAX_SHARD_TOKENS
    for block, start, count in pieces:
        while count:
            part = min(count, room)
            shard.append((block, start, part))
            start, count, room = start + part, count - part, room - part
            if room == 0:
                yield shard
                shard, room = [], MAX_SHARD_TOKENS
    if shard:
        yield shard


def _copy_shard(folders: tuple[Path, Path], shard: _Shard) -> dict[str, Any]:
    work, out = folders
    target, record = out / shard.file, work / f"{shard.file}.json"
    plan = sha256_json([list(piece) for piece in shard.pieces])
    if target.is_file() and record.is_file():
        found = read_json(record, "record of a shard")
        if found["plan"] == plan and found["row"]["sha256"] == sha256_file(target):
            return dict(found["row"])
    digest = hashlib.sha256()
    temporary = work / f"{shard.file}.tmp"
    with temporary.open("wb") as file:
        for data in _read_pieces(work, shard):
            digest.update(data)
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(target)
    num_bytes = shard.num_tokens * shard.itemsize
    row = _row(shard.file, shard.num_tokens, num_bytes, digest.hexdigest())
    write_json_atomic(record, {"plan": plan, "row": row})
    return row


def _read_pieces(work: Path, shard: _Shard) -> Iterator[bytes]:
    for block, start, count in shard.pieces:
        with (work / f"{block}.tokens").open("rb") as file:
            file.seek(start * shard.itemsize)
            left = count * shard.itemsize
            while left:
                data = file.read(min(left, _COPY_TOKENS * shard.itemsize))
                assert data
                left -= len(data)
                yield data


def _file_name(split: str, number: int) -> str:
    return f"{split}-{number:05d}.bin"


def _row(file: str, num_tokens: int, num_bytes: int, sha256: str) -> dict[str, Any]:
    return {"file": file, "num_tokens": num_tokens, "num_bytes": num_bytes, "sha256": sha256}

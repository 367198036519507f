"""What a prepared folder holds: splits, tables of documents, and shards.

A shard is a part of the token stream of a split, cut wherever a document ends up.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoflop.data.corpus import GIVE_MORE, SPLIT_RULE, heldout_flags
from isoflop.data.pipeline import (
    BAD,
    EMPTY,
    HASH_RULE,
    KEPT,
    OWN_SPLITS_RULE,
    DocumentTable,
    TakenPart,
    is_hash_heldout,
    read_table,
)
from isoflop.data.pool import ordered_map
from isoflop.data.sources import HELDOUT, TRAIN, Meter, OnProgress, PrepareOptions, Source
from isoflop.disk import naming
from isoflop.errors import UserError
from isoflop.files import read_json, sha256_file, sha256_json, write_bytes_atomic, write_json_atomic

FEW_DOCUMENTS = 10_000
"""Up to so many documents, a source that is taken whole is split exactly as a corpus is."""
MAX_SHARD_TOKENS = 2**26
"""128 MiB of uint16: one fits in memory while it is written."""
_COPY_TOKENS = 2**22

Piece = tuple[str, int, int]
"""Block, first token in it, number of tokens."""


@dataclass(kw_only=True, slots=True)
class _Split:
    """What goes to one side, as the tables are read."""

    pieces: list[Piece] = field(default_factory=list)
    num_tokens: int = 0
    num_bytes: int = 0
    num_documents: int = 0

    def add(self, piece: Piece, num_bytes: int) -> None:
        block, start, count = piece
        if self.pieces:
            last_block, last_start, last_count = self.pieces[-1]
            # Neighbours are copied in one go.
            if last_block == block and last_start + last_count == start:
                start, count = last_start, last_count + count
                self.pieces.pop()
        self.pieces.append((block, start, count))
        self.num_tokens += piece[2]
        self.num_bytes += num_bytes
        self.num_documents += 1


@dataclass(kw_only=True, slots=True)
class Sorting:
    """All documents of a source, each on its side of the split."""

    rule: str
    corpus_sha256: str = ""
    splits: dict[str, _Split] = field(default_factory=lambda: {TRAIN: _Split(), HELDOUT: _Split()})
    num_bad: int = 0
    num_empty: int = 0
    num_heldout_copies: int = 0
    num_train_duplicates: int = 0


def sort_documents(
    work: Path, out: Path, parts: list[TakenPart], options: PrepareOptions
) -> Sorting:
    """Decide where each document goes; write ``documents-*.parquet`` to ``out``.

    Raises:
        UserError: a side would be empty.
    """
    rule, is_heldout = _choose_rule(work, parts, options)
    sorting = Sorting(rule=rule)
    corpus = hashlib.sha256()
    heldout: set[bytes] = set()
    train_keys: list[NDArray[np.uint64]] = []
    with (
        naming(out),
        _TableWriter(out, TRAIN) as train_table,
        _TableWriter(out, HELDOUT) as heldout_table,
    ):
        tables = {TRAIN: train_table, HELDOUT: heldout_table}
        for part, block, table in _tables(work, parts):
            start = 0
            train_digests = []
            for row, digest in enumerate(table.digests):
                status, count = int(table.status[row]), int(table.num_tokens[row])
                if status != KEPT:
                    sorting.num_bad += status == BAD
                    sorting.num_empty += status == EMPTY
                    continue
                side = part.split or (HELDOUT if is_heldout(digest) else TRAIN)
                if side == TRAIN and digest in heldout:
                    sorting.num_heldout_copies += 1
                else:
                    corpus.update(side[:1].encode() + digest)
                    split = sorting.splits[side]
                    tables[side].add(table, row, split.num_tokens)
                    split.add((block, start, count), int(table.num_bytes[row]))
                    if side == TRAIN:
                        train_digests.append(digest[:8])
                    elif part.split == HELDOUT:
                        heldout.add(digest)
                start += count
            train_keys.append(np.frombuffer(b"".join(train_digests), dtype=np.uint64))
            for writer in tables.values():
                writer.flush()
    _check_sides(sorting)
    # With 64 bits, a billion documents are all different but for a chance of 3%.
    keys = np.concatenate(train_keys)
    sorting.num_train_duplicates = int(keys.size - np.unique(keys).size)
    sorting.corpus_sha256 = corpus.hexdigest()
    return sorting


def _choose_rule(
    work: Path, parts: list[TakenPart], options: PrepareOptions
) -> tuple[str, Callable[[bytes], bool]]:
    if all(part.split is not None for part in parts):
        return OWN_SPLITS_RULE, is_hash_heldout
    if options.tokens is None:
        digests = few_digests(_kept_digests(work, parts))
        # Where there is none at all, the error of the empty sides gives the reason.
        if digests:
            return SPLIT_RULE, heldout_digests(digests).__contains__
    return HASH_RULE, is_hash_heldout


def few_digests(digests: Iterable[bytes]) -> list[bytes] | None:
    """Return the sha256 of documents; None if there are more than :data:`FEW_DOCUMENTS`."""
    few = list(itertools.islice(digests, FEW_DOCUMENTS + 1))
    return few if len(few) <= FEW_DOCUMENTS else None


def heldout_digests(digests: Sequence[bytes]) -> set[bytes]:
    """Return the documents, by their sha256, that the rule for corpora holds out."""
    flags = heldout_flags([digest.hex() for digest in digests])
    return {digest for digest, flag in zip(digests, flags, strict=True) if flag}


def _kept_digests(work: Path, parts: list[TakenPart]) -> Iterator[bytes]:
    for _, _, table in _tables(work, parts):
        for digest, status in zip(table.digests, table.status, strict=True):
            if status == KEPT:
                yield digest


def _tables(work: Path, parts: list[TakenPart]) -> Iterator[tuple[TakenPart, str, DocumentTable]]:
    for part in parts:
        for name in part.block_names:
            taken = part.num_in_last if name == part.block_names[-1] else None
            yield part, name, read_table(work / f"{name}.parquet", taken)


def _check_sides(sorting: Sorting) -> None:
    train, heldout = sorting.splits[TRAIN], sorting.splits[HELDOUT]
    if train.num_documents + heldout.num_documents == 0:
        dropped = f"{sorting.num_bad} bad and {sorting.num_empty} empty ones were left out"
        raise UserError("documents", 0, f"at least 2 ({dropped})", GIVE_MORE)
    if train.num_documents == 0:
        allowed = f"1 or more ({sorting.num_heldout_copies} copies of held-out ones were left out)"
        raise UserError("training documents", 0, allowed, GIVE_MORE)
    if heldout.num_documents == 0:
        allowed = f"1 or more of the {train.num_documents} that were read"
        do = "take more --tokens or name a --heldout-split"
        raise UserError("held-out documents", 0, allowed, do)


class _TableWriter:
    """Writes ``documents-SPLIT.parquet``, one row group per block that has such documents."""

    def __init__(self, folder: Path, split: str) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._schema = pa.schema(
            [
                ("id", pa.string()),
                ("sha256", pa.binary(32)),
                ("token_offset", pa.int64()),
                ("num_tokens", pa.int64()),
                ("num_bytes", pa.int64()),
            ]
        )
        self._writer = pq.ParquetWriter(folder / table_file(split), self._schema)
        self._rows: list[tuple[str, bytes, int, int, int]] = []

    def __enter__(self) -> _TableWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def add(self, table: DocumentTable, row: int, token_offset: int) -> None:
        num_tokens, num_bytes = int(table.num_tokens[row]), int(table.num_bytes[row])
        self._rows.append((table.ids[row], table.digests[row], token_offset, num_tokens, num_bytes))

    def flush(self) -> None:
        import pyarrow as pa

        if self._rows:
            columns = zip(zip(*self._rows, strict=True), self._schema.types, strict=True)
            arrays = [pa.array(column, kind) for column, kind in columns]
            self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))
            self._rows = []


def table_file(split: str) -> str:
    """Return the name of a split's table of documents."""
    return f"documents-{split}.parquet"


def write_shards(
    work: Path,
    out: Path,
    sorting: Sorting,
    dtype: np.dtype[Any],
    workers: int,
    on_progress: OnProgress,
) -> dict[str, list[dict[str, Any]]]:
    """Write every shard to ``out``; return the manifest's rows of each split."""
    rows: dict[str, list[dict[str, Any]]] = {}
    meter = Meter("write", sorting.splits[TRAIN].num_tokens, on_progress)
    for name, split in sorting.splits.items():
        rows[name] = []
        for row in copy_shards(work, out, name, split.pieces, dtype.itemsize, workers):
            rows[name].append(row)
            share = row["num_tokens"] / split.num_tokens
            meter.add(
                round(split.num_documents * share),
                round(split.num_bytes * share),
                row["num_tokens"] if name == TRAIN else 0,
            )
    return rows


def describe_splits(
    out: Path, sorting: Sorting, shards: dict[str, list[dict[str, Any]]]
) -> dict[str, Any]:
    """Return the manifest's ``splits``."""
    return {
        name: {
            "num_tokens": split.num_tokens,
            "num_bytes": split.num_bytes,
            "num_documents": split.num_documents,
            "shards": shards[name],
            "documents": describe_file(out / table_file(name)),
        }
        for name, split in sorting.splits.items()
    }


def describe_file(path: Path) -> dict[str, Any]:
    """Return name, bytes and sha256 of a file, as a manifest lists it."""
    return {"file": path.name, "num_bytes": path.stat().st_size, "sha256": sha256_file(path)}


def write_facts(out: Path, source: Source, num_documents: int) -> list[dict[str, Any]]:
    """Write ``facts.json`` for a source with planted facts; return its row in the manifest."""
    if source.facts is None:
        return []
    path = out / "facts.json"
    write_json_atomic(path, source.facts(num_documents))
    return [describe_file(path)]


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
        """Write the rest; return the manifest's row of each shard."""
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
    """Copy a split's shards together from blocks; yield the manifest's row of each.

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
    with naming(target), temporary.open("wb") as file:
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

"""Tokenises a source block by block in several processes, so that a killed run can go on.

A block is a run of whole documents, cut by their sizes alone. Its tokens, a table of its documents
and, last, a record with the sha256 of both and of its input go to the work folder; a block whose
record still holds is not tokenised again. Blocks, and so everything made of them, are the same
however many processes there were and whenever they were killed.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Collection, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from isoflop.data.pool import ordered_map
from isoflop.data.sources import (
    HELDOUT,
    TRAIN,
    Meter,
    OnProgress,
    Part,
    PrepareOptions,
    RawDocument,
)
from isoflop.errors import UserError
from isoflop.files import sha256_file, write_bytes_atomic, write_json_atomic

if TYPE_CHECKING:
    from isoflop.data.tokenizers import Tokenizer

BLOCK_BYTES = 2**22
BLOCK_DOCUMENTS = 4096

BLOCK_RULE = f"blocks/1 of {BLOCK_BYTES} bytes or {BLOCK_DOCUMENTS} documents"

KEPT, BAD, EMPTY = 0, 1, 2

HELDOUT_SHARE = 10
HASH_RULE = (
    "by-hash/1: a document is held out if the first 64 bits of the sha256 of its bytes are below "
    f"2^64/{HELDOUT_SHARE} (exact copies always fall on the same side); the others train, in order"
)
OWN_SPLITS_RULE = (
    "own-splits/1: the source's own splits; training documents that are exact copies of held-out "
    "ones are dropped"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """Documents that are tokenised together."""

    name: str
    ids: tuple[str, ...]
    texts: tuple[bytes, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokenising:
    """What a process needs for every block."""

    tokenizer: Tokenizer
    folder: Path
    on_bad_document: str


@dataclass(frozen=True, kw_only=True, slots=True)
class DocumentTable:
    """Rows of some documents, in order."""

    ids: list[str]
    digests: list[bytes]
    """sha256."""
    num_tokens: NDArray[np.int64]
    """End-of-text included; 0 for a document that was not kept."""
    num_bytes: NDArray[np.int64]
    status: NDArray[np.int8]
    """KEPT, BAD or EMPTY."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TakenPart:
    """The blocks that were taken of one part."""

    split: str | None
    block_names: tuple[str, ...]
    num_in_last: int
    """Documents taken of the last block."""


def is_hash_heldout(digest: bytes) -> bool:
    """Return whether :data:`HASH_RULE` holds out a document with this sha256."""
    return int.from_bytes(digest[:8], "big") * HELDOUT_SHARE < 2**64


def take_parts(
    parts: Iterable[Part],
    tokenising: Tokenising,
    options: PrepareOptions,
    on_progress: OnProgress,
) -> list[TakenPart]:
    """Tokenise as much of each part as ``options`` asks for.

    Raises:
        UserError: a document is refused, or the source cannot be read.
    """
    meter = Meter("read", options.tokens, on_progress)
    heldout: set[bytes] = set()
    taken = []
    for part in parts:
        goal = options.tokens
        if part.split == HELDOUT and goal is not None:
            goal = -(-goal // HELDOUT_SHARE)
        taken.append(_take_part(part, goal, tokenising, options.workers, heldout, meter))
    return taken


def _take_part(
    part: Part,
    goal: int | None,
    tokenising: Tokenising,
    workers: int,
    heldout: set[bytes],
    meter: Meter,
) -> TakenPart:
    """Take documents until ``goal`` tokens of the part's split, or of training, are there."""
    names: list[str] = []
    num_in_last = num_tokens = 0
    blocks = cut_blocks(part.split or "all", part.read())
    with closing(ordered_map(tokenise_block, tokenising, blocks, workers)) as finished:
        for name in finished:
            table = read_table(tokenising.folder / f"{name}.parquet")
            counted = _counted(part.split, table, heldout)
            reached = num_tokens + np.cumsum(np.where(counted, table.num_tokens, 0))
            num_in_last = len(table.ids)
            if goal is not None and reached[-1] >= goal:
                num_in_last = int(np.searchsorted(reached, goal)) + 1
            names.append(name)
            new_tokens = int(reached[num_in_last - 1]) - num_tokens
            num_tokens += new_tokens
            if part.split == HELDOUT:
                heldout.update(table.digests[:num_in_last])
                new_tokens = 0
            num_bytes = int(table.num_bytes[:num_in_last].sum())
            meter.add(num_in_last, num_bytes, new_tokens)
            if goal is not None and num_tokens >= goal:
                break
    return TakenPart(split=part.split, block_names=tuple(names), num_in_last=num_in_last)


def _counted(
    split: str | None, table: DocumentTable, heldout: Collection[bytes]
) -> NDArray[np.bool_]:
    if split == HELDOUT:
        return np.ones(len(table.ids), dtype=bool)
    if split == TRAIN:
        return np.array([digest not in heldout for digest in table.digests])
    return np.array([not is_hash_heldout(digest) for digest in table.digests])


def cut_blocks(name: str, documents: Iterable[RawDocument]) -> Iterator[Block]:
    """Yield runs of documents of about :data:`BLOCK_BYTES`, or of one longer document."""
    ids: list[str] = []
    texts: list[bytes] = []
    number = num_bytes = 0
    for document in documents:
        ids.append(document.id)
        texts.append(document.text)
        num_bytes += len(document.text)
        if num_bytes >= BLOCK_BYTES or len(ids) == BLOCK_DOCUMENTS:
            yield Block(name=f"{name}-{number:08d}", ids=tuple(ids), texts=tuple(texts))
            number += 1
            ids, texts, num_bytes = [], [], 0
    if ids:
        yield Block(name=f"{name}-{number:08d}", ids=tuple(ids), texts=tuple(texts))


def tokenise_block(tokenising: Tokenising, block: Block) -> str:
    """Write a block's files unless they are there; return the block's name.

    Raises:
        UserError: a document is bad and bad ones are refused.
    """
    digests = [hashlib.sha256(text).digest() for text in block.texts]
    input_sha256 = _input_sha256(block.ids, digests)
    place = tokenising.folder / block.name
    if _is_finished(place, input_sha256, tokenising.on_bad_document):
        return block.name
    encoded = _encode_block(tokenising, block)
    end_of_text = np.array([tokenising.tokenizer.spec.end_of_text_id], tokenising.tokenizer.dtype)
    pieces = [
        piece for tokens, status in encoded if status == KEPT for piece in (tokens, end_of_text)
    ]
    data = np.concatenate(pieces).tobytes() if pieces else b""
    table = _table_bytes(block, digests, encoded)
    write_bytes_atomic(place.with_suffix(".tokens"), data)
    write_bytes_atomic(place.with_suffix(".parquet"), table)
    record = {
        "num_bad": sum(status == BAD for _, status in encoded),
        "input_sha256": input_sha256,
        "tokens_sha256": hashlib.sha256(data).hexdigest(),
        "table_sha256": hashlib.sha256(table).hexdigest(),
    }
    write_json_atomic(place.with_suffix(".json"), record)
    return block.name


def _input_sha256(ids: Iterable[str], digests: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for document_id, text_digest in zip(ids, digests, strict=True):
        digest.update(text_digest)
        digest.update(document_id.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()


def _is_finished(place: Path, input_sha256: str, on_bad_document: str) -> bool:
    try:
        record = json.loads(place.with_suffix(".json").read_bytes())
        if record.pop("num_bad") and on_bad_document == "refuse":
            return False
        return record == {
            "input_sha256": input_sha256,
            "tokens_sha256": sha256_file(place.with_suffix(".tokens")),
            "table_sha256": sha256_file(place.with_suffix(".parquet")),
        }
    except (OSError, ValueError, KeyError):
        return False


def _encode_block(tokenising: Tokenising, block: Block) -> list[tuple[NDArray[Any], int]]:
    """Return tokens [T], without end-of-text, and status of each document."""
    tokenizer = tokenising.tokenizer
    try:
        texts = [decode_text(text, "document") for text in block.texts]
        tokens = tokenizer.encode_batch(texts)
        return [(ids, KEPT if text else EMPTY) for ids, text in zip(tokens, texts, strict=True)]
    except UserError:
        # One of them is bad: each by itself, to find it.
        pairs = zip(block.ids, block.texts, strict=True)
        return [_encode_alone(tokenising, document_id, text) for document_id, text in pairs]


def _encode_alone(
    tokenising: Tokenising, document_id: str, text: bytes
) -> tuple[NDArray[Any], int]:
    tokenizer = tokenising.tokenizer
    what = f"document {document_id}"
    try:
        tokens = tokenizer.encode(decode_text(text, what), what=what)
        return tokens, KEPT if text else EMPTY
    except UserError as error:
        if tokenising.on_bad_document == "drop":
            return np.empty(0, dtype=tokenizer.dtype), BAD
        do = f"{error.do}, or leave such documents out with --on-bad-document drop"
        raise UserError(error.field, error.value, error.allowed, do) from None


def decode_text(text: bytes, what: str) -> str:
    """Return the text of UTF-8 without NUL, which binary files have and texts do not.

    Raises:
        UserError: it is something else.
    """
    nul = text.find(b"\0")
    if nul >= 0:
        raise UserError(what, b"\0", f"text without byte 0 (byte {nul})", "remove it")
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        found = text[error.start : error.start + 1]
        raise UserError(what, found, f"UTF-8 (byte {error.start})", "convert it") from None


def _table_bytes(
    block: Block, digests: list[bytes], encoded: list[tuple[NDArray[Any], int]]
) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(
        {
            "id": pa.array(block.ids, pa.string()),
            "sha256": pa.array(digests, pa.binary(32)),
            "num_tokens": pa.array(
                [tokens.size + 1 if status == KEPT else 0 for tokens, status in encoded], pa.int64()
            ),
            "num_bytes": pa.array([len(text) for text in block.texts], pa.int64()),
            "status": pa.array([status for _, status in encoded], pa.int8()),
        }
    )
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


def read_table(path: Path, num_documents: int | None = None) -> DocumentTable:
    """Return the first ``num_documents`` rows of a block's table; all if None."""
    import pyarrow.parquet as pq

    table = pq.read_table(path, use_threads=False).slice(0, num_documents)
    return DocumentTable(
        ids=table["id"].to_pylist(),
        digests=table["sha256"].to_pylist(),
        num_tokens=table["num_tokens"].to_numpy(),
        num_bytes=table["num_bytes"].to_numpy(),
        status=table["status"].to_numpy(),
    )

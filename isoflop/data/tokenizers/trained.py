"""``bpe:V``: byte-level BPE trained on the first documents of the training split."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from isoflop.data.tokenizers.encoders import LibraryTokenizer, import_tokenizers
from isoflop.data.tokenizers.spec import PAD_ID, TOKENIZER_FILE, TokenizerSpec
from isoflop.errors import UserError
from isoflop.files import sha256_json, write_once

SAMPLE_BYTES = 10_000_000
SPECIAL_TOKENS = ("<|pad|>", "<|endoftext|>")
END_OF_TEXT_ID = 1

_SHARED = {
    "sample": f"the first {SAMPLE_BYTES} bytes of the training documents in order, "
    "cut at a character",
    "special_tokens": list(SPECIAL_TOKENS),
    "special_tokens_in_text": "text",
    "min_frequency": 2,
}
RULES: Mapping[str, dict[str, Any]] = MappingProxyType(
    {
        "bpe": {**_SHARED, "normalizer": None, "add_prefix_space": False},
        # As the reference trains the one of its TinyStories runs.
        "bpe-tinystories": {**_SHARED, "normalizer": "NFKC", "add_prefix_space": True},
    }
)
"""How each kind is trained; hashed with the tokenizer."""


def train(kind: str, vocab_size: int, documents: Iterable[bytes], cache: Path) -> LibraryTokenizer:
    """Return the tokenizer of ``vocab_size`` tokens, cached or trained (about 5 s for 10 MB).

    Args:
        kind: one of :data:`RULES`.
        vocab_size: at least 258.
        documents: training documents, UTF-8, in order; read up to :data:`SAMPLE_BYTES`.
        cache: folder of trained tokenizers, named by sample, rules and content.

    Raises:
        UserError: the sample has too few different pieces, or a cached file was changed.
    """
    sample = _take_sample(documents)
    sample_sha256 = sha256_json([hashlib.sha256(text.encode()).hexdigest() for text in sample])
    request = {"vocab_size": vocab_size, "rules": RULES[kind], "sample_sha256": sample_sha256}
    data = _cached(cache, sha256_json(request)[:16])
    if data is None:
        data = _train(kind, vocab_size, sample).encode()
        name = f"{sha256_json(request)[:16]}-{hashlib.sha256(data).hexdigest()[:16]}.json"
        write_once(cache / name, data)
    spec = TokenizerSpec(
        name=f"{kind}:{vocab_size}",
        vocab_size=vocab_size,
        pad_id=PAD_ID,
        end_of_text_id=END_OF_TEXT_ID,
        begin_id=END_OF_TEXT_ID,
        definition={
            "kind": "byte-level BPE, trained",
            "rules": RULES[kind],
            "sample_sha256": sample_sha256,
            TOKENIZER_FILE: hashlib.sha256(data).hexdigest(),
        },
    )
    return LibraryTokenizer.from_file(spec, data)


def _take_sample(documents: Iterable[bytes]) -> list[str]:
    sample: list[str] = []
    left = SAMPLE_BYTES
    for document in documents:
        if len(document) >= left:
            # Only a character cut in two can be wrong at the end of valid UTF-8.
            sample.append(document[:left].decode(errors="ignore"))
            break
        sample.append(document.decode())
        left -= len(document)
    return sample


def _cached(cache: Path, key: str) -> bytes | None:
    for path in sorted(cache.glob(f"{key}-*.json")):
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest()[:16] != path.stem.partition("-")[2]:
            raise UserError(
                "trained tokenizer",
                str(path),
                "as it was written (its sha256 differs)",
                "delete it",
            )
        return data
    return None


def _train(kind: str, vocab_size: int, sample: list[str]) -> str:
    library = import_tokenizers()
    rules = RULES[kind]
    level = library.pre_tokenizers.ByteLevel
    tokenizer = library.Tokenizer(library.models.BPE())
    if rules["normalizer"]:
        tokenizer.normalizer = getattr(library.normalizers, rules["normalizer"])()
    tokenizer.pre_tokenizer = level(add_prefix_space=rules["add_prefix_space"])
    tokenizer.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=rules["special_tokens"],
        min_frequency=rules["min_frequency"],
        initial_alphabet=level.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample, trainer)
    if (found := tokenizer.get_vocab_size()) != vocab_size:
        allowed = f"at most {found} tokens, which is all this corpus yields"
        raise UserError("tokenizer", f"{kind}:{vocab_size}", allowed, f"choose {kind}:{found}")
    return str(tokenizer.to_str())

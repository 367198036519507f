"""What a tokenizer is, in values: a definition that is hashed, and special ids.

That of ``hf:PATH`` is read from its ``tokenizer.json``, without any library.
End-of-text: the token after ``#``, else ``eos_token`` of the ``tokenizer_config.json`` beside it,
else the first of :data:`END_OF_TEXT_TOKENS` in the vocabulary. Pad: id 0, if the token there is
called a pad (:data:`PAD_TOKENS`, or ``pad_token`` of the config); any other token at 0 moves to a
new last id, as the reference does with GPT-2. Padding elsewhere in the vocabulary stays unused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from isoflop.errors import UserError
from isoflop.files import sha256_json

PAD_ID = 0
"""Padding of every tokenizer; carries no loss."""

BEGIN_ID = 1
"""First input of a window for `byte` and the trained tokenizers; others have one of their own."""

TOKENIZER_FILE = "tokenizer.json"
"""Name, in a prepared folder, of the file of a tokenizer that has one."""

CONFIG_FILE = "tokenizer_config.json"
END_OF_TEXT_TOKENS = ("<|endoftext|>", "<|end_of_text|>", "<|eos|>", "<eos>", "</s>", "[EOS]")
PAD_TOKENS = ("<|pad|>", "<|padding|>", "<pad>", "[PAD]")


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


def read_spec(place: str) -> TokenizerSpec:
    """Return the spec of ``PATH`` or ``PATH#TOKEN``; its name is made of content, not of the path.

    Raises:
        UserError: the file is missing or no tokenizer, splits at random, or has no end-of-text.
    """
    path, _, token = place.partition("#")
    data = read_tokenizer_file(place)
    content = _parse(path, data)
    vocabulary = _vocabulary(path, content)
    config = _config(_file(path).with_name(CONFIG_FILE))
    end_of_text_id = vocabulary[_end_of_text(path, vocabulary, token, config.get("eos_token"))]
    first = next((token for token, index in vocabulary.items() if index == 0), None)
    vocab_size = max(vocabulary.values()) + 1
    is_pad = first in (*PAD_TOKENS, config.get("pad_token")) and end_of_text_id != 0
    moved_ids = {}
    if first is not None and not is_pad:
        moved_ids = {"0": vocab_size}
        vocab_size += 1
        end_of_text_id = end_of_text_id or moved_ids["0"]
    sha256 = hashlib.sha256(data).hexdigest()
    return TokenizerSpec(
        name=f"hf:{sha256[:16]}#{end_of_text_id}",
        vocab_size=vocab_size,
        pad_id=0,
        end_of_text_id=end_of_text_id,
        begin_id=end_of_text_id,
        definition={
            "kind": "tokenizer.json; special tokens inside text are text",
            TOKENIZER_FILE: sha256,
            "moved_ids": moved_ids,
        },
    )


def read_tokenizer_file(place: str) -> bytes:
    """Return the bytes of ``PATH`` or ``PATH#TOKEN``.

    Raises:
        UserError: there is no such file.
    """
    path = _file(place.partition("#")[0])
    if not path.is_file():
        raise UserError("tokenizer file", str(path), "an existing file", "write hf:PATH")
    return path.read_bytes()


def _file(place: str) -> Path:
    path = Path(place).expanduser()
    return path / TOKENIZER_FILE if path.is_dir() else path


def _parse(path: str, data: bytes) -> dict[str, Any]:
    try:
        content = json.loads(data)
    except ValueError:
        content = None
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise UserError("tokenizer file", path, f"a {TOKENIZER_FILE}", "choose another file")
    if content["model"].get("dropout"):
        raise UserError(
            f"{path}: dropout",
            content["model"]["dropout"],
            "null, so that a text always has the same tokens",
            "remove it from the file",
        )
    return content


def _vocabulary(path: str, content: dict[str, Any]) -> dict[str, int]:
    listed = content["model"].get("vocab")
    # Unigram models have [token, score] in the order of ids, the others {token: id}.
    if isinstance(listed, list):
        listed = {token: index for index, (token, _) in enumerate(listed)}
    added = {token["content"]: token["id"] for token in content.get("added_tokens") or ()}
    if not listed and not added:
        raise UserError("tokenizer file", path, "one with a vocabulary", "choose another file")
    return {**(listed or {}), **added}


def _config(path: Path) -> dict[str, str | None]:
    """Return ``eos_token`` and ``pad_token``, each written as a string or {"content": string}."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError:
        raise UserError("tokenizer config", str(path), "JSON", "repair or remove it") from None
    values = {name: content.get(name) for name in ("eos_token", "pad_token")}
    return {
        name: value.get("content") if isinstance(value, dict) else value
        for name, value in values.items()
    }


def _end_of_text(path: str, vocabulary: dict[str, int], given: str, configured: str | None) -> str:
    names = (given,) if given else (configured,) if configured else END_OF_TEXT_TOKENS
    for name in names:
        if name in vocabulary:
            return name
    allowed = f"a tokenizer with an end-of-text token (looked for {' '.join(names)})"
    raise UserError("tokenizer file", path, allowed, "name it: hf:PATH#TOKEN")

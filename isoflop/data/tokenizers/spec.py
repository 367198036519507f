"""What a tokenizer is, in values: a definition that is hashed, and special ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from isoflop.files import sha256_json

PAD_ID = 0
"""Padding of every tokenizer; carries no loss."""

BEGIN_ID = 1
"""First input of a window for `byte` and the trained tokenizers; others have one of their own."""

TOKENIZER_FILE = "tokenizer.json"
"""Name, in a prepared folder, of the file of a tokenizer that has one."""


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

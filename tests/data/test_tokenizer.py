from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoflop.data.catalog import identify
from isoflop.data.tokenizer import ByteTokenizer

TOKENIZER = ByteTokenizer()
PLAIN = st.text(st.characters(exclude_characters="\0\1", codec="utf-8"))


@given(PLAIN)
def test_text_comes_back(text: str) -> None:
    tokens = TOKENIZER.encode(text)
    assert tokens.dtype == np.dtype("<u2")
    assert tokens.tolist() == list(text.encode())
    assert TOKENIZER.decode(tokens) == text


@given(st.binary())
def test_bytes_are_refused_exactly_when_they_hold_a_special_token(data: bytes) -> None:
    if {0, 1} & set(data):
        with pytest.raises(ValueError, match="without bytes 0 and 1"):
            TOKENIZER.encode(data)
    else:
        assert TOKENIZER.decode_bytes(TOKENIZER.encode(data)) == data


def test_refusal_names_the_text_and_the_first_place(refused) -> None:
    with refused(r"document x = b'\\x01'.*\(byte 2\)"):
        TOKENIZER.encode(b"ab\1\0", what="document x")


def test_decoding_leaves_special_tokens_out_and_refuses_other_ids(refused) -> None:
    assert TOKENIZER.decode(np.array([1, 104, 105, 1, 0, 0])) == "hi"
    assert TOKENIZER.decode(np.array([0xE2, 0x80])) == "�"
    for bad in (256, -1):
        with refused("token = "):
            TOKENIZER.decode(np.array([104, bad]))


def test_hash_is_pinned_and_the_catalog_s() -> None:
    assert TOKENIZER.hash.startswith("f3229cfe5de8d32c")
    assert identify("sotu-embedded", "byte").tokenizer_hash == TOKENIZER.hash

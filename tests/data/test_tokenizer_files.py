from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isoflop.data.tokenizers import Tokenizer, get_tokenizer, open_tokenizer, tokenizer_spec

LETTERS = "abcdefgh"
PARTS = (
    "truncation",
    "padding",
    "normalizer",
    "pre_tokenizer",
    "post_processor",
    "decoder",
)
PLAIN = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a ``tokenizer.json`` of single letters after the given special tokens."""

    def write_tokenizer(
        *first: str, folder: str = "t", model: dict[str, Any] | None = None, **top: Any
    ) -> Path:
        vocabulary = {token: index for index, token in enumerate((*first, *LETTERS))}
        special = [
            {"id": vocabulary[token], "content": token, "special": True, **PLAIN}
            for token in first
            if len(token) > 1
        ]
        content = {
            "version": "1.0",
            **dict.fromkeys(PARTS),
            "added_tokens": special,
            "model": {"type": "BPE", "vocab": vocabulary, "merges": [], **(model or {})},
            **top,
        }
        path = tmp_path / folder / "tokenizer.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))
        return path

    return write_tokenizer


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text).tolist()


def test_pad_at_0_stays(write: Write) -> None:
    tokenizer = get_tokenizer(f"hf:{write('<pad>', '</s>')}")
    spec = tokenizer.spec
    assert (spec.pad_id, spec.end_of_text_id, spec.begin_id, spec.vocab_size) == (0, 1, 1, 10)
    assert ids(tokenizer, "ab") == [2, 3]
    assert spec.definition["moved_ids"] == {}


def test_another_token_at_0_moves_to_a_new_last_id(write: Write) -> None:
    tokenizer = get_tokenizer(f"hf:{write('!', '</s>', '<pad>')}")
    assert tokenizer.spec.vocab_size == 12
    assert tokenizer.spec.definition["moved_ids"] == {"0": 11}
    assert ids(tokenizer, "!b") == [11, 4]
    assert tokenizer.decode(np.array([1, 11, 4, 0])).replace(" ", "") == "!b"


def test_an_end_of_text_at_0_moves_too(write: Write) -> None:
    spec = tokenizer_spec(f"hf:{write('<|endoftext|>', '<|padding|>')}")
    assert (spec.end_of_text_id, spec.vocab_size) == (10, 11)


def test_one_token_for_pad_and_end_of_text_is_the_end_of_text(write: Write) -> None:
    path = write("<|endoftext|>")
    config = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    path.with_name("tokenizer_config.json").write_text(json.dumps(config))
    spec = tokenizer_spec(f"hf:{path}")
    assert (spec.pad_id, spec.end_of_text_id) == (0, 9)


def test_end_of_text_by_option_then_config_then_known_names(write: Write, refused) -> None:
    path = write("<pad>", "<done>", "</s>", "<eos>")
    assert tokenizer_spec(f"hf:{path}").end_of_text_id == 3
    config = path.with_name("tokenizer_config.json")
    for value in ("</s>", {"content": "</s>", "lstrip": False}):
        config.write_text(json.dumps({"eos_token": value}))
        assert tokenizer_spec(f"hf:{path}").end_of_text_id == 2
    assert tokenizer_spec(f"hf:{path}#<done>").end_of_text_id == 1
    config.write_text("{")
    with refused("tokenizer config.*must be JSON"):
        tokenizer_spec(f"hf:{path}")


def test_without_an_end_of_text_it_is_refused(write: Write, refused) -> None:
    path = write("<pad>", "<done>")
    with refused(r"end-of-text token \(looked for <\|endoftext\|> .*name it: hf:PATH#TOKEN"):
        tokenizer_spec(f"hf:{path}")
    with refused(r"looked for <gone>\)"):
        tokenizer_spec(f"hf:{path}#<gone>")


def test_identity_is_content_not_path(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    first = write("<pad>", "</s>", "<done>", folder="one")
    second = write("<pad>", "</s>", "<done>", folder="two")
    spec = tokenizer_spec(f"hf:{first}")
    assert spec == tokenizer_spec(f"hf:{second}") == tokenizer_spec(f"hf:{second.parent}")
    monkeypatch.setenv("HOME", str(second.parent.parent))
    assert spec == tokenizer_spec("hf:~/two")
    assert "one" not in spec.name
    other_end = tokenizer_spec(f"hf:{first}#<done>")
    assert other_end.hash != spec.hash
    assert other_end.name != spec.name
    first.write_text(first.read_text().replace('"h"', '"i"'))
    assert tokenizer_spec(f"hf:{first}").hash != spec.hash


def test_special_text_truncation_and_added_tokens_do_not_change_documents(write: Write) -> None:
    path = write(
        "<pad>",
        "</s>",
        truncation={
            "max_length": 2,
            "strategy": "LongestFirst",
            "stride": 0,
            "direction": "Right",
        },
        padding={
            "strategy": {"Fixed": 9},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "<pad>",
        },
        post_processor={
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "</s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
        },
    )
    tokenizer = get_tokenizer(f"hf:{path}")
    assert [tokens.tolist() for tokens in tokenizer.encode_batch(["abcd", "a"])] == [
        [2, 3, 4, 5],
        [2],
    ]
    assert 1 not in ids(tokenizer, "a</s>b")


def test_text_that_becomes_a_special_id_all_the_same_is_refused(write: Write, refused) -> None:
    # A model of whole words can give any of its ids.
    words = {"type": "WordLevel", "vocab": {"<pad>": 0, "end": 1, "word": 2}, "unk_token": "word"}
    path = write(model=words, pre_tokenizer={"type": "Whitespace"})
    content = json.loads(path.read_text())
    del content["model"]["merges"]
    path.write_text(json.dumps(content))
    tokenizer = get_tokenizer(f"hf:{path}#end")
    assert ids(tokenizer, "word word") == [2, 2]
    with refused(r"document 3 = 1: must be text that hf:.* gives no special id \(token 1\)"):
        tokenizer.encode("word end", what="document 3")
    with refused("text 1 = 1"):
        tokenizer.encode_batch(["word", "end"])


def test_a_unigram_vocabulary_is_a_list(write: Write) -> None:
    model = {
        "type": "Unigram",
        "unk_id": 0,
        "byte_fallback": False,
        "vocab": [["<pad>", 0.0], ["</s>", 0.0], ["a", -1.0], ["b", -1.0]],
    }
    path = write(model=model)
    content = json.loads(path.read_text())
    del content["model"]["merges"]
    path.write_text(json.dumps(content))
    tokenizer = get_tokenizer(f"hf:{path}")
    assert ids(tokenizer, "ba") == [3, 2]
    assert tokenizer.spec.vocab_size == 4


def test_ids_beyond_16_bits_get_32(write: Write) -> None:
    path = write("<pad>", "</s>")
    content = json.loads(path.read_text())
    content["model"]["vocab"]["h"] = 70_000
    path.write_text(json.dumps(content))
    tokenizer = get_tokenizer(f"hf:{path}")
    assert tokenizer.spec.vocab_size == 70_001
    assert tokenizer.encode("h").dtype == np.dtype("<u4")
    assert ids(tokenizer, "h") == [70_000]


def test_unusable_files_are_refused(write: Write, tmp_path: Path, refused) -> None:
    path = write("<pad>", "</s>", model={"dropout": 0.1})
    with refused("dropout = 0.1: must be null"):
        get_tokenizer(f"hf:{path}")
    with refused("gone.json'.*existing file"):
        get_tokenizer(f"hf:{tmp_path / 'gone.json'}")
    for content in (b"{", b"[]", b"\xff", b'{"model": 3}', b'{"model": {}}'):
        path.write_bytes(content)
        with refused(r"must be (a tokenizer.json|one with a vocabulary)"):
            get_tokenizer(f"hf:{path}")
    path = write("<pad>", "</s>", model={"type": "Unheard"})
    with refused(r"tokenizer = 'hf:.*that `tokenizers` reads"):
        get_tokenizer(f"hf:{path}")


def test_a_prepared_folder_s_copy_is_the_tokenizer(write: Write, tmp_path: Path) -> None:
    tokenizer = get_tokenizer(f"hf:{write('a', '</s>')}")
    assert tokenizer.file is not None
    (tmp_path / "tokenizer.json").write_bytes(tokenizer.file)
    assert ids(open_tokenizer(tokenizer.spec, tmp_path), "gab") == ids(tokenizer, "gab")

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoflop.data.tokenizers import Tokenizer, get_tokenizer, open_tokenizer, tokenizer_spec
from isoflop.data.tokenizers import trained as trained_module
from isoflop.resources import builtin

SIZE = 400


def sample() -> list[bytes]:
    return [path.read_bytes()[:20_000] for path in sorted(corpus().glob("*.txt"))[:4]]


def corpus() -> Path:
    return builtin("corpora", "sotu_1981_2026")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def trained(data_dir: Path) -> Tokenizer:
    return get_tokenizer(f"bpe:{SIZE}", sample=sample(), data_dir=data_dir)


def cached(data_dir: Path) -> list[Path]:
    return sorted((data_dir / "tokenizers").iterdir())


@given(text=st.text(st.characters(codec="utf-8")))
def test_any_unicode_comes_back_and_never_as_a_special_id(trained: Tokenizer, text: str) -> None:
    (tokens,) = trained.encode_batch([text])
    assert tokens.dtype == trained.dtype == np.dtype("<u2")
    assert not np.isin(tokens, (0, 1)).any()
    assert (tokens < trained.spec.vocab_size).all()
    assert trained.decode(tokens) == text
    assert np.array_equal(trained.encode(text), tokens)


@pytest.mark.parametrize(
    "text", ["", "\0\1\x7f\r\n\t", "😀👩‍👩‍👧 中文 é", "  <|endoftext|><|pad|>", "<|endoftext|>"]
)
def test_what_looks_special_is_text(trained: Tokenizer, text: str) -> None:
    tokens = trained.encode(text)
    assert not np.isin(tokens, (0, 1)).any()
    assert trained.decode(tokens) == text


def test_another_process_gets_the_same_tokenizer(trained: Tokenizer) -> None:
    copy = pickle.loads(pickle.dumps(trained))
    assert copy.spec == trained.spec
    assert np.array_equal(copy.encode("a <|endoftext|>"), trained.encode("a <|endoftext|>"))


def test_decoding_leaves_special_tokens_out_and_refuses_other_ids(
    trained: Tokenizer, refused
) -> None:
    hi = trained.encode("hi there")
    assert trained.decode(np.concatenate([[1], hi, [1, 0, 0]])) == "hi there"
    for bad in (SIZE, -1):
        with refused(f"token = {bad}: must be in \\[0, {SIZE}\\); decode tokens of bpe:{SIZE}"):
            trained.decode(np.array([bad]))


def test_lone_surrogates_are_refused_with_their_place(trained: Tokenizer, refused) -> None:
    with refused(r"document 7 = 'U\+DC80 at character 2'"):
        trained.encode("ab\udc80", what="document 7")
    with refused(r"text 1 = 'U\+D800 at character 0'"):
        trained.encode_batch(["ab", "\ud800"])


def test_merges_shorten_text(trained: Tokenizer) -> None:
    text = sample()[0].decode(errors="ignore")
    assert len(trained.encode(text)) < 0.7 * len(text)


def test_the_file_is_the_same_whatever_process_trained_it(tmp_path: Path, data_dir: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from isoflop.data.tokenizers import get_tokenizer\n"
        "texts = [Path(p).read_bytes()[:20_000] for p in sys.argv[2:]]\n"
        f"get_tokenizer('bpe:{SIZE}', sample=texts, data_dir=Path(sys.argv[1]))"
    )
    files = [str(path) for path in sorted(corpus().glob("*.txt"))[:4]]
    for seed, threads in (("1", "false"), ("2", "true")):
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / seed), *files],
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed, "TOKENIZERS_PARALLELISM": threads},
        )
    contents = [[(p.name, p.read_bytes()) for p in cached(tmp_path / seed)] for seed in "12"]
    assert contents[0] == contents[1]
    here = get_tokenizer(f"bpe:{SIZE}", sample=sample(), data_dir=data_dir)
    assert contents[0][0][1] == here.file


def test_training_happens_once(
    trained: Tokenizer, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.read_bytes() for path in cached(data_dir)}
    monkeypatch.setattr(trained_module, "_train", None)
    again = get_tokenizer(f"bpe:{SIZE}", sample=sample(), data_dir=data_dir)
    assert again.spec == trained.spec
    assert {path: path.read_bytes() for path in cached(data_dir)} == before


def test_other_texts_sizes_or_rules_are_other_tokenizers(
    trained: Tokenizer, data_dir: Path
) -> None:
    texts = sample()
    others = [
        get_tokenizer(f"bpe:{SIZE + 1}", sample=texts, data_dir=data_dir),
        get_tokenizer(f"bpe:{SIZE}", sample=texts[:3], data_dir=data_dir),
        get_tokenizer(f"bpe-tinystories:{SIZE}", sample=texts, data_dir=data_dir),
    ]
    assert len({trained.spec.hash, *(other.spec.hash for other in others)}) == 4
    assert len({trained.file, *(other.file for other in others)}) == 4


def test_a_changed_cache_file_is_refused(tmp_path: Path, refused) -> None:
    get_tokenizer("bpe:260", sample=sample()[:1], data_dir=tmp_path)
    (path,) = cached(tmp_path)
    path.write_bytes(path.read_bytes() + b" ")
    with refused(r"sha256 differs\); delete it"):
        get_tokenizer("bpe:260", sample=sample()[:1], data_dir=tmp_path)


def test_only_the_first_10_mb_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trained_module, "SAMPLE_BYTES", 10)
    read: list[bytes] = []

    def documents() -> Iterator[bytes]:
        for text in repeat("abcé".encode(), 9):
            read.append(text)
            yield text

    # 5 + 5 bytes; the cut never leaves half a character.
    assert trained_module._take_sample(documents()) == ["abcé", "abcé"]
    assert len(read) == 2
    monkeypatch.setattr(trained_module, "SAMPLE_BYTES", 9)
    assert trained_module._take_sample(documents()) == ["abcé", "abc"]


def test_the_smallest_size_is_bytes_and_specials(tmp_path: Path) -> None:
    smallest = get_tokenizer("bpe:258", sample=[b"abc"], data_dir=tmp_path)
    assert len(smallest.encode("abcé")) == 5


def test_a_corpus_too_small_for_the_size_names_the_size_it_allows(tmp_path: Path, refused) -> None:
    with refused("bpe:5000'.*at most 259 tokens.*choose bpe:259"):
        get_tokenizer("bpe:5000", sample=[b"ab ab"], data_dir=tmp_path)
    assert not (tmp_path / "tokenizers").exists()
    assert get_tokenizer("bpe:259", sample=[b"ab ab"], data_dir=tmp_path).spec.vocab_size == 259


@pytest.mark.parametrize("name", ["bpe", "bpe:", "bpe:257", "bpe:4k", "bpe:-300", "bpe:³"])
def test_sizes_that_cannot_be_are_refused(name: str, refused) -> None:
    for use in (get_tokenizer, tokenizer_spec):
        with refused("V at least 258"):
            use(name)


def test_without_a_sample_the_error_says_what_is_missing(refused) -> None:
    with refused("trained on a corpus; give training documents"):
        get_tokenizer("bpe:300")
    with refused("known once it is trained; prepare the data first"):
        tokenizer_spec("bpe:300")


def test_a_prepared_folder_s_copy_is_the_tokenizer(
    trained: Tokenizer, tmp_path: Path, refused
) -> None:
    with refused("tokenizer.json'.*existing file"):
        open_tokenizer(trained.spec, tmp_path)
    assert trained.file is not None
    (tmp_path / "tokenizer.json").write_bytes(trained.file)
    copy = open_tokenizer(trained.spec, tmp_path)
    assert copy.decode(trained.encode("the same")) == "the same"
    (tmp_path / "tokenizer.json").write_bytes(trained.file.replace(b'"a"', b'"b"', 1))
    with refused("file: sha256"):
        open_tokenizer(trained.spec, tmp_path)


def test_the_tinystories_rules_normalise_and_start_with_a_space(tmp_path: Path) -> None:
    tokenizer = get_tokenizer("bpe-tinystories:300", sample=sample()[:1], data_dir=tmp_path)
    assert tokenizer.decode(tokenizer.encode("ﬁt ①")) == " fit 1"
    assert tokenizer.spec.pad_id == 0
    assert tokenizer.spec.end_of_text_id == 1


def test_without_the_package_the_error_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, refused
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with refused(r"package = 'tokenizers'.*pip install 'isoflop\[data\]'"):
        get_tokenizer("bpe:300", sample=[b"abc"], data_dir=tmp_path)

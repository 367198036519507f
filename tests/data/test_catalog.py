from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from isoflop.data.catalog import SOURCES, identify
from isoflop.data.corpus import (
    SPLIT_RULE,
    corpus_folder,
    heldout_flags,
    read_source_manifest,
    read_texts,
)
from isoflop.data.hub import DATASETS
from isoflop.data.prepare import prepare
from isoflop.data.sources import PrepareOptions
from isoflop.data.storage import default_data_dir
from isoflop.data.tokenizers.spec import TOKENIZERS
from isoflop.resources import builtin


def test_catalog_imports_neither_numpy_nor_torch() -> None:
    code = (
        "import sys; from isoflop.data.catalog import identify; identify('sotu-embedded', 'byte'); "
        "print([m for m in ('numpy', 'torch', 'pandas', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_embedded_identity_is_pinned() -> None:
    identity = identify("sotu-embedded", "byte")
    assert identity.data_id == "1db30468b70ad3b1"
    assert identity.vocab_size == 256
    assert identity.num_train_tokens == 1_444_062


def test_planned_tokens_are_counted_from_the_texts() -> None:
    manifest = read_source_manifest("sotu-embedded")
    folder, do = corpus_folder("sotu-embedded")
    sizes = [len(text) for text in read_texts(folder, manifest["documents"], do)]
    held = heldout_flags([entry["sha256"] for entry in manifest["documents"]])
    train = [size + 1 for size, flag in zip(sizes, held, strict=True) if not flag]
    assert identify("sotu-embedded", "byte").num_train_tokens == sum(train)
    assert (len(sizes), sum(sizes), sum(held)) == (39, 1_593_675, 4)


def test_embedded_manifest_states_licence_origin_and_split() -> None:
    manifest = read_source_manifest("sotu-embedded")
    assert manifest["licence"].startswith("public domain (US government works); ")
    assert manifest["origin"]["package"] == "sotu"
    assert manifest["split_rule"] == SPLIT_RULE
    for entry in manifest["documents"]:
        assert entry["source_url"].startswith("https://www.presidency.ucsb.edu/")
        assert 1981 <= entry["year"] <= 2026
        assert entry["president"]
        assert entry["title"]


def test_embedded_texts_hold_no_special_tokens_and_are_utf8() -> None:
    files = sorted(builtin("corpora", "sotu_1981_2026").glob("*.txt"))
    assert len(files) == 39
    for file in files:
        text = file.read_bytes()
        assert b"\0" not in text
        assert b"\1" not in text
        text.decode()


def test_every_source_and_tokenizer_has_its_own_identity(tmp_path, make_corpus, some_texts) -> None:
    make_corpus(tmp_path, some_texts)
    ids = {
        identify(source, tokenizer, data_dir=tmp_path).data_id
        for source in SOURCES
        for tokenizer in TOKENIZERS
    }
    assert len(ids) == len(SOURCES) * len(TOKENIZERS)
    assert all(len(data_id) == 16 and int(data_id, 16) >= 0 for data_id in ids)


@pytest.mark.parametrize("source", list(DATASETS))
def test_recipes_can_be_planned_but_few_have_a_published_count_of_tokens(source: str) -> None:
    identity = identify(source, "gpt2")
    assert identity.num_train_tokens == {"tinystories": 2_119_719 * 1024}.get(source)
    assert identity.vocab_size == 50258


def test_a_recipe_can_be_planned_with_a_tokenizer_that_is_not_trained_yet(tmp_path) -> None:
    kinds = ("bpe:1024", "bpe:2048", "bpe-tinystories:1024")
    some = [identify("tinystories", kind, data_dir=tmp_path) for kind in kinds]
    assert [identity.vocab_size for identity in some] == [1024, 2048, 1024]
    assert len({identity.data_id for identity in some}) == 3
    assert len({identity.tokenizer_hash for identity in some}) == 3


def test_provisional_ids_of_the_first_recipes_are_pinned() -> None:
    assert identify("slimpajama-627b", "gpt2").data_id == "4ad324855809894a"
    assert identify("tinystories", "gpt2").data_id == "e21e97820f6035a2"


@pytest.mark.parametrize(
    ("source", "tokenizer"),
    [
        ("files:/some where/*.txt", "byte"),
        ("hf:some/set", "gpt2"),
        ("synthetic:0", "byte"),
        ("sotu-embedded", "bpe:1024"),
    ],
)
def test_what_has_to_be_prepared_first_names_the_command(
    tmp_path, refused, source: str, tokenizer: str
) -> None:
    command = f"isoflop data prepare {shlex.quote(source)} --tokenizer {tokenizer}`"
    with refused(re.escape(command)):
        identify(source, tokenizer, data_dir=tmp_path)


def test_gpt2_tokens_of_a_known_corpus_are_unknown_not_zero() -> None:
    assert identify("sotu-embedded", "gpt2").num_train_tokens is None


def test_identity_is_of_contents_and_order_not_of_place_or_names(
    tmp_path, make_corpus, some_texts
) -> None:
    def data_id(place: str, contents: list[bytes], **kwargs: str) -> str:
        make_corpus(tmp_path / place, contents, **kwargs)
        return identify("sotu", "byte", data_dir=tmp_path / place).data_id

    first = data_id("a", some_texts)
    assert data_id("b/c", some_texts, prefix="renamed", title="other") == first
    assert data_id("d", some_texts[::-1]) != first
    assert data_id("e", [some_texts[0] + b"!", *some_texts[1:]]) != first
    assert data_id("f", some_texts[:-1]) != first


def test_unknown_source_and_tokenizer_list_what_there_is(refused) -> None:
    with refused("sotu-embedded, sotu, slimpajama-627b, .*files:GLOB, hf:NAME"):
        identify("c4", "byte")
    with refused("byte, gpt2, bpe:V"):
        identify("sotu-embedded", "words")


def test_corpus_not_fetched_names_the_command(tmp_path, refused) -> None:
    with refused("isoflop data fetch sotu"):
        identify("sotu", "byte", data_dir=tmp_path)


@pytest.mark.parametrize("damage", ["edited", "not JSON", "a list", "half", "other schema"])
def test_damaged_corpus_manifest_is_refused(
    tmp_path, make_corpus, some_texts, refused, damage
) -> None:
    manifest = make_corpus(tmp_path, some_texts) / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(
        {
            "edited": text.replace('"num_bytes": 11', '"num_bytes": 12', 1),
            "not JSON": "{",
            "a list": "[]",
            "half": text[: len(text) // 2],
            "other schema": text.replace("isoflop-corpus/1", "isoflop-corpus/2"),
        }[damage]
    )
    assert manifest.read_text() != text
    with refused("manifest"):
        identify("sotu", "byte", data_dir=tmp_path)


@pytest.mark.parametrize("count", [1, 2, 10, 11, 39, 100])
def test_a_tenth_of_the_documents_rounded_up_is_held_out(count: int) -> None:
    names = [f"{(index * 7919) % 1000:064d}" for index in range(count)]
    if count == 1:
        with pytest.raises(ValueError, match="at least 2"):
            heldout_flags(names)
        return
    flags = heldout_flags(names)
    held = {name for name, flag in zip(names, flags, strict=True) if flag}
    assert len(held) == -(-count // 10)
    assert held == set(sorted(names)[: len(held)])


def test_copies_of_a_held_out_document_do_not_train() -> None:
    assert heldout_flags(["a", "b", "a", "c"]) == [True, False, True, False]
    with pytest.raises(ValueError, match="different"):
        heldout_flags(["a", "a"])
    with pytest.raises(ValueError, match="at least 2"):
        heldout_flags([])


def test_data_dir_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("ISOFLOP_DATA_DIR", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert default_data_dir() == tmp_path / "own"
    monkeypatch.delenv("ISOFLOP_DATA_DIR")
    assert default_data_dir() == tmp_path / "cache" / "isoflop" / "data"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_data_dir() == Path(tmp_path) / ".cache" / "isoflop" / "data"


def test_long_paths_that_begin_alike_may_hold_the_same_text(tmp_path: Path) -> None:
    sources = []
    for name in ("one", "two"):
        folder = tmp_path / ("a-long-name-" * 6) / name
        folder.mkdir(parents=True)
        for number in range(20):
            (folder / f"{number}.txt").write_text(f"Some words, and {number} more.\n" * 20)
        sources.append(f"files:{folder}/*.txt")
        prepare(sources[-1], "byte", tmp_path / "data", options=PrepareOptions())
    ids = {identify(source, "byte", data_dir=tmp_path / "data").data_id for source in sources}
    assert len(ids) == 1

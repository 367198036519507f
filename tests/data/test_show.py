from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from isoflop.cli.data import END_OF_DOCUMENT, sample_text
from isoflop.data.prepare import prepare
from isoflop.data.show import find_folder, sample, scan, source_rows, summarise
from isoflop.data.sources import PrepareOptions
from isoflop.data.windows import open_data
from isoflop.texts import printable

TEXTS = ["é" * 9, "two\x1b[31m", "third, the longest of them all", *[f"n{i}" for i in range(17)]]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sets: local files as bytes and as BPE, and the embedded corpus."""
    folder = tmp_path_factory.mktemp("show")
    texts = folder / "texts"
    texts.mkdir()
    # One text is there three times.
    for index, text in enumerate([*TEXTS, TEXTS[5], TEXTS[5]]):
        (texts / f"{index:02d}.txt").write_text(text)
    for tokenizer in ("byte", "bpe:260"):
        prepare(f"files:{texts}/*.txt", tokenizer, folder / "data", options=PrepareOptions())
    prepare("sotu-embedded", "byte", folder / "data")
    return folder / "data"


def files_source(data_dir: Path) -> str:
    return f"files:{data_dir.parent}/texts/*.txt"


def test_sets_are_found_by_source_id_and_folder(data_dir: Path, monkeypatch) -> None:
    (sotu,) = data_dir.glob("sotu-embedded-*")
    data_id = sotu.name.removeprefix("sotu-embedded-")
    for name in ("sotu-embedded", f"sotu-embedded@{data_id[:4]}", data_id, data_id[:4], sotu.name):
        assert find_folder(name, None, data_dir) == sotu
        assert find_folder(name, "byte", data_dir) == sotu
    assert find_folder(str(sotu), None, data_dir / "elsewhere") == sotu
    bpe = find_folder(files_source(data_dir), "bpe:260", data_dir)
    assert open_data(bpe).identity.tokenizer == "bpe:260"


def test_a_name_that_is_none_or_several_sets_is_refused(data_dir: Path, refused) -> None:
    with refused("data = 'sotu': .*isoflop data prepare sotu"):
        find_folder("sotu", None, data_dir)
    with refused("sotu-embedded / gpt2"):
        find_folder("sotu-embedded", "gpt2", data_dir)
    with refused("one of 2 sets .*@.* with b.*@.* with b.*name it so, or add --tokenizer"):
        find_folder(files_source(data_dir), None, data_dir)
    # Fewer than four digits are no id.
    (sotu,) = data_dir.glob("sotu-embedded-*")
    with refused("a folder or a set"):
        find_folder(sotu.name.rpartition("-")[2][:3], None, data_dir)


def test_a_damaged_set_is_listed_and_hides_no_other(data_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(data_dir, tmp_path / "data")
    (sotu,) = (tmp_path / "data").glob("sotu-embedded-*")
    (sotu / "manifest.json").write_text("{")
    found = {each.folder.name: each for each in scan(tmp_path / "data")}
    assert len(found) == 3
    damaged = found.pop(sotu.name)
    assert damaged.manifest is None
    assert "manifest" in str(damaged.problem)
    assert set(damaged.to_json()) == {"folder", "problem"}
    assert all(each.problem is None for each in found.values())
    assert find_folder(files_source(data_dir), "byte", tmp_path / "data").name in found


def test_the_summary_counts_what_was_written(data_dir: Path) -> None:
    data = open_data(find_folder(files_source(data_dir), "byte", data_dir))
    summary = summarise(data)
    train, heldout = summary.splits["train"], summary.splits["heldout"]
    texts = [*TEXTS, TEXTS[5], TEXTS[5]]
    assert train.num_documents + heldout.num_documents == len(texts)
    assert train.num_bytes + heldout.num_bytes == sum(len(t.encode()) for t in texts)
    assert train.num_tokens == train.num_bytes + train.num_documents
    assert train.bytes_per_token == heldout.bytes_per_token == 1
    longest = max((train, heldout), key=lambda split: split.longest_tokens)
    assert (longest.longest_document, longest.longest_tokens) == ("02.txt", 31)
    # Copies fall on the same side.
    assert summary.num_duplicates in (0, 2)
    names = [data.document_names(split, 0, 99) for split in ("train", "heldout")]
    assert summary.num_duplicates == (2 if "05.txt" in names[0] else 0)
    assert summary.epochs(3 * train.num_tokens) == 3
    assert summary.to_json([train.num_tokens])["epochs"][0]["epochs"] == 1


def test_bytes_per_token_of_a_bpe_leave_out_the_end_of_text(data_dir: Path) -> None:
    data = open_data(find_folder(files_source(data_dir), "bpe:260", data_dir))
    train = summarise(data).splits["train"]
    text_tokens = train.num_tokens - train.num_documents
    assert train.bytes_per_token == train.num_bytes / text_tokens
    assert train.bytes_per_token > 1


def test_duplicates_of_a_corpus_are_counted(tmp_path: Path, make_corpus, some_texts) -> None:
    # These two are trained on.
    make_corpus(tmp_path, [*some_texts, some_texts[4], some_texts[4], some_texts[7]])
    data = open_data(prepare("sotu", "byte", tmp_path))
    assert {"doc4", "doc7", "doc25", "doc27"} <= set(data.document_names("train", 0, 99))
    assert summarise(data).num_duplicates == 3


@pytest.mark.parametrize("tokenizer", ["byte", "bpe:260"])
@pytest.mark.parametrize("num_tokens", [1, 2, 30, 10_000])
def test_the_sample_is_text_around_the_end_of_a_document(
    data_dir: Path, tokenizer: str, num_tokens: int
) -> None:
    data = open_data(find_folder(files_source(data_dir), tokenizer, data_dir))
    parts = sample(data, num_tokens)
    names = data.document_names("train", 0, 99)
    assert [name for name, _ in parts] == names[: len(parts)]
    texts = {f"{i:02d}.txt": t for i, t in enumerate([*TEXTS, TEXTS[5], TEXTS[5]])}
    assert texts[parts[0][0]].endswith(parts[0][1].lstrip("\ufffd"))
    if num_tokens == 10_000:
        assert [text for _, text in parts] == [texts[name] for name in names]
    if num_tokens >= 30:
        shown = sample_text(parts).plain
        assert shown.count(END_OF_DOCUMENT) == len(parts) - 1 > 0
        assert "\x1b" not in shown


def test_no_sample_is_asked_for(data_dir: Path) -> None:
    data = open_data(find_folder("sotu-embedded", "byte", data_dir))
    assert sample(data, 0) == []


def test_control_characters_are_written_out() -> None:
    assert printable("a\x1b[2J\r\né\x07\u202e") == "a\\x1b[2J\\r\né\\x07\\u202e"


def test_every_source_says_what_it_is_and_needs() -> None:
    rows = {row["name"]: row for row in source_rows()}
    assert {"sotu-embedded", "tinystories", "slimpajama-627b", "files:GLOB"} <= set(rows)
    assert "--from GLOB" in str(rows["tinystories"]["needs"])
    assert all(row["about"] for row in rows.values())

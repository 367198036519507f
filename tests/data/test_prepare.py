from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from isoflop.data import shards
from isoflop.data.catalog import identify
from isoflop.data.corpus import corpus_folder, heldout_flags, read_source_manifest, read_texts
from isoflop.data.prepare import prepare
from isoflop.data.sources import PrepareOptions
from isoflop.data.storage import TOKENS_SCHEMA, publish_folder, read_manifest, write_manifest
from isoflop.data.tokenizers import open_tokenizer
from isoflop.data.windows import open_data


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_folder_and_manifest_say_what_was_planned(prepared: Path) -> None:
    identity = identify("sotu-embedded", "byte")
    assert prepared.name == f"sotu-embedded-{identity.data_id}"
    assert open_data(prepared).identity == identity


def test_tokens_are_bytes_plus_one_end_of_text_per_document(prepared: Path) -> None:
    splits = open_data(prepared).manifest["splits"]
    assert splits["train"]["num_documents"] + splits["heldout"]["num_documents"] == 39
    assert splits["train"]["num_bytes"] + splits["heldout"]["num_bytes"] == 1_593_675
    for split in splits.values():
        assert split["num_tokens"] == split["num_bytes"] + split["num_documents"]
        assert sum(shard["num_tokens"] for shard in split["shards"]) == split["num_tokens"]


def test_stored_tokens_are_the_documents(prepared: Path) -> None:
    splits = open_data(prepared).manifest["splits"]
    for name, split in splits.items():
        tokens = np.fromfile(prepared / f"{name}-00000.bin", dtype="<u2")
        assert np.array_equal(np.flatnonzero(tokens == 1)[-1:], [tokens.size - 1])
        for row in split["documents"]:
            part = tokens[row["token_offset"] : row["token_offset"] + row["num_tokens"]]
            assert part[-1] == 1
            text = part[:-1].astype(np.uint8).tobytes()
            assert hashlib.sha256(text).hexdigest() == row["sha256"]


def test_held_out_and_training_documents_are_disjoint(prepared: Path) -> None:
    splits = open_data(prepared).manifest["splits"]
    train, held = ({row["sha256"] for row in splits[name]["documents"]} for name in splits)
    assert not train & held
    assert max(held) < min(train)


def test_prepared_elsewhere_is_equal_byte_for_byte(prepared: Path, tmp_path: Path) -> None:
    again = prepare("sotu-embedded", "byte", tmp_path / "some" / "where")
    assert again.name == prepared.name
    assert contents(again) == contents(prepared)
    assert {shard[:4] for shard in contents(again)} == {"trai", "held", "mani"}


def test_prepared_again_changes_nothing(prepared: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in prepared.iterdir()}
    assert prepare("sotu-embedded", "byte", prepared.parent) == prepared
    assert {path: path.stat().st_mtime_ns for path in prepared.iterdir()} == before
    assert list(prepared.parent.iterdir()) == [prepared]


def test_several_processes_prepare_at_once(prepared: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from isoflop.data.prepare import prepare\n"
        "sys.stdin.readline(); print(prepare('sotu-embedded', 'byte', Path(sys.argv[1])))"
    )
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    outputs = [racer.communicate(timeout=60)[0].strip() for racer in racers]
    assert [racer.returncode for racer in racers] == [0] * 4
    assert set(outputs) == {str(tmp_path / prepared.name)}
    assert [path.name for path in tmp_path.iterdir()] == [prepared.name]
    assert contents(tmp_path / prepared.name) == contents(prepared)


def test_the_loser_of_a_race_discards_its_work(tmp_path: Path) -> None:
    target = tmp_path / "target"

    def slow(folder: Path) -> None:
        (folder / "who").write_text("slow")
        assert publish_folder(target, lambda other: (other / "who").write_text("fast") and None)

    assert not publish_folder(target, slow)
    assert (target / "who").read_text() == "fast"
    assert list(tmp_path.iterdir()) == [target]


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish_folder(tmp_path / "target", fail)
    assert not list(tmp_path.iterdir())


def _flip_a_byte(folder: Path) -> None:
    data = bytearray((folder / "train-00000.bin").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "train-00000.bin").write_bytes(data)


def _edit_manifest(folder: Path) -> None:
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace('"vocab_size": 256', '"vocab_size": 257'))


def _of_the_next_version(folder: Path) -> None:
    manifest = read_manifest(folder, TOKENS_SCHEMA, "")
    write_manifest(folder, {**manifest, "schema": "isoflop-tokens/3"})


def _of_other_data(folder: Path) -> None:
    manifest = read_manifest(folder, TOKENS_SCHEMA, "")
    write_manifest(folder, {**manifest, "data_id": "0" * 16})


DAMAGE = {
    "flipped byte": (_flip_a_byte, "train-00000.bin.*sha256"),
    "truncated shard": (
        lambda folder: os.truncate(folder / "heldout-00000.bin", 1000),
        "heldout-00000.bin.*of 299304 bytes",
    ),
    "missing shard": (
        lambda folder: (folder / "train-00000.bin").unlink(),
        "train-00000.bin.*existing",
    ),
    "edited manifest": (_edit_manifest, "manifest.json.*sha256"),
    "broken manifest": (
        lambda folder: (folder / "manifest.json").write_text("{'"),
        "data manifest",
    ),
    "missing manifest": (lambda folder: (folder / "manifest.json").unlink(), "manifest.json"),
    "next version": (_of_the_next_version, "isoflop-tokens/3"),
    "other data": (_of_other_data, "it holds 0000000000000000"),
    "empty folder": (
        lambda folder: (shutil.rmtree(folder), folder.mkdir()),
        "manifest.json",
    ),
}


@pytest.mark.parametrize("name", list(DAMAGE))
def test_a_damaged_folder_is_refused_and_not_replaced(
    prepared: Path, tmp_path: Path, refused, name: str
) -> None:
    damage, pattern = DAMAGE[name]
    folder = tmp_path / prepared.name
    shutil.copytree(prepared, folder)
    damage(folder)
    before = contents(folder)
    if name != "other data":
        with refused(pattern):
            open_data(folder)
    with refused(pattern):
        prepare("sotu-embedded", "byte", tmp_path)
    assert contents(folder) == before


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path, refused) -> None:
    with refused("manifest.json"):
        open_data(tmp_path / "nowhere")


@pytest.mark.parametrize("special", [b"\0", b"\1"])
@pytest.mark.parametrize("at", range(12))
def test_special_tokens_in_a_document_are_refused_by_name(
    tmp_path: Path, make_corpus, refused, special: bytes, at: int
) -> None:
    # At one of these places the document is a held-out one.
    texts = [f"text {index}".encode() for index in range(12)]
    texts[at] += special
    make_corpus(tmp_path, texts)
    with refused(f"document doc{at} = "):
        prepare("sotu", "byte", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_a_damaged_corpus_is_refused(
    tmp_path: Path, make_corpus, some_texts, refused, damage: str
) -> None:
    text = make_corpus(tmp_path, some_texts) / "doc3.txt"
    text.unlink() if damage == "missing" else text.write_bytes(some_texts[4])
    with refused("doc3.txt"):
        prepare("sotu", "byte", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


def test_what_cannot_be_prepared_says_so(tmp_path: Path, refused) -> None:
    with refused("isoflop data fetch sotu"):
        prepare("sotu", "byte", tmp_path)
    with refused("isoflop data prepare slimpajama-627b --tokenizer byte"):
        prepare("slimpajama-627b", "byte", tmp_path)
    with refused("sotu-embedded, sotu"):
        prepare("c4", "byte", tmp_path)
    with refused("byte, gpt2"):
        prepare("sotu-embedded", "words", tmp_path)
    with refused("--tokens = 5: must be left out for sotu-embedded"):
        prepare("sotu-embedded", "byte", tmp_path, options=PrepareOptions(tokens=5))
    assert not list(tmp_path.iterdir())


def test_a_data_dir_that_cannot_be_written_names_the_variable(tmp_path: Path, refused) -> None:
    (tmp_path / "file").write_text("")
    with refused("ISOFLOP_DATA_DIR"):
        prepare("sotu-embedded", "byte", tmp_path / "file")


@pytest.mark.parametrize("size", [1, 7, 64, 10**6])
def test_shards_are_one_stream_however_it_is_cut(
    tmp_path: Path, make_corpus, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    texts = [f"text {index}".encode() * (index % 5 + 1) for index in range(11)]
    make_corpus(tmp_path, texts)
    monkeypatch.setattr(shards, "MAX_SHARD_TOKENS", size)
    folder = prepare("sotu", "byte", tmp_path)
    split = json.loads((folder / "manifest.json").read_text())["splits"]["train"]
    stream = b"".join((folder / shard["file"]).read_bytes() for shard in split["shards"])
    assert max(shard["num_tokens"] for shard in split["shards"]) <= size
    assert len(split["shards"]) == -(-split["num_tokens"] // size)
    # Two documents of eleven are held out.
    ids = [int(row["id"].removeprefix("doc")) for row in split["documents"]]
    expected = b"".join(texts[index] + b"\1" for index in ids)
    assert np.frombuffer(stream, dtype="<u2").astype(np.uint8).tobytes() == expected
    assert len(ids) == 9


def test_a_corpus_with_a_trained_tokenizer(tmp_path: Path) -> None:
    folder = prepare("sotu-embedded", "bpe:300", tmp_path)
    identity = open_data(folder).identity
    assert (identity.tokenizer, identity.vocab_size) == ("bpe:300", 300)
    assert identify("sotu-embedded", "bpe:300", data_dir=tmp_path) == identity
    assert prepare("sotu-embedded", "bpe:300", tmp_path) == folder
    text = open_tokenizer(open_data(folder).tokenizer_spec(), folder).decode(
        np.fromfile(folder / "heldout-00000.bin", "<u2")
    )
    manifest = read_source_manifest("sotu-embedded")
    texts = list(read_texts(corpus_folder("sotu-embedded")[0], manifest["documents"], ""))
    held = heldout_flags([hashlib.sha256(text).hexdigest() for text in texts])
    assert text.encode() == b"".join(t for t, flag in zip(texts, held, strict=True) if flag)


@pytest.mark.parametrize(
    "options", [{"tokens": 0}, {"workers": 0}, {"tokens": -1}, {"on_bad_document": "keep"}]
)
def test_options_that_make_no_sense_are_refused(refused, options: dict) -> None:
    with refused(f"= {next(iter(options.values()))!r}"):
        PrepareOptions(**options)

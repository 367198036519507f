from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from isoflop.data import pipeline, shards
from isoflop.data.catalog import identify
from isoflop.data.prepare import open_source, prepare, prepared_for_plan
from isoflop.data.sources import PrepareOptions, Progress
from isoflop.data.stream_tokens import training_texts
from isoflop.data.windows import open_data

DROP = PrepareOptions(on_bad_document="drop")
HELDOUT_LIMIT = 2**64 // 10


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "BLOCK_BYTES", 300)
    monkeypatch.setattr(shards, "MAX_SHARD_TOKENS", 700)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def manifest_of(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def tokens_of(folder: Path, split: str) -> np.ndarray:
    return np.concatenate([np.fromfile(path, "<u2") for path in sorted(folder.glob(f"{split}-*"))])


def documents_of(folder: Path, split: str) -> list[bytes]:
    """The texts, cut out of the shards by the table's offsets."""
    tokens = tokens_of(folder, split)
    found = []
    for row in pq.read_table(folder / f"documents-{split}.parquet").to_pylist():
        part = tokens[row["token_offset"] : row["token_offset"] + row["num_tokens"]]
        assert part[-1] == 1
        text = part[:-1].astype(np.uint8).tobytes()
        assert hashlib.sha256(text).digest() == row["sha256"]
        assert len(text) == row["num_bytes"]
        found.append(text)
    assert sum(map(len, found)) + len(found) == tokens.size
    return found


def is_low(text: bytes) -> bool:
    return int(hashlib.sha256(text).hexdigest()[:16], 16) < HELDOUT_LIMIT


def write_rows(path: Path, texts: Sequence[object], **more: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text, **more}) + "\n" for text in texts))
    return path


@pytest.fixture
def rows(tmp_path: Path) -> tuple[str, list[bytes]]:
    """A source of 70 documents; some are longer than a block, and than a shard."""
    texts = [f"text {index} ".encode() * (1 + index % 13) for index in range(70)]
    texts[40] = b"long " * 500
    texts[41] = b"longer than a block " * 20
    path = write_rows(tmp_path / "rows.jsonl", [text.decode() for text in texts])
    return f"files:{path}", texts


def test_all_documents_are_there_in_order_with_their_boundaries(rows, tmp_path: Path) -> None:
    source, texts = rows
    folder = prepare(source, "byte", tmp_path / "d", options=DROP)
    train, heldout = (documents_of(folder, split) for split in ("train", "heldout"))
    held = set(sorted(texts, key=lambda text: hashlib.sha256(text).hexdigest())[:7])
    assert train == [text for text in texts if text not in held]
    assert heldout == [text for text in texts if text in held]
    assert len(list(folder.glob("train-*.bin"))) > 5
    identity = open_data(folder).identity
    assert identity == identify(source, "byte", data_dir=tmp_path / "d")
    assert identity.num_train_tokens == sum(map(len, train)) + len(train)
    assert manifest_of(folder)["split_rule"].startswith("by-document/1")


def test_one_or_three_processes_make_the_same_bytes(rows, tmp_path: Path) -> None:
    source, _ = rows
    made = [
        contents(prepare(source, "byte", tmp_path / str(workers), options=options))
        for workers in (1, 3)
        for options in [PrepareOptions(workers=workers)]
    ]
    assert made[0] == made[1]


KILLED = """
import os, signal, sys
from pathlib import Path
from isoflop.data import pipeline, shards
from isoflop.data.sources import PrepareOptions
from isoflop.data.prepare import prepare
if __name__ == "__main__":
    source, data_dir, stage, workers = sys.argv[1:]
    pipeline.BLOCK_BYTES, shards.MAX_SHARD_TOKENS = 300, 700
    calls = 0
    def die(progress):
        global calls
        calls += progress.stage == stage
        if calls == 5:
            os.kill(os.getpid(), signal.SIGKILL)
    prepare(source, "byte", Path(data_dir), options=PrepareOptions(workers=int(workers)),
            on_progress=die)
"""


@pytest.mark.parametrize(("stage", "workers"), [("read", 1), ("read", 2), ("write", 1)])
def test_killed_and_taken_up_again_it_makes_the_same_bytes(
    rows, tmp_path: Path, stage: str, workers: int
) -> None:
    source, _ = rows
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    data_dir = tmp_path / "killed"
    command = [sys.executable, str(script), source, str(data_dir), stage, str(workers)]
    killed = subprocess.run(command, capture_output=True, timeout=60)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    (work,) = data_dir.glob(".work-*[0-9a-f]")
    pattern = "*.tokens" if stage == "read" else "out/*-*.bin"
    finished = {path: path.stat() for path in work.glob(pattern)}
    assert len(finished) >= 5
    assert not list(data_dir.glob("*-*/manifest.json"))
    seen: dict[Path, os.stat_result] = {}

    def look(progress: Progress) -> None:
        if progress.stage == "write":
            seen.update({path: path.stat() for path in finished if path.exists()})

    folder = prepare(source, "byte", data_dir, options=PrepareOptions(), on_progress=look)
    # A block whose process was killed before its record was written is made again.
    again = [path for path in finished if seen[path].st_mtime_ns != finished[path].st_mtime_ns]
    assert len(again) <= (0 if workers == 1 else 2)
    assert contents(folder) == contents(
        prepare(source, "byte", tmp_path / "whole", options=PrepareOptions())
    )
    # Nothing else is left: no work folder, lock or temporary file.
    assert list(data_dir.iterdir()) == [folder]


@pytest.mark.slow
def test_several_processes_prepare_the_same_source_at_once(rows, tmp_path: Path) -> None:
    source, _ = rows
    script = tmp_path / "racer.py"
    # Never at the fifth call of a stage that there is not: nobody dies.
    script.write_text(KILLED)
    command = [sys.executable, str(script), source, str(tmp_path / "d"), "none", "1"]
    racers = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(3)]
    errors = [racer.communicate(timeout=60)[1] for racer in racers]
    assert [racer.returncode for racer in racers] == [0] * 3, errors
    (folder,) = (tmp_path / "d").iterdir()
    whole = prepare(source, "byte", tmp_path / "whole", options=PrepareOptions())
    assert contents(folder) == contents(whole)


def test_a_block_that_was_changed_is_made_again(rows, tmp_path: Path) -> None:
    source, _ = rows
    data_dir = tmp_path / "d"

    class Stop(Exception):
        pass

    def stop(progress: Progress) -> None:
        if progress.stage == "write":
            raise Stop

    with pytest.raises(Stop):
        prepare(source, "byte", data_dir, options=PrepareOptions(), on_progress=stop)
    blocks = sorted(data_dir.glob(".work-*/*.tokens"))
    (blocks[0].parent / "out" / ".manifest.json.1-2.tmp").write_text("left by a kill")
    blocks[3].write_bytes(b"\2\0" * (blocks[3].stat().st_size // 2))
    blocks[4].with_suffix(".json").write_text("{")
    blocks[5].with_suffix(".parquet").unlink()
    folder = prepare(source, "byte", data_dir, options=PrepareOptions())
    whole = prepare(source, "byte", tmp_path / "whole", options=PrepareOptions())
    assert contents(folder) == contents(whole)


@pytest.mark.parametrize("goal", [1000, 1001, 10**6])
def test_tokens_stop_at_the_document_that_reaches_them(rows, tmp_path: Path, goal: int) -> None:
    source, texts = rows
    folder = prepare(source, "byte", tmp_path / "d", options=PrepareOptions(tokens=goal))
    train = documents_of(folder, "train")
    total = sum(len(text) + 1 for text in train)
    assert total > goal - 1 > total - len(train[-1]) - 2 or goal == 10**6
    taken = texts[: texts.index(train[-1]) + 1] if goal < 10**6 else texts
    assert train == [text for text in taken if not is_low(text)]
    assert documents_of(folder, "heldout") == [text for text in taken if is_low(text)]
    assert manifest_of(folder)["split_rule"].startswith("by-hash/1")


def test_several_prepared_sets_of_a_source_have_to_be_named(rows, tmp_path: Path, refused) -> None:
    source, _ = rows
    small, large = (
        prepare(source, "byte", tmp_path / "d", options=PrepareOptions(tokens=tokens))
        for tokens in (1000, 5000)
    )
    with refused(f"one of .*@{open_data(small).identity.data_id}"):
        identify(source, "byte", data_dir=tmp_path / "d")
    for folder in (small, large):
        identity = open_data(folder).identity
        named = f"{source}@{identity.data_id[:6]}"
        assert identify(named, "byte", data_dir=tmp_path / "d") == identity
        assert prepare(named, "byte", tmp_path / "d") == folder


@pytest.mark.slow
def test_a_plan_gets_the_tokens_that_it_was_made_for(rows, tmp_path: Path, refused) -> None:
    source, _ = rows
    first = prepare(source, "byte", tmp_path / "d", options=PrepareOptions(tokens=1000))
    prepare(source, "byte", tmp_path / "d", options=PrepareOptions(tokens=2000))
    planned = (source, "byte", manifest_of(first)["data_id"], tmp_path / "d")
    assert prepared_for_plan(*planned) == first
    shutil.rmtree(first)
    with refused("data id of files:.*which was planned with; prepare the texts"):
        prepared_for_plan(*planned)
    with refused("run `isoflop data prepare"):
        prepared_for_plan(*planned[:3], tmp_path / "elsewhere")
    corpus = identify("sotu-embedded", "byte")
    made = prepared_for_plan("sotu-embedded", "byte", corpus.data_id, tmp_path / "d")
    assert manifest_of(made)["data_id"] == corpus.data_id


def test_what_is_prepared_is_found_and_files_that_changed_are_read_again(
    rows, tmp_path: Path
) -> None:
    source, texts = rows
    first = prepare(source, "byte", tmp_path / "d", options=PrepareOptions())
    told: list[Progress] = []
    again = prepare(
        source, "byte", tmp_path / "d", options=PrepareOptions(workers=2), on_progress=told.append
    )
    assert again == first
    assert {progress.stage for progress in told} == {"hash"}
    # As many bytes as before: only the content tells.
    write_rows(Path(source[6:]), [text.decode().replace("text", "test") for text in texts])
    other = prepare(source, "byte", tmp_path / "d", options=PrepareOptions())
    assert other != first
    assert documents_of(other, "train")[0].startswith(b"test")


def test_copies_of_held_out_documents_never_train(tmp_path: Path) -> None:
    unique = [f"document number {index}" for index in range(40)]
    heldout = unique[:5]
    train = [*unique[3:], "document number 1", *unique[20:23]]
    write_rows(tmp_path / "set" / "train" / "a.jsonl", train)
    write_rows(tmp_path / "set" / "validation" / "a.jsonl", heldout)
    options = PrepareOptions(heldout_split="validation")
    folder = prepare(f"files:{tmp_path}/set/**/*.jsonl", "byte", tmp_path / "d", options=options)
    manifest = manifest_of(folder)
    assert documents_of(folder, "heldout") == [text.encode() for text in heldout]
    assert documents_of(folder, "train") == [
        text.encode() for text in [*unique[5:], *unique[20:23]]
    ]
    assert manifest["dropped"]["heldout_copies"] == 3
    assert manifest["num_train_duplicates"] == 3
    assert manifest["split_rule"].startswith("own-splits/1")


def test_dropped_copies_do_not_count_as_tokens(tmp_path: Path) -> None:
    texts = [f"document number {index:03d}" for index in range(40)]
    write_rows(tmp_path / "train.jsonl", [texts[0]] * 30 + texts)
    write_rows(tmp_path / "validation.jsonl", texts[:5])
    options = PrepareOptions(heldout_split="validation", tokens=100)
    folder = prepare(f"files:{tmp_path}/*.jsonl", "byte", tmp_path / "d", options=options)
    # 20 bytes and end-of-text each: five documents of 21 tokens. Held out: a tenth, 10 tokens.
    assert documents_of(folder, "train") == [text.encode() for text in texts[1:6]]
    assert documents_of(folder, "heldout") == [texts[0].encode()]


BAD_TEXTS = {"reserved": "has \1 in it", "NUL": "has \0 in it", "surrogate": "has \ud800 in it"}


@pytest.mark.parametrize("kind", list(BAD_TEXTS))
def test_bad_documents_are_refused_by_name_or_dropped_and_counted(
    tmp_path: Path, refused, kind: str
) -> None:
    texts = [f"good {index}" for index in range(60)]
    bad = [*texts[:33], BAD_TEXTS[kind], "", *texts[33:], None]
    source = f"files:{write_rows(tmp_path / 'rows.jsonl', bad)}"
    for workers in (1, 2):
        with refused(r"document rows.jsonl:34 = .*--on-bad-document drop"):
            prepare(source, "byte", tmp_path / "d", options=PrepareOptions(workers=workers))
    folder = prepare(source, "byte", tmp_path / "d", options=DROP)
    assert manifest_of(folder)["dropped"] == {
        "bad_documents": 1,
        "empty_documents": 2,
        "heldout_copies": 0,
    }
    found = documents_of(folder, "train") + documents_of(folder, "heldout")
    assert sorted(found) == sorted(text.encode() for text in texts)


def test_what_was_dropped_before_a_kill_is_not_let_through_where_it_is_refused(
    tmp_path: Path, refused
) -> None:
    texts = [f"good {index}" for index in range(60)]
    texts.insert(33, "a \1")
    source = f"files:{write_rows(tmp_path / 'rows.jsonl', texts)}"

    def stop(progress: Progress) -> None:
        if progress.stage == "write":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(source, "byte", tmp_path / "d", options=DROP, on_progress=stop)
    assert len(list(tmp_path.glob("d/.work-*/all-*.json"))) >= 2
    with refused("document rows.jsonl:34"):
        prepare(source, "byte", tmp_path / "d", options=PrepareOptions())


def test_a_byte_0_is_no_text_whatever_the_tokenizer(refused) -> None:
    assert pipeline.decode_text("\1 é".encode(), "x") == "\1 é"
    with refused(r"x = b'\\x00'.*byte 3"):
        pipeline.decode_text(b"\1 \1\0", "x")
    with refused(r"x = b'\\xe9'.*UTF-8 \(byte 1\)"):
        pipeline.decode_text(b"\1\xe9", "x")


def test_a_source_without_usable_documents_leaves_nothing_behind(tmp_path: Path, refused) -> None:
    source = f"files:{write_rows(tmp_path / 'rows.jsonl', ['', None])}"
    with refused(r"documents = 0: .*2 empty"):
        prepare(source, "byte", tmp_path / "d", options=PrepareOptions())
    source = f"files:{write_rows(tmp_path / 'more.jsonl', ['same', 'same'])}"
    with refused("at least 2 different"):
        prepare(source, "byte", tmp_path / "d", options=PrepareOptions())
    for text, side in (("text 0", "held-out"), ("same", "training")):
        source = f"files:{write_rows(tmp_path / 'one.jsonl', [text])}"
        with refused(f"{side} documents = 0"):
            prepare(source, "byte", tmp_path / "d", options=PrepareOptions(tokens=5))
    assert not list((tmp_path / "d").iterdir())


def test_trained_tokenizers_see_training_documents_only(tmp_path: Path) -> None:
    texts = [f"document number {index} of some" for index in range(60)]
    low = [text for text in texts if is_low(text.encode())]
    assert low
    source = f"files:{write_rows(tmp_path / 'a.jsonl', texts)}"
    others = f"files:{write_rows(tmp_path / 'b.jsonl', [t for t in texts if t not in low])}"
    options = PrepareOptions(tokens=1500)
    folder = prepare(source, "bpe:262", tmp_path / "d", options=PrepareOptions(tokens=500))
    spec = open_data(folder).tokenizer_spec()
    assert (folder / "tokenizer.json").is_file()
    assert identify(source, "bpe:262", data_dir=tmp_path / "d").tokenizer_hash == spec.hash
    assert list(training_texts(open_source(source, options), options)) == list(
        training_texts(open_source(others, options), options)
    )


def test_the_tokenizer_of_a_small_whole_source_sees_its_training_documents_only(rows) -> None:
    source, texts = rows
    held = set(sorted(texts, key=lambda text: hashlib.sha256(text).hexdigest())[:7])
    assert {text for text in texts if is_low(text)} != held
    found = list(training_texts(open_source(source, PrepareOptions()), PrepareOptions()))
    assert found == [text for text in texts if text not in held]


def test_the_digest_rule_holds_out_a_tenth() -> None:
    digests = [hashlib.sha256(str(index).encode()).digest() for index in range(20_000)]
    share = sum(map(pipeline.is_hash_heldout, digests)) / len(digests)
    assert abs(share - 0.1) < 0.01
    assert pipeline.is_hash_heldout(b"\0" * 32)
    assert not pipeline.is_hash_heldout(b"\x19\x99\x99\x99\x99\x99\x99\x9a" + b"\0" * 24)
    assert pipeline.is_hash_heldout(b"\x19\x99\x99\x99\x99\x99\x99\x99" + b"\xff" * 24)


def test_progress_counts_up_to_the_whole(rows, tmp_path: Path) -> None:
    source, texts = rows
    told: list[Progress] = []
    prepare(source, "byte", tmp_path / "d", options=PrepareOptions(), on_progress=told.append)
    assert list(dict.fromkeys(p.stage for p in told)) == ["hash", "tokenizer", "read", "write"]
    stages = {stage: [p for p in told if p.stage == stage] for stage in ("read", "write")}
    last = stages["read"][-1]
    assert (last.num_documents, last.num_bytes) == (len(texts), sum(map(len, texts)))
    assert last.bytes_per_second is not None
    assert last.eta_seconds is None
    assert stages["write"][-1].num_tokens == stages["write"][-1].goal_tokens
    assert stages["write"][-1].eta_seconds == 0

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from isoflop.data import verify
from isoflop.data.storage import TOKENS_SCHEMA, read_manifest, write_manifest
from isoflop.data.verify import STAMP
from isoflop.data.windows import open_data
from isoflop.errors import UserError


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are hashed, of sets of any size."""
    names: list[str] = []
    real = verify.sha256_file
    monkeypatch.setattr(verify, "REMEMBER_FROM_BYTES", 0)
    monkeypatch.setattr(verify, "sha256_file", lambda path: names.append(path.name) or real(path))
    return names


def settle(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if some seconds had passed."""
    now = time.time()
    monkeypatch.setattr(verify.time, "time", lambda: now + 10)


def test_a_large_set_is_hashed_once(copied: Path, hashed: list[str], monkeypatch) -> None:
    open_data(copied)
    # Too young: a change in the same tick of the clock would not show.
    assert not (copied / STAMP).exists()
    settle(monkeypatch)
    open_data(copied)
    assert hashed == ["train-00000.bin", "heldout-00000.bin"] * 2
    open_data(copied)
    assert len(hashed) == 4
    assert sorted(path.name for path in copied.iterdir())[0] == STAMP


def test_a_small_set_is_hashed_each_time_and_nothing_is_written(copied: Path, monkeypatch) -> None:
    settle(monkeypatch)
    open_data(copied)
    assert not (copied / STAMP).exists()


def _flip(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(1000)
        byte = file.read(1)[0]
        file.seek(1000)
        file.write(bytes([byte ^ 1]))


def _flip_and_set_back_the_time(path: Path) -> None:
    stat = path.stat()
    _flip(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def _replace(path: Path) -> None:
    other = path.with_name("other")
    shutil.copy2(path, other)
    _flip_and_set_back_the_time(other)
    other.replace(path)


@pytest.mark.parametrize("damage", [_flip, _flip_and_set_back_the_time, _replace])
def test_a_changed_file_is_hashed_again(
    copied: Path, hashed: list[str], monkeypatch, refused, damage: Callable[[Path], None]
) -> None:
    settle(monkeypatch)
    open_data(copied)
    hashed.clear()
    damage(copied / "heldout-00000.bin")
    for _ in range(2):
        with refused("heldout-00000.bin.*sha256"):
            open_data(copied)
    assert hashed == ["heldout-00000.bin"] * 2


def test_sizes_are_always_checked(copied: Path, hashed: list[str], monkeypatch, refused) -> None:
    settle(monkeypatch)
    open_data(copied)
    hashed.clear()
    os.truncate(copied / "train-00000.bin", 1000)
    with refused("train-00000.bin.*of 2888124 bytes .it has 1000"):
        open_data(copied)
    assert not hashed


@pytest.mark.parametrize("stamp", ["", "[]", '{"train-00000.bin": ["x"]}', '{"other": []}'])
def test_a_stamp_that_says_nothing_is_no_harm(
    copied: Path, hashed: list[str], monkeypatch, stamp: str
) -> None:
    settle(monkeypatch)
    (copied / STAMP).write_text(stamp)
    open_data(copied)
    assert len(hashed) == 2
    open_data(copied)
    assert len(hashed) == 2


def test_a_manifest_of_other_hashes_makes_the_stamp_void(
    copied: Path, hashed: list[str], monkeypatch, refused
) -> None:
    settle(monkeypatch)
    open_data(copied)
    manifest = read_manifest(copied, TOKENS_SCHEMA, "")
    manifest["splits"]["train"]["shards"][0]["sha256"] = "0" * 64
    write_manifest(copied, manifest)
    with refused("train-00000.bin.*sha256"):
        open_data(copied)


def test_a_folder_that_cannot_be_written_is_hashed_each_time(
    copied: Path, hashed: list[str], monkeypatch
) -> None:
    def refuse(path: Path, value: object) -> None:
        raise PermissionError(13, "Permission denied")

    settle(monkeypatch)
    monkeypatch.setattr(verify, "write_json_atomic", refuse)
    open_data(copied)
    open_data(copied)
    assert len(hashed) == 4


def test_verifying_hashes_everything_whatever_was_remembered(
    copied: Path, hashed: list[str], monkeypatch
) -> None:
    settle(monkeypatch)
    data = open_data(copied)
    hashed.clear()
    told: list[tuple[str, int]] = []
    checks = verify.verify_folder(
        copied, data.manifest, lambda check, done: told.append((check.file, done))
    )
    assert hashed == ["train-00000.bin", "heldout-00000.bin"]
    assert told == [("train-00000.bin", 2_888_124), ("heldout-00000.bin", 3_187_428)]
    assert [check.problem for check in checks] == [None, None]


def test_a_fraction_in_a_manifest_is_one_line(copied: Path) -> None:
    path = copied / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": 1.5}))
    with pytest.raises(UserError, match="its sha256 differs"):
        open_data(copied)

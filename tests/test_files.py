from __future__ import annotations

import math
import os
import threading
from pathlib import Path

import pytest

from isoflop import files
from isoflop.errors import UserError


def test_a_failing_write_leaves_the_old_file_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    files.write_json_atomic(path, {"v": 1})

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_json_atomic(path, {"v": 2})
    assert files.read_json(path, "x") == {"v": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_json_has_no_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json_atomic(tmp_path / "a.json", {"loss": math.nan})
    assert not list(tmp_path.iterdir())


def test_the_first_of_many_writers_wins(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "once"
    wins: list[bytes] = []

    def write(content: bytes) -> None:
        if files.write_once(path, content):
            wins.append(content)

    threads = [threading.Thread(target=write, args=(b"%d" % i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.read_bytes()] == wins
    assert [p.name for p in path.parent.iterdir()] == ["once"]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"\x00"])
def test_what_is_not_json_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match="settings = ") as caught:
        files.read_json(path, "settings")
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="existing file"):
        files.read_json(tmp_path / "none", "settings")
    with pytest.raises(UserError, match="readable JSON"):
        files.read_json(tmp_path, "settings")

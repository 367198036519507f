"""A full, read-only, stale or failing file system: told by the error's number, in one line."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from safetensors import SafetensorError

from isoflop import disk, files
from isoflop.cli import main
from isoflop.errors import UserError


def failed(number: int, path: str | None = None) -> OSError:
    return OSError(number, os.strerror(number), path)


def caused(inner: BaseException, outer: BaseException) -> BaseException:
    outer.__cause__ = inner
    return outer


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (failed(errno.ENOSPC), errno.ENOSPC),
        (failed(errno.EDQUOT, "/a"), errno.EDQUOT),
        (failed(errno.EROFS), errno.EROFS),
        (failed(errno.ESTALE), errno.ESTALE),
        (failed(errno.EIO), errno.EIO),
        # safetensors has no number, pyarrow has one for some errors only.
        (SafetensorError("I/O error: No space left on device (os error 28)"), errno.ENOSPC),
        (OSError("Error writing. Detail: [errno 122] Disk quota exceeded"), errno.EDQUOT),
        (caused(failed(errno.EROFS), RuntimeError("cannot write the checkpoint")), errno.EROFS),
        # What only speaks of it, and what is another's fault.
        (ValueError("No space left on device"), None),
        (RuntimeError("[Errno 28] No space left on device"), None),
        (failed(errno.EACCES, "/a"), None),
        (failed(errno.ENOMEM), None),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), None),
        (UserError("file", "a", "whole ([Errno 5] Input/output error)", "restore it"), None),
    ],
)
def test_the_number_tells_and_not_the_words(error: BaseException, number: int | None) -> None:
    fault = disk.fault_of(error)
    assert (None if fault is None else fault.number) == number
    assert disk.is_recorded(disk.reason_of(error)) == (number is not None)


@pytest.mark.parametrize(
    ("reason", "recorded"),
    [
        ("disk: OSError: [Errno 28] No space left on device", True),
        ("rank 1: disk: OSError: [Errno 5] Input/output error", True),
        ("rank 0: lost contact with another rank; rank 1: disk: OSError: [Errno 5] x", True),
        ("ValueError: disk: full", False),
        ("rank 0: ValueError: disk: full", False),
        (None, False),
    ],
)
def test_what_is_recorded_is_known_again(reason: str | None, recorded: bool) -> None:
    assert disk.is_recorded(reason) == recorded


def test_the_error_names_the_file_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    files.write_json_atomic(path, {"v": 1})

    def full(*_: object) -> None:
        raise failed(errno.ENOSPC)

    for call in ("fsync", "link", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, full)
            if call != "link":
                with pytest.raises(OSError, match="No space") as caught:
                    files.write_json_atomic(path, {"v": 2})
                assert caught.value.filename == str(path)
            if call != "replace":
                with pytest.raises(OSError, match="No space") as caught:
                    files.write_once(tmp_path / "new", b"2")
                assert caught.value.filename == str(tmp_path / "new")
    assert files.read_json(path, "x") == {"v": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "train-00000.bin"
    path.write_bytes(b"x")

    def broken(*_: object) -> None:
        raise failed(errno.EIO)

    monkeypatch.setattr("hashlib.file_digest", broken)
    with pytest.raises(OSError, match="Input/output error") as caught:
        files.sha256_file(path)
    assert caught.value.filename == str(path)


def test_the_line_says_what_how_much_is_free_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "not" / "there"
    space = os.statvfs_result((4096, 1024, 10**6, 300, 20, 50, 40, 30, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda where: space)
    fault = disk.fault_of(failed(errno.ENOSPC, str(path)))
    assert fault is not None
    assert fault.line == (
        f"cannot write {path}: No space left on device; 20.5 kB of 1.02 GB free; what was there "
        "before is whole; free some space, then type the same command again"
    )
    reason = disk.reason_of(failed(errno.EROFS, str(path)))
    assert disk.line_of_reason(reason, tmp_path) == (
        f"OSError: [Errno 30] Read-only file system: '{path}'; 20.5 kB of 1.02 GB free; have it "
        "mounted for writing, or use another folder, then type the same command again"
    )
    monkeypatch.setattr(os, "statvfs", lambda where: os.statvfs_result((1,) * 6 + (0,) * 4))
    assert disk.space_at(path) == "it can hold no more files"


@pytest.mark.parametrize(
    ("error", "code", "wanted"),
    [
        (failed(errno.EDQUOT, "/a/b"), 3, "cannot write /a/b: Disk quota exceeded; "),
        (failed(errno.ESTALE, "/a/b"), 3, "cannot use /a/b: Stale file handle; "),
        (failed(errno.EACCES, "/a/b"), 2, "/a/b: Permission denied; "),
        (failed(errno.ENOTDIR, "/a/b"), 2, "/a/b: Not a directory; "),
    ],
)
def test_a_verb_says_it_in_one_line(
    error: OSError, code: int, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_plan(folder: Path) -> None:
        raise error

    monkeypatch.setattr("isoflop.plan.artefact.read_plan", read_plan)
    done = CliRunner().invoke(main, ["status", "/a"])
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (code, "", 1)
    assert done.stderr.startswith(f"isoflop: {wanted}")


@pytest.mark.parametrize("error", [failed(errno.ENOENT, "/a/b"), failed(errno.EACCES), KeyError(1)])
def test_what_is_ours_keeps_its_traceback(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_plan(folder: Path) -> None:
        raise error

    monkeypatch.setattr("isoflop.plan.artefact.read_plan", read_plan)
    assert CliRunner().invoke(main, ["status", "/a"]).exception is error


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_standard_output_that_is_full_or_closed() -> None:
    def run(shell: str) -> subprocess.CompletedProcess[str]:
        python = f"{sys.executable} -m isoflop"
        return subprocess.run(
            ["bash", "-c", shell.replace("isoflop", python)], capture_output=True, text=True
        )

    full = run("isoflop show --help > /dev/full")
    assert full.returncode == 3
    assert full.stderr.startswith("isoflop: cannot write standard output or a temporary file: No")
    assert full.stderr.count("\n") == 1
    closed = run("isoflop flops --help | true; exit ${PIPESTATUS[0]}")
    assert closed.stderr == ""
    assert closed.returncode in (0, 1)

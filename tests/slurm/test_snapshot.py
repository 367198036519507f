"""The copy of the code that a submission runs: what is in it, and that nothing changes it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import isoflop
from isoflop.errors import UserError
from isoflop.families import PATHS_VARIABLE, add_family_folder, family_digest
from isoflop.launch.slurm.snapshot import Snapshot, snapshot_of
from made_family import write_family


@pytest.fixture
def external(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(PATHS_VARIABLE, "")
    folder = write_family(tmp_path / "families" / "bilinear")
    add_family_folder(folder)
    return folder


def in_a_task(snapshot: Snapshot, code: str) -> str:
    """What a process with a task's environment prints."""
    environ = os.environ | snapshot.variables(None)
    return subprocess.check_output([sys.executable, "-c", code], env=environ, text=True).strip()


@pytest.mark.slow
def test_a_task_runs_the_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Wherever it was submitted from.
    monkeypatch.chdir(Path(isoflop.__file__).parents[1])
    snapshot = snapshot_of(tmp_path / "study", ["mlp"])
    assert not snapshot.folder.exists()
    snapshot.write()
    code = "import isoflop, isoflop_kernels; print(isoflop.__file__, isoflop_kernels.__file__)"
    for path in in_a_task(snapshot, code).split():
        assert Path(path).is_relative_to(snapshot.folder)
    copied = {
        str(path.relative_to(snapshot.folder / "isoflop"))
        for path in (snapshot.folder / "isoflop").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    root = Path(isoflop.__file__).parent
    assert {str(path.relative_to(root)) for path in root.rglob("*.py")} <= copied
    # Data of the package too.
    assert any(name.startswith("data/corpora/") for name in copied)


def test_edited_code_is_another_snapshot_and_leaves_the_first(
    external: Path, tmp_path: Path
) -> None:
    first = snapshot_of(tmp_path / "study", ["bilinear", "mlp"])
    first.write()
    digest = family_digest("bilinear")
    module = external / "module.py"
    module.write_text(module.read_text() + "\nEDITED = True\n")
    second = snapshot_of(tmp_path / "study", ["bilinear", "mlp"])
    second.write()
    assert first.folder != second.folder
    assert "EDITED" not in (first.folder / "families/bilinear/module.py").read_text()
    code = "from isoflop.families import family_digest; print(family_digest('bilinear'))"
    assert in_a_task(first, code) == digest
    assert in_a_task(second, code) == family_digest("bilinear") != digest


def test_the_same_code_is_one_copy(tmp_path: Path) -> None:
    first, second = (snapshot_of(tmp_path / "study", ["mlp"]) for _ in range(2))
    first.write()
    made = (first.folder / "isoflop" / "errors.py").stat()
    second.write()
    assert (second.folder / "isoflop" / "errors.py").stat().st_mtime_ns == made.st_mtime_ns
    assert [path.name for path in first.folder.parent.iterdir()] == [first.folder.name]


def test_files_are_read_only_and_a_changed_copy_is_refused(tmp_path: Path) -> None:
    snapshot = snapshot_of(tmp_path / "study", ["mlp"])
    snapshot.write()
    path = snapshot.folder / "isoflop" / "errors.py"
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    path.chmod(0o644)
    path.write_text("print('changed')\n")
    with pytest.raises(UserError, match="code snapshot = .* must be unchanged"):
        snapshot.write()


def test_nothing_beside_or_before_the_sources_runs_in_a_task(
    external: Path, tmp_path: Path
) -> None:
    snapshot = snapshot_of(tmp_path / "study", ["bilinear"])
    snapshot.write()
    # Bytecode is run in the place of a source of the same age and size.
    compiled = snapshot.folder / "isoflop" / "__pycache__" / "errors.cpython-311.pyc"
    compiled.parent.mkdir()
    compiled.write_bytes(b"")
    snapshot.write()
    assert not compiled.exists()
    for name in ("sitecustomize.py", "torch.py", "families/other"):
        path = snapshot.folder / name
        path.mkdir()
        with pytest.raises(UserError, match="code snapshot = .* must be unchanged"):
            snapshot.write()
        path.rmdir()
    snapshot.write()


@pytest.mark.parametrize("left", ["errors.cpython-311.pyc.140234", "errors.cpython-311.pyc"])
def test_tasks_that_start_write_bytecode_while_the_next_submission_checks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    snapshot = snapshot_of(tmp_path / "study", ["mlp"])
    snapshot.write()
    compiled = snapshot.folder / "isoflop" / "__pycache__"
    compiled.mkdir()
    for name in "abc":
        (compiled / f"{name}.pyc").touch()
    unlink = os.unlink

    def unlink_beside_a_task(path: str | Path, *, dir_fd: int | None = None) -> None:
        unlink(path, dir_fd=dir_fd)
        # The task renames what it wrote, and writes another.
        for old in compiled.glob("[abc].pyc"):
            unlink(old)
        (compiled / left).touch()

    monkeypatch.setattr(os, "unlink", unlink_beside_a_task)
    snapshot.write()
    assert (compiled / left).exists()


def test_a_users_python_path_comes_after_the_copy(tmp_path: Path) -> None:
    snapshot = snapshot_of(tmp_path / "study", ["mlp"])
    paths = snapshot.variables("/mine:/other")["PYTHONPATH"].split(os.pathsep)
    assert paths == [str(snapshot.folder), "/mine", "/other"]
    assert PATHS_VARIABLE not in snapshot.variables(None)

"""The code of a trainer of one's own: what is code, what its digest depends on, its record."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from isoflop.code_files import MAX_FILES, commit_of, list_code
from isoflop.code_folder import (
    MAX_FILE_BYTES,
    Code,
    changed,
    code_changed,
    code_of,
    read_code,
    write_code,
)
from isoflop.errors import UserError

STUDY = '[study]\nname = "s"\narchs = ["plain"]\nbudgets = [1e12]\n'
CLUSTER = 'name = "mine"\nhardware = "a100"\nthrottle = 4\n'
SOURCES = {
    "train.py": "import model\n",
    "model/gpt.py": "WIDTH = 1\n",
    "configs/a.yaml": "lr: 1\n",
    "run.sh": "#!/bin/sh\n",
    ".gitignore": "data/\n*.pt\n",
}


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=n", "-c", "user.email=e", "-c", "protocol.file.allow=always")
    command = ["git", *who, "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    folder = write(tmp_path / "plain", SOURCES)
    (folder / "run.sh").chmod(0o755)
    return folder


@pytest.fixture
def repository(plain: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    shutil.copytree(plain, folder)
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "first")
    return folder


def test_clones_and_copies_have_one_digest_whatever_lies_beside_the_code(
    plain: Path, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone = tmp_path / "elsewhere" / "clone"
    git(tmp_path, "clone", "-q", str(repository), str(clone))
    digest = code_of(plain).digest
    assert sorted(code_of(plain).files) == ["configs/a.yaml", "model/gpt.py", "run.sh", "train.py"]
    assert code_of(repository).digest == code_of(clone).digest == digest
    # In a hook of git's, its variables name the work tree that is committed to.
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))
    big = "0" * (MAX_FILE_BYTES + 1)
    beside = {
        "data/train.bin": big,
        "model.pt": big,
        "model/__pycache__/gpt.cpython-311.pyc": "compiled",
        "wandb/run-1/log.txt": "",
        "venv/pyvenv.cfg": "",
        "venv/lib/torch.py": "",
        "train.egg-info/top_level.txt": "",
        ".env": "SECRET",
        "train.py~": "",
        "study.toml": STUDY,
        "clusters/mine.toml": CLUSTER,
        "results/s/plan.json": '{\n  "schema_version": 2,\n  "study": {}}',
        "results/s/runs/0/spec.json": "{}",
        # The record before the plan, where a kill came between them.
        "results/t/code.json": '{\n  "schema_version": 1,\n  "code_digest": ""}',
    }
    write(clone, beside)
    os.utime(clone / "train.py", (1, 1))
    assert code_of(clone).digest == digest
    shutil.rmtree(clone / ".git")
    for name in ("data", "model.pt"):
        shutil.rmtree(clone / name) if name == "data" else (clone / name).unlink()
    assert code_of(clone).digest == digest


def test_every_change_of_code_is_another_digest_and_undone_it_is_the_first(
    repository: Path,
) -> None:
    first = code_of(repository)
    commit = git(repository, "rev-parse", "HEAD").strip()
    assert first.commit == commit
    seen = {first.digest}

    def check(*differences: str) -> None:
        now = code_of(repository)
        assert changed(first.files, now.files) == differences
        assert now.digest not in seen
        seen.add(now.digest)

    (repository / "train.py").write_text("import model\r\n")
    assert code_of(repository).commit == f"{commit}-dirty"
    check("changed: train.py")
    (repository / "new.py").write_text("")
    (repository / "model/gpt.py").unlink()
    check("changed: train.py", "new: new.py", "gone: model/gpt.py")
    git(repository, "stash", "-q", "--include-untracked")
    assert code_of(repository) == first
    (repository / "run.sh").chmod(0o644)
    check("changed: run.sh")
    git(repository, "checkout", "-q", "run.sh")
    git(repository, "checkout", "-q", "-b", "other")
    # Names and contents are not mixed up.
    git(repository, "mv", "train.py", "train2.py")
    git(repository, "commit", "-q", "-m", "moved")
    check("new: train2.py", "gone: train.py")
    git(repository, "checkout", "-q", "main")
    assert code_of(repository) == first


def test_a_folder_of_a_work_tree_and_an_ignored_one(repository: Path) -> None:
    part = code_of(repository / "model")
    assert list(part.files) == ["gpt.py"]
    # All of it is ignored by the work tree around it.
    (repository / ".gitignore").write_text("model/\n")
    git(repository, "rm", "-q", "--cached", "model/gpt.py")
    assert code_of(repository / "model").files == part.files


def test_files_of_submodules_and_of_clones_inside(
    repository: Path, plain: Path, tmp_path: Path
) -> None:
    outer = write(tmp_path / "outer", {"main.py": ""})
    git(outer, "init", "-q")
    git(outer, "submodule", "add", "-q", str(repository), "lib")
    git(outer, "clone", "-q", str(repository), "inner")
    write(outer, {"lib/data/x.bin": "ignored", "lib/own.py": ""})
    names = list_code(outer)
    there = {"train.py", "run.sh", "model/gpt.py", "configs/a.yaml"}
    expected = {f"{top}/{name}" for top in ("lib", "inner") for name in there}
    assert names == expected | {"main.py", "lib/own.py"}
    # Not fetched yet: nothing of it is there.
    git(outer, "submodule", "deinit", "-q", "-f", "lib")
    assert not any(name.startswith("lib") for name in list_code(outer))


def test_links_count_by_content_or_by_where_they_lead(plain: Path, tmp_path: Path) -> None:
    files = dict(code_of(plain).files)
    away = write(tmp_path / "away", {"x.bin": "1"})
    links = {
        "main.py": "train.py",
        "model/again.py": str(plain / "train.py"),
        "cfg": str(plain / "configs"),
        "shared": "../away",
        "loop": "loop",
        # Where data lie on this machine, or below .git: no code.
        "data": str(away),
        ".hidden": "train.py",
    }
    for name, target in links.items():
        (plain / name).symlink_to(target)
    code = code_of(plain)
    assert code.files["main.py"] == code.files["model/again.py"] == files["train.py"]
    assert set(code.files) - set(files) == set(links) - {"data", ".hidden"}
    elsewhere = tmp_path / "moved" / "away" / "plain"
    elsewhere.parent.mkdir(parents=True)
    plain.rename(elsewhere)
    for name in ("model/again.py", "cfg"):
        (elsewhere / name).unlink()
        (elsewhere / name).symlink_to(str(elsewhere / os.path.relpath(links[name], plain)))
    assert code_of(elsewhere).digest == code.digest
    (elsewhere / "cfg").unlink()
    (elsewhere / "cfg").symlink_to("model")
    assert changed(code.files, code_of(elsewhere).files) == ("changed: cfg",)


def test_a_folder_of_code_that_became_a_link_is_not_read_through_it(
    repository: Path, tmp_path: Path
) -> None:
    (repository / "model").rename(tmp_path / "model")
    (repository / "model").symlink_to("../model")
    differences = changed(
        {"model/gpt.py": "", "train.py": code_of(repository).files["train.py"]},
        code_of(repository).files,
    )
    assert "gone: model/gpt.py" in differences
    assert "new: model" in differences


def test_patterns_choose(repository: Path) -> None:
    write(repository, {"deep/er/x.py": "", "corpus.txt": "0" * (MAX_FILE_BYTES + 1)})
    for patterns, expected in {
        ("*.py",): {"train.py", "model/gpt.py", "deep/er/x.py"},
        ("**/*.py",): {"train.py", "model/gpt.py", "deep/er/x.py"},
        ("deep/**/x.py",): {"deep/er/x.py"},
        ("configs/**", "train.py"): {"configs/a.yaml", "train.py"},
        ("configs", "model/"): {"configs/a.yaml", "model/gpt.py"},
        ("corpus.txt",): {"corpus.txt"},
    }.items():
        assert set(code_of(repository, patterns).files) == expected
    for pattern in ("no.py", "data/**", "../*", "/etc/passwd", ""):
        with pytest.raises(UserError, match=r"trainer\.code_files = .*git does not ignore"):
            code_of(repository, ("*.py", pattern))


def test_what_is_no_code_folder_is_refused_in_a_line(
    plain: Path, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(folder: Path, *words: str) -> None:
        with pytest.raises(UserError) as caught:
            code_of(folder)
        said = str(caught.value)
        assert "\n" not in said
        assert [word for word in words if word not in said] == []

    refused(tmp_path / "nowhere", "an existing folder")
    refused(write(tmp_path / "empty", {"__pycache__/x.pyc": ""}), "a folder with code")
    odd = write(tmp_path / "odd", {"a\nb.py": ""})
    refused(odd, "'a\\nb.py'", "rename it")
    with (plain / "train.bin").open("wb") as file:
        file.truncate(31_000_000)
    refused(plain, "31 of them in train.bin", "code_files =", "git ignore")
    (plain / "train.bin").unlink()
    many = plain / "many"
    many.mkdir()
    for number in range(MAX_FILES + 1):
        (many / str(number)).touch()
    refused(plain, "at most 5,000 files", "most are in many/", "code_files =")
    # Without git, what is ignored would be code.
    monkeypatch.setenv("PATH", str(tmp_path))
    refused(repository, "no git program is here")
    assert commit_of(repository) is None
    monkeypatch.undo()
    (repository / ".git" / "index").write_bytes(b"damaged")
    refused(repository, "a work tree that git can list", "install or mend git")


def test_the_error_of_changed_code_names_the_first_files() -> None:
    differences = changed({"a.py": "1", "b.py": "1", "d.py": "1"}, {"a.py": "2", "c.py": "1"})
    assert differences == ("changed: a.py", "new: c.py", "gone: b.py", "gone: d.py")
    said = str(code_changed(Path("code"), differences))
    assert "(changed: a.py, new: c.py, gone: b.py and 1 more); restore it" in said


def test_the_record_is_read_back_and_every_damage_is_named(plain: Path, tmp_path: Path) -> None:
    code = code_of(plain)
    write_code(tmp_path, code)
    assert read_code(tmp_path, code.digest) == code
    other = Code(files={"a.py": "0" * 64}, commit=None)
    with pytest.raises(UserError, match=r"code\.json: code_digest = .*that of the plan"):
        read_code(tmp_path, other.digest)
    path = tmp_path / "code.json"
    values = json.loads(path.read_text())
    mark = values["files"]["train.py"]
    for files, named in {
        ("../x",): r"'\.\./x'",
        ("/etc/x",): "'/etc/x'",
        ("a//b",): "'a//b'",
        ("a/./b",): r"'a/\./b'",
        (".git/hooks/x",): r"'\.git/hooks/x'",
        ("a\nb",): r"'a\\nb'",
        ("train.py",): "code_digest",
    }.items():
        path.write_text(json.dumps(values | {"files": dict.fromkeys(files, mark)}))
        with pytest.raises(UserError, match=named) as caught:
            read_code(tmp_path, code.digest)
        assert "code.json" in str(caught.value)
    for mark in ("0" * 63, "y:" + "0" * 64, "../" + "0" * 64):
        path.write_text(json.dumps(values | {"files": {"a.py": mark}}))
        with pytest.raises(UserError, match=r"code\.json: files\.a\.py"):
            read_code(tmp_path, code.digest)
    path.unlink()
    path.symlink_to(plain / "train.py")
    for refused in (
        lambda: read_code(tmp_path, code.digest),
        lambda: write_code(tmp_path, code),
    ):
        with pytest.raises(UserError, match="symbolic link"):
            refused()
    assert (plain / "train.py").read_text() == SOURCES["train.py"]

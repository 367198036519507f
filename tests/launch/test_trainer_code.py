"""The copy of a trainer's code that its commands run: the planned files, and links to the rest."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from isoflop.code_folder import Code, code_of
from isoflop.errors import UserError
from isoflop.launch import trainer_code
from isoflop.launch.trainer_code import ensure_snapshot, python_path, snapshot_folder
from made_listing import listing

SOURCES = {
    "train.py": "import model; print(model.WIDTH, open('data/train.bin').read())\n",
    "lib/model.py": "WIDTH = 7\n",
    "lib/weights.pt": "ignored, beside code",
    "lib/__pycache__/model.cpython-311.pyc": "compiled",
    "run.sh": "#!/bin/sh\n",
    "data/train.bin": "tokens",
    "data/deep/val.bin": "more",
    "results/other/plan.json": '{"schema_version": 2, "study": {}}',
    "results/old.csv": "1",
    "old.pyc": "compiled",
    ".gitignore": "data/\n*.pt\n*.csv\n",
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "code"
    for name, text in SOURCES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "run.sh").chmod(0o755)
    (folder / "cfg").symlink_to(folder / "lib")
    (folder / "again.py").symlink_to("train.py")
    (folder / "corpora").symlink_to(tmp_path)
    (folder / "shared").symlink_to("../away")
    (tmp_path / "away").mkdir()
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    return folder


@pytest.fixture
def study(source: Path) -> Path:
    """As usual: in the code folder."""
    folder = source / "results" / "mine"
    folder.mkdir()
    (folder / "plan.json").write_text(SOURCES["results/other/plan.json"])
    return folder


def kinds(folder: Path) -> dict[str, str]:
    """What is in a copy: where a link leads, or the mode of a file; links are not followed."""
    found = {}
    for name, entry in listing(folder).items():
        path = folder / name
        if entry[0] == "link":
            found[name] = str(path.readlink())
        elif entry[0] == "file":
            found[name] = oct(stat.S_IMODE(entry[1]))
    return found


def test_the_copy_has_the_code_and_links_to_the_rest(
    source: Path, study: Path, tmp_path: Path
) -> None:
    planned = code_of(source)
    assert set(planned.files) == {
        *("train.py", "again.py", "run.sh", "lib/model.py", "cfg", "shared")
    }
    before = listing(source)
    folder = ensure_snapshot(planned, source, study)
    assert folder == study / ".launch/code" / f"trainer-{planned.digest[:16]}"
    assert kinds(folder) == {
        "train.py": "0o444",
        "again.py": "0o444",
        "lib/model.py": "0o444",
        "run.sh": "0o555",
        ".code-folder": "0o644",
        # In the copy, not back to the sources.
        "cfg": "lib",
        # Where it led from there.
        "shared": str(tmp_path / "away"),
        **{
            name: str(source / name)
            for name in (".git", ".gitignore", "data", "corpora", "lib/weights.pt")
        },
        # Not the whole folder, in which the copy is itself; and no studies.
        "results/old.csv": str(source / "results/old.csv"),
    }
    # What was there before is as it was.
    after = listing(source)
    assert {name for name in after if after[name] != before.get(name)} <= {
        *(name for name in after if name.startswith("results/mine")),
        # git keeps times of files in its index.
        ".git",
    }
    environ = os.environ | {"PYTHONPATH": python_path(str(source / "lib"), source, folder)}
    command = [sys.executable, "train.py"]
    (source / "lib/model.py").write_text("WIDTH = 8\n")
    ran = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True)
    assert (ran.stdout, ran.stderr) == ("7 tokens\n", "")


def test_a_whole_copy_is_used_whatever_became_of_the_code(source: Path, study: Path) -> None:
    planned = code_of(source)
    folder = ensure_snapshot(planned, source, study)
    made = (folder / "train.py").stat()
    # A run compiled the sources, and left something in the folder that it started in.
    (folder / "lib/__pycache__").mkdir()
    (folder / "lib/__pycache__/model.cpython-311.pyc").write_bytes(b"stale")
    (folder / "out").mkdir()
    (folder / "out/log.txt").write_text("a run's")
    (folder / "latest").symlink_to("out")
    (source / "train.py").write_text("edited")
    (source / "random.py").write_text("new code, which would be imported first")
    (source / "data2").mkdir()
    (source / ".gitignore").write_text("data*/\n*.pt\n*.csv\n")
    (source / "lib/weights.pt").unlink()
    (folder / "random.py").symlink_to(source / "random.py")
    assert ensure_snapshot(planned, source, study) == folder
    assert (folder / "train.py").stat() == made
    assert not list(folder.rglob("*.pyc"))
    found = kinds(folder)
    # Data that came since are found, those that went are not in the way, new code is not there.
    assert found["data2"] == str(source / "data2")
    assert {"lib/weights.pt", "random.py"}.isdisjoint(found)
    assert (found["out/log.txt"], found["latest"]) == ("0o644", "out")
    # The same study from another checkout, once that has the planned code, and from none.
    moved = source.with_name("moved")
    source.rename(moved)
    ensure_snapshot(planned, moved, moved / "results" / "mine")
    assert kinds(moved / folder.relative_to(source))["data"] == str(source / "data")
    (moved / "train.py").write_text(SOURCES["train.py"])
    (moved / "random.py").unlink()
    (moved / "cfg").unlink()
    (moved / "cfg").symlink_to("lib")
    study = moved / "results" / "mine"
    folder = ensure_snapshot(planned, moved, study)
    assert kinds(folder)["data"] == str(moved / "data")
    assert ensure_snapshot(planned, source, study) == folder
    assert kinds(folder)["data"] == str(moved / "data")


def test_code_that_changed_before_there_is_a_copy_is_refused_by_name(
    source: Path, study: Path
) -> None:
    planned = code_of(source)
    (source / "train.py").write_text("edited")
    (source / "new.py").write_text("")
    with pytest.raises(UserError) as caught:
        ensure_snapshot(planned, source, study)
    named = "(changed: again.py, changed: train.py, new: new.py)"
    assert f"as it was planned {named}; restore it" in str(caught.value)
    assert not snapshot_folder(study, planned.digest).exists()


def test_code_that_changes_while_it_is_copied_is_refused_and_leaves_nothing(
    source: Path, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = code_of(source)
    copy_file = trainer_code.copy_file

    def edited(path: Path, target: Path, *, is_executable: bool) -> None:
        if path.name == "train.py":
            path.write_text("edited")
        if path.name == "run.sh":
            path.unlink()
        copy_file(path, target, is_executable=is_executable)

    monkeypatch.setattr(trainer_code, "copy_file", edited)
    with pytest.raises(UserError, match=r"\(changed: train\.py, gone: run\.sh\)"):
        ensure_snapshot(planned, source, study)
    assert list((study / ".launch/code").iterdir()) == []


def test_processes_that_make_it_at_once_use_one_copy(
    source: Path, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = code_of(source)
    with ThreadPoolExecutor(6) as pool:
        folders = list(pool.map(lambda _: ensure_snapshot(planned, source, study), range(12)))
    assert set(folders) == {snapshot_folder(study, planned.digest)}
    assert list((study / ".launch/code").iterdir()) == [folders[0]]
    # What a killed process left is in nobody's way.
    shutil.rmtree(folders[0])
    half = folders[0].with_name(f".{folders[0].name}.7-0123abcd.tmp")
    half.mkdir()
    (half / "train.py").write_text("half")
    assert ensure_snapshot(planned, source, study) == folders[0]
    assert half.exists()


def damage_content(folder: Path) -> None:
    (folder / "train.py").chmod(0o644)
    (folder / "train.py").write_text("edited")


def damage_mode(folder: Path) -> None:
    (folder / "run.sh").chmod(0o444)


def damage_file(folder: Path) -> None:
    away = folder.parents[2] / "train.py"
    shutil.copyfile(folder / "train.py", away)
    (folder / "train.py").unlink()
    (folder / "train.py").symlink_to(away)


def damage_folder(folder: Path) -> None:
    away = folder.parents[2] / "lib"
    shutil.copytree(folder / "lib", away, symlinks=True)
    shutil.rmtree(folder / "lib")
    (folder / "lib").symlink_to(away)


def damage_link(folder: Path) -> None:
    (folder / "cfg").unlink()
    (folder / "cfg").symlink_to("data")


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (damage_content, "changed: train.py"),
        (damage_mode, "changed: run.sh"),
        (damage_file, "gone: train.py"),
        (damage_folder, "gone: lib/model.py"),
        (damage_link, "changed: cfg"),
    ],
)
def test_a_copy_that_was_changed_is_refused(
    damage: object, named: str, source: Path, study: Path
) -> None:
    planned = code_of(source)
    folder = ensure_snapshot(planned, source, study)
    assert callable(damage)
    damage(folder)
    with pytest.raises(UserError) as caught:
        ensure_snapshot(planned, source, study)
    assert f"unchanged since it was made ({named})" in str(caught.value)
    assert "remove the folder" in str(caught.value)


@pytest.mark.parametrize("name", [".launch", ".launch/code", ".launch/code/trainer-{0}"])
def test_a_received_folder_leads_nowhere_else(
    name: str, source: Path, study: Path, tmp_path: Path
) -> None:
    planned = code_of(source)
    outside = tmp_path / "outside"
    (outside / "code" / "sub").mkdir(parents=True)
    path = study / name.format(planned.digest[:16])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(outside)
    before = listing(outside)
    with pytest.raises(UserError, match="a symbolic link: must be of the study itself"):
        ensure_snapshot(planned, source, study)
    assert listing(outside) == before


def test_chosen_code_leaves_the_rest_linked(source: Path, study: Path) -> None:
    planned = code_of(source, ("train.py", "lib/**"))
    assert set(planned.files) == {"train.py", "lib/model.py"}
    folder = ensure_snapshot(planned, source, study, ("train.py", "lib/**"))
    found = kinds(folder)
    assert (found["lib/model.py"], found["run.sh"]) == ("0o444", str(source / "run.sh"))


def test_a_study_beside_the_code_or_the_code_folder_itself(source: Path, tmp_path: Path) -> None:
    planned = code_of(source)
    folder = ensure_snapshot(planned, source, tmp_path / "study")
    assert kinds(folder)["results"] == str(source / "results")
    (source / "plan.json").write_text(SOURCES["results/other/plan.json"])
    planned = code_of(source)
    folder = ensure_snapshot(planned, source, source)
    assert "train.py" in kinds(folder)
    assert not any(".launch" in name for name in kinds(folder))


def test_python_imports_the_copy_where_it_would_the_code_folder(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    (tmp_path / "link").symlink_to(source)
    for given, expected in {
        "": "",
        f"/opt/x:{source}:lib": f"/opt/x:{copy}:lib",
        f"{tmp_path}/link/lib": f"{copy}/lib",
        f"{source}-other": f"{source}-other",
    }.items():
        assert python_path(given, source, copy) == expected
    # Installed to be edited: by a path, and by a finder of setuptools.
    packages = tmp_path / "site-packages"
    packages.mkdir()
    (packages / "_mine.pth").write_text(f"import os\n{source}/src\n/elsewhere\n")
    monkeypatch.setattr(trainer_code.site, "getsitepackages", lambda: [str(packages)])
    finder = type(sys)("__editable___mine_finder")
    finder.MAPPING = {"lib": str(source / "lib"), "renamed": str(source / "lib")}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, finder.__name__, finder)
    assert python_path(str(source), source, copy) == f"{copy}:{copy}/src"
    assert python_path("/opt/x", source, copy) == f"/opt/x:{copy}/src:{copy}"


def test_a_planned_file_outside_the_folder_is_gone(source: Path, study: Path) -> None:
    planned = code_of(source)
    more = Code(files={**planned.files, "absent/x.py": "0" * 64}, commit=None)
    with pytest.raises(UserError, match=r"gone: absent/x\.py"):
        ensure_snapshot(more, source, study)


def test_a_folder_of_other_code_does_not_take_the_place_of_the_planned_one(
    source: Path, study: Path, tmp_path: Path
) -> None:
    planned = code_of(source)
    folder = ensure_snapshot(planned, source, study)
    before = kinds(folder)
    # As where the code is "." and a command is typed in another folder.
    other = tmp_path / "other"
    shutil.copytree(source / "data", other / "data")
    shutil.copytree(source / ".git", other / ".git")
    (other / "train.py").write_text("other code")
    assert ensure_snapshot(planned, other, study) == folder
    assert kinds(folder) == before
    assert python_path(f"{source}/lib:{other}/lib", other, folder) == f"{folder}/lib:{other}/lib"
    # What a received folder has in the place of the record is not read.
    (folder / ".code-folder").unlink()
    (folder / ".code-folder").symlink_to(tmp_path / "away")
    assert ensure_snapshot(planned, source, study) == folder
    assert kinds(folder) == before

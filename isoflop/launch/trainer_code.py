"""A copy of a trainer's code as it was planned, in which its commands run.

    STUDY/.launch/code/trainer-DIGEST/      the planned files, read-only
                                            links to all else that is in the code folder,
                                            and .code-folder, the path of that

So no pending run sees edited code, and `data/train.bin` is found as by hand. A folder without code
is one link; a folder that holds code is real, with links beside the code. What is new code since
the plan, other studies and Python's bytecode are not linked; `.git` is, for commands that note the
commit. A command may write beside the code: what it leaves is no difference.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import site
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from isoflop.code_files import is_compiled, is_study, link_text, list_code
from isoflop.code_folder import (
    Code,
    changed,
    code_changed,
    code_of,
    is_executable,
    is_link,
    marks_of,
)
from isoflop.errors import UserError
from isoflop.files import is_plain_file, make_own_folder, refuse_links, write_text_atomic
from isoflop.launch.code_copy import (
    CODE_FOLDER,
    SHOWN_DIGITS,
    copy_file,
    make_copy,
    remove_compiled,
)
from isoflop.launch.slurm.records import LAUNCH_FOLDER

_PREFIX = "trainer-"
# In a copy: the path of the code folder.
_SOURCE_FILE = ".code-folder"


def snapshot_folder(study_folder: Path, digest: str) -> Path:
    """Return where the copy of a trainer's code is, or will be."""
    return study_folder / LAUNCH_FOLDER / CODE_FOLDER / f"{_PREFIX}{digest[:SHOWN_DIGITS]}"


def is_of_trainer(path: Path) -> bool:
    """Return whether a path in the folder of copies is of a trainer's code, whole or not."""
    return path.name.lstrip(".").startswith(_PREFIX)


def ensure_snapshot(
    planned: Code, source: Path, study_folder: Path, patterns: Sequence[str] = ()
) -> Path:
    """Return the folder of a copy of a trainer's code; make it unless it is there.

    It is used even if the code was edited since; its links follow what is in the code folder now.
    Any number of processes may do this at once.

    Args:
        planned: the code as planned.
        source: the code folder.
        study_folder: the study's folder.
        patterns: the study's code_files.

    Raises:
        UserError: the code is not what was planned, and there is no copy; the copy was changed; a
            link in the study's folder.
    """
    folder = snapshot_folder(study_folder.absolute(), planned.digest)
    for parent in (folder.parents[1], folder.parent):
        make_own_folder(parent)
    refuse_links(folder)
    source = Path(os.path.normpath(source.absolute()))
    if not folder.exists():
        differences = changed(planned.files, code_of(source, patterns).files)
        if differences:
            raise code_changed(source, differences)
        _make(planned, source, folder)
    remove_compiled(folder)
    differences = _differences(planned, folder)
    if differences:
        raise UserError(
            "code snapshot",
            str(folder),
            f"unchanged since it was made ({differences[0]})",
            "remove the folder, once no run is left that uses it, and type the command again",
        )
    # A copy that is whole runs, whatever became of the code folder.
    with contextlib.suppress(UserError):
        if _is_its_source(source, folder, planned, patterns):
            _link_rest(source, folder, planned.files.keys(), list_code(source, patterns))
    return folder


def _source_of(folder: Path) -> Path | None:
    """Return the code folder that the links of a copy lead to; None: not known."""
    path = folder / _SOURCE_FILE
    return Path(path.read_text(encoding="utf-8")) if is_plain_file(path) else None


def _is_its_source(source: Path, folder: Path, planned: Code, patterns: Sequence[str]) -> bool:
    """Return whether a folder is the one that was copied, or another of the same code, from now on.

    A relative path of the code means another folder where a command is typed elsewhere.
    """
    if _source_of(folder) != source:
        if changed(planned.files, code_of(source, patterns).files):
            return False
        write_text_atomic(folder / _SOURCE_FILE, str(source))
    return True


def _make(planned: Code, source: Path, folder: Path) -> None:
    def fill(temporary: Path) -> None:
        for name, mark in planned.files.items():
            # What goes meanwhile is a difference below.
            with contextlib.suppress(FileNotFoundError):
                _copy(source, name, mark, temporary)
        differences = _differences(planned, temporary)
        if differences:
            raise code_changed(source, differences)
        write_text_atomic(temporary / _SOURCE_FILE, str(source))
        _link_rest(source, temporary, planned.files.keys(), ())

    # A name by which `isoflop clean` knows what a killed writer left.
    mark = f"{os.getpid()}-{secrets.token_hex(4)}"
    make_copy(folder, folder.with_name(f".{folder.name}.{mark}.tmp"), fill)


def _copy(source: Path, name: str, mark: str, copy: Path) -> None:
    if not is_link(mark):
        copy_file(source / name, copy / name, is_executable=is_executable(mark))
        return
    text = link_text(source, name)
    if text is None:
        return
    parent = (source / name).parent
    target = os.path.normpath(parent / text)
    link = copy / name
    link.parent.mkdir(parents=True, exist_ok=True)
    # Inside the folder it leads to the copy of what it led to.
    link.symlink_to(text if Path(target).is_relative_to(source) else target)


def _differences(planned: Code, copy: Path) -> tuple[str, ...]:
    """Return what is not as planned among the files of a copy; a link in their place is gone."""
    own = {name for name, mark in planned.files.items() if _is_own(copy, name, mark)}
    found = marks_of(copy, own)
    for name in own:
        if is_link(planned.files[name]) and (copy / name).readlink().is_absolute():
            # Out of the folder, to where it led from there.
            found[name] = planned.files[name]
    return changed(planned.files, found)


def _is_own(copy: Path, name: str, mark: str) -> bool:
    """Return whether a file, or a planned link, lies in the copy: it is not reached by a link."""
    path = copy / name
    parents = path.parents[: len(Path(name).parts) - 1]
    return path.is_symlink() == is_link(mark) and not any(p.is_symlink() for p in parents)


def _link_rest(source: Path, copy: Path, planned: Collection[str], now: Collection[str]) -> None:
    """Link what is beside the code; replace and remove links that lead elsewhere or nowhere.

    Args:
        source: the code folder.
        copy: of its code.
        planned: paths of the code that is copied.
        now: paths of what is code now, which is not linked either.
    """
    code = {*planned, *now}
    folders = {str(parent) for name in code for parent in Path(name).parents}
    # A link to a folder around the copy would lead in circles.
    study, root = copy.parents[2].resolve(), source.resolve()
    around = (study, *study.parents)
    folders |= {str(p.relative_to(root)) for p in around if p != root and p.is_relative_to(root)}
    taken = code | folders
    for place in sorted(folders):
        there, here = source / place, copy / place
        is_other = not there.is_dir() or (place != "." and is_study(there))
        if is_other or here.is_symlink() or here.is_file():
            continue
        here.mkdir(exist_ok=True)
        names = {path.name for path in there.iterdir() if _is_linked(path)}
        beside = {name for name in names if str(Path(place, name)) not in taken}
        for name in beside:
            _link(there / name, here / name)
        for path in list(here.iterdir()):
            is_ours = path.is_symlink() and str(Path(place, path.name)) not in planned
            # Another process may remove it, too.
            with contextlib.suppress(FileNotFoundError):
                if is_ours and path.name not in beside and _is_stale(path, there):
                    path.unlink()


def _is_linked(path: Path) -> bool:
    """Return whether what is beside the code belongs into a copy."""
    if is_compiled(path.name) or path.name == LAUNCH_FOLDER:
        return False
    return not (path.is_dir() and is_study(path))


def _link(target: Path, link: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if link.is_symlink() and link.readlink() != target:
            link.unlink()
    # It is right, or was left by a run, or another process was faster.
    with contextlib.suppress(FileExistsError):
        link.symlink_to(target)


def _is_stale(link: Path, there: Path) -> bool:
    """Return whether a link leads nowhere, or to what is code now."""
    target = link.readlink()
    return target.is_absolute() and (target == there / link.name or not target.exists())


def python_path(given: str, source: Path, snapshot: Path) -> str:
    """Return the PYTHONPATH with which Python imports the copy where it would the code folder.

    That is so for entries of the user's own, and for packages of the code folder that were
    installed in this environment to be edited (`pip install -e`).

    Args:
        given: the user's PYTHONPATH; "" for none.
        source: the code folder, unless the copy knows it better.
        snapshot: the copy of its code.
    """
    root = (_source_of(snapshot) or source).resolve()
    paths = [path for path in given.split(os.pathsep) if path]
    moved = {path: _moved(Path(path), root, snapshot) for path in paths}
    installed = (_moved(path, root, snapshot) for path in _installed_to_be_edited())
    own = dict.fromkeys(str(path) for path in installed if path is not None)
    kept = [str(moved[path] or path) for path in paths]
    return os.pathsep.join([*kept, *(path for path in own if path not in kept)])


def _moved(path: Path, root: Path, snapshot: Path) -> Path | None:
    """Return the path in the copy; None: it is not in the code folder, or relative to any."""
    real = path.resolve()
    if not path.is_absolute() or not real.is_relative_to(root):
        return None
    return snapshot / real.relative_to(root)


def _installed_to_be_edited() -> Iterator[Path]:
    """Yield folders of sources from which this environment's packages are imported."""
    for folder in (*site.getsitepackages(), site.getusersitepackages()):
        for file in sorted(Path(folder).glob("*.pth")):
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
            yield from (Path(line) for line in lines if line.startswith(os.sep))
    for name, module in sorted(sys.modules.items()):
        if name.startswith("__editable__"):
            # As setuptools has them: folders by the names of packages.
            mapping = getattr(module, "MAPPING", {})
            yield from (
                Path(path).parent for package, path in mapping.items() if Path(path).name == package
            )

"""Which files of a folder are the code of a trainer of one's own.

Of a git work tree it is what git tracks, and what is new and not ignored, as it lies there; of any
other folder all files. Never code, wherever it lies:

* names that begin with a dot, `__pycache__`, `*.pyc`, `*~`, `*.egg-info`;
* virtual environments, `node_modules`, and what trackers write (`wandb`, `mlruns`,
  `lightning_logs`). `runs` and `out` may be packages: have git ignore them, or list the code;
* what isoflop itself reads and writes: folders of studies, and study files and profiles, so that a
  study may grow, or go to another cluster, and its ids stay;
* a symbolic link out of the folder by an absolute path, which says where data lie on this machine.

Paths are written with `/`, from the code folder.
"""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

from isoflop.errors import UserError, shown
from isoflop.files import open_regular
from isoflop.texts import has_control

CODE_FILE = "code.json"
MAX_FILES = 5_000
LIST_IT = 'list the code by code_files = ["*.py", "configs/**"] in [trainer]'

_TRACKERS = ("wandb", "mlruns", "lightning_logs")
_NO_FOLDERS = (".*", "__pycache__", "*.egg-info", "node_modules", *_TRACKERS)
_NO_FILES = (".*", "*.pyc", "*~")
# What lies at the top of a virtual environment, of venv or of conda.
_ENVIRONMENT = ("pyvenv.cfg", "conda-meta")
# The first key of the records by which a study's folder is known; the first is written first.
_STUDY_RECORDS = {CODE_FILE: b"code_digest", "plan.json": b"study"}
_HEAD_BYTES = 200
# Of a cluster's profile, besides its name and its hardware's.
_CLUSTER_KEYS = frozenset(("gpus_per_node", "partition", "throttle", "time_limit_min"))


def list_code(folder: Path, patterns: Sequence[str] = ()) -> frozenset[str]:
    """Return the paths of files and symbolic links below a folder that may be code.

    Args:
        folder: the trainer's.
        patterns: of paths, in which `*` stands for any text, `/` included: `*.py` are files in all
            folders, `configs` and `configs/**` all below that one. None: all files.

    Raises:
        UserError: no folder, a pattern without a file, a name that is no text, too many files, or a
            work tree that git cannot list.
    """
    if not folder.is_dir():
        do = "correct it, or type the command in the folder that the plan was made in"
        raise UserError("trainer.code", str(folder), "an existing folder", do)
    is_left_out = _left_out(folder)
    of_git = _git_names(folder)
    names: Iterable[str] = _walk(folder, is_left_out) if of_git is None else of_git
    chosen: set[str] = set()
    unused = set(patterns)
    for name in names:
        if not _may_be_code(folder, name, is_left_out):
            continue
        matching = [pattern for pattern in patterns if _matches(name, pattern)]
        unused.difference_update(matching)
        if matching or not patterns:
            chosen.add(name)
        if not patterns and len(chosen) > MAX_FILES:
            allowed = (
                f"a folder of at most {MAX_FILES:,} files of code (most are in {_top(chosen)})"
            )
            raise UserError(
                "trainer.code", str(folder), allowed, f"have git ignore data, or {LIST_IT}"
            )
    if unused:
        allowed = "patterns of files in the code folder that git does not ignore"
        raise UserError("trainer.code_files", min(unused), allowed, "correct it")
    for name in chosen:
        if has_control(name) or any("\ud800" <= c <= "\udfff" for c in name):
            allowed = "a file whose name is Unicode without control characters"
            raise UserError("trainer.code", shown(ascii(name)), allowed, "rename it")
    return frozenset(chosen)


def link_text(folder: Path, name: str) -> str | None:
    """Return where a symbolic link of a code folder leads, as a path from the link.

    None: out of the folder, by an absolute path.
    """
    text = str((folder / name).readlink())
    root = os.path.realpath(folder)
    target = os.path.realpath(folder / name)
    if Path(target).is_relative_to(root):
        return os.path.relpath(target, Path(root, name).parent)
    return None if Path(text).is_absolute() else os.path.normpath(text)


def is_compiled(name: str) -> bool:
    """Return whether a file or folder of that name is Python's bytecode."""
    return name == "__pycache__" or name.endswith(".pyc")


def is_study(folder: Path) -> bool:
    """Return whether a folder is that of a study: isoflop wrote a plan there, or began to."""
    return any(_begins(folder / name, key) for name, key in _STUDY_RECORDS.items())


def commit_of(folder: Path) -> str | None:
    """Return a work tree's commit, "-dirty" appended if files were changed since; None: no git."""
    try:
        described = _git(folder, "describe", "--always", "--abbrev=40", "--dirty", timeout_s=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return os.fsdecode(described).strip() or None


def _begins(path: Path, key: bytes) -> bool:
    """Return whether a record has a key right after its schema's version."""
    try:
        with open_regular(path) as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return False
    return re.match(rb'\s*\{\s*"schema_version":\s*\d+,\s*"' + key + b'"', head) is not None


def _left_out(folder: Path) -> Callable[[str], bool]:
    """Return whether nothing in a folder below the code folder is code; answers are kept."""

    @cache
    def is_left_out(name: str) -> bool:
        if name == "":
            return False
        path = folder / name
        return (
            is_left_out(name.rpartition("/")[0])
            or any(fnmatchcase(path.name, pattern) for pattern in _NO_FOLDERS)
            or path.is_symlink()
            or any((path / entry).exists() for entry in _ENVIRONMENT)
            or is_study(path)
        )

    return is_left_out


def _may_be_code(folder: Path, name: str, is_left_out: Callable[[str], bool]) -> bool:
    parent, _, base = name.rpartition("/")
    if any(fnmatchcase(base, pattern) for pattern in _NO_FILES) or is_left_out(parent):
        return False
    path = folder / name
    if path.is_symlink() and link_text(folder, name) is None:
        return False
    return not (base.endswith(".toml") and _is_of_isoflop(path))


def _is_of_isoflop(path: Path) -> bool:
    """Return whether a TOML file is a study, or a profile of a cluster or of hardware."""
    try:
        with open_regular(path) as file:
            values = tomllib.load(file)
    except (OSError, ValueError):
        return False
    study = values.get("study")
    is_study_file = isinstance(study, dict) and "archs" in study
    is_cluster = {"name", "hardware"} <= values.keys() and not _CLUSTER_KEYS.isdisjoint(values)
    return is_study_file or is_cluster or {"name", "kind", "matmul_flops_per_s"} <= values.keys()


def _matches(name: str, pattern: str) -> bool:
    whole = pattern.rstrip("/")
    spellings = {whole, whole.replace("**/", "")}
    return any(fnmatchcase(name, s) or fnmatchcase(name, f"{s}/*") for s in spellings)


def _top(names: Collection[str]) -> str:
    """Return the folder right below the code folder that has the most files."""
    tops = Counter(f"{top}/" if rest else "." for top, _, rest in (n.partition("/") for n in names))
    return max(sorted(tops), key=lambda top: tops[top])


def _walk(folder: Path, is_left_out: Callable[[str], bool]) -> Iterator[str]:
    """Yield the paths of files and links below a folder, outside what is left out."""
    waiting = [""]
    while waiting:
        place = waiting.pop()
        try:
            entries = list(os.scandir(folder / place))
        except PermissionError as error:
            allowed = f"a folder that can be read ({error.strerror})"
            raise UserError("trainer.code", str(folder / place), allowed, LIST_IT) from None
        for entry in entries:
            name = f"{place}/{entry.name}" if place else entry.name
            if not entry.is_dir(follow_symlinks=False):
                yield name
            elif not is_left_out(name):
                waiting.append(name)


def _git_names(folder: Path) -> set[str] | None:
    """Return what git tracks below a folder, and what is new and not ignored; None: no work tree.

    Of a submodule, and of a work tree in the work tree, likewise.

    Raises:
        UserError: there is a work tree, and no git that lists it.
    """
    top = folder.resolve()
    if not any((place / ".git").exists() for place in (top, *top.parents)):
        return None
    try:
        listed = _git(folder, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    except FileNotFoundError:
        raise _no_git(folder, "no git program is here") from None
    except subprocess.CalledProcessError as error:
        said = os.fsdecode(error.stderr).strip() or f"exit code {error.returncode}"
        if "not a git repository" in said:
            return None
        raise _no_git(folder, said.splitlines()[0]) from None
    names = set()
    for name in filter(None, os.fsdecode(listed).split("\0")):
        inner = folder / name
        if inner.is_symlink() or not inner.is_dir():
            names.add(name)
        elif (inner / ".git").exists():
            names |= {f"{name.rstrip('/')}/{below}" for below in _git_names(inner) or ()}
    # All of a folder that is ignored itself, in a work tree around it.
    return names or None


def _no_git(folder: Path, reason: str) -> UserError:
    allowed = f"a work tree that git can list ({reason})"
    return UserError("trainer.code", str(folder), allowed, "install or mend git")


def _git(folder: Path, *arguments: str, timeout_s: float | None = None) -> bytes:
    """Return what git prints; commands that change nothing, and run nothing of the work tree."""
    # Inside a hook of git's, its variables name another work tree.
    environ = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    environ |= {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    # A colleague's work tree is listed like one's own.
    settings = ("-c", "core.fsmonitor=false", "-c", "safe.directory=*")
    done = subprocess.run(
        ["git", *settings, "-C", str(folder), *arguments],
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
        timeout=timeout_s,
    )
    return done.stdout

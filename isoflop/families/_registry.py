"""Where families come from: built-in folders, installed packages, and folders that a study names.

A family is a package with the submodules `spec` (imports no torch) and `module` (torch):

* built in: a folder of this package;
* installed: an entry point of group `isoflop.families`, whose value names the package;
* a folder NAME with `spec.py` and `module.py` anywhere, listed in ISOFLOP_FAMILY_PATHS. The
  variable is the only record of such folders, so every process that a study starts knows them.

A folder's files import one another relatively (`from .spec import Config`).
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType

from isoflop.errors import UserError

ENTRY_POINTS = "isoflop.families"
PATHS_VARIABLE = "ISOFLOP_FAMILY_PATHS"

_FOLDER = Path(__file__).parent


@dataclass(frozen=True, kw_only=True, slots=True)
class FamilySource:
    """Where one family lives."""

    name: str
    package: str
    """Importable name of the package that holds `spec` and `module`."""
    folder: Path | None
    """Folder of an external family's source, where it is known without importing it."""
    built_in: bool


@lru_cache(maxsize=1)
def _built_in() -> dict[str, FamilySource]:
    names = [p.parent.name for p in _FOLDER.glob("*/spec.py") if p.parent.name[0] != "_"]
    return {
        name: FamilySource(
            name=name, package=f"isoflop.families.{name}", folder=_FOLDER / name, built_in=True
        )
        for name in names
    }


@lru_cache(maxsize=1)
def _installed() -> dict[str, FamilySource]:
    # Slow to import and to scan; asked for only when the other places do not know a name.
    from importlib.metadata import entry_points

    return {
        entry.name: FamilySource(name=entry.name, package=entry.value, folder=None, built_in=False)
        for entry in entry_points(group=ENTRY_POINTS)
        if entry.name.isidentifier()
    }


def _in_folders() -> dict[str, FamilySource]:
    paths = [Path(p) for p in os.environ.get(PATHS_VARIABLE, "").split(os.pathsep) if p]
    return {
        path.name: FamilySource(
            name=path.name, package=_package_name(path), folder=path, built_in=False
        )
        for path in paths
    }


def find_family(name: str) -> FamilySource | None:
    """Return the family called ``name``, or None; folders of a study come before packages."""
    if not name.isidentifier():
        # Labels of variants, such as sgatlin/gelu: not worth a look at what is installed.
        return None
    for place in (_built_in, _in_folders, _installed):
        if name in place():
            return place()[name]
    return None


def is_built_in(name: str) -> bool:
    """Return whether a family is one of this package's own."""
    return name in _built_in()


def all_families() -> tuple[str, ...]:
    """Return the names of all families, sorted."""
    return tuple(sorted({*_built_in(), *_in_folders(), *_installed()}))


def name_of_folder(path: Path) -> str:
    """Return what the family in a folder is called: as the folder."""
    return _resolved(path).name


def _resolved(path: Path) -> Path:
    try:
        return path.expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:
        allowed = f"the path of a folder ({error})"
        raise UserError("families.paths", str(path), allowed, "correct the path") from None


def add_family_folder(path: Path) -> str:
    """Make the family in a folder known to this process and to those it starts; returns its name.

    The family is called as its folder. Adding the same folder again changes nothing.

    Raises:
        UserError: the folder lacks spec.py or module.py, its name is no plain word, or a family of
            that name is there already.
    """
    folder = _resolved(path)
    name = folder.name
    missing = [f for f in ("spec.py", "module.py") if not (folder / f).is_file()]
    if missing:
        raise UserError(
            "families.paths",
            str(path),
            f"a folder with spec.py and module.py (no {missing[0]})",
            "correct the path",
        )
    if not name.isidentifier() or name.startswith("_") or os.pathsep in str(folder):
        raise UserError(
            "families.paths", str(path), "a folder named by letters, digits and _", "rename it"
        )
    known = _in_folders()
    if name in known and known[name].folder == folder:
        return name
    if name in known or name in _built_in():
        raise UserError("families.paths", str(path), "a name no other family has", "rename it")
    paths = [*(str(source.folder) for source in known.values()), str(folder)]
    os.environ[PATHS_VARIABLE] = os.pathsep.join(paths)
    return name


def family_digest(name: str) -> str | None:
    """Return hex sha256 over the source files of an external family; None for a built-in one.

    Covers every .py file below its folder: relative path and content, in the order of the paths.
    """
    source = find_family(name)
    assert source is not None
    return None if source.built_in else _digest(_source_folder(source))


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py"), key=lambda p: p.relative_to(folder).as_posix()):
        for part in (path.relative_to(folder).as_posix().encode(), path.read_bytes()):
            digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


def use_planned_families(paths: Sequence[str], digests: Mapping[str, str]) -> None:
    """Make a plan's families from outside the package known to this process, as they were planned.

    Nothing is imported here, and nothing that is not the planned source is made known.

    Args:
        paths: folders of families; those of families that were not planned are left alone.
        digests: of the sources of the planned ones, by family.

    Raises:
        UserError: a source is gone, or is not the one that was planned.
    """
    folders = {name_of_folder(Path(path)): _resolved(Path(path)) for path in paths}
    for name, planned in digests.items():
        if name in folders:
            found = _digest(folders[name]) if folders[name].is_dir() else None
        else:
            found = None if find_family(name) is None else family_digest(name)
        check_digest(name, found, planned)
        if name in folders:
            add_family_folder(folders[name])


def check_digest(name: str, found: str | None, planned: str | None) -> None:
    """Refuse a family's source that is not the one that was planned.

    Raises:
        UserError: it is gone (``found`` is None), or another one.
    """
    if found != planned:
        raise UserError(
            f"source of family {name}",
            found,
            f"the one that was planned ({planned})",
            "restore it, or plan a study of another name",
        )


def _source_folder(source: FamilySource) -> Path:
    if source.folder is not None:
        return source.folder
    found = importlib.util.find_spec(source.package)
    if found is None or not found.submodule_search_locations:
        raise UserError("family", source.name, f"a package ({source.package})", "reinstall it")
    return Path(found.submodule_search_locations[0])


def import_half(source: FamilySource, half: str) -> ModuleType:
    """Return the submodule `spec` or `module` of a family.

    Raises:
        UserError: an external family's code cannot be imported.
    """
    if source.built_in:
        return importlib.import_module(f"{source.package}.{half}")
    try:
        if source.folder is not None:
            _make_package(source.package, source.folder)
        return importlib.import_module(f"{source.package}.{half}")
    except UserError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(
            f"family {source.name}", f"{half}.py", f"importable ({reason})", "correct its code"
        ) from error


def _package_name(folder: Path) -> str:
    # Two folders of one name, at different times in one process, must not share their modules.
    return f"isoflop_family_{folder.name}_{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}"


def _make_package(package: str, folder: Path) -> None:
    """Enter a folder among the imported packages; its `__init__.py` is not needed and not run."""
    if package not in sys.modules:
        spec = importlib.machinery.ModuleSpec(package, loader=None, is_package=True)
        spec.submodule_search_locations = [str(folder)]
        sys.modules[package] = importlib.util.module_from_spec(spec)

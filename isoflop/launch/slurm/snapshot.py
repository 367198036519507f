"""A copy of the code that a submission's tasks run, so that no pending job runs edited code.

    .launch/code/DIGEST/isoflop, isoflop_kernels   the packages
    .launch/code/DIGEST/families/NAME              families from folders outside the package
    .launch/code/DIGEST/PACKAGE                    packages that bring installed families

DIGEST is that of all file names and contents: submissions of the same code share a copy.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from isoflop.code_files import is_compiled
from isoflop.errors import UserError
from isoflop.families import PATHS_VARIABLE
from isoflop.families._registry import find_family
from isoflop.launch.code_copy import (
    CODE_FOLDER,
    SHOWN_DIGITS,
    copy_file,
    make_copy,
    remove_compiled,
)
from isoflop.launch.slurm.records import LAUNCH_FOLDER

# A copy that is not whole yet.
_PARTIAL = re.compile(r"\.[0-9a-f]{16}-[0-9a-f]{8}")
_PACKAGES = ("isoflop", "isoflop_kernels")


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """The code of a submission, not necessarily written yet."""

    folder: Path
    """Where the copy is, or will be."""
    roots: Mapping[str, Path]
    """Folders of source, by the path below ``folder`` that they are copied to."""
    digest: str

    def variables(self, python_path: str | None) -> dict[str, str]:
        """Return the environment of a task that runs this code.

        Args:
            python_path: the submitter's PYTHONPATH, which comes after the copy.
        """
        paths = [str(self.folder), *([python_path] if python_path else [])]
        families = [name for name in self.roots if name.startswith("families/")]
        # `python -m` would look in the folder that the job was submitted from first of all, which
        # may be the checkout.
        variables = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}
        if families:
            folders = (str(self.folder / name) for name in families)
            variables[PATHS_VARIABLE] = os.pathsep.join(folders)
        return variables

    def write(self) -> None:
        """Make the copy, unless it is there; remove what a killed submission left of one.

        The study's submissions are locked meanwhile.

        Raises:
            UserError: it is there and was changed.
        """
        for path in self.folder.parent.glob(".*"):
            if is_partial(path):
                shutil.rmtree(path)
        if not self.folder.exists():
            temporary = self.folder.with_name(f".{self.folder.name}-{secrets.token_hex(4)}")
            make_copy(self.folder, temporary, self._fill)
        copied = {name: self.folder / name for name in self.roots}
        for root in copied.values():
            remove_compiled(root)
        if _digest(copied) != self.digest or self._has_more():
            raise UserError(
                "code snapshot",
                str(self.folder),
                "unchanged since it was made",
                "remove the folder, once no job is left that runs it, and submit again",
            )

    def _has_more(self) -> bool:
        """Return whether something lies beside the packages, where tasks would find it first."""
        parents = {parent for name in self.roots for parent in Path(name).parents}
        known = {*map(Path, self.roots), *parents}
        there = (entry for parent in parents for entry in (self.folder / parent).iterdir())
        return not known.issuperset(entry.relative_to(self.folder) for entry in there)

    def _fill(self, folder: Path) -> None:
        for name, root in self.roots.items():
            for path in _files(root):
                copy_file(path, folder / name / path.relative_to(root))


def is_partial(path: Path) -> bool:
    """Return whether a path in the folder of copies is of one that is not whole."""
    return _PARTIAL.fullmatch(path.name) is not None and not path.is_symlink()


def snapshot_of(study_folder: Path, families: Iterable[str]) -> Snapshot:
    """Return what is to be copied for runs of these families."""
    roots = {name: _package_folder(name) for name in _PACKAGES}
    for name in sorted(set(families)):
        source = find_family(name)
        assert source is not None
        if source.folder is not None and not source.built_in:
            roots[f"families/{name}"] = source.folder
        elif not source.built_in:
            package = source.package.partition(".")[0]
            roots[package] = _package_folder(package)
    digest = _digest(roots)
    folder = study_folder / LAUNCH_FOLDER / CODE_FOLDER / digest[:SHOWN_DIGITS]
    return Snapshot(folder=folder, roots=roots, digest=digest)


def _package_folder(name: str) -> Path:
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise UserError("package", name, "an installed package with a folder", "reinstall it")
    return Path(found.submodule_search_locations[0])


def _files(root: Path) -> list[Path]:
    """Return all files of a package but compiled and hidden ones, in an order of their own.

    Hidden sources are among them: the digest of a family is over them, too.
    """
    found = (path for path in root.rglob("*") if path.is_file() and path.suffix != ".pyc")
    visible = (
        path
        for path in found
        if path.suffix == ".py"
        or not any(
            part.startswith(".") or is_compiled(part) for part in path.relative_to(root).parts
        )
    )
    return sorted(visible, key=lambda path: path.relative_to(root).as_posix())


def _digest(roots: Mapping[str, Path]) -> str:
    digest = hashlib.sha256()
    for name, root in roots.items():
        for path in _files(root):
            for part in (f"{name}/{path.relative_to(root).as_posix()}".encode(), path.read_bytes()):
                digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()

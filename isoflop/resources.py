"""One function finds the built-in files, from a wheel and from a repository checkout alike."""

from __future__ import annotations

from pathlib import Path

from isoflop.errors import UserError

_PACKAGE = Path(__file__).resolve().parent

# Where each kind may lie: inside the installed package (wheel), or in the repository's top folder
# (`pip install -e`). The corpora are package data in both.
_PLACES: dict[str, tuple[Path, ...]] = {
    "experiments": (_PACKAGE / "builtin" / "experiments", _PACKAGE.parent / "experiments"),
    "slurm": (_PACKAGE / "builtin" / "slurm", _PACKAGE.parent / "slurm"),
    "corpora": (_PACKAGE / "data" / "corpora",),
}


def builtin(kind: str, name: str) -> Path:
    """Path of the built-in file or folder ``name`` of a ``kind``: experiments, slurm or corpora.

    Raises:
        UserError: there is no such built-in; the message lists those there are.
    """
    for folder in _PLACES[kind]:
        if (folder / name).exists():
            return folder / name
    there = ", ".join(builtin_names(kind)) or "none"
    raise UserError(kind, name, f"one of the built-in {kind} ({there})", "check the name")


def builtin_names(kind: str) -> list[str]:
    """Names of all built-ins of a kind, sorted."""
    names = {
        entry.name
        for folder in _PLACES[kind]
        if folder.is_dir()
        for entry in folder.iterdir()
        if entry.suffix == ".toml" or (kind == "corpora" and entry.is_dir())
    }
    return sorted(names)

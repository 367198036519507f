"""Finds the built-in files, from a wheel and from a repository checkout alike."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from isoflop.errors import UserError

_PACKAGE = Path(__file__).resolve().parent

# Where each kind may lie: inside the installed package (wheel), or in the repository's top folder
# (`pip install -e`). The corpora are package data in both.
_PLACES: dict[str, tuple[Path, ...]] = {
    "experiments": (_PACKAGE / "builtin" / "experiments", _PACKAGE.parent / "experiments"),
    "slurm": (_PACKAGE / "builtin" / "slurm", _PACKAGE.parent / "slurm"),
    "corpora": (_PACKAGE / "data" / "corpora",),
    # Of results only what its README says of the columns.
    "results": (_PACKAGE / "builtin" / "results", _PACKAGE.parent / "results"),
}


def builtin(kind: str, name: str) -> Path:
    """Return the path of the built-in ``name`` of a ``kind``: a key of `_PLACES`.

    Raises:
        UserError: there is no such built-in; the message lists those there are.
    """
    for folder in _PLACES[kind]:
        if (folder / name).exists():
            return folder / name
    there = ", ".join(builtin_names(kind)) or "none"
    raise UserError(kind, name, f"one of the built-in {kind} ({there})", "check the name")


def builtin_names(kind: str) -> list[str]:
    """Return names of all built-ins of a kind, sorted."""
    names = {
        entry.name
        for folder in _PLACES[kind]
        if folder.is_dir()
        for entry in folder.iterdir()
        if entry.suffix == ".toml" or (kind == "corpora" and entry.is_dir())
    }
    return sorted(names)


def read_profile(
    what: str, name_or_path: str | Path, names: Sequence[str], prefix: str = ""
) -> dict[str, Any]:
    """Return the values of a profile: a built-in one in slurm/ by name, or any .toml file.

    Args:
        what: its role, for the error.
        name_or_path: a name without .toml, or a path with it.
        names: what can be named.
        prefix: of the built-in files.

    Raises:
        UserError: no such profile, or the file is not TOML.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        if str(name_or_path) not in names:
            there = ", ".join(names)
            raise UserError(
                what, str(name_or_path), f"one of {there}, or a .toml file", "correct it"
            )
        path = builtin("slurm", f"{prefix}{name_or_path}.toml")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise UserError(what, str(path), "a readable file", "check the path") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(what, str(path), f"valid TOML ({error})", "correct it") from None

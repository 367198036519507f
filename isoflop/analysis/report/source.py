"""What a report is about: the input with its digest, the study around it, the versions used."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from isoflop import __version__
from isoflop.files import read_json, sha256_file

_PACKAGES = ("numpy", "scipy", "matplotlib", "pyarrow")
_PLAN = "plan.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Where the numbers come from."""

    table: str
    """File name of the table that was fitted; no path, so that a report can move."""
    sha256: str
    study: Mapping[str, Any] | None
    """The resolved study of plan.json; None for a table on its own."""
    plan_sha256: str | None
    versions: Mapping[str, str]
    git_sha: str | None
    """Commit of the checkout that isoflop runs from; None where it is installed otherwise."""
    columns: frozenset[str]
    """Columns of the table that hold a value in any row."""

    @property
    def name(self) -> str:
        """The study's name, else the table's."""
        return self.table if self.study is None else str(self.study["name"])


def source_of(table: Path, rows: list[dict[str, Any]], study_folder: Path | None = None) -> Source:
    """Describe a table and its study.

    Args:
        table: the file that was fitted.
        rows: its rows.
        study_folder: where a plan.json may lie; None: beside the table.

    Raises:
        UserError: the plan.json is not JSON.
    """
    plan = (study_folder or table.parent) / _PLAN
    study = read_json(plan, "plan").get("study") if plan.is_file() else None
    return Source(
        table=table.name,
        sha256=sha256_file(table),
        study=study,
        plan_sha256=sha256_file(plan) if study is not None else None,
        versions={
            "isoflop": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in _PACKAGES},
        },
        git_sha=_git_sha(),
        columns=frozenset(key for row in rows for key, value in row.items() if value is not None),
    )


def _git_sha() -> str | None:
    """Return the commit of the checkout around the package, "-dirty" appended if it was changed."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None

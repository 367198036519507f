"""The documents that say how to use the project."""

from __future__ import annotations

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def _is_document(path: Path) -> bool:
    parts = path.relative_to(REPOSITORY).parts
    # A changelog and a log tell of commands as they were; reports are made by a verb.
    told = path.name in ("CHANGELOG.md", "LOG.md", "report.md")
    return not told and not any(part.startswith(".") or part == "runs" for part in parts)


DOCUMENTS = sorted(filter(_is_document, REPOSITORY.rglob("*.md")))


def shown(document: Path) -> str:
    return str(document.relative_to(REPOSITORY))

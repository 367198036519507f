"""Whether the files of a prepared folder are those that its manifest lists.

Sizes are compared whenever a folder is opened. Hashing takes a second or so per gigabyte, so what
was hashed once in a large set is remembered beside it, in ``.verified.json``: size, times of last
change and inode of each file. A file of which all these are as they were is not read again;
``isoflop data verify`` reads everything.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isoflop.errors import UserError
from isoflop.files import read_json, sha256_file, write_json_atomic

STAMP = ".verified.json"

REMEMBER_FROM_BYTES = 2**28
"""Smaller sets are hashed whenever they are opened: it takes less than a second."""

# A file may change twice within one tick of a file system's clock: only older ones are remembered.
_SETTLED_S = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class FileCheck:
    """What became of one file of a prepared folder."""

    file: str
    num_bytes: int
    """As the manifest has it."""
    problem: str | None
    """None: it is as it was written."""


def check_on_open(folder: Path, manifest: Mapping[str, Any], do: str) -> None:
    """Check every file's size, and the sha256 of those that were not hashed before.

    Raises:
        UserError: a file is missing or was changed; ``do`` says what helps.
    """
    rows = list(listed_files(manifest))
    for row in rows:
        _raise(folder, row, _size_problem(folder, row), do)
    known, seen = _read_stamp(folder), _look_at_all(folder, rows)
    unknown = [row for row in rows if known.get(row["file"]) != seen[row["file"]]]
    for row in unknown:
        _raise(folder, row, _hash_problem(folder, row), do)
    if unknown:
        _remember(folder, rows, seen)


def verify_folder(
    folder: Path,
    manifest: Mapping[str, Any],
    on_file: Callable[[FileCheck, int], object] = lambda check, done: None,
) -> list[FileCheck]:
    """Read every file that the manifest lists, whatever was remembered; return what was found.

    Args:
        folder: a prepared folder.
        manifest: its manifest.
        on_file: called with each file once it has been read, and the bytes of all so far.
    """
    checks, seen, done = [], {}, 0
    rows = list(listed_files(manifest))
    for row in rows:
        problem = _size_problem(folder, row)
        if problem is None:
            seen[row["file"]] = _look(folder, row)
            problem = _hash_problem(folder, row)
        checks.append(FileCheck(file=row["file"], num_bytes=row["num_bytes"], problem=problem))
        done += row["num_bytes"]
        on_file(checks[-1], done)
    if all(check.problem is None for check in checks):
        _remember(folder, rows, seen)
    return checks


def listed_files(manifest: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the manifest's row of each file: ``file``, ``num_bytes``, ``sha256``."""
    for split in manifest["splits"].values():
        yield from split["shards"]
        if not isinstance(split["documents"], list):
            yield split["documents"]
    yield from manifest.get("extra_files", [])


def _size_problem(folder: Path, row: Mapping[str, Any]) -> str | None:
    path = folder / row["file"]
    if not path.is_file():
        return "an existing file"
    size = path.stat().st_size
    return None if size == row["num_bytes"] else f"of {row['num_bytes']} bytes (it has {size})"


def _hash_problem(folder: Path, row: Mapping[str, Any]) -> str | None:
    if sha256_file(folder / row["file"]) == row["sha256"]:
        return None
    return "as it was written (its sha256 differs)"


def _raise(folder: Path, row: Mapping[str, Any], problem: str | None, do: str) -> None:
    if problem is not None:
        raise UserError("data shard", str(folder / row["file"]), problem, do)


def _look_at_all(folder: Path, rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    return {row["file"]: _look(folder, row) for row in rows}


def _look(folder: Path, row: Mapping[str, Any]) -> list[Any]:
    """Return what changes with a file's content, if it is not changed with intent to deceive."""
    stat = (folder / row["file"]).stat()
    return [row["sha256"], stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _read_stamp(folder: Path) -> dict[str, Any]:
    try:
        stamp = read_json(folder / STAMP, "stamp")
    except UserError:
        # Missing or damaged: everything is hashed, which is always right.
        return {}
    return stamp if isinstance(stamp, dict) else {}


def _remember(
    folder: Path, rows: Sequence[Mapping[str, Any]], seen: Mapping[str, list[Any]]
) -> None:
    """Write the stamp; ``seen`` are the looks taken before the files were hashed."""
    if sum(row["num_bytes"] for row in rows) < REMEMBER_FROM_BYTES:
        return
    newest = max((folder / row["file"]).stat().st_ctime for row in rows)
    if time.time() - newest < _SETTLED_S:
        return
    try:
        write_json_atomic(folder / STAMP, dict(seen))
    except OSError:
        # A folder that only others may write: hashed again the next time.
        return

"""Runs of trackers that were read before, kept in the user's cache folder.

A file of JSON lines for each source: what is new is written behind, some hundred runs at a time and
at the end, also that of an error. A line that is damaged, or of another version, is not there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from isoflop.files import cache_folder, read_regular, sha256_file, write_bytes_atomic
from isoflop.ingest.tracked import TrackedRun

Note = Callable[[int, int], None]
"""Is told how many runs were read, and of how many."""

_NUM_KEPT_AT_ONCE = 500
"""Runs that are written together, since each writing waits for the disk."""
_VERSION = 1
"""Of what is kept; another is read anew."""
_FIELDS: Mapping[str, type | tuple[type, ...]] = {
    **{"key": str, "stamp": str, "sha256": str, "reason": (str, type(None))},
    **{"about": dict, "config": dict, "summary": dict},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class CachedRun:
    """A run, and what tells whether it is still the same."""

    key: str
    """Which run of its source it is."""
    stamp: str
    """Of its file or of its last update; another means that it must be read again."""
    sha256: str
    """Of what it was read from, in hex; empty where it could not be read, and is not kept."""
    run: TrackedRun


def silent(num_read: int, num_runs: int) -> None:
    """Take a note of nothing."""


def stamp_of(files: Sequence[Path]) -> str:
    """Return what tells whether files have changed: their sizes and times.

    Raises:
        OSError: one of them is not there.
    """
    return " ".join(f"{stat.st_size}:{stat.st_mtime_ns}" for stat in map(Path.stat, files))


def digest_of(files: Sequence[Path]) -> str:
    """Return the sha256 of a file, or of the digests of several, in hex.

    Raises:
        OSError: one of them cannot be read.
    """
    digests = [sha256_file(path) for path in files]
    return (
        digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    )


class RunCache:
    """The runs that are known of one source; at the end of a `with`, what is new is kept.

    Args:
        kind: of tracker, the name of a folder.
        source: that tells its sources apart.
        refresh: whether no run counts as known before it is read.
    """

    def __init__(self, kind: str, source: str, *, refresh: bool = False) -> None:
        self._refresh = refresh
        self._new: list[CachedRun] = []
        name = hashlib.sha256(source.encode()).hexdigest()[:24]
        self._path = cache_folder() / "runs" / kind / f"{name}.jsonl"
        self._runs: dict[str, CachedRun] = {}
        lines = []
        # What cannot be read is not there.
        with contextlib.suppress(OSError):
            lines = read_regular(self._path).split(b"\n")
        for line in filter(None, lines):
            if (found := _read(line)) is not None:
                self._runs[found.key] = found
        if len(lines) > 2 * len(self._runs) + 100:
            with contextlib.suppress(OSError):
                write_bytes_atomic(self._path, b"".join(map(_line, self._runs.values())))

    def get(self, key: str, stamp: str) -> CachedRun | None:
        """Return a run as it was read; None: it was not, or has changed since."""
        found = None if self._refresh else self._runs.get(key)
        return found if found is not None and found.stamp == stamp else None

    def run_of(self, key: str, files: Sequence[Path], read: Callable[[], TrackedRun]) -> CachedRun:
        """Return the run of some files as it was read; else read it, and keep it by and by.

        Raises:
            OSError: a file cannot be read, which may be otherwise the next time.
        """
        stamp = stamp_of(files)
        cached = self.get(key, stamp)
        if cached is None:
            digest = digest_of(files)
            cached = CachedRun(key=key, stamp=stamp, sha256=digest, run=read())
            self._new.append(cached)
            if len(self._new) >= _NUM_KEPT_AT_ONCE:
                self._keep_new()
        return cached

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._keep_new()

    def _keep_new(self) -> None:
        self.add(self._new)
        self._new.clear()

    def add(self, runs: Iterable[CachedRun]) -> None:
        """Keep runs that were read; where the cache cannot be written, only in this process."""
        new = list(runs)
        if not new:
            return
        self._runs |= {run.key: run for run in new}
        # A line that a break left unfinished ends where the next one begins.
        data = b"".join(b"\n" + _line(run) for run in new)
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())


def _line(cached: CachedRun) -> bytes:
    run = cached.run
    values: dict[str, Any] = {"key": cached.key, "stamp": cached.stamp, "sha256": cached.sha256}
    values |= {"about": run.about, "config": run.config, "summary": run.summary}
    return json.dumps(values | {"reason": run.reason, "version": _VERSION}).encode() + b"\n"


def _read(line: bytes) -> CachedRun | None:
    try:
        values: Any = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or values.pop("version", None) != _VERSION:
        return None
    if any(not isinstance(values.get(name), kind) for name, kind in _FIELDS.items()):
        return None
    names = ("about", "config", "summary", "reason")
    run = TrackedRun(**{name: values[name] for name in names})
    return CachedRun(**{name: values[name] for name in ("key", "stamp", "sha256")}, run=run)

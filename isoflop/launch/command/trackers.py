"""Scalars that a command logged by TensorBoard or, offline, by Weights & Biases."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from isoflop.errors import UserError
from isoflop.ingest.tensorboard import (
    check_package,
    events_of,
    folders_with_events,
    open_events,
    tags_of,
)
from isoflop.ingest.wandb_files import HISTORY, read_records, row_of, wandb_files
from isoflop.launch.command.rows import Row

_DO = "correct [trainer.result], or what the command writes"


class WandbSource:
    """Offline runs in a folder, or in its folder `wandb`; several follow one another by name."""

    step_key = "_step"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._offsets: dict[Path, int] = {}
        self._names: set[str] = set()

    def last(self, keys: Collection[str]) -> Row:
        """Return the last value logged of each key, or else that of the summary."""
        logged: dict[str, Any] = {}
        summary: dict[str, Any] = {}
        for path in self._files():
            for kind, row in _all_rows(path):
                self._names |= row.keys()
                wanted = {key: row[key] for key in keys if row.get(key) is not None}
                (logged if kind == HISTORY else summary).update(wanted)
        return summary | logged

    def new_rows(self, keys: Collection[str]) -> Sequence[Row]:
        """Return the rows that were logged since the last call."""
        found = []
        for path in self._files():
            rows, self._offsets[path] = _rows(path, self._offsets.get(path, 0))
            for kind, row in rows:
                if kind == HISTORY:
                    found.append({key: row[key] for key in keys if row.get(key) is not None})
        return found

    def names(self) -> Sequence[str]:
        """Return the keys met."""
        return sorted(name for name in self._names if not name.startswith("_"))

    def _files(self) -> list[Path]:
        files = wandb_files(self._folder)
        if not files:
            allowed = "a folder with offline runs (wandb/offline-run-*/*.wandb)"
            raise UserError("result", str(self._folder), allowed, _DO)
        return files


def _rows(path: Path, start: int) -> tuple[list[tuple[int, dict[str, Any]]], int]:
    """Return rows of history and summary with their kind, and where to go on reading."""
    try:
        records, end = read_records(path, start)
    except ValueError:
        raise UserError("result", str(path), "a file that W&B wrote", _DO) from None
    return [row for row in map(row_of, records) if row is not None], end


def _all_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    start = -1
    rows, end = _rows(path, 0)
    while end > start:
        yield from rows
        start = end
        rows, end = _rows(path, start)


class TensorboardSource:
    """Event files in a folder or below it; of a tag in several, the last that was written."""

    step_key = "step"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._readers: dict[Path, Any] = {}
        self._num_seen: dict[tuple[Path, str], int] = {}

    def last(self, keys: Collection[str]) -> Row:
        """Return the last value of each tag."""
        self._reload()
        found: dict[str, Any] = {}
        for key in keys:
            events = [e[-1] for reader in self._readers.values() if (e := events_of(reader, key))]
            if events:
                found[key] = max(events, key=lambda event: event[0])[2]
        return found

    def new_rows(self, keys: Collection[str]) -> Sequence[Row]:
        """Return a row for each event since the last call, in the order of time."""
        self._reload()
        new = []
        for folder, reader in self._readers.items():
            for key in keys:
                events = events_of(reader, key)
                new += [(*event, key) for event in events[self._num_seen.get((folder, key), 0) :]]
                self._num_seen[folder, key] = len(events)
        new.sort(key=lambda event: event[:2])
        return [{self.step_key: step, key: value} for _, step, value, key in new]

    def names(self) -> Sequence[str]:
        """Return the tags of scalars."""
        return sorted(set().union(*map(tags_of, self._readers.values())))

    def _reload(self) -> None:
        check_package("result", self._folder)
        for folder in folders_with_events(self._folder):
            if folder not in self._readers:
                self._readers[folder] = open_events(folder)
        if not self._readers:
            raise UserError("result", str(self._folder), "a folder with event files", _DO)
        for reader in self._readers.values():
            reader.Reload()

"""Scalars that a command logged by TensorBoard or, offline, by Weights & Biases.

An offline run of W&B is one file, `offline-run-TIME-ID/run-ID.wandb`; its summary is nowhere else.
The library writes it in Go and ships no reader. The format is that of LevelDB's logs: after a
header of 7 bytes, blocks of 32 KiB hold chunks (crc32, length, kind), of which one or several are a
record of protocol buffers (`wandb_internal.proto`). Numbers of its fields never change.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from isoflop.errors import UserError
from isoflop.files import open_regular
from isoflop.launch.command.rows import MAX_BYTES, Row

_WANDB_HEADER = b":W&B"
_HEADER_BYTES = 7
_BLOCK_BYTES = 2**15
_CHUNK = struct.Struct("<IHB")
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4

# Fields of messages in wandb_internal.proto.
_HISTORY, _SUMMARY = 2, 3
_ITEM, _STEP, _STEP_NUM = 1, 2, 1
_KEY, _NESTED_KEY, _VALUE_JSON = 1, 2, 16

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
                (logged if kind == _HISTORY else summary).update(wanted)
        return summary | logged

    def new_rows(self, keys: Collection[str]) -> Sequence[Row]:
        """Return the rows that were logged since the last call."""
        found = []
        for path in self._files():
            rows, self._offsets[path] = _rows(path, self._offsets.get(path, 0))
            for kind, row in rows:
                if kind == _HISTORY:
                    found.append({key: row[key] for key in keys if row.get(key) is not None})
        return found

    def names(self) -> Sequence[str]:
        """Return the keys met."""
        return sorted(name for name in self._names if not name.startswith("_"))

    def _files(self) -> list[Path]:
        patterns = ("*.wandb", "*run-*/*.wandb", "wandb/*run-*/*.wandb")
        # Beside the runs is a link to the latest.
        found = {p for pattern in patterns for p in self._folder.glob(pattern)}
        files = sorted(path for path in found if path.parent.name != "latest-run")
        if not files:
            allowed = "a folder with offline runs (wandb/offline-run-*/*.wandb)"
            raise UserError("result", str(self._folder), allowed, _DO)
        return files


def _all_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    start = -1
    rows, end = _rows(path, 0)
    while end > start:
        yield from rows
        start = end
        rows, end = _rows(path, start)


def _rows(path: Path, start: int) -> tuple[list[tuple[int, dict[str, Any]]], int]:
    """Return rows of history and summary with their kind, and where to go on reading.

    Args:
        path: of a file of W&B.
        start: 0, or what an earlier call returned.
    """
    with open_regular(path) as file:
        if file.read(_HEADER_BYTES)[:4] != _WANDB_HEADER:
            raise UserError("result", str(path), "a file that W&B wrote", _DO)
        start = max(start, _HEADER_BYTES)
        file.seek(start)
        data = file.read(MAX_BYTES)
    rows = []
    for record, end in _records(data, start):
        row = _row(record)
        if row is not None:
            rows.append(row)
        start = end
    return rows, start


def _records(data: bytes, start: int) -> Iterator[tuple[bytes, int]]:
    """Yield whole records and where they end; a damaged or half-written one ends the file."""
    place, record = 0, b""
    while True:
        left = _BLOCK_BYTES - (start + place) % _BLOCK_BYTES
        if left < _CHUNK.size:
            place += left
            continue
        if place + _CHUNK.size > len(data):
            return
        crc, length, kind = _CHUNK.unpack_from(data, place)
        chunk = data[place + _CHUNK.size : place + _CHUNK.size + length]
        is_whole = len(chunk) == length and _FULL <= kind <= _LAST
        if not is_whole or zlib.crc32(bytes([kind]) + chunk) != crc:
            return
        place += _CHUNK.size + length
        record = chunk if kind in (_FULL, _FIRST) else record + chunk
        if kind in (_FULL, _LAST):
            yield record, start + place


def _row(record: bytes) -> tuple[int, dict[str, Any]] | None:
    """Return the kind and the values of a record; None: it is of another kind."""
    row: dict[str, Any] = {}
    kind = None
    try:
        for field, message in _fields(record):
            if field not in (_HISTORY, _SUMMARY) or not isinstance(message, bytes):
                continue
            kind = field
            for inner, value in _fields(message):
                if inner == _ITEM and isinstance(value, bytes):
                    row |= _item(value)
                elif kind == _HISTORY and inner == _STEP and isinstance(value, bytes):
                    row.setdefault("_step", dict(_fields(value)).get(_STEP_NUM, 0))
    except (ValueError, IndexError, RecursionError):
        return None
    return None if kind is None else (kind, row)


def _item(message: bytes) -> dict[str, Any]:
    """Return a key, its levels joined by dots, with its value."""
    keys: list[str] = []
    value = None
    for field, content in _fields(message):
        if not isinstance(content, bytes):
            continue
        if field in (_KEY, _NESTED_KEY) and content:
            keys.append(content.decode(errors="replace"))
        elif field == _VALUE_JSON:
            value = json.loads(content)
    return {".".join(keys): value}


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the numbers and values of a message's fields.

    Raises:
        ValueError: it is no message.
        IndexError: it ends early.
    """
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        field, kind = tag >> 3, tag & 7
        if kind == 0:
            number, place = _varint(message, place)
            yield field, number
            continue
        if kind == 2:
            length, place = _varint(message, place)
        else:
            length = {1: 8, 5: 4}.get(kind, -1)
        if not 0 <= length <= len(message) - place:
            raise ValueError("no message of protocol buffers")
        yield field, message[place : place + length]
        place += length


def _varint(message: bytes, place: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = message[place]
        number |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return number, place


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
            events = [e[-1] for reader in self._readers.values() if (e := _events(reader, key))]
            if events:
                found[key] = max(events, key=lambda event: event[0])[2]
        return found

    def new_rows(self, keys: Collection[str]) -> Sequence[Row]:
        """Return a row for each event since the last call, in the order of time."""
        self._reload()
        new = []
        for folder, reader in self._readers.items():
            for key in keys:
                events = _events(reader, key)
                new += [(*event, key) for event in events[self._num_seen.get((folder, key), 0) :]]
                self._num_seen[folder, key] = len(events)
        new.sort(key=lambda event: event[:2])
        return [{self.step_key: step, key: value} for _, step, value, key in new]

    def names(self) -> Sequence[str]:
        """Return the tags of scalars."""
        found = (r.Tags()[kind] for r in self._readers.values() for kind in ("scalars", "tensors"))
        return sorted({name for names in found for name in names})

    def _reload(self) -> None:
        try:
            from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        except ImportError:
            allowed = "read with the package tensorboard, which is missing"
            do = "pip install 'isoflop[tensorboard]'"
            raise UserError("result", str(self._folder), allowed, do) from None
        files = self._folder.glob("**/*tfevents*")
        for folder in sorted({path.parent for path in files if path.is_file()}):
            if folder not in self._readers:
                # Zero: keep all scalars, not a sample of them.
                sizes = {"scalars": 0, "tensors": 0}
                self._readers[folder] = EventAccumulator(str(folder), size_guidance=sizes)
        if not self._readers:
            raise UserError("result", str(self._folder), "a folder with event files", _DO)
        for reader in self._readers.values():
            reader.Reload()


def _events(reader: Any, tag: str) -> list[tuple[float, int, Any]]:
    """Return time, step and value of a tag's events."""
    tags = reader.Tags()
    if tag in tags["scalars"]:
        return [(event.wall_time, event.step, event.value) for event in reader.Scalars(tag)]
    if tag not in tags["tensors"]:
        return []
    from tensorboard.util.tensor_util import make_ndarray

    arrays = [(e.wall_time, e.step, make_ndarray(e.tensor_proto)) for e in reader.Tensors(tag)]
    return [(time, step, array.item()) for time, step, array in arrays if array.size == 1]

"""Files that Weights & Biases writes on disk: the records of `run-ID.wandb`.

An offline run of W&B is one file, `offline-run-TIME-ID/run-ID.wandb`; its summary is nowhere else.
The library writes it in Go and ships no reader. The format is that of LevelDB's logs: after a
header of 7 bytes, blocks of 32 KiB hold chunks (crc32, length, kind), of which one or several are a
record of protocol buffers (`wandb_internal.proto`). Numbers of its fields never change.
"""

from __future__ import annotations

import contextlib
import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from isoflop.files import open_regular
from isoflop.ingest.tracked import TrackedRun, flat

HISTORY, SUMMARY = 2, 3
"""Kinds of records, as fields of `Record` in wandb_internal.proto."""
_CONFIG, _METRIC, _RUN, _EXIT = 5, 12, 17, 18

_HEADER = b":W&B"
_HEADER_BYTES = 7
_BLOCK_BYTES = 2**15
_CHUNK = struct.Struct("<IHB")
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_MAX_BYTES = 2**28

# Fields of messages in wandb_internal.proto.
_STEP, _STEP_NUM = 2, 1
_REMOVE = 2
# Of an item its key, or levels of it.
_KEYS = (1, 2)
# As bytes (field << 3 | 2, of which as many bytes as are told are the content): items are field 1,
# their keys 1 and 2, their values, in JSON, 16.
_ITEM_BYTE, _KEY_BYTES, _VALUE_BYTES = 0x0A, (0x0A, 0x12), (0x82, 0x01)
_RUN_TEXTS = {1: "id", 2: "entity", 3: "project", 6: "group", 7: "job_type", 8: "name"}
_RUN_CONFIG, _RUN_SUMMARY, _RUN_TAG, _RUN_START = 4, 5, 10, 17
_SECONDS, _EXIT_CODE = 1, 1
# What the library itself records as it goes; a summary of these alone is none.
_OWN_KEYS = (b"_wandb", b"_runtime")
_MAX_PENDING = 4096


def wandb_files(folder: Path) -> list[Path]:
    """Return the files of runs in a folder or in its folder `wandb`, sorted by name."""
    patterns = ("*.wandb", "*run-*/*.wandb", "wandb/*run-*/*.wandb")
    # Beside the runs is a link to the latest.
    found = {path for pattern in patterns for path in folder.glob(pattern)}
    return sorted(path for path in found if path.parent.name != "latest-run")


def read_records(path: Path, start: int = 0) -> tuple[list[bytes], int]:
    """Return whole records, of some 256 MiB at most, and where to go on reading.

    A damaged or half-written record ends the file.

    Args:
        path: of a file of W&B.
        start: 0, or what an earlier call returned, in bytes.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no file of W&B.
    """
    with open_regular(path) as file:
        if file.read(_HEADER_BYTES)[:4] != _HEADER:
            raise ValueError(f"{path} is no file that W&B wrote")
        start = max(start, _HEADER_BYTES)
        file.seek(start)
        data = file.read(_MAX_BYTES)
    records = []
    for record, end in _records(data, start):
        records.append(record)
        start = end
    return records, start


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


def row_of(record: bytes) -> tuple[int, dict[str, Any]] | None:
    """Return a record's kind (history or summary) and its values; None: it is of another kind."""
    row: dict[str, Any] = {}
    kind = None
    try:
        for field, message in _fields(record):
            if field not in (HISTORY, SUMMARY) or not isinstance(message, bytes):
                continue
            kind = field
            items, has_others = _items(message)
            for key, value in items.items():
                row[key.decode(errors="replace")] = json.loads(value) if value else None
            for inner, content in _fields(message) if has_others else ():
                if kind == HISTORY and inner == _STEP and isinstance(content, bytes):
                    row.setdefault("_step", dict(_fields(content)).get(_STEP_NUM, 0))
    except (ValueError, IndexError, RecursionError):
        return None
    return None if kind is None else (kind, row)


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


def read_log(path: Path) -> TrackedRun:
    """Return the run that a file `run-ID.wandb` holds, as far as it is whole.

    Values are those of the summary, as on the web page of the run; a key that is in none, or that
    was logged after the last summary was written, has its last value. A run whose end was not
    recorded has crashed or still runs; it is called crashed, as W&B does without its heartbeat.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no file of W&B, or has no run in it.
    """
    log, start, end = _Log(), -1, 0
    while end > start:
        start = end
        records, end = read_records(path, start)
        for record in records:
            # A record that is whole and yet none of W&B's is left out, as `row_of` does.
            with contextlib.suppress(ValueError, IndexError):
                log.add(record)
    return log.run()


class _Log:
    """What the records of a run have said so far; values stay undecoded until the end."""

    def __init__(self) -> None:
        self.about: dict[str, Any] = {}
        self.config: dict[bytes, bytes] = {}
        self.summary: dict[bytes, bytes] = {}
        # Of all history, where summaries hold other things than last values; since the summary.
        self.logged: dict[bytes, bytes] = {}
        self.newer: dict[bytes, bytes] = {}
        self.pending: list[bytes] = []
        self.has_metrics = False

    def add(self, record: bytes) -> None:
        """Take one record.

        Raises:
            ValueError: it is none of W&B's.
            IndexError: it ends early.
        """
        for field, message in _fields(record):
            if not isinstance(message, bytes):
                continue
            if field == HISTORY:
                self._add_history(message)
            elif field == SUMMARY:
                self._add_summary(message)
            elif field == _CONFIG:
                _update(self.config, message)
            elif field == _RUN:
                self._add_run(message)
            elif field == _EXIT:
                code = dict(_fields(message)).get(_EXIT_CODE, 0)
                self.about["state"] = "finished" if code == 0 else "failed"
            elif field == _METRIC:
                self.has_metrics = True

    def run(self) -> TrackedRun:
        """Return the run.

        Raises:
            ValueError: nothing says which run it is.
        """
        if "id" not in self.about:
            raise ValueError("no run is recorded in it")
        self._decode_pending()
        # Each by itself: the summary's {"min": 2.5} of a metric is beside its last value.
        parts = [flat(_decoded(values)) for values in (self.logged, self.summary, self.newer)]
        return TrackedRun(
            about={"state": "crashed"} | self.about,
            config=flat(_decoded(self.config)),
            summary=parts[0] | parts[1] | parts[2],
        )

    def _add_history(self, message: bytes) -> None:
        if self.has_metrics:
            self.logged |= _items(message)[0]
        self.pending.append(message)
        if len(self.pending) > _MAX_PENDING:
            self._decode_pending()

    def _decode_pending(self) -> None:
        for message in self.pending:
            # History is written after the summary of the same step.
            with contextlib.suppress(ValueError, IndexError):
                self.newer |= _items(message)[0]
        self.pending.clear()

    def _add_summary(self, message: bytes) -> None:
        new = _update(self.summary, message)
        if any(not key.startswith(_OWN_KEYS) for key in new):
            self.pending.clear()
            self.newer.clear()

    def _add_run(self, message: bytes) -> None:
        tags = []
        for field, content in _fields(message):
            if not isinstance(content, bytes):
                continue
            if field in _RUN_TEXTS and content:
                self.about[_RUN_TEXTS[field]] = content.decode(errors="replace")
            elif field == _RUN_TAG:
                tags.append(content.decode(errors="replace"))
            elif field == _RUN_CONFIG:
                _update(self.config, content)
            elif field == _RUN_SUMMARY:
                _update(self.summary, content)
            elif field == _RUN_START:
                seconds = dict(_fields(content)).get(_SECONDS)
                self.about["created_at"] = _time_of(seconds)
        if tags:
            self.about["tags"] = tags


def _time_of(seconds: Any) -> str | None:
    """Return seconds since 1970 as W&B writes a time; None: no time of any year."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError, TypeError):
        return None


def _update(values: dict[bytes, bytes], message: bytes) -> dict[bytes, bytes]:
    """Take an update of a configuration or a summary; return what is new."""
    new, has_others = _items(message)
    values |= new
    for field, item in _fields(message) if has_others else ():
        if field != _REMOVE or not isinstance(item, bytes):
            continue
        key = b".".join(c for f, c in _fields(item) if f in _KEYS and isinstance(c, bytes) and c)
        for name in [name for name in values if name == key or name.startswith(key + b".")]:
            del values[name]
    return new


def _items(message: bytes) -> tuple[dict[bytes, bytes], bool]:
    """Return keys, their levels joined by dots, with JSON of their values; whether more is said.

    Of all code here this runs most often, so that it reads the bytes itself: a key or an item of
    fewer than 128 bytes begins with its field's byte and its length. Of a removed key, a step, and
    whatever the library adds, the content is a message, too.

    Raises:
        ValueError: it is no message.
        IndexError: it ends early.
    """
    found: dict[bytes, bytes] = {}
    has_others = False
    place, end = 0, len(message)
    while place < end:
        if message[place] != _ITEM_BYTE:
            tag, place = _varint(message, place)
            if tag & 7 != 2:
                raise ValueError("no message of protocol buffers")
            length, place = _length(message, place)
            has_others, place = True, place + length
            continue
        length, place = _length(message, place + 1)
        stop = place + length
        key, value = b"", b""
        while place < stop:
            inner = message[place]
            if inner == _VALUE_BYTES[0] and message[place + 1] == _VALUE_BYTES[1]:
                length, place = _length(message, place + 2)
                value = message[place : place + length]
            elif inner in _KEY_BYTES:
                length, place = _length(message, place + 1)
                part = message[place : place + length]
                key = key + b"." + part if key and part else key or part
            else:
                raise ValueError("no item of W&B")
            place += length
        if place != stop:
            raise ValueError("no message of protocol buffers")
        found[key] = value
    return found, has_others


def _length(message: bytes, place: int) -> tuple[int, int]:
    """Return the number at a place, and the place after it."""
    byte = message[place]
    return (byte, place + 1) if byte < 128 else _varint(message, place)


def _decoded(values: Mapping[bytes, bytes]) -> dict[str, Any]:
    found = {}
    for key, value in values.items():
        with contextlib.suppress(ValueError, RecursionError):
            found[key.decode(errors="replace")] = json.loads(value)
    return found

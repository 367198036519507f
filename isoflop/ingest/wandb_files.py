"""Files that Weights & Biases writes on disk: the records of `run-ID.wandb`.

An offline run of W&B is one file, `offline-run-TIME-ID/run-ID.wandb`; its summary is nowhere else.
The library writes it in Go and ships no reader. The format is that of LevelDB's logs: after a
header of 7 bytes, blocks of 32 KiB hold chunks (crc32, length, kind), of which one or several are a
record of protocol buffers (`wandb_internal.proto`). Numbers of its fields never change.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from isoflop.files import open_regular

HISTORY, SUMMARY = 2, 3
"""Kinds of records, as fields of `Record` in wandb_internal.proto."""

_HEADER = b":W&B"
_HEADER_BYTES = 7
_BLOCK_BYTES = 2**15
_CHUNK = struct.Struct("<IHB")
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_MAX_BYTES = 2**28

# Fields of messages in wandb_internal.proto.
_ITEM, _STEP, _STEP_NUM = 1, 2, 1
_KEY, _NESTED_KEY, _VALUE_JSON = 1, 2, 16


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
            for inner, value in _fields(message):
                if inner == _ITEM and isinstance(value, bytes):
                    row |= _item(value)
                elif kind == HISTORY and inner == _STEP and isinstance(value, bytes):
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

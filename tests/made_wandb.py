"""Files as W&B writes offline runs, for tests: version 0.31 wrote records of this form."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

BLOCK = 2**15


def write_wandb(path: Path, records: Iterable[bytes]) -> None:
    data = b":W&B\xe1\xbe\x00"
    for record in records:
        first = True
        while first or record:
            left = BLOCK - len(data) % BLOCK
            if left < 7:
                data += bytes(left)
                continue
            chunk, record = record[: left - 7], record[left - 7 :]
            kind = {(1, 1): 1, (1, 0): 2, (0, 0): 3, (0, 1): 4}[first, not record]
            body = bytes([kind]) + chunk
            data += struct.pack("<IH", zlib.crc32(body), len(chunk)) + body
            first = False
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def history(values: Mapping[str, Any], step: int) -> bytes:
    items = {**values, "_step": step, "_timestamp": 1.7e9 + step}
    record = b"".join(_field(1, _item(key, value)) for key, value in items.items())
    return _field(2, record + _field(2, b"\x08" + _varint(step)))


def summary(values: Mapping[str, Any]) -> bytes:
    # A field of the library's own, before the others and with a number of two bytes.
    info = _field(200, _field(1, b"stream-of-the-run"))
    return _field(3, info + b"".join(_field(1, _item(key, value)) for key, value in values.items()))


def config(values: Mapping[str, Any], removed: Iterable[str] = ()) -> bytes:
    return _field(5, _config(values) + b"".join(_field(2, _item(key, None)) for key in removed))


def run_record(
    run_id: str, values: Mapping[str, Any], *, tags: Iterable[str] = (), **texts: str
) -> bytes:
    """As the library begins: texts are entity, project, run_group, job_type, display_name."""
    fields = {1: run_id} | {_RUN_FIELDS[name]: text for name, text in texts.items()}
    record = b"".join(_field(number, text.encode()) for number, text in fields.items())
    record += b"".join(_field(10, tag.encode()) for tag in tags)
    return _field(17, record + _field(4, _config(values)) + _field(17, b"\x08" + _varint(2**30)))


def exit_record(code: int) -> bytes:
    return _field(18, b"\x08" + _varint(code) if code else b"")


def metric(name: str) -> bytes:
    """As `define_metric(name, summary="min")` is recorded."""
    return _field(12, _field(1, name.encode()))


_RUN_FIELDS = {"entity": 2, "project": 3, "run_group": 6, "job_type": 7, "display_name": 8}


def _config(values: Mapping[str, Any]) -> bytes:
    return b"".join(
        _field(1, _field(1, key.encode()) + _field(16, json.dumps(value).encode()))
        for key, value in values.items()
    )


def _item(key: str, value: Any) -> bytes:
    parts = b"".join(_field(2, part.encode()) for part in key.split("|"))
    return parts + _field(16, json.dumps(value).encode())


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])

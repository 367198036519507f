"""Documents of local files: a text file is one document, a row of jsonl or parquet is one."""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from isoflop.data.sources import Meter, RawDocument
from isoflop.disk import fault_of
from isoflop.errors import UserError
from isoflop.files import sha256_file, sha256_json

ROWS_PER_BATCH = 64
COMPRESSED = (".gz", ".zst")
JSON_LINES = (".jsonl", ".ndjson", ".json")


def find_files(pattern: str) -> list[Path]:
    """Return the files that a glob (``**`` included) matches, by name.

    Raises:
        UserError: there are none.
    """
    found = list(_matches(pattern))
    files = sorted(path for path in found if path.is_file())
    if files:
        return files
    do = f"check the pattern; relative ones begin in {Path.cwd()}"
    if found:
        do = f"it matches a folder: write '{pattern.rstrip('/')}/*' for the files in it"
    raise UserError("files", pattern, "a pattern that matches files", do)


def _matches(pattern: str) -> Iterator[Path]:
    # Unlike Path.glob it takes a pattern that begins at the root or at home.
    yield from map(Path, glob.glob(str(Path(pattern).expanduser()), recursive=True))  # noqa: PTH207


def describe_files(files: list[Path], meter: Meter) -> dict[str, Any]:
    """Return number, bytes and a hash of ``files``, in order: no names, no dates.

    Raises:
        UserError: a file cannot be read.
    """
    hashes = []
    num_bytes = 0
    for path in files:
        try:
            hashes.append(sha256_file(path))
        except OSError as error:
            if fault_of(error) is not None:
                raise
            allowed = f"readable ({error.strerror})"
            raise UserError("file", str(path), allowed, "check its permissions") from None
        size = path.stat().st_size
        num_bytes += size
        meter.add(0, size, 0)
    return {
        "num_files": len(files),
        "num_bytes": num_bytes,
        "files_sha256": sha256_json(hashes),
    }


def split_files(pattern: str, files: list[Path], heldout_split: str) -> list[list[Path]]:
    """Return the training and the held-out files of a staged copy.

    A file is held out if its name, or a folder below the fixed part of ``pattern``, carries the
    split's name as a word (``validation/chunk1/a.jsonl``, ``validation-00000-of-00003.parquet``).
    """
    root = _fixed_part(pattern)
    word = re.compile(rf"(^|[/._-]){re.escape(heldout_split)}([/._-]|$)")
    sides: list[list[Path]] = [[], []]
    for path in files:
        sides[word.search(str(path)[len(root) :]) is not None].append(path)
    return sides


def read_documents(files: list[Path], column: str) -> Iterator[RawDocument]:
    """Yield the documents of ``files``, in order.

    Raises:
        UserError: a file is unreadable, no parquet or JSON, without rows, or has no such column.
    """
    parent = os.path.commonpath([path.parent for path in files])
    for path in files:
        name = os.path.relpath(path, parent)
        is_empty = True
        for document in _read_file(path, name, column):
            is_empty = False
            yield document
        if is_empty:
            raise UserError("file", str(path), "one with rows (it is empty)", "leave it out")


def _read_file(path: Path, name: str, column: str) -> Iterator[RawDocument]:
    suffixes = [suffix for suffix in path.suffixes[-2:] if suffix not in COMPRESSED]
    suffix = suffixes[-1].lower() if suffixes else ""
    if suffix == ".parquet":
        return _read_parquet(path, name, column)
    if suffix in JSON_LINES:
        return _read_json_lines(path, name, column)
    return _read_text(path, name)


def _read_text(path: Path, name: str) -> Iterator[RawDocument]:
    with _open(path) as file:
        yield RawDocument(id=name, text=file.read())


def _read_json_lines(path: Path, name: str, column: str) -> Iterator[RawDocument]:
    with _open(path) as file:
        for number, line in enumerate(_lines(file, path), 1):
            if line.isspace():
                continue
            place = f"{path}: line {number}"
            row = _parse(line, place)
            if column not in row:
                raise _no_column(place, column, ", ".join(row))
            text = to_bytes(row[column], f"{place}: {column}")
            yield RawDocument(id=f"{name}:{number}", text=text)


def _parse(line: bytes, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        begin = line[:20].decode(errors="replace").rstrip()
        do = "write one object on each line, with nothing around them"
        raise UserError(place, begin, "a JSON object", do)
    return row


def _lines(file: Any, path: Path) -> Iterator[bytes]:
    try:
        yield from file
    # What zlib and zstd raise for a damaged file.
    except OSError as error:
        if fault_of(error) is not None:
            raise
        raise UserError("file", str(path), f"whole ({error})", "restore it") from None


def _read_parquet(path: Path, name: str, column: str) -> Iterator[RawDocument]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            if column not in file.schema_arrow.names:
                raise _no_column(str(path), column, ", ".join(file.schema_arrow.names))
            number = 0
            for batch in file.iter_batches(ROWS_PER_BATCH, columns=[column]):
                values = batch.column(0)
                if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
                    do = "name another with --column"
                    raise UserError(f"{path}: {column}", str(values.type), "text", do)
                # As bytes: whether they are UTF-8 is checked with every other document.
                for text in values.cast(pa.large_binary()).to_pylist():
                    number += 1
                    yield RawDocument(id=f"{name}:{number}", text=text or b"")
    except (pa.ArrowInvalid, OSError) as error:
        if fault_of(error) is not None:
            raise
        reason = str(error).splitlines()[0]
        raise UserError("file", str(path), f"parquet ({reason})", "restore it") from None


def to_bytes(value: object, place: str) -> bytes:
    """Return the UTF-8 of a row's text; a missing one is empty.

    A lone surrogate gives bytes that are no UTF-8, which are noticed with every other document.

    Raises:
        UserError: the value is no text.
    """
    if value is None:
        return b""
    if not isinstance(value, str):
        do = "name the text column with --column"
        raise UserError(place, type(value).__name__, "text", do)
    return value.encode("utf-8", "surrogatepass")


def _no_column(place: str, column: str, columns: str) -> UserError:
    return UserError(
        f"{place}: column", column, f"one of {columns}", "name the text column with --column"
    )


def _open(path: Path) -> Any:
    import io

    import pyarrow as pa

    try:
        return io.BufferedReader(pa.input_stream(str(path), compression="detect"))
    except OSError as error:
        if fault_of(error) is not None:
            raise
        raise UserError("file", str(path), f"readable ({error})", "check it") from None


def _fixed_part(pattern: str) -> str:
    """Return the folder above the first part of ``pattern`` that has a wildcard."""
    pattern = str(Path(pattern).expanduser())
    return (
        re.split(r"[^/]*[*?\[]", pattern)[0]
        if re.search(r"[*?\[]", pattern)
        else str(Path(pattern).parent)
    )

"""Rows of what a command writes as it goes: csv, JSON lines, the matches of patterns in a log.

A row is a mapping of what stands in a line, as it stands there; :func:`number` reads one entry.
Files are read from their end for the last value of a key, and piece by piece while they grow.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from isoflop.errors import UserError
from isoflop.files import open_regular
from isoflop.launch.command.patterns import rows_by_patterns

Row = Mapping[str, Any]
Parser = Callable[[bytes], Sequence[Row]]
"""Of whole lines."""

BLOCK_BYTES = 2**20
MAX_BYTES = 2**28
"""How much of a file's end is looked at; what is not there is not found."""

_MAX_NEW_BYTES = 2**23
# A header longer than that is none.
_MAX_HEADER_BYTES = 2**20
_DELIMITERS = ",\t;"
_DO = "correct [trainer.result]"

_NUMBER = re.compile(
    r"[+-]?((\d{1,3}(,\d{3})+|\d+)(\.\d*)?|\.\d+)(e[+-]?\d+)?|[+-]?(nan|inf|infinity)",
    re.ASCII | re.IGNORECASE,
)
_MISSING = ("", "none", "null", "n/a")


class Source(Protocol):
    """Where the numbers of a run stand."""

    step_key: str
    """The key of the steps where the study names none."""

    def last(self, keys: Collection[str]) -> Row:
        """Return the last value of each key that is there.

        Raises:
            OSError: it cannot be read.
            UserError: it is not what it is said to be.
        """

    def new_rows(self, keys: Collection[str]) -> Sequence[Row]:
        """Return the rows since the last call, perhaps not all yet; raises as :meth:`last` does."""

    def names(self) -> Sequence[str]:
        """Return the keys that there are, for people, as far as they are known."""


def number(value: Any) -> float | int | None:
    """Return a value as a number, a whole one as int; None: it is missing.

    Raises:
        ValueError: it is no number.
    """
    if isinstance(value, str):
        text = value.strip()
        if text.lower() in _MISSING:
            return None
        if not _NUMBER.fullmatch(text):
            raise ValueError(f"{value[:60]!r} is no number")
        text = text.replace(",", "")
        value = int(text) if text.lstrip("+-").isdigit() else float(text)
    if value is None:
        return None
    if type(value) not in (int, float):
        raise ValueError(f"a {type(value).__name__} is no number")
    try:
        float(value)
    except OverflowError:
        raise ValueError("a whole number of so many digits has no meaning") from None
    return value


def look_up(values: Any, key: str) -> Any:
    """Return what stands at a key such as `loss`, `eval.loss` or `history.-1.loss`; None: nothing.

    A key that holds dots itself is found as well.
    """
    if isinstance(values, Mapping):
        if key in values:
            return values[key]
        parts = key.split(".")
        for count in range(len(parts) - 1, 0, -1):
            head = ".".join(parts[:count])
            if head in values:
                found = look_up(values[head], ".".join(parts[count:]))
                if found is not None:
                    return found
    elif isinstance(values, list):
        head, _, rest = key.partition(".")
        if re.fullmatch(r"-?\d{1,9}", head) and -len(values) <= int(head) < len(values):
            found = values[int(head)]
            return look_up(found, rest) if rest else found
    return None


class LinesSource:
    """A file of lines.

    Args:
        path: of the file.
        parser_for: returns the parser of lines by the keys that are wanted of them.
        names: the keys that there are.
    """

    step_key = "step"

    def __init__(
        self,
        path: Path,
        parser_for: Callable[[Collection[str]], Parser],
        names: Callable[[], Sequence[str]] = lambda: (),
    ) -> None:
        self._path = path
        self._parser_for = parser_for
        self.names = names
        self._offset: int | None = None

    def last(self, keys: Collection[str]) -> Row:
        """Return the last value of each key, from the end of the file."""
        parse, missing = self._parser_for(keys), set(keys)
        found: dict[str, Any] = {}
        for block in self._blocks_backwards():
            for row in reversed(parse(block)):
                there = {key: row[key] for key in missing if not is_missing(row.get(key))}
                found |= there
                missing -= there.keys()
            if not missing:
                break
        return found

    def new_rows(self, keys: Collection[str]) -> Sequence[Row]:
        """Return the rows of whole lines since the last call, of some megabytes at most."""
        with open_regular(self._path) as file:
            size = file.seek(0, 2)
            if self._offset is None or size < self._offset:
                self._offset = _begin(file, size)
            file.seek(self._offset)
            text = file.read(_MAX_NEW_BYTES)
        end = text.rfind(b"\n") + 1
        if end == 0 and len(text) == _MAX_NEW_BYTES:
            # A line without an end holds no row.
            end = len(text)
        self._offset += end
        return self._parser_for(keys)(text[:end]) if end else []

    def _blocks_backwards(self) -> Iterator[bytes]:
        """Yield blocks of whole lines, the last first."""
        with open_regular(self._path) as file:
            start = size = file.seek(0, 2)
            rest, is_cut = b"", False
            while start > 0 and size - start < MAX_BYTES:
                length = min(BLOCK_BYTES, start)
                start -= length
                file.seek(start)
                block = file.read(length)
                block = block[: block.rfind(b"\n") + 1] if is_cut else block + rest
                first = 0 if start == 0 else block.find(b"\n") + 1 or len(block)
                if first < len(block):
                    yield block[first:]
                rest = block[:first]
                # A line without an end holds no row, and is not kept.
                is_cut = len(rest) > BLOCK_BYTES or (is_cut and not block)
                rest = b"" if is_cut else rest


def _begin(file: BinaryIO, size: int) -> int:
    """Return where the first line begins that is read of a file, near the end if it is large."""
    if size <= MAX_BYTES:
        return 0
    file.seek(size - MAX_BYTES)
    file.readline(BLOCK_BYTES)
    return file.tell()


def is_missing(value: Any) -> bool:
    """Return whether a value is none, as an empty cell is."""
    return value is None or (isinstance(value, str) and value.strip().lower() in _MISSING)


def json_lines(path: Path) -> LinesSource:
    """Return the source of a file with a JSON object a line; no keys: all of the object's."""

    def parser_for(keys: Collection[str]) -> Parser:
        return lambda text: [_picked(row, keys) for row in _objects(text)]

    return LinesSource(path, parser_for)


def _objects(text: bytes) -> Iterator[Any]:
    for line in text.decode("utf-8-sig", errors="replace").split("\n"):
        try:
            yield json.loads(line)
        # A line that was cut off, or is none of JSON.
        except (ValueError, RecursionError):
            continue


def _picked(row: Any, keys: Collection[str]) -> Row:
    if not keys:
        return row if isinstance(row, dict) else {}
    values = {key: look_up(row, key) for key in keys}
    return {key: value for key, value in values.items() if value is not None}


def log_lines(path: Path) -> LinesSource:
    """Return the source of a log, whose keys are regular expressions."""

    def parser_for(keys: Collection[str]) -> Parser:
        # Names of groups are no patterns.
        patterns = sorted(key for key in keys if re.compile(key).groups)
        return lambda text: rows_by_patterns(patterns, text.decode("utf-8", errors="replace"))

    return LinesSource(path, parser_for)


def csv_lines(path: Path) -> LinesSource:
    """Return the source of a table with a header; separated by commas, tabs or semicolons.

    A header that is written again, by an attempt that goes on, is no row.
    """

    def parser_for(keys: Collection[str]) -> Parser:
        header, delimiter = _header(path)
        for key in keys:
            if header.count(key) > 1:
                num = header.count(key)
                raise UserError("column", key, f"once in {path}, not {num} times", _DO)

        def parse(text: bytes) -> Sequence[Row]:
            rows = _cells(text.decode("utf-8-sig", errors="replace"), delimiter)
            return [
                dict(zip(header, row, strict=False))
                for row in rows
                if row != header and len(row) == len(header)
            ]

        return parse

    return LinesSource(path, parser_for, lambda: _header(path)[0])


def _header(path: Path) -> tuple[list[str], str]:
    with open_regular(path) as file:
        line = file.readline(_MAX_HEADER_BYTES)
        while line and not line.strip():
            line = file.readline(_MAX_HEADER_BYTES)
    text = line.decode("utf-8-sig", errors="replace")
    delimiter = max(_DELIMITERS, key=text.count)
    cells = next(iter(_cells(text, delimiter)), [])
    if not cells:
        raise UserError("result", str(path), "a table with a header", "see what the trainer writes")
    return cells, delimiter


def _cells(text: str, delimiter: str) -> Iterator[list[str]]:
    for line in text.split("\n"):
        try:
            yield from ([c.strip() for c in row] for row in csv.reader([line], delimiter=delimiter))
        # A cell of a hundred thousand characters.
        except csv.Error:
            continue

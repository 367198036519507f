"""Rows of what a command writes as it goes: csv, JSON lines, the matches of patterns in a log.

A row is a mapping of what stands in a line, as it stands there; :func:`number` reads one entry.
Files are read from their end for the last value of a key, and piece by piece while they grow.
"""

from __future__ import annotations

import contextlib
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

_MAX_NEW_BYTES = 2**22
# A header longer than that is none.
_MAX_HEADER_BYTES = 2**20
_DELIMITERS = ",\t;"
_DO = "correct [trainer.result]"

_THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d*)?(e[+-]?\d+)?", re.IGNORECASE)
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
        return None if is_missing(value) else _number_of_text(value.strip())
    if value is None:
        return None
    if type(value) not in (int, float):
        raise ValueError(f"a {type(value).__name__} is no number")
    try:
        float(value)
    except OverflowError:
        raise ValueError("a whole number of so many digits has no meaning") from None
    return value


def _number_of_text(text: str) -> float | int:
    plain = text.replace(",", "") if _THOUSANDS.fullmatch(text) else text
    # Python takes underscores and the digits of all scripts.
    if plain.isascii() and "_" not in plain:
        try:
            return int(plain)
        except ValueError:
            with contextlib.suppress(ValueError):
                return float(plain)
    raise ValueError(f"{text[:60]!r} is no number")


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

        places = {key: header.index(key) for key in keys if key in header}
        name, place = next(iter(places.items()), ("", 0))

        def parse(text: bytes) -> Sequence[Row]:
            rows = _cells(text.decode("utf-8-sig", errors="replace"), delimiter)
            return [
                {key: row[place] for key, place in places.items()}
                for row in rows
                if len(row) == len(header) and row[place].strip() != name
            ]

        return parse

    return LinesSource(path, parser_for, lambda: _header(path)[0])


def _header(path: Path) -> tuple[list[str], str]:
    with open_regular(path) as file:
        line = file.readline(_MAX_HEADER_BYTES)
        while line and not line.strip():
            line = file.readline(_MAX_HEADER_BYTES)
    text = line.decode("utf-8-sig", errors="replace").strip()
    delimiter = max(_DELIMITERS, key=text.count)
    cells = [cell.strip() for row in _cells(text, delimiter) for cell in row]
    if not text:
        raise UserError("result", str(path), "a table with a header", "see what the trainer writes")
    return cells, delimiter


def _cells(text: str, delimiter: str) -> Iterator[list[str]]:
    for line in text.split("\n"):
        if '"' not in line:
            yield line.split(delimiter)
            continue
        # A cell of a hundred thousand characters.
        with contextlib.suppress(csv.Error):
            yield from csv.reader([line], delimiter=delimiter, skipinitialspace=True)

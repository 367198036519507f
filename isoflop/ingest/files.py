"""Files of tables as others write them: csv, tsv, parquet, json, json lines; also .gz and .zst.

A file is told by its first bytes, then by its ending. Cells of text files stay text, so that a
column that nobody asks for cannot be wrong; `isoflop.ingest.frames` reads those that are used.
"""

from __future__ import annotations

import codecs
import csv
import glob
import hashlib
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from isoflop.errors import UserError, shown
from isoflop.files import read_regular
from isoflop.ingest.records import frame_of_records, read_records
from isoflop.validate import CLOSED, Digest, Whole

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

SOURCE_FILE = "source_file"
"""The column that tells the files of a table apart, where it has several."""

MAX_BYTES = 2**31
"""Of one file, decompressed."""
MAX_CELLS = 2**28
"""Of one parquet file: a few bytes of it can stand for billions of cells."""

_WHAT = "table"
_ALLOWED = "a csv file in UTF-8, or parquet, json or jsonl"
_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_COMPRESSED_ENDINGS = (".gz", ".zst", ".zstd")
_JSON_ENDINGS = (".json", ".jsonl", ".ndjson")
_CSV_ENDINGS = (".csv", ".tsv", ".tab", ".txt")
_DELIMITERS = ",\t;|"
_BLOCK_BYTES = 2**25
# As its users know the first bytes of other formats.
_OTHERS = {
    b"PK\x03\x04": "a zip or Excel file",
    b"\xd0\xcf\x11\xe0": "an Excel file",
    b"\x80\x04": "a pickle, which is never loaded",
    b"\x80\x05": "a pickle, which is never loaded",
    b"ARROW1": "an Arrow file",
    b"BZh": "compressed by bzip2",
    b"\xfd7zXZ": "compressed by xz",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFile:
    """One file that was read, or that could not be."""

    __pydantic_config__: ClassVar = CLOSED

    name: str
    """Its path as it was given or found."""
    sha256: Digest | None
    """Of its bytes as they lie on the disk, in hex; None: they could not be read."""
    num_rows: Whole


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RawTable:
    """A table as others wrote it, and the files that it came from."""

    frame: pd.DataFrame
    """Columns by their names there, which may stand twice; nested ones as ``a.b``. Cells of text
    files are text."""
    files: tuple[SourceFile, ...]
    """In the order of their rows."""


def found_files(source: str) -> list[Path]:
    """Return the file of a path, or the files that match a pattern such as ``runs-*.csv``, sorted.

    Raises:
        UserError: there is none, or a link among them leads nowhere.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        raise UserError(
            _WHAT, source, "a file, or a pattern of files", f"name the files: '{path}/*.csv'"
        )
    files = _matching(path)
    if not files:
        is_pattern = glob.has_magic(source)
        allowed = "a pattern that matches files" if is_pattern else "an existing file"
        raise UserError(_WHAT, source, allowed, "check the path")
    return files


def has_files(source: str) -> bool:
    """Return whether a path, or a pattern of paths, names a file."""
    path = Path(source).expanduser()
    return path.is_file() or bool(_matching(path))


def _matching(pattern: Path) -> list[Path]:
    found = sorted(Path(name) for name in glob.glob(str(pattern), recursive=True))  # noqa: PTH207
    for path in found:
        # Else its runs would be missing without a word.
        if path.is_symlink() and not path.exists():
            allowed = f"a file (it is a link to {str(path.readlink())!r}, which is not there)"
            raise UserError(_WHAT, str(path), allowed, "restore it, or delete the link")
    return [path for path in found if path.is_file()]


def read_files(source: str) -> RawTable:
    """Return the table of a file, or of all files that match a pattern, one below the other.

    A file is csv (separated by commas, tabs, semicolons or ``|``, with a header, UTF-8), parquet,
    json (a list of objects, one object a run, or an object of columns) or json lines, also
    compressed by gzip or zstd. Of several files the column ``source_file`` has the name without
    endings, or the path where names repeat.

    Raises:
        UserError: no such file, no table, or one of more than 2 GiB.
    """
    paths = found_files(source)
    parts = [_read(path) for path in paths]
    files = tuple(part.file for part in parts)
    if len(parts) == 1:
        return RawTable(frame=parts[0].frame(), files=files)
    names = _short_names(paths)
    if all(part.records is not None for part in parts):
        # One frame of all, since thousands of small ones are slow.
        records = [
            {SOURCE_FILE: name, **record}
            for name, part in zip(names, parts, strict=True)
            for record in part.records or ()
        ]
        return RawTable(frame=frame_of_records(records), files=files)
    return RawTable(frame=_below_each_other(names, parts), files=files)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Part:
    """The rows of one file: as an Arrow table, or as records."""

    file: SourceFile
    table: pa.Table | None = None
    records: list[dict[str, Any]] | None = None

    def frame(self) -> pd.DataFrame:
        if self.table is None:
            return frame_of_records(self.records or [])
        return frame_of_arrow(self.table)


def frame_of_arrow(table: pa.Table) -> pd.DataFrame:
    """Return an Arrow table as a frame: nested columns as ``a.b``, whole numbers exact."""
    import pyarrow as pa

    while any(pa.types.is_struct(field.type) for field in table.schema):
        table = table.flatten()
    # pandas takes no lists of views on text, which polars gives.
    plain = pa.schema([field.with_type(_without_views(field.type)) for field in table.schema])
    table = table.cast(plain)
    # The index that pandas wrote is a column like any other.
    return table.to_pandas(ignore_metadata=True, integer_object_nulls=True)


def _without_views(kind: pa.DataType) -> pa.DataType:
    import pyarrow as pa

    if pa.types.is_string_view(kind):
        return pa.large_string()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.large_list(_without_views(kind.value_type))
    return kind


def _read(path: Path) -> _Part:
    _check_size(path, path.stat().st_size)
    data = read_regular(path)
    sha256 = hashlib.sha256(data).hexdigest()
    data, ending = _decompressed(path, data)
    table: pa.Table | None = None
    records: list[dict[str, Any]] | None = None
    if data.startswith(b"PAR1") or ending == ".parquet":
        table = _parquet(path, data)
    else:
        text = _checked_text(path, data)
        begins_as_json = text[:1] in (b"{", b"[") and ending not in _CSV_ENDINGS
        if ending in _JSON_ENDINGS or begins_as_json:
            records = read_records(str(path), text.decode())
        else:
            table = _csv(path, text)
    num_rows = len(records or ()) if table is None else table.num_rows
    file = SourceFile(name=str(path), sha256=sha256, num_rows=num_rows)
    return _Part(file=file, table=table, records=records)


def _decompressed(path: Path, data: bytes) -> tuple[bytes, str]:
    """Return the bytes of a file and the ending of its name, both without compression."""
    import pyarrow as pa

    kind = next((kind for magic, kind in _COMPRESSIONS.items() if data.startswith(magic)), None)
    if kind is not None:
        try:
            with pa.input_stream(pa.BufferReader(data), compression=kind) as stream:
                data = _read_bounded(path, stream)
        except (pa.ArrowException, OSError, EOFError) as error:
            reason = str(error).splitlines()[0]
            allowed = f"a whole {kind} file ({reason})"
            raise UserError(_WHAT, str(path), allowed, "copy it again") from None
    return data, Path(_without_compression(path)).suffix.lower()


def _read_bounded(path: Path, stream: pa.NativeFile) -> bytes:
    """Return what a stream holds."""
    found = bytearray()
    # By pieces: asked for all at once, memory for the most that is allowed would be taken.
    while piece := stream.read(_BLOCK_BYTES):
        found += piece
        _check_size(path, len(found))
    return bytes(found)


def _check_size(path: Path, num_bytes: int) -> None:
    if num_bytes > MAX_BYTES:
        allowed = f"at most {MAX_BYTES / 2**30:g} GiB, decompressed"
        raise UserError(_WHAT, str(path), allowed, "leave out columns or rows, or split it")


def _without_compression(path: Path) -> str:
    return path.stem if path.suffix.lower() in _COMPRESSED_ENDINGS else path.name


def _parquet(path: Path, data: bytes) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        meta = file.metadata
        if meta.num_rows * max(1, meta.num_columns) <= MAX_CELLS:
            table = file.read()
            table.validate(full=True)
            return table
    # pyarrow's errors of values and types are Python's, too.
    except (pa.ArrowException, OSError, ValueError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        allowed = f"a whole parquet file ({reason})"
        raise UserError(_WHAT, str(path), allowed, "make it again") from None
    cells = f"{meta.num_rows} rows of {meta.num_columns} columns"
    allowed = f"at most {MAX_CELLS} cells (it has {cells})"
    raise UserError(_WHAT, str(path), allowed, "leave out columns or rows, or split it")


def _checked_text(path: Path, data: bytes) -> bytes:
    """Return UTF-8 text without a byte-order mark and blanks around it."""
    kind = next((kind for magic, kind in _OTHERS.items() if data.startswith(magic)), None)
    if kind is None and b"\0" in data:
        kind = "binary"
    if kind is None:
        try:
            data.decode()
        except UnicodeDecodeError as error:
            kind = str(error)
    if kind is not None:
        allowed = f"{_ALLOWED} ({kind})"
        raise UserError(_WHAT, str(path), allowed, "convert it")
    text = data.removeprefix(codecs.BOM_UTF8)
    if not text.strip():
        raise UserError(_WHAT, str(path), "a table with a header", "write it again")
    return text.lstrip(b"\r\n")


def _csv(path: Path, text: bytes) -> pa.Table:
    """Return a csv file as columns of text."""
    import pyarrow as pa
    import pyarrow.csv as pcsv

    names, delimiter = _header(path, text)
    places = [str(i) for i in range(len(names))]
    wrong: list[pcsv.InvalidRow] = []

    def note(row: pcsv.InvalidRow) -> str:
        wrong.append(row)
        return "error"

    try:
        table = pcsv.read_csv(
            # A header alone needs a line's end.
            pa.BufferReader(text if text.endswith(b"\n") else text + b"\n"),
            # Threads would not know the numbers of rows.
            read_options=pcsv.ReadOptions(
                column_names=places,
                skip_rows_after_names=1,
                block_size=_BLOCK_BYTES,
                use_threads=False,
            ),
            parse_options=pcsv.ParseOptions(
                delimiter=delimiter, newlines_in_values=True, invalid_row_handler=note
            ),
            convert_options=pcsv.ConvertOptions(
                column_types=dict.fromkeys(places, pa.string()),
                null_values=[],
                strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid as error:
        _check_quotes(path, text, delimiter)
        if wrong:
            raise UserError(
                f"data row {wrong[0].number - 1} of {path}",
                shown(f"{wrong[0].actual_columns} cells"),
                f"{len(names)} cell{'s' * (len(names) != 1)}, as the header",
                "correct the table, or put text with separators in quotes",
            ) from None
        reason = str(error).splitlines()[0]
        raise UserError(_WHAT, str(path), f"{_ALLOWED} ({reason})", "convert it") from None
    _check_quotes(path, text, delimiter)
    return table.rename_columns(names)


def _header(path: Path, text: bytes) -> tuple[list[str], str]:
    """Return the names of the columns and what separates them: the mark that gives most."""
    # A name may hold line ends, but no header is longer than a block.
    head = text[:_BLOCK_BYTES].decode(errors="replace")
    found = {mark: _first_row(head, mark) for mark in _DELIMITERS}
    delimiter = max(_DELIMITERS, key=lambda mark: len(found[mark]))
    names = [name.strip() for name in found[delimiter]]
    if not names:
        raise UserError(_WHAT, str(path), f"{_ALLOWED} (no header)", "convert it")
    return [name or f"Unnamed: {i}" for i, name in enumerate(names)], delimiter


def _first_row(text: str, delimiter: str) -> list[str]:
    try:
        return next((row for row in csv.reader(io.StringIO(text), delimiter=delimiter) if row), [])
    except csv.Error:
        return []


def _check_quotes(path: Path, text: bytes, delimiter: str) -> None:
    """Refuse a quote that is never closed: it hides all rows after it."""
    if text.count(b'"') % 2 == 0:
        return
    lines = csv.reader(io.StringIO(text.decode(), newline=""), delimiter=delimiter, strict=True)
    try:
        for _ in lines:
            pass
    except csv.Error as error:
        raise UserError(_WHAT, str(path), f"{_ALLOWED} ({error})", "convert it") from None


def _short_names(paths: Sequence[Path]) -> list[str]:
    """Return the files' names without endings, or their paths where names repeat."""
    names = [Path(_without_compression(path)).stem for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _below_each_other(names: Sequence[str], parts: Sequence[_Part]) -> pd.DataFrame:
    import pandas as pd

    frames = []
    for name, part in zip(names, parts, strict=True):
        frame = part.frame()
        twice = [name for name, count in Counter(frame.columns).items() if count > 1]
        if twice:
            allowed = "there once, in each of several files"
            raise UserError(
                f"column {twice[0]} of {part.file.name}", shown("twice"), allowed, "rename one"
            )
        if SOURCE_FILE not in frame:
            frame.insert(0, SOURCE_FILE, name)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)

"""What an import gives, and how a folder keeps it.

A folder has runs.parquet, dropped.parquet (rows that are no runs), and import.json, which repeats
the import.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from isoflop import __version__
from isoflop.disk import naming
from isoflop.errors import UserError
from isoflop.files import refuse_links, sha256_file, write_bytes_atomic, write_json_atomic
from isoflop.ingest.files import SourceFile
from isoflop.ingest.mapping import ColumnMap
from isoflop.ingest.sources import FILE_KINDS, split_kind
from isoflop.tables import RUNS, Schema, parquet_bytes
from isoflop.validate import CLOSED, Digest, Whole, read_record

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from isoflop.ingest.files import RawTable

IMPORT = "import.json"
TABLE = "runs.parquet"
DROPPED = "dropped.parquet"
_WHAT = "import"
_NOTHING: tuple[object, ...] = (None, {}, ())
_DO = "import the table again"
_MOST_INT = 2.0**63
_FULL_PATH = re.compile(r"^((?:\w+:)?)[/~].*/(?=.)")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Imported:
    """A table of runs, and how it came about."""

    frame: pd.DataFrame
    """Columns of runs.parquet, in its order, then metrics and further ones that were mapped."""
    dropped: pd.DataFrame
    """Rows of the source that are no runs: source_file, row (from 1 in its file), reason."""
    derived: dict[str, str]
    """How columns of ours without one of theirs were computed, by ours."""
    notes: tuple[str, ...]
    """Sentences on what could not be read."""
    mapping: ColumnMap
    unit: str
    """Of the losses in the table."""

    @property
    def schema(self) -> Schema:
        """The schema of runs.parquet with the columns of this table."""
        more = [name for name in self.frame.columns if name not in RUNS.names]
        schema = dataclasses.replace(RUNS, unit=self.unit)
        return schema.with_columns((name, "float64") for name in more)

    def arrow(self) -> pa.Table:
        """Return the table as runs.parquet has it; what is no finite number is null."""
        import numpy as np
        import pyarrow as pa

        schema = self.schema.arrow()
        # As write_table does, so that tables of any origin have the same columns.
        unused = {
            name
            for name in self.schema.later
            if name not in self.frame or not bool(self.frame[name].notna().any())
        }
        fields = [field for field in schema if field.name not in unused]
        arrays = []
        for field in fields:
            if field.name not in self.frame:
                arrays.append(pa.nulls(len(self.frame), field.type))
                continue
            column = self.frame[field.name]
            if pa.types.is_string(field.type):
                arrays.append(pa.array(column.to_numpy(dtype=object), field.type, from_pandas=True))
                continue
            values = column.to_numpy(dtype=np.float64)
            unknown = ~np.isfinite(values)
            if pa.types.is_integer(field.type):
                unknown |= np.abs(values) >= _MOST_INT
                whole = np.rint(np.where(unknown, 0.0, values)).astype(np.int64)
                arrays.append(pa.array(whole, field.type, mask=unknown))
            else:
                arrays.append(pa.array(values, field.type, mask=unknown))
        return pa.Table.from_arrays(arrays, schema=pa.schema(fields, metadata=schema.metadata))

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows as `isoflop.analysis.load` reads them from runs.parquet: counts are float64."""
        import pyarrow as pa

        table = self.arrow()
        for place, field in enumerate(table.schema):
            if pa.types.is_integer(field.type) and field.name != "seed":
                table = table.set_column(
                    place, field.name, table[place].cast(pa.float64(), safe=False)
                )
        return cast("list[dict[str, Any]]", table.to_pylist())


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportRecord:
    """What import.json holds."""

    __pydantic_config__: ClassVar = CLOSED

    isoflop: str
    """Version that made it."""
    source: str
    """As it was typed."""
    mapping: ColumnMap
    derived: Mapping[str, str]
    """How values that no column has were computed."""
    files: tuple[SourceFile, ...]
    num_rows: Whole
    """Of runs.parquet."""
    excluded: Mapping[str, Whole]
    """Rows of it that enter no fit, by their reason."""
    dropped: Mapping[str, Whole]
    """Rows of the source that are no runs, by their reason."""
    runs_sha256: Digest

    @property
    def is_local(self) -> bool:
        """Whether the source lies where the command is typed or below, and needs no network."""
        kind, name = split_kind(self.source)
        path = Path(name)
        is_below = not (path.is_absolute() or ".." in path.parts or name.startswith("~"))
        return is_below and (kind is None or kind in FILE_KINDS)


def without_folders(path: str) -> str:
    """Return a path for a page that goes to others: of a full one, which names a home, the end."""
    return _FULL_PATH.sub(r"\1", path)


def read_import(folder_or_file: Path) -> ImportRecord:
    """Return the record of an import, of its folder or of its file.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = folder_or_file / IMPORT if folder_or_file.is_dir() else folder_or_file
    return read_record(ImportRecord, path, _WHAT, _DO)


def write_import(
    imported: Imported, raw: RawTable, source: str, folder: Path, *, replace: bool = False
) -> bool:
    """Write runs.parquet, dropped.parquet and import.json; return False where they were there.

    Args:
        imported: the runs.
        raw: the table that they come from.
        source: as it was typed.
        folder: made if need be.
        replace: whether another import's files give way.

    Raises:
        UserError: the folder has a plan, other runs, or another import that is not to be replaced.
    """
    table = parquet_bytes(imported.arrow())
    record = ImportRecord(
        isoflop=__version__,
        source=source,
        mapping=imported.mapping,
        derived=imported.derived,
        files=raw.files,
        num_rows=len(imported.frame),
        excluded=dict(sorted(Counter(imported.frame["excluded_reason"].dropna()).items())),
        dropped=dict(sorted(Counter(map(_kind, imported.dropped["reason"])).items())),
        runs_sha256=hashlib.sha256(table).hexdigest(),
    )
    for name in (IMPORT, TABLE, DROPPED):
        refuse_links(folder / name)
    with _alone(folder):
        if _is_there(folder, record, replace=replace):
            return False
        # The record first: a folder that has it can be written again after a break.
        write_json_atomic(folder / IMPORT, as_json(record))
        write_bytes_atomic(folder / DROPPED, parquet_bytes(_dropped(imported)))
        write_bytes_atomic(folder / TABLE, table)
    return True


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one import at a time write a folder: files of two would not belong together."""
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    try:
        # Some file systems have no locks.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _is_there(folder: Path, record: ImportRecord, *, replace: bool) -> bool:
    """Return whether the folder holds this very import; refuse what may not be replaced."""
    if (folder / "plan.json").exists():
        raise UserError("--out", str(folder), "a folder without a plan", "name another")
    if not (folder / IMPORT).is_file():
        if (folder / TABLE).exists():
            allowed = "a folder without runs that no import made"
            raise UserError("--out", str(folder), allowed, "name another")
        return False
    table = folder / TABLE
    digest = sha256_file(table) if table.is_file() else None
    can_be_made_again = digest in (None, record.runs_sha256)
    stored = _stored_record(folder, may_be_damaged=replace and can_be_made_again)
    if not replace and stored is not None:
        _check_is_repetition(folder, stored, record)
        if digest not in (None, stored.runs_sha256, record.runs_sha256):
            allowed = f"a folder whose {TABLE} is as it was imported (it was changed since)"
            raise UserError("--out", str(folder), allowed, "name another, or add --replace")
    is_same = digest == record.runs_sha256 and (folder / DROPPED).is_file()
    return is_same and stored is not None


def _stored_record(folder: Path, *, may_be_damaged: bool) -> ImportRecord | None:
    """Return the record of an earlier import; None: it is damaged, as it may be.

    Raises:
        UserError: import.json is no record, so that the runs beside it may be anybody's.
    """
    try:
        return read_import(folder)
    except UserError:
        if may_be_damaged:
            return None
        allowed = f"a folder of an import ({IMPORT} there is damaged, or of something else)"
        raise UserError("--out", str(folder), allowed, "name another, or move it away") from None


def _check_is_repetition(folder: Path, stored: ImportRecord, record: ImportRecord) -> None:
    same = {
        "mapping": stored.mapping == record.mapping,
        # A path may be written in several ways.
        "files": _digests(stored) == _digests(record),
        "source": bool(record.files) or stored.source == record.source,
    }
    changed = [name for name, is_same in same.items() if not is_same]
    if changed:
        allowed = f"a folder without another import (not the same: {', '.join(changed)})"
        raise UserError("--out", str(folder), allowed, "name another, or add --replace")


def _digests(record: ImportRecord) -> list[tuple[str | None, int]]:
    return [(file.sha256, file.num_rows) for file in record.files]


def as_json(record: ImportRecord) -> dict[str, object]:
    """Return a record as import.json has it: without what is empty in its mapping."""
    values = asdict(record)
    values["mapping"] = {
        name: value for name, value in values["mapping"].items() if value not in _NOTHING
    }
    return values


def _kind(reason: str) -> str:
    """Return a reason without what differs from row to row."""
    return "a step of a run" if reason.startswith("a step of ") else reason


def _dropped(imported: Imported) -> pa.Table:
    import pyarrow as pa

    frame = imported.dropped
    kinds = {"source_file": pa.string(), "row": pa.int64(), "reason": pa.string()}
    arrays = [pa.array(list(frame[name]), kind) for name, kind in kinds.items()]
    return pa.Table.from_arrays(arrays, names=list(kinds))

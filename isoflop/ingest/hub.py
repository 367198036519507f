"""Tables of runs that are Hugging Face data sets: folders in the hub's form, or of the hub."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop.errors import UserError, shown
from isoflop.ingest.files import RawTable, SourceFile, frame_of_arrow
from isoflop.online import import_datasets, plain_hub_errors

if TYPE_CHECKING:
    import pyarrow as pa

_WHAT = "data set"
_BUILDERS = ("csv", "json", "parquet", "arrow", "cache")
"""Of `datasets`, those that read tables, or what was one; others read images or archives."""
_RUNS = "runs"
_MAX_ROWS = 10_000_000
_BATCH_ROWS = 10_000
_OFFLINE = "without internet there are folders in the hub's form and what is in its cache"


def read_hub(source: str) -> RawTable:
    """Return a table of runs from a Hugging Face data set; nothing of it is run.

    Args:
        source: ``NAME``, ``NAME:CONFIG`` or ``NAME:CONFIG:SPLIT``; the name is that of a folder
            with data files and perhaps a README.md that says which belong together, or of a data
            set of the hub. Without a configuration the one called ``runs`` is read, or the only
            one; without a split the only one.

    Raises:
        UserError: no such data set, configuration or split; none of tables; the package
            `datasets` is missing, or the hub cannot be reached.
    """
    name, config, split = _parts(source)
    datasets = import_datasets()
    folder = Path(name).expanduser()
    is_folder = folder.is_dir()
    do = "name it as hf:NAME:CONFIG:SPLIT, or read its files by csv:GLOB or parquet:GLOB"
    with _quiet(datasets), plain_hub_errors(name, config, offline=_OFFLINE, do=do):
        path = str(folder) if is_folder else name
        configs = datasets.get_dataset_config_names(path)
        config = _one_of(configs, config, name, "configuration", default=_RUNS)
        builder = datasets.load_dataset_builder(path, config)
        _check_tables(builder, name)
        if is_folder:
            _check_inside(builder, folder)
        splits = list(map(str, builder.config.data_files or builder.info.splits or {}))
        split = _one_of(splits, split, name, "split", default=None)
        # What lies here already is not copied into the cache.
        rows = datasets.load_dataset(path, config, split=split, streaming=is_folder)
        table = _arrow(rows, name)
    label = ":".join(("hf", name, config, split))
    file = SourceFile(name=label, sha256=_digest(table), num_rows=table.num_rows)
    return RawTable(frame=frame_of_arrow(table), files=(file,))


def _parts(source: str) -> tuple[str, str | None, str | None]:
    """Return name, configuration and split; the path of a folder may hold colons."""
    if Path(source).expanduser().is_dir():
        return source, None, None
    parts: Sequence[str] = source.split(":")
    if len(parts) > 3 or not all(parts):
        allowed = "NAME, NAME:CONFIG or NAME:CONFIG:SPLIT"
        raise UserError(_WHAT, source, allowed, "check its name")
    return (*parts, None, None)[:3]  # type: ignore[return-value]


def _one_of(
    names: Sequence[str], asked: str | None, name: str, what: str, *, default: str | None
) -> str:
    """Return the name that was asked for, the default, or the only one.

    Raises:
        UserError: there is no such name, or one must be chosen.
    """
    if asked is None:
        asked = default if default in names else names[0] if len(names) == 1 else None
    if asked is None or asked not in names:
        value = shown("several") if asked is None else asked
        do = f"choose one in hf:{name}:CONFIG:SPLIT"
        raise UserError(f"{what} of {name}", value, f"one of {', '.join(names)}", do)
    return asked


def _check_tables(builder: Any, name: str) -> None:
    """Refuse what is no table.

    Raises:
        UserError: it is of files that hold something else.
    """
    kind = type(builder).__module__.rpartition(".")[2]
    if kind not in _BUILDERS:
        allowed = f"of csv, json, parquet or arrow files, not of {kind}"
        raise UserError(_WHAT, name, allowed, "name a data set of runs")


def _check_inside(builder: Any, folder: Path) -> None:
    """Refuse a folder whose README.md names files elsewhere.

    Raises:
        UserError: it does.
    """
    root = folder.resolve()
    files: Mapping[str, Sequence[Any]] = builder.config.data_files or {}
    for path in (str(path) for paths in files.values() for path in paths):
        if "://" in path or not Path(path).resolve().is_relative_to(root):
            raise UserError(f"data file of {folder}", path, "in the folder", "copy it there")


def _arrow(rows: Any, name: str) -> pa.Table:
    """Return a data set's rows as one Arrow table."""
    import pyarrow as pa

    pieces, num_rows = [], 0
    for piece in rows.with_format("arrow").iter(batch_size=_BATCH_ROWS):
        num_rows += piece.num_rows
        if num_rows > _MAX_ROWS:
            allowed = f"a table of runs, of at most {_MAX_ROWS:,} rows"
            raise UserError(_WHAT, name, allowed, "name a smaller split or configuration")
        pieces.append(piece)
    if not pieces:
        raise UserError(_WHAT, name, "a table with rows", "check its split")
    return pa.concat_tables(pieces, promote_options="permissive")


def _digest(table: pa.Table) -> str:
    """Return a digest of a table's schema and values, in hex."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema.remove_metadata()) as writer:
        writer.write_table(table.replace_schema_metadata(None).combine_chunks())
    return hashlib.sha256(sink.getvalue()).hexdigest()


@contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """Keep the library's warnings and its own account of errors to itself."""
    level = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)

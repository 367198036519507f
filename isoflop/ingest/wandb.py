"""Runs of Weights & Biases as a table: folders on this machine, exported files, or a project."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from glob import has_magic
from pathlib import Path
from typing import Any

from isoflop.errors import UserError
from isoflop.files import read_regular
from isoflop.ingest.files import RawTable, SourceFile, read_files
from isoflop.ingest.run_cache import CachedRun, Note, RunCache, silent
from isoflop.ingest.tracked import TrackedRun, flat, frame_of_runs, merged, plain_config
from isoflop.ingest.wandb_files import read_log
from isoflop.ingest.wandb_online import read_project

_PROJECT = re.compile(r"(?:https?://[^/]+/)?([\w.-]+)/([\w. -]+)(?:/.*)?")
_FILES = ("config.yaml", "wandb-summary.json")
_INNER_FOLDERS = ("files", "logs", "tmp", "code")
_TIME = re.compile(r"\d{8}_\d{6}")
_FOLDERS = "a folder with runs of W&B (offline-run-*, run-*), an exported file, or ENTITY/PROJECT"


def read_wandb(source: str, *, refresh: bool = False, note: Note = silent) -> RawTable:
    """Return the runs of W&B, a row each, with their settings and the last values they logged.

    What was read is kept in the user's cache folder: of a folder, files that did not change; of a
    project, runs that did not change since.

    Args:
        source: a folder, at any depth of which runs lie; a file or a pattern of files that were
            exported; or ``ENTITY/PROJECT`` on the server, which ``WANDB_BASE_URL`` and
            ``WANDB_API_KEY`` or `wandb login` name.
        refresh: read everything again.
        note: is told how many runs were read, and of how many.

    Raises:
        UserError: there is no such thing, no run in it, or no way to the server.
    """
    path = Path(source).expanduser()
    if path.is_file() or (has_magic(source) and not path.is_dir()):
        return read_files(source)
    if path.is_dir():
        return _read_folder(path, refresh, note)
    match = _PROJECT.fullmatch(source)
    if match is None or source.startswith((".", "/", "~")):
        raise UserError("wandb", source, _FOLDERS, "check the path")
    return read_project(match[1], match[2], refresh=refresh, note=note)


def _read_folder(folder: Path, refresh: bool, note: Note) -> RawTable:
    # A run that goes on has a folder for each time, whose name begins with when it was.
    unread: list[OSError] = []
    found = sorted(_attempts(folder, unread), key=lambda path: (_time_in(path), path))
    if not found and not unread:
        raise UserError("wandb", str(folder), _FOLDERS, "name the folder that holds `wandb`")
    gone = [_unread(Path(os.fsdecode(error.filename or folder)), error) for error in unread]
    attempts: list[tuple[Path, CachedRun]] = []
    with RunCache("wandb", str(folder.resolve()), refresh=refresh) as cache:
        for path in found:
            key = str(path.relative_to(folder))
            try:
                cached = cache.run_of(key, _files_of(path), functools.partial(_read_run, path))
            except OSError as error:
                gone.append(_unread(path, error))
                continue
            attempts.append((path, cached))
            note(len(attempts), len(found))
    return _table_of([*attempts, *gone])


def _unread(path: Path, error: OSError) -> tuple[Path, CachedRun]:
    """Return what could not even be looked at, as a run with the reason."""
    about = {"id": _id_in(path)}
    run = TrackedRun(about=about, reason=f"{path.name}: {error.strerror or error}")
    return path, CachedRun(key=str(path), stamp="", sha256="", run=run)


def _attempts(folder: Path, unread: list[OSError]) -> Iterator[Path]:
    """Yield logs of runs, and folders of runs without one.

    Links are not followed, the one to the latest run among them.

    Args:
        folder: in which they lie, at any depth.
        unread: takes the errors of folders that cannot be looked at.
    """
    for place, folders, files in os.walk(folder, onerror=unread.append):
        path = Path(place)
        logs = [name for name in files if name.endswith(".wandb")]
        yield from (path / name for name in logs if not (path / name).is_symlink())
        is_run = "files" in folders and bool(_files_of(path))
        if is_run and not logs:
            yield path
        if is_run or logs:
            folders[:] = [name for name in folders if name not in _INNER_FOLDERS]


def _time_in(path: Path) -> str:
    match = _TIME.search(f"{path.parent.name} {path.name}")
    return "" if match is None else match[0]


def _files_of(path: Path) -> list[Path]:
    """Return the files of an attempt: its log, or what lies in the folder of a run."""
    if path.suffix == ".wandb":
        return [path]
    return [inner for name in _FILES if (inner := path / "files" / name).is_file()]


def _read_run(path: Path) -> TrackedRun:
    """Return the run of an attempt; of one that is damaged, the reason.

    Raises:
        OSError: it cannot be read.
        UserError: a package is missing.
    """
    try:
        return read_log(path) if path.suffix == ".wandb" else _read_files_of_run(path)
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        return TrackedRun(about={"id": _id_in(path)}, reason=f"{path.name}: {error}")


def _id_in(path: Path) -> str:
    """Return the id in the name of a log or of a run's folder."""
    return path.stem.partition("run-")[2].rpartition("-")[2] or path.stem


def _table_of(attempts: list[tuple[Path, CachedRun]]) -> RawTable:
    """Return the table of runs, each of one or several attempts in the order of time."""
    runs: dict[tuple[str, ...], list[CachedRun]] = {}
    for _, cached in attempts:
        about = cached.run.about
        names = (about.get("entity"), about.get("project"), about.get("id"))
        # What could not be read is a row of its own.
        key = (cached.key,) if cached.run.reason is not None else tuple(map(str, names))
        runs.setdefault(key, []).append(cached)
    rows = [
        replace(run, about={**run.about, "source_file": parts[-1].key})
        for parts in runs.values()
        for run in [parts[0].run if len(parts) == 1 else merged([part.run for part in parts])]
    ]
    last = {parts[-1].key for parts in runs.values()}
    files = tuple(
        SourceFile(name=str(path), sha256=cached.sha256 or None, num_rows=int(cached.key in last))
        for path, cached in attempts
    )
    return RawTable(frame=frame_of_runs(rows), files=files)


def _read_files_of_run(folder: Path) -> TrackedRun:
    """Return an online run from what it leaves in its folder's `files`, without its log.

    Its name, its state and when it began are on the server only.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file is not what W&B writes.
        UserError: the package that reads YAML is missing.
    """
    files = folder / "files"
    config, summary = files / "config.yaml", files / "wandb-summary.json"
    values = _read_yaml(config) if config.is_file() else {}
    if not isinstance(values, dict):
        raise ValueError("config.yaml holds no keys")
    last = json.loads(read_regular(summary)) if summary.is_file() else {}
    if not isinstance(last, dict):
        raise ValueError("wandb-summary.json holds no keys")
    return TrackedRun(
        about={"id": folder.name.rpartition("-")[2]},
        config=flat(plain_config(values)),
        summary=flat(last),
    )


def _read_yaml(path: Path) -> Any:
    """Return what a YAML file holds, of plain types only.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no YAML.
        UserError: the package is missing.
    """
    try:
        import yaml
    except ImportError:
        do = "pip install 'isoflop[wandb]'"
        raise UserError("package", "PyYAML", "installed to read config.yaml", do) from None
    # Written in C where it is there, and no less safe.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return loader(read_regular(path)).get_single_data()
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path.name}: {str(error).splitlines()[0]}") from None

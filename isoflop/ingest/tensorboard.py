"""Scalars and settings that TensorBoard's event files hold; a row a folder of a run."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from isoflop.errors import UserError, failure_reason
from isoflop.ingest.files import RawTable, SourceFile
from isoflop.ingest.run_cache import CachedRun, Note, RunCache, silent
from isoflop.ingest.tracked import TrackedRun, flat, frame_of_runs

_WHAT = "tensorboard"
_FOLDER = "a folder with event files (events.out.tfevents.*)"
_START, _END = "_hparams_/session_start_info", "_hparams_/session_end_info"
_STATES = {1: "finished", 2: "failed", 3: "running"}


def check_package(field: str, folder: Path) -> None:
    """Raise UserError, about a field of the user's, where the package tensorboard is missing."""
    try:
        import tensorboard.backend.event_processing.event_accumulator  # noqa: F401
    except ImportError:
        allowed = "read with the package tensorboard, which is missing"
        do = "pip install 'isoflop[tensorboard]'"
        raise UserError(field, str(folder), allowed, do) from None


def open_events(folder: Path) -> Any:
    """Return a reader of a folder's event files that keeps all scalars."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # Zero: keep all, not a sample.
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})


def tags_of(reader: Any) -> set[str]:
    """Return the tags of scalars, and of tensors, of which some hold one."""
    tags = reader.Tags()
    return {*tags["scalars"], *tags["tensors"]}


def events_of(reader: Any, tag: str) -> list[tuple[float, int, Any]]:
    """Return time (in seconds since 1970), step and value of a tag's events of one value each."""
    tags = reader.Tags()
    if tag in tags["scalars"]:
        return [(event.wall_time, event.step, event.value) for event in reader.Scalars(tag)]
    if tag not in tags["tensors"]:
        return []
    from tensorboard.util.tensor_util import make_ndarray

    arrays = [(e.wall_time, e.step, make_ndarray(e.tensor_proto)) for e in reader.Tensors(tag)]
    return [(time, step, array.item()) for time, step, array in arrays if array.size == 1]


def files_with_events(folder: Path) -> list[Path]:
    """Return the event files of a folder, sorted, so in the order of time."""
    return sorted(path for path in folder.glob("*tfevents*") if path.is_file())


def folders_with_events(folder: Path) -> list[Path]:
    """Return the folder, and those below it, that hold event files."""
    # Folders that may not be read, or go away meanwhile, are not there.
    return sorted(Path(place) for place, _, _ in os.walk(folder) if files_with_events(Path(place)))


def read_tensorboard(source: str, *, refresh: bool = False, note: Note = silent) -> RawTable:
    """Return the runs below a folder, a row each: last values of scalars, and hyperparameters.

    Beside them stand, as in W&B's tables, ``_step`` (the largest), ``_timestamp`` (of the last
    event) and ``_runtime`` (from the first event to the last, in seconds). Files of one folder
    follow one another in time. Hyperparameters that torch's `add_hparams` wrote in a folder below
    that of the run are the run's.

    Args:
        source: a folder.
        refresh: read again what did not change.
        note: is told how many folders were read, and of how many.

    Raises:
        UserError: there are no event files, or the package tensorboard is missing.
    """
    folder = Path(source).expanduser()
    if folder.is_file():
        raise UserError(_WHAT, source, _FOLDER, f"name the folder: {folder.parent}")
    found = folders_with_events(folder)
    if not found:
        raise UserError(_WHAT, source, _FOLDER, "check the path")
    check_package(_WHAT, folder)
    cached_runs: dict[Path, CachedRun] = {}
    with RunCache("tensorboard", str(folder.resolve()), refresh=refresh) as cache:
        for path in found:
            name = str(path.relative_to(folder)) if path != folder else folder.resolve().name
            read = functools.partial(_read_run, path, name)
            cached_runs[path] = cache.run_of(name, files_with_events(path), read)
            note(len(cached_runs), len(found))
    runs = _with_hparams({path: cached.run for path, cached in cached_runs.items()})
    files = tuple(
        SourceFile(name=str(path), sha256=cached.sha256, num_rows=int(path in runs))
        for path, cached in cached_runs.items()
    )
    return RawTable(frame=frame_of_runs(list(runs.values())), files=files)


def _read_run(path: Path, name: str) -> TrackedRun:
    try:
        with _quiet():
            reader = open_events(path)
            reader.Reload()
            return _run_of(reader, name)
    except Exception as error:
        # Whatever its parsers raise of a damaged file, the other runs are read.
        about = {"id": name, "name": path.name}
        return TrackedRun(about=about, reason=f"{name}: {failure_reason(error)}")


def _run_of(reader: Any, name: str) -> TrackedRun:
    about: dict[str, Any] = {"id": name, "name": Path(name).name}
    config: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    times, steps = [], []
    for tag in sorted(tags_of(reader)):
        if tag.startswith("_hparams_/"):
            continue
        events = events_of(reader, tag)
        if not events:
            continue
        _, _, value = max(events, key=lambda event: event[0])
        if isinstance(value, bytes | str):
            config |= _settings(value)
            continue
        summary[tag] = value
        times += [time for time, _, _ in events]
        steps += [step for _, step, _ in events]
    if times:
        summary["_step"], summary["_timestamp"] = max(steps), max(times)
        summary["_runtime"] = max(times) - min(times)
        about["created_at"] = f"{datetime.fromtimestamp(min(times), UTC):%Y-%m-%dT%H:%M:%SZ}"
    hparams, state = _hparams(reader)
    if state is not None:
        about["state"] = state
    return TrackedRun(about=about, config=config | hparams, summary=summary)


def _settings(text: bytes | str) -> dict[str, Any]:
    """Return the values of a text that is JSON, as Hugging Face's Trainer writes its arguments."""
    try:
        values = json.loads(text)
        return flat(values) if isinstance(values, dict) else {}
    except (ValueError, RecursionError):
        return {}


def _hparams(reader: Any) -> tuple[dict[str, Any], str | None]:
    """Return hyperparameters, and the state at the end; None: it is not told."""
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    values: dict[str, Any] = {}
    state = None
    contents: Mapping[str, bytes] = {}
    # So it says that there are none.
    with contextlib.suppress(KeyError):
        contents = reader.PluginTagToContent("hparams")
    for tag, content in contents.items():
        data = HParamsPluginData.FromString(content)
        if tag == _START:
            for key, value in data.session_start_info.hparams.items():
                kind = value.WhichOneof("kind")
                if kind in ("number_value", "string_value", "bool_value"):
                    values[key] = getattr(value, kind)
        elif tag == _END:
            state = _STATES.get(data.session_end_info.status)
    return values, state


def _with_hparams(runs: Mapping[Path, TrackedRun]) -> dict[Path, TrackedRun]:
    """Return runs, with hyperparameters from the one folder below that only holds these."""
    below: dict[Path, list[Path]] = {}
    for path, run in runs.items():
        if run.config and path.parent in runs and not runs[path.parent].config:
            below.setdefault(path.parent, []).append(path)
    found = dict(runs)
    for parent, inner in below.items():
        if len(inner) == 1:
            part = found.pop(inner[0])
            run = found[parent]
            found[parent] = replace(
                run,
                about={**part.about, **run.about},
                config=part.config,
                summary={**part.summary, **run.summary},
            )
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library's warnings about damaged files and doubled graphs to itself."""
    logger = logging.getLogger("tensorboard")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)

"""Runs of a project on a server of Weights & Biases, by way of its public API.

A request a run would take hours for thousands. So the runs of a project are listed by pages without
what they hold; then those that are new or have changed are fetched by pages, and kept at once, so
that a broken import goes on where it was.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from isoflop.environ import environment_with
from isoflop.errors import UserError
from isoflop.ingest.files import RawTable, SourceFile
from isoflop.ingest.run_cache import CachedRun, Note, RunCache, silent
from isoflop.ingest.tracked import TrackedRun, flat, frame_of_runs
from isoflop.online import answers

_T = TypeVar("_T")

_NUM_LISTED = 500
_NUM_FETCHED = 50
"""At a time; a run's configuration and summary may be a megabyte."""
_TIMEOUT_S = 60
_TRIES = 3
_PAUSE_S = 1.0
_WHAT = "wandb project"
_ANSWERS = "on a server that answers and lets you read it"


def read_project(
    entity: str, project: str, *, refresh: bool = False, note: Note = silent
) -> RawTable:
    """Return the runs of a project, a row each, in the order in which they were created.

    Args:
        entity: user or team.
        project: its name.
        refresh: fetch runs again that did not change.
        note: is told how many runs were fetched, and of how many.

    Raises:
        UserError: the package is missing, the server does not answer, or there is no such project.
    """
    name = f"{entity}/{project}"
    with tempfile.TemporaryDirectory(prefix="isoflop-wandb-") as folder, _quiet(folder):
        api, server = _open(name)
        cache = RunCache("wandb", f"{server} {name}", refresh=refresh)
        listed = _tried(lambda: list(api.runs(name, per_page=_NUM_LISTED, lazy=True)), name)
        found: dict[str, CachedRun] = {}
        wanted = []
        for run in listed:
            cached = cache.get(run.id, _stamp(run))
            if cached is None:
                wanted.append(run.id)
            else:
                found[run.id] = cached
        for start in range(0, len(wanted), _NUM_FETCHED):
            new = _fetch(api, name, wanted[start : start + _NUM_FETCHED])
            cache.add(new)
            found |= {run.key: run for run in new}
            note(min(start + _NUM_FETCHED, len(wanted)), len(wanted))
    if not listed:
        raise UserError(_WHAT, name, "a project with runs", "check its name on the server")
    runs = [_named(run, found.get(run.id)) for run in listed]
    digests = sorted(found[run.id].sha256 for run in listed if run.id in found)
    digest = hashlib.sha256("".join(digests).encode())
    file = SourceFile(name=f"wandb:{name}", sha256=digest.hexdigest(), num_rows=len(runs))
    return RawTable(frame=frame_of_runs(runs), files=(file,))


def _fetch(api: Any, name: str, ids: Sequence[str]) -> list[CachedRun]:
    """Return runs with what they hold, by one request."""
    filters = {"name": {"$in": list(ids)}}
    page = _tried(
        lambda: list(api.runs(name, filters=filters, per_page=_NUM_FETCHED, lazy=False)), name
    )
    asked = set(ids)
    return [_cached(run) for run in page if run.id in asked]


def _cached(run: Any) -> CachedRun:
    reason = None
    config: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    try:
        config, summary = flat(run.config), flat(run.summary_metrics)
    except ValueError as error:
        reason = f"run {run.id}: {error}"
    tracked = TrackedRun(about={"id": run.id}, config=config, summary=summary, reason=reason)
    digest = hashlib.sha256(repr((run.id, _stamp(run), config, summary)).encode()).hexdigest()
    return CachedRun(key=run.id, stamp=_stamp(run), sha256=digest, run=tracked)


def _stamp(run: Any) -> str:
    """Return what tells whether a run's values may have changed since."""
    return f"{run.state} {run.heartbeat_at}"


def _named(run: Any, cached: CachedRun | None) -> TrackedRun:
    """Return a run with what the list says of it, since names and tags change at any time.

    Args:
        run: as it was listed.
        cached: what was fetched; None: no page had it.
    """
    about = {"id": run.id, "name": run.name, "state": run.state, "tags": list(run.tags or ())}
    about |= {"group": run.group, "job_type": run.job_type, "created_at": run.created_at}
    if cached is None:
        return TrackedRun(about=about, reason=f"run {run.id} was deleted while runs were fetched")
    return replace(cached.run, about=about)


@contextmanager
def _quiet(folder: str) -> Iterator[None]:
    """Let the library ask nothing, report nothing, and write in a folder that goes away."""
    # It makes a folder for each run that it lists, except where none can be made.
    no_folder = Path(folder) / "none"
    no_folder.touch()
    variables: Mapping[str, str] = {
        **{"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"},
        **{"WANDB_DIR": str(no_folder), "WANDB_CACHE_DIR": folder, "WANDB_DATA_DIR": folder},
    }
    with environment_with(variables):
        yield


def _open(name: str) -> tuple[Any, str]:
    """Return the library's API, logged in, and the server that it asks.

    Raises:
        UserError: the package or the key is missing, the key is refused, or nothing answers.
    """
    try:
        import wandb
    except ImportError:
        do = "pip install 'isoflop[wandb]'"
        raise UserError("package", "wandb", f"installed to read {name}", do) from None
    server = os.environ.get("WANDB_BASE_URL") or wandb.setup().settings.base_url
    # The library would try for minutes.
    if not answers(server):
        do = f"{server} does not: import it where it does, or exported runs, or wandb:FOLDER"
        raise UserError(_WHAT, name, _ANSWERS, do)
    do = "set WANDB_API_KEY to a key that the server knows, or run `wandb login`"
    try:
        return wandb.Api(timeout=_TIMEOUT_S), server
    except (wandb.errors.Error, ValueError) as error:
        raise UserError(_WHAT, name, f"readable ({_line(error)})", do) from None


def _tried(ask: Callable[[], _T], name: str) -> _T:
    """Return what the server answers, after some tries.

    Raises:
        UserError: it does not, or there is no such project.
    """
    pause_s = _PAUSE_S
    for left in reversed(range(_TRIES)):
        try:
            return ask()
        except ValueError as error:
            do = "check its name on the server, and that your key may read it"
            raise UserError(_WHAT, name, f"a project with runs ({_line(error)})", do) from None
        # The library's own errors have no common class that it documents.
        except Exception as error:
            if left == 0:
                do = "type the same again, which goes on where it was"
                raise UserError(_WHAT, name, f"{_ANSWERS} ({_line(error)})", do) from None
        time.sleep(pause_s)
        pause_s *= 2
    raise AssertionError


def _line(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error)).strip()[:200].rstrip(".")

"""Runs as trackers know them, and the table of them: a row a run, a column a key."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

MAX_KEYS = 20_000
"""Of one run; more are no configuration, but a file that was made to fill the memory."""
_MAX_DEPTH = 20
# Of the text of a list.
_MAX_PIECES = 2000
_NOTHING = object()

# As W&B writes numbers that JSON has not.
_NO_NUMBERS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_ABOUT = ("id", "name", "state", "tags", "group", "job_type", "entity", "project", "created_at")
_REASON = "excluded_reason"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackedRun:
    """One run of a tracker."""

    about: Mapping[str, Any]
    """What the tracker itself knows: id, name, state, tags, group, created_at …"""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Settings by their keys, nested ones joined by dots."""
    summary: Mapping[str, Any] = field(default_factory=dict)
    """Last values by their keys, nested ones joined by dots."""
    reason: str | None = None
    """Why it could not be read; None: it could."""


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested values with keys joined by dots; what the library itself keeps is left out.

    Raises:
        ValueError: they are too many, or nested too deep.
    """
    found: dict[str, Any] = {}
    # Aliases of YAML make few bytes into more values than there is memory.
    for seen, (name, value) in enumerate(_leaves(values, "", 0)):
        if seen >= MAX_KEYS:
            raise ValueError(f"more than {MAX_KEYS:,} keys")
        if value is not _NOTHING:
            found[name] = value
    return found


def _leaves(values: Mapping[Any, Any], prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
    if depth > _MAX_DEPTH:
        raise ValueError(f"nested deeper than {_MAX_DEPTH} levels")
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            # Images, tables and histograms of W&B have a type of their own.
            is_left_out = name == "_wandb" or "_type" in value
            yield name, _NOTHING
            if not is_left_out:
                yield from _leaves(value, f"{name}.", depth + 1)
        elif isinstance(value, str):
            yield name, _NO_NUMBERS.get(value, value)
        elif not name.startswith("_wandb."):
            is_plain = value is None or isinstance(value, bool | int | float)
            yield name, value if is_plain else _as_text(value)


def _as_text(value: Any) -> str:
    """Return a list, or what YAML may hold besides, as text, of which much is cut off."""
    try:
        pieces = json.JSONEncoder().iterencode(value)
        return "".join(itertools.islice(pieces, _MAX_PIECES))
    except (TypeError, ValueError, RecursionError):
        return str(type(value).__name__)


def plain_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration of W&B, in which each key may hold its value and a description."""
    return {
        key: value["value"] if isinstance(value, Mapping) and "value" in value else value
        for key, value in values.items()
        if key != "wandb_version"
    }


def merged(parts: Sequence[TrackedRun]) -> TrackedRun:
    """Return the run that several attempts belong to, in the order of time."""
    about: dict[str, Any] = {}
    config: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    for part in parts:
        about |= {key: value for key, value in part.about.items() if value is not None}
        config |= part.config
        summary |= part.summary
    about["created_at"] = parts[0].about.get("created_at")
    return TrackedRun(about=about, config=config, summary=summary)


def frame_of_runs(runs: Sequence[TrackedRun]) -> pd.DataFrame:
    """Return a row a run, with a column for each key of any of them.

    A key has its own name, or begins with ``config.`` or ``summary.`` where another column has
    that name. ``excluded_reason`` is there where a run could not be read.
    """
    import pandas as pd

    about = [name for name in _ABOUT if any(run.about.get(name) is not None for run in runs)]
    about += [key for key in _keys(run.about for run in runs) if key not in _ABOUT]
    config, summary = _keys(run.config for run in runs), _keys(run.summary for run in runs)
    taken = {*about, _REASON, "source_file"}
    columns: dict[str, list[Any]] = {}
    for name in about:
        columns[name] = [_cell(run.about.get(name)) for run in runs]
    for prefix, keys, others in (("config", config, summary), ("summary", summary, config)):
        values = [getattr(run, prefix) for run in runs]
        for key in keys:
            name = f"{prefix}.{key}" if key in taken or key in others else key
            while name in columns:
                name = f"{prefix}.{name}"
            columns[name] = [of_run.get(key) for of_run in values]
    if any(run.reason is not None for run in runs):
        columns[_REASON] = [run.reason for run in runs]
    return pd.DataFrame(columns, index=range(len(runs)), dtype=object)


def _keys(all_values: Iterable[Mapping[str, Any]]) -> dict[str, None]:
    """Return the keys of any of them, in the order in which they come first."""
    found: dict[str, None] = {}
    for values in all_values:
        found |= dict.fromkeys(values)
    return found


def _cell(value: Any) -> Any:
    return ", ".join(map(str, value)) if isinstance(value, list) else value

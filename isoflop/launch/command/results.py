"""The result of a run by a command of the user's own, read where the study's [trainer.result] says.

Read once, right after the command has ended: files are what that command left, links among them.
Verbs that only look read none of them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from glob import escape, has_magic
from pathlib import Path
from typing import Any, Literal

from isoflop.errors import UserError, shown
from isoflop.files import open_regular
from isoflop.launch.command.patterns import SlowPatternError
from isoflop.launch.command.rows import (
    Row,
    Source,
    csv_lines,
    json_lines,
    log_lines,
    look_up,
    number,
)
from isoflop.launch.command.trackers import TensorboardSource, WandbSource
from isoflop.study.trainer import ResultTable, placed

MAX_JSON_BYTES = 2**26

_DO = "correct [trainer.result], or what the command writes"
_SHOWN_NAMES = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class Places:
    """Where a command's attempt was at work."""

    values: Mapping[str, str]
    """Of the placeholders of where it runs: checkpoint_dir, result, log, run_id …"""
    folder: Path
    """In which it was started."""

    @property
    def result(self) -> Path:
        """The file that isoflop.trainer.finish writes."""
        return Path(self.values["result"])

    def path(self, table: ResultTable) -> Path:
        """Return the path of the study's file or folder of results.

        Of those that a pattern such as `{checkpoint_dir}/meta_*.json` fits, the newest.
        """
        path = self.folder / placed(table.path, self.values)
        if not has_magic(table.path):
            return path
        values = {name: escape(value) for name, value in self.values.items()}
        pattern = Path(escape(str(self.folder))) / placed(table.path, values)
        found = Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor)))
        return max(found, key=lambda path: (path.stat().st_mtime_ns, path), default=path)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """What a command said of its end, where that is no result."""

    status: Literal["diverged", "stopped"]
    """Stopped: to be continued."""
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainerResult:
    """What a command reported."""

    loss: float
    """In the study's unit; no finite number where the run diverged."""
    tokens: int | None = None
    """Trained on; None: it does not tell."""
    n_params: int | None = None
    loss_se: float | None = None
    wall_s: float | None = None
    peak_mem_bytes: int | None = None
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    """None: it is no finite number."""

    @property
    def ending(self) -> Ending | None:
        """What is to be said instead of a loss; None: the run is done."""
        if math.isfinite(self.loss):
            return None
        return Ending(status="diverged", reason=f"the final loss is {self.loss}")


def read_ending(places: Places) -> Ending | None:
    """Return what isoflop.trainer's `stop` or `diverged` recorded; None: nothing.

    Launchers of several ranks turn the exit code of a rank into another.
    """
    try:
        values = _read_json(places.result)
    except (OSError, UserError):
        return None
    status = values.get("status") if isinstance(values, dict) else None
    if status not in ("diverged", "stopped"):
        return None
    return Ending(status=status, reason=" ".join(str(values.get("reason", "")).split())[:500])


def read_result(table: ResultTable, places: Places) -> TrainerResult:
    """Return what a command that ended well reported.

    Raises:
        UserError: there is no result, no loss in it, a metric is missing, or one of them is no
            number.
    """
    is_ours = table.path == "{result}"
    keys = {"loss": table.loss, "tokens": table.tokens, "n_params": table.n_params}
    if is_ours:
        # The keys that isoflop.trainer.finish writes.
        keys |= {name: keys.get(name) or name for name in _FINISHED}
    wanted = {name: key for name, key in keys.items() if key is not None}
    path = Path(table.path)
    try:
        path = places.path(table)
        source = source_of(table, path)
        found = source.last({*wanted.values(), *table.metrics.values()})
    except OSError as error:
        raise UserError(
            "result", str(path), f"readable when the command has ended ({error.strerror})", _DO
        ) from None
    except SlowPatternError as error:
        raise UserError("loss", table.loss, f"a quicker pattern ({error})", _DO) from None
    if is_ours and isinstance(source, JsonSource):
        unit = source.values.get("unit", table.unit)
        if unit != table.unit:
            raise UserError("result's unit", unit, f"the study's {table.unit}", _DO)
    values = {name: _value(name, key, found) for name, key in wanted.items()}
    if values["loss"] is None:
        raise _missing("loss", table.loss, path, source)
    # What diverged may lack the rest.
    is_done = math.isfinite(values["loss"])
    for name in ("tokens", "n_params"):
        is_needed = getattr(table, name) is not None or (name == "tokens" and is_ours)
        if values.get(name) is None and is_needed and is_done:
            raise _missing(name, wanted[name], path, source)
    metrics = _more_metrics(source)
    for name, key in table.metrics.items():
        value = _number(f"metric {name}", key, found)
        if value is not None:
            metrics[name] = value
        elif is_done:
            raise _missing(f"metric {name}", key, path, source)
    return TrainerResult(
        **values, metrics={k: float(v) if math.isfinite(v) else None for k, v in metrics.items()}
    )


_FINISHED = ("tokens", "n_params", "loss_se", "wall_s", "peak_mem_bytes")
_WHOLE = ("tokens", "n_params", "peak_mem_bytes")


def _value(name: str, key: str, found: Row) -> Any:
    """Return a value as the field of that name has it; None: it is missing.

    Raises:
        UserError: it is none.
    """
    value = _number(name, key, found)
    if value is None:
        return None
    if name == "loss":
        return float(value)
    if name in _WHOLE:
        # A whole number may be written as a float, as pandas writes a column with gaps.
        if not math.isfinite(value) or value != int(value) or value < 0:
            raise UserError(name, value, "a whole number", _DO)
        return int(value)
    if value < 0:
        raise UserError(name, value, "at least 0", _DO)
    return float(value) if math.isfinite(value) else None


def _number(name: str, key: str, found: Row) -> float | int | None:
    try:
        return number(found.get(key))
    except ValueError as error:
        raise UserError(name, shown(f"{key} ({error})"), "a number", _DO) from None


def _missing(name: str, key: str, path: Path, source: Source) -> UserError:
    names = source.names()
    there = ""
    if names:
        more = "" if len(names) <= _SHOWN_NAMES else ", …"
        there = f", which has {', '.join(names[:_SHOWN_NAMES])}{more}"
    return UserError(name, key, f"with a value in {path}{there}", _DO)


def _more_metrics(source: Source) -> dict[str, float | int]:
    """Return the metrics of a JSON result, named by the study or not, where they are numbers."""
    found: dict[str, float | int] = {}
    table = source.values.get("metrics") if isinstance(source, JsonSource) else None
    for name, value in (table if isinstance(table, dict) else {}).items():
        try:
            read = number(value)
        except ValueError:
            continue
        if read is not None and name.isidentifier():
            found[name] = read
    return found


def check_against_plan(result: TrainerResult, *, n_tokens: int, n_params: int) -> None:
    """Refuse a result of another training than the planned one, as far as it tells.

    Args:
        result: what the command reported.
        n_tokens: planned tokens of the whole run.
        n_params: planned parameters of the model.

    Raises:
        UserError: other tokens or parameters.
    """
    if result.tokens is not None and result.tokens != n_tokens:
        do = "count all ranks and attempts, and stop after {steps} optimizer steps"
        if result.tokens and n_tokens % result.tokens == 0:
            num = n_tokens // result.tokens
            do = f"count all ranks if that is one of {num} (--ranks {num} starts them); else {do}"
        raise UserError("result's tokens", result.tokens, f"the plan's {n_tokens}", do)
    if result.n_params is not None and result.n_params != n_params:
        do = "let count in [trainer] build what the command trains, then plan again"
        raise UserError("result's n_params", result.n_params, f"the {n_params} counted", do)


def source_of(table: ResultTable, path: Path) -> Source:
    """Return what reads the file or folder of a study's table."""
    makers: Mapping[str, Callable[[Path], Source]] = {
        **{"json": JsonSource, "csv": csv_lines, "jsonl": json_lines, "log": log_lines},
        **{"tensorboard": TensorboardSource, "wandb": WandbSource},
    }
    return makers[table.kind](path)


class JsonSource:
    """A JSON file with the result; its list `curve` may hold the points of the curve."""

    step_key = "step"

    def __init__(self, path: Path) -> None:
        self._path = path
        self.values: Mapping[str, Any] = {}

    def last(self, keys: Collection[str]) -> Row:
        """Return the values of keys; what is not there is looked for in its table `metrics`."""
        self.values = _read_json(self._path)
        if not isinstance(self.values, dict):
            raise UserError("result", str(self._path), "a JSON object", _DO)
        found = {}
        for key in keys:
            value = look_up(self.values, key)
            found[key] = look_up(self.values.get("metrics"), key) if value is None else value
        return found

    def new_rows(self, keys: Collection[str]) -> list[Row]:
        """Return nothing: there is no result yet."""
        return []

    def names(self) -> list[str]:
        """Return the keys of the file."""
        return list(self.values)


def _read_json(path: Path) -> Any:
    with open_regular(path) as file:
        text = file.read(MAX_JSON_BYTES + 1)
    if len(text) > MAX_JSON_BYTES:
        raise UserError("result", str(path), f"of at most {MAX_JSON_BYTES // 2**20} MB", _DO)
    try:
        return json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        line = str(error).splitlines()[0]
        raise UserError("result", str(path), f"valid JSON ({line})", _DO) from None

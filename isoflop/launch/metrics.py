"""What a run reports: JSON lines while it trains, tables when it is finished, sinks on request.

A row of metrics.jsonl is a step's metrics, or an event: a row with the key `event`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop.tables import Schema, write_table

if TYPE_CHECKING:
    from isoflop.launch.sinks import Sink
    from isoflop.train.hooks import StepMetrics
    from isoflop.train.throughput import Achieved

logger = logging.getLogger("isoflop")

# Rows of metrics.jsonl per run: enough for a curve, small enough to keep.
MAX_METRIC_ROWS = 200

_LARGEST = 2**63 - 1

LINES_FILE = "metrics.jsonl"
METRICS_FILE = "metrics.parquet"
USAGE_FILE = "usage.parquet"

METRICS = Schema(
    table="metrics",
    columns=(
        ("step", "int64"),
        ("attempt", "int64"),
        ("loss", "float64"),
        ("grad_norm", "float64"),
        ("lr", "float64"),
        ("tokens", "int64"),
        ("wall_s", "float64"),
        ("tokens_per_s", "float64"),
        ("flops_per_s", "float64"),
        ("share_of_peak", "float64"),
        ("heldout_loss", "float64"),
        ("heldout_loss_se", "float64"),
    ),
)

USAGE = Schema(
    table="usage",
    columns=(
        ("step", "int64"),
        ("attempt", "int64"),
        ("split", "string"),
        ("layer", "int64"),
        ("channel", "int64"),
        ("num_experts", "int64"),
        ("num_choices", "int64"),
        ("fraction_used", "float64"),
        ("entropy", "float64"),
        ("cv", "float64"),
        ("ever_used", "float64"),
    ),
)


def is_row(step: int, steps: int) -> bool:
    """Return whether a run of ``steps`` logs the metrics of a step (from 0).

    About MAX_METRIC_ROWS are logged, the last one always.
    """
    return step % max(1, steps // MAX_METRIC_ROWS) == 0 or step == steps - 1


class Lines:
    """A file of JSON lines that is appended to.

    A line that a crash or a full disk cut off is closed before the next. What cannot be written is
    lost, with one warning; the run goes on.
    """

    def __init__(self, path: Path) -> None:
        if path.exists() and not path.is_file():
            # The opening of a pipe would wait for its reader.
            raise PermissionError(errno.EPERM, "Not a regular file", str(path))
        self._cut_off = _is_cut_off(path)
        self._warned = False
        self.trouble: str | None = None
        """Why the newest row could not be written; None: it was."""
        # Unbuffered: what a full disk refused is not tried again, and a row is one write.
        self._file = path.open("ab", buffering=0)

    def append(self, row: Mapping[str, Any]) -> None:
        """Append a row; a number that is not finite becomes null."""
        line = json.dumps(_null_where_not_finite(row)).encode() + b"\n"
        line = b"\n" + line if self._cut_off else line
        try:
            self._cut_off = self._file.write(line) < len(line)
            self.trouble = "the file system took a part of a row" if self._cut_off else None
        except OSError as error:
            self._cut_off = True
            self.trouble = str(error.strerror)
            if not self._warned:
                logger.warning("metrics are lost, training goes on: %s", error)
            self._warned = True

    def sync(self) -> None:
        """Wait until all rows are on the disk, where that can be."""
        with contextlib.suppress(OSError):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _is_cut_off(path: Path) -> bool:
    if not path.exists() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read() != b"\n"


class MetricsLog:
    """Appends rows to metrics.jsonl and hands them to the sinks.

    Args:
        path: metrics.jsonl of the run.
        attempt: number of the attempt.
        steps: optimizer steps of the run.
        rate: what a number of tokens in a number of seconds came to, see
            :func:`isoflop.train.throughput.achieved`; None: rates are not logged.
        sinks: where rows go, too.
    """

    def __init__(
        self,
        path: Path,
        attempt: int,
        steps: int,
        *,
        rate: Callable[[int, float], Achieved | None] | None = None,
        sinks: Sequence[Sink] = (),
    ) -> None:
        self._attempt = attempt
        self._steps = steps
        self._rate = rate
        self._sinks = sinks
        self._last: StepMetrics | None = None
        self._lines = Lines(path)

    @property
    def trouble(self) -> str | None:
        """Why the newest row could not be written; None: it was."""
        return self._lines.trouble

    def write(self, metrics: StepMetrics) -> None:
        """Append every n-th step and the last one."""
        if not is_row(metrics.step, self._steps):
            return
        self.row({**dataclasses.asdict(metrics), **self._rates(metrics)})
        self._last = metrics

    def row(self, values: Mapping[str, Any]) -> None:
        """Append the metrics of a step, by the names of METRICS."""
        self._lines.append({"attempt": self._attempt, **values})
        for sink in self._sinks:
            sink.step(values["step"], values)

    def event(self, kind: str, values: Mapping[str, Any]) -> None:
        """Append what happened, at whatever step."""
        self._lines.append({"attempt": self._attempt, "event": kind, **values})
        for sink in self._sinks:
            sink.event(kind, values)

    def sync(self) -> None:
        """Wait until all rows are on the disk."""
        self._lines.sync()

    def close(self) -> None:
        """Close the file and the sinks, which may take a few seconds for what they still have."""
        self._lines.close()
        for sink in self._sinks:
            sink.close()

    def _rates(self, metrics: StepMetrics) -> dict[str, float | None]:
        """Return rates since the row before; none for the first row of an attempt."""
        if self._rate is None:
            return {}
        done = None
        if self._last is not None:
            tokens = metrics.tokens - self._last.tokens
            done = self._rate(tokens, metrics.wall_s - self._last.wall_s)
        names = ("tokens_per_s", "flops_per_s", "share_of_peak")
        return {name: None if done is None else getattr(done, name) for name in names}


def _null_where_not_finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _null_where_not_finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_null_where_not_finite(inner) for inner in value]
    return value


def write_tables(run_folder: Path) -> None:
    """Write metrics.parquet and, where experts were chosen, usage.parquet from metrics.jsonl.

    Atomic, and may be repeated. Steps that several attempts did count once, as the newest attempt
    did them. A table that cannot be written costs a warning; the lines are still there.
    """
    try:
        rows = list(read_rows(run_folder / LINES_FILE))
        write_table(run_folder / METRICS_FILE, _metrics(rows), METRICS, make_folder=False)
        usage = _usage(rows)
        if usage:
            write_table(run_folder / USAGE_FILE, usage, USAGE, make_folder=False)
    # A full disk, or a line that nothing of this version wrote: neither costs a run its result.
    except Exception as error:
        logger.warning("no tables of metrics, their lines are in %s: %s", LINES_FILE, error)


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield what can be read of metrics.jsonl: a line that a crash cut off is skipped."""
    if path.is_file():
        yield from rows_of(path.read_bytes().splitlines())


def rows_of(lines: Iterable[str | bytes]) -> Iterator[dict[str, Any]]:
    """Yield the rows of lines; what is cut off, or of other types than ours, is skipped."""
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and _is_typed(row):
            yield row


def _is_typed(row: Mapping[str, Any]) -> bool:
    """Return whether the figures that are computed with are numbers of a possible size."""
    whole = [row.get("attempt"), row.get("step", 0)]
    seconds = row.get("wall_s", 0)
    return all(type(value) is int and 0 <= value <= _LARGEST for value in whole) and (
        type(seconds) in (int, float) and 0 <= seconds <= _LARGEST
    )


def newest_by_step(rows: Iterable[Mapping[str, Any]]) -> dict[int, dict[str, Any]]:
    """Return the row of each logged step, ascending; of a repeated step the newest attempt's.

    Steps that an attempt did after its last checkpoint are done again by the next one.
    """
    found: dict[int, dict[str, Any]] = {}
    for row in rows:
        if "event" in row:
            continue
        there = found.get(row["step"])
        if there is None or there["attempt"] <= row["attempt"]:
            found[row["step"]] = dict(row)
    return dict(sorted(found.items()))


def _metrics(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row per step that was logged or evaluated, in order."""
    steps = newest_by_step(rows)
    # Attempts follow one another in the file, so that later lines are of newer attempts.
    heldout = {row["step"]: row for row in rows if row.get("event") == "evaluation"}
    table = []
    for step in sorted(steps.keys() | heldout.keys()):
        values = {name: steps.get(step, {}).get(name) for name in METRICS.names}
        found = heldout.get(step, {})
        table.append(
            values
            | {
                "step": step,
                "attempt": (steps.get(step) or found)["attempt"],
                "heldout_loss": found.get("loss"),
                "heldout_loss_se": found.get("loss_se"),
            }
        )
    return table


def _usage(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    events = {(row["split"], row["step"]): row for row in rows if row.get("event") == "usage"}
    return [
        {"step": event["step"], "attempt": event["attempt"], "split": event["split"], **figures}
        for event in sorted(events.values(), key=lambda event: (event["step"], event["split"]))
        for figures in event["rows"]
    ]

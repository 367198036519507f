"""The curve of a run by a command of the user's own, read while it grows."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from isoflop.errors import UserError, failure_reason
from isoflop.launch.command.patterns import TOKENS
from isoflop.launch.command.results import Places, source_of
from isoflop.launch.command.rows import Row, Source, json_lines, number
from isoflop.study.trainer import ResultTable
from isoflop.trainer import CURVE_FILE

MAX_POINTS = 200
"""About how many points of a run are kept."""

_LARGEST = 2**63 - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class CurvePoint:
    """What a command reported of a step."""

    step: int
    """As it counts."""
    loss: float
    """May be no finite number."""
    tokens: int | None = None
    """Trained on so far; None: it does not tell."""
    time_s: float | None = None
    """Unix time; None: it does not tell."""
    values: Mapping[str, float] = field(default_factory=dict)
    """Other finite numbers by name, such as lr and grad_norm."""


class CurveReader:
    """Gives the points that are new since the last call; cheap, and never raises.

    What :func:`isoflop.trainer.report` wrote comes before what the study's table names.

    Args:
        table: the study's.
        places: of the attempt.
        steps: optimizer steps of the run, of which some are skipped for about MAX_POINTS points.
    """

    def __init__(self, table: ResultTable, places: Places, *, steps: int) -> None:
        self._table = table
        self._places = places
        self._reported = json_lines(places.result.with_name(CURVE_FILE))
        self._source: Source | None = None
        self._path: Path | None = None
        self._every = max(1, steps // MAX_POINTS)
        self._kept: CurvePoint | None = None
        self._kept_row: Row | None = None
        self._newest: Row | None = None
        self.trouble: str | None = None
        """Why the study's curve is read no more; None: it is, or is not there yet."""

    @property
    def newest(self) -> CurvePoint | None:
        """The newest point, whether it was given or skipped."""
        return None if self._newest is None else _point(self._newest)

    def new_points(self) -> list[CurvePoint]:
        """Return new points; the first loss that is no finite number is always among them."""
        return self._kept_of(self._new_rows())

    def last_points(self) -> list[CurvePoint]:
        """Return the rest when the command has ended, its last point included."""
        points = []
        while rows := self._new_rows():
            points += self._kept_of(rows)
        if self._newest is None:
            points += self._kept_of(self._rows_of_result())
        if self._newest is not None and self._newest is not self._kept_row:
            self._kept, self._kept_row = _point(self._newest), self._newest
            points.append(self._kept)
        return points

    def _new_rows(self) -> Sequence[Row]:
        """Return new rows, with the keys that isoflop.trainer.report writes."""
        # Nothing is reported yet.
        with contextlib.suppress(OSError):
            return self._reported.new_rows(())
        if self.trouble is not None:
            return []
        try:
            return self._new_rows_of_source()
        # Not there yet, or without its header.
        except (OSError, UserError):
            return []
        # A pattern that takes too long, and whatever a library raises.
        except Exception as error:
            self.trouble = failure_reason(error)
            return []

    def _new_rows_of_source(self) -> Sequence[Row]:
        table, path = self._table, self._places.path(self._table)
        if self._source is None or path != self._path:
            self._source, self._path = source_of(table, path), path
        keys = {"loss": table.curve or table.loss, "step": table.step or self._source.step_key}
        if table.tokens is not None or table.kind == "log":
            keys["tokens"] = table.tokens or TOKENS
        rows = self._source.new_rows(set(keys.values()))
        return [{name: row.get(key) for name, key in keys.items()} for row in rows]

    def _rows_of_result(self) -> Sequence[Row]:
        """Return the list `curve` of a JSON result."""
        with contextlib.suppress(OSError, UserError):
            source = source_of(self._table, self._places.path(self._table))
            rows = source.last(["curve"]).get("curve") if self._table.kind == "json" else None
            return [row for row in rows or () if isinstance(row, dict)]
        return []

    def _kept_of(self, rows: Iterable[Row]) -> list[CurvePoint]:
        found = []
        for row in rows:
            step, loss = _read(row.get("step")), _read(row.get("loss"))
            if step is None or loss is None or not 0 <= step <= _LARGEST:
                continue
            self._newest = row
            kept = self._kept
            if (
                kept is None
                or not kept.step <= step < kept.step + self._every
                or math.isfinite(kept.loss) != math.isfinite(loss)
            ):
                self._kept = _point(row)
                self._kept_row = row
                found.append(self._kept)
        return found


_NAMED = ("step", "loss", "tokens", "time_s")


def _read(value: Any) -> float | int | None:
    """Return a value as a number; None: it is missing, or none."""
    try:
        return number(value)
    except ValueError:
        return None


def _point(row: Row) -> CurvePoint:
    """Return the point of a row that has a step and a loss."""
    found = {name: read for name, value in row.items() if (read := _read(value)) is not None}
    finite = {name: value for name, value in found.items() if math.isfinite(value)}
    tokens = finite.get("tokens")
    return CurvePoint(
        step=int(found["step"]),
        loss=float(found["loss"]),
        tokens=None if tokens is None or not 0 <= tokens <= _LARGEST else int(tokens),
        time_s=finite.get("time_s"),
        values={name: float(v) for name, v in finite.items() if name not in _NAMED},
    )

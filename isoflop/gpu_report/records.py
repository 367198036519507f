"""What passes between the report's processes and into its file: jobs, and rows of results."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Outcome = Literal["measured", "passed", "failed", "skipped", "cut"]
"""`measured`: a number; `passed`, `failed`: a check; `skipped`: for the reason in the note, which
is no mistake; `cut`: for lack of time."""

BAD: tuple[Outcome, ...] = ("failed", "cut")
"""Outcomes that the exit code tells of."""


FACT = "fact"
"""In the details of a row of the first stage, what later ones know of the machine."""
COMPUTE_MODE = "compute mode"
"""The fact whether several processes may use the GPU."""
TAKEN = "taken"
"""In the details of a kernel's row, whether a call of its size takes this version by itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One result; None where nothing was predicted or measured, never 0."""

    stage: str
    case: str
    """What was run."""
    what: str = ""
    """Which of its numbers this is."""
    unit: str = ""
    predicted: float | None = None
    measured: float | None = None
    outcome: Outcome = "measured"
    note: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else is known, for the file alone."""

    @property
    def ratio(self) -> float | None:
        """Return measured over predicted."""
        if self.predicted is None or self.measured is None or self.predicted <= 0:
            return None
        return self.measured / self.predicted


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What a worker measures in one go."""

    stage: str
    case: str
    kind: str
    """Names the function of `worker.py`."""
    limit_s: float
    """Seconds that it may take, whatever is left of its stage."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """Arguments, as JSON has them."""


class ResultsFile:
    """Rows as lines of JSON, each on the disk before the next is measured.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        self.rows: list[Row] = []

    def append(self, row: Row, at_s: float) -> None:
        """Write one row; ``at_s`` is seconds since the command began."""
        line = json.dumps(to_json(row) | {"at_s": round(at_s, 3)}, ensure_ascii=False) + "\n"
        with self._lock:
            self.rows.append(row)
            os.write(self._descriptor, line.encode())
            os.fsync(self._descriptor)


def to_json(value: Row | Job) -> dict[str, Any]:
    """Return plain JSON values; a number that is not finite, which JSON lacks, is null."""
    return {name: _plain(each) for name, each in dataclasses.asdict(value).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value

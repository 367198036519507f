"""A table's shape, before its columns are looked at: exported charts, names that stand twice.

W&B exports a chart as csv with a step a row and columns ``RUN - METRIC`` for each run.

Beside the value of a metric stand its minimum and maximum (``RUN - METRIC__MIN``). Such a table
becomes one with a row a run: ``run``, ``step`` and a column for each metric, at the last step that
has it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from isoflop.ingest.files import SOURCE_FILE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from isoflop.ingest.files import RawTable

_STEPS = ("step", "_step", "global_step", "trainer/global_step", "relative time (wall)")
_BETWEEN = " - "
_BOUNDS = ("__MIN", "__MAX")
RUN = "run"
STEP = "step"


def is_chart(names: Sequence[str]) -> bool:
    """Return whether the columns are those of an exported chart."""
    others = [name for name in names if name.lower() not in _STEPS]
    has_step = len(others) < len(names)
    own = [name for name in others if not _is_index(name)]
    return has_step and bool(own) and all(_BETWEEN in name for name in own)


def prepared(raw: RawTable) -> RawTable:
    """Return a table with rows from 0 and a row a run, each name of a column once.

    A name that stands again gets its number: ``loss``, ``loss (2)``.
    """
    seen: Counter[str] = Counter()
    names = []
    for name in map(str, raw.frame.columns):
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    frame = raw.frame.set_axis(names, axis=1).reset_index(drop=True)
    table = replace(raw, frame=frame)
    return _runs_of_chart(table) if is_chart(names) else table


def _runs_of_chart(raw: RawTable) -> RawTable:
    import pandas as pd

    names = [str(name) for name in raw.frame.columns]
    step = next(name for name in names if name.lower() in _STEPS)
    rows: dict[str, dict[str, Any]] = {}
    for name in names:
        if _BETWEEN not in name or name.endswith(_BOUNDS):
            continue
        run, _, metric = name.rpartition(_BETWEEN)
        row = rows.setdefault(run, {RUN: run, STEP: None})
        column = raw.frame[name]
        logged = column[column.notna() & (column.astype(str).str.strip() != "")]
        if len(logged):
            row[metric] = logged.iloc[-1]
            row[STEP] = raw.frame[step].loc[logged.index[-1]]
    return replace(raw, frame=pd.DataFrame(list(rows.values())))


def _is_index(name: str) -> bool:
    return not name.strip() or name.startswith("Unnamed:") or name == SOURCE_FILE

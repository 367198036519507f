"""The table runs.parquet: what came of every run of a plan, by the files of its folders alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from isoflop.launch.status import LIVE, RunState, study_states
from isoflop.plan.estimate import load_estimates
from isoflop.plan.planner import Plan
from isoflop.tables import MEASURED, PLAN, RUNS, read_table, write_table

DAMAGED = "damaged: "
"""What runs.parquet has before the line of a damaged record."""

# As long as a run trains or is going to, runs.parquet calls it missing.
_UNFINISHED = (*LIVE, "lost", "damaged")

# What a row has beyond the plan.
_KEPT = RUNS.names[len(PLAN.names) :]


def runs_row(state: RunState) -> dict[str, Any]:
    """Return the row of runs.parquet; what is not measured is null. A run at work is `missing`."""
    result = state.result
    reasons = {"running": "running", "damaged": f"{DAMAGED}{state.reason}"}
    return {
        **state.run.row(),
        **{name: None if result is None else getattr(result, name) for name in MEASURED},
        "n_attempts": state.num_attempts,
        "status": "missing" if state.state in _UNFINISHED else state.state,
        "status_reason": reasons.get(state.state, state.reason),
        "excluded_reason": None,
    }


def collect(folder: Path, plan: Plan, out_folder: Path | None = None) -> list[dict[str, Any]]:
    """Write runs.parquet from the run folders and return its rows, see :func:`collected_rows`.

    Args:
        folder: the study's folder.
        plan: its plan.
        out_folder: where the table goes; None: into the study's folder.

    Raises:
        UserError: a table that is needed is damaged.
    """
    rows = collected_rows(folder, plan)
    write_table((out_folder or folder) / "runs.parquet", rows, RUNS)
    return rows


def collected_rows(folder: Path, plan: Plan) -> list[dict[str, Any]]:
    """Return the rows of runs.parquet, and write nothing.

    A run without a folder keeps the result that the study's runs.parquet already has: the tables
    of a study travel without its run folders.

    Raises:
        UserError: a table that is needed is damaged.
    """
    states = study_states(folder, plan)
    stored = load_estimates(folder)
    estimates = {} if stored is None else stored.columns
    rows = [{**runs_row(state), **estimates.get(state.run.run_id, {})} for state in states]
    kept = results_without_folder(folder, states)
    return [row | kept.get(row["run_id"], {}) for row in rows]


def results_without_folder(folder: Path, states: list[RunState]) -> dict[str, dict[str, Any]]:
    """Return what runs.parquet holds of finished runs that have no folder here, by run id.

    Raises:
        UserError: there are runs without a folder, and the table is damaged.
    """
    path = folder / "runs.parquet"
    bare = {s.run.run_id for s in states if s.num_attempts == 0 and s.result is None}
    bare -= {s.run.run_id for s in states if s.state == "damaged"}
    if not bare or not path.exists():
        return {}
    return {
        row["run_id"]: {name: row[name] for name in _KEPT}
        for row in read_table(path, RUNS)
        if row["run_id"] in bare and row["status"] in ("done", "diverged")
    }


def damaged_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each run of :func:`collect` whose records cannot be read."""
    found = (row["status_reason"] for row in rows if row["status"] == "missing")
    return list(dict.fromkeys(line for line in found if line and line.startswith(DAMAGED)))

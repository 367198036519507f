"""Estimates beside a plan: estimates.json and the est_ columns of plan.parquet.

They are not part of the plan: made again for other hardware, they replace the older ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from isoflop.files import dump_json, write_text_atomic
from isoflop.plan.artefact import write_plan, write_plan_table
from isoflop.plan.estimate.estimates import PlanEstimate, RunEstimate, estimate_for
from isoflop.plan.estimate.memory import PlacementEstimate
from isoflop.plan.planner import Plan
from isoflop.validate import read_record

ESTIMATES_FILE = "estimates.json"
ESTIMATES_SCHEMA_VERSION = 1

Columns = Mapping[str, float | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredEstimates:
    """What estimates.json says."""

    hardware: str
    """Name of the hardware profile."""
    gpu_hours: float
    """Device-hours of all runs that fit, as they are executed."""
    columns: Mapping[str, Columns]
    """The est_ columns of plan.parquet by run id."""
    placements: Mapping[str, PlacementEstimate]
    """How each run is laid out on that hardware, by run id."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _RunEntry:
    est_step_s: float | None
    est_gpu_hours: float | None
    est_peak_mem_bytes: float | None
    placement: PlacementEstimate | None


@dataclass(frozen=True, kw_only=True, slots=True)
class _EstimatesFile:
    """What is used of estimates.json."""

    schema_version: Literal[1]
    hardware: str
    gpu_hours: float
    runs: Mapping[str, _RunEntry]


def est_columns(estimate: RunEstimate) -> dict[str, float | None]:
    """Return the est_ columns of one run."""
    return {
        "est_step_s": estimate.step_s,
        "est_gpu_hours": estimate.gpu_hours,
        "est_peak_mem_bytes": None
        if estimate.peak_mem_bytes is None
        else float(estimate.peak_mem_bytes),
    }


def write_with_estimates(plan: Plan, estimate: PlanEstimate, folder: Path) -> bool:
    """Write a plan and its estimates; False where the same plan is there already.

    Raises:
        UserError: the folder holds a different plan; nothing is written.
    """
    is_new = write_plan(plan, folder, _columns(estimate))
    if is_new:
        write_text_atomic(folder / ESTIMATES_FILE, dump_json(_to_json(estimate)))
    else:
        store_estimates(plan, estimate, folder)
    return is_new


def store_estimates(plan: Plan, estimate: PlanEstimate, folder: Path) -> None:
    """Write estimates.json and plan.parquet into a folder that holds the plan.

    Writes nothing where the same estimates are there already.
    """
    path = folder / ESTIMATES_FILE
    text = dump_json(_to_json(estimate))
    if path.exists() and path.read_bytes() == text.encode():
        return
    write_plan_table(plan, folder, _columns(estimate))
    # Last, so that a file that is there speaks of the table beside it.
    write_text_atomic(path, text)


def load_estimates(folder: Path) -> StoredEstimates | None:
    """Return the estimates beside a plan; None where there are none.

    Raises:
        UserError: the file is damaged or of another version.
    """
    path = folder / ESTIMATES_FILE
    if not path.exists():
        return None
    found = read_record(_EstimatesFile, path, "estimates", "remove the file and plan again")
    return StoredEstimates(
        hardware=found.hardware,
        gpu_hours=found.gpu_hours,
        columns={
            run_id: {name: getattr(entry, name) for name in _COLUMNS}
            for run_id, entry in found.runs.items()
        },
        placements={
            run_id: entry.placement
            for run_id, entry in found.runs.items()
            if entry.placement is not None
        },
    )


def same_hardware_hours(
    before: StoredEstimates | None, after: StoredEstimates | None
) -> tuple[float, float] | None:
    """Return device-hours of two plans; None unless both are estimated for the same hardware."""
    if before is None or after is None or before.hardware != after.hardware:
        return None
    return before.gpu_hours, after.gpu_hours


def _columns(estimate: PlanEstimate) -> dict[str, Columns]:
    return {run_id: est_columns(run) for run_id, run in estimate.runs.items()}


_COLUMNS = ("est_step_s", "est_gpu_hours", "est_peak_mem_bytes")


def _to_json(estimate: PlanEstimate) -> dict[str, Any]:
    saved = estimate.gpu_hours_saved
    return {
        "schema_version": ESTIMATES_SCHEMA_VERSION,
        "hardware": estimate.hardware,
        "unit": estimate.unit,
        "gpu_hours": estimate.gpu_hours,
        # Where nothing is shared, nothing is said of it.
        **({"gpu_hours_saved": saved} if saved else {}),
        "cost": estimate.cost,
        "num_calibrated": estimate.num_calibrated,
        "not_fitting": list(estimate.not_fitting),
        "assumptions": list(estimate.assumptions),
        "runs": {
            run_id: est_columns(run)
            | {
                "source": run.source,
                # Of built-in runs it is never known.
                **({} if run.start_s is None else {"start_s": run.start_s}),
                **({} if run.scale is None else {"scale": asdict(run.scale)}),
                "placement": None if run.placement is None else asdict(run.placement),
            }
            for run_id, run in estimate.runs.items()
        },
    }


def refresh_estimates(plan: Plan, folder: Path) -> None:
    """Estimate a grown plan for the hardware it was estimated for before, if it was."""
    stored = load_estimates(folder)
    if stored is not None:
        store_estimates(plan, estimate_for(plan, folder, stored.hardware), folder)

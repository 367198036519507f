"""Estimates beside a plan: estimates.json, and the est_ columns of plan.parquet.

They are not part of the plan: made again for other hardware, they replace the older ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from isoflop.errors import UserError
from isoflop.files import dump_json, read_json, write_text_atomic
from isoflop.plan.artefact import write_plan, write_plan_table
from isoflop.plan.estimate.estimates import PlanEstimate, RunEstimate
from isoflop.plan.estimate.placement import PlacementEstimate
from isoflop.plan.planner import Plan

FILE_NAME = "estimates.json"
ESTIMATES_SCHEMA_VERSION = 1

Columns = Mapping[str, float | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredEstimates:
    """What estimates.json says."""

    hardware: str
    """Name of the hardware profile."""
    gpu_hours: float
    """Device-hours of all runs that fit, each counted once."""
    columns: Mapping[str, Columns]
    """The est_ columns of plan.parquet by run id."""
    placements: Mapping[str, PlacementEstimate]
    """How each run is laid out on that hardware, by run id."""


def est_columns(estimate: RunEstimate) -> dict[str, float | None]:
    """Return the est_ columns of one run."""
    return {
        "est_step_s": estimate.step_s,
        "est_gpu_hours": estimate.gpu_hours,
        "est_peak_mem_bytes": float(estimate.peak_mem_bytes),
    }


def write_with_estimates(plan: Plan, estimate: PlanEstimate, folder: Path) -> bool:
    """Write a plan and its estimates; False where the same plan is there already.

    Raises:
        UserError: the folder holds a different plan; nothing is written.
    """
    is_new = write_plan(plan, folder, _columns(estimate))
    if is_new:
        write_text_atomic(folder / FILE_NAME, dump_json(_to_json(estimate)))
    else:
        store_estimates(plan, estimate, folder)
    return is_new


def store_estimates(plan: Plan, estimate: PlanEstimate, folder: Path) -> None:
    """Write estimates.json and plan.parquet into a folder that holds the plan.

    Writes nothing where the same estimates are there already.
    """
    path = folder / FILE_NAME
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
    path = folder / FILE_NAME
    if not path.exists():
        return None
    values = read_json(path, "estimates")
    try:
        if values["schema_version"] != ESTIMATES_SCHEMA_VERSION:
            raise ValueError
        return StoredEstimates(
            hardware=str(values["hardware"]),
            gpu_hours=float(values["gpu_hours"]),
            columns={
                run_id: {name: entry[name] for name in _COLUMNS}
                for run_id, entry in values["runs"].items()
            },
            placements={
                run_id: PlacementEstimate(**entry["placement"])
                for run_id, entry in values["runs"].items()
            },
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(
            "estimates",
            str(path),
            f"estimates in version {ESTIMATES_SCHEMA_VERSION}",
            "remove the file and plan again",
        ) from None


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
    return {
        "schema_version": ESTIMATES_SCHEMA_VERSION,
        "hardware": estimate.hardware,
        "unit": estimate.unit,
        "gpu_hours": estimate.gpu_hours,
        "cost": estimate.cost,
        "num_calibrated": estimate.num_calibrated,
        "not_fitting": list(estimate.not_fitting),
        "assumptions": list(estimate.assumptions),
        "runs": {
            run_id: est_columns(run) | {"source": run.source, "placement": asdict(run.placement)}
            for run_id, run in estimate.runs.items()
        },
    }

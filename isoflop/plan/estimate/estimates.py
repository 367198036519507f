"""Estimates of runs and of whole plans: seconds, GPU-hours, memory, money; and their files.

Beside a plan they are estimates.json and the est_ columns of plan.parquet. They are not part of the
plan: made again for other hardware, they replace the older ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from isoflop.accounting import Ledger
from isoflop.errors import UserError, shown
from isoflop.files import dump_json, write_text_atomic
from isoflop.numbers import format_flops
from isoflop.plan.artefact import write_plan, write_plan_table
from isoflop.plan.estimate import time
from isoflop.plan.estimate.hardware import (
    CALIBRATION_FILE,
    Calibration,
    Hardware,
    MeasuredStep,
    check_same_kind,
    load_calibration,
    load_hardware,
    shape_key,
)
from isoflop.plan.estimate.memory import (
    MEMORY_ASSUMPTIONS,
    PLACEMENT_ASSUMPTIONS,
    MemoryEstimate,
    ModelShape,
    PlacementEstimate,
    choose_placement,
    model_shape,
    placement_memory,
)
from isoflop.plan.estimate.time import estimate_step
from isoflop.plan.planner import Plan
from isoflop.recipe import get_recipe
from isoflop.spec import RunSpec
from isoflop.validate import read_record

if TYPE_CHECKING:
    from isoflop.plan.runs import PlannedRun


Source = Literal["roofline", "calibrated", "flops"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunEstimate:
    """What one run is expected to take. Every number is an estimate."""

    step_s: float | None
    """Seconds per optimizer step; None where the run does not fit the hardware."""
    gpu_hours: float | None
    """Device-hours of all steps on all devices (core-hours on a CPU); None as above."""
    peak_mem_bytes: int | None
    """Per device; None of a trainer of one's own, until it is measured."""
    placement: PlacementEstimate | None
    """None of a trainer of one's own, which lays itself out."""
    memory: MemoryEstimate | None
    """Bytes per device by part, of this placement."""
    memory_other: MemoryEstimate | None
    """The same with the other choice of activation checkpointing."""
    parts: Mapping[str, float]
    """Roofline seconds per step by component; they add up to step_s unless calibrated."""
    assumptions: tuple[str, ...]
    source: Source
    """`calibrated`: step_s was measured, for this very shape; `flops`: only FLOPs are known."""

    @property
    def fits(self) -> bool:
        """Whether the run fits the hardware, as far as that is known."""
        return self.placement is None or self.placement.fits


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanEstimate:
    """What a plan is expected to take, each run counted once. Every number is an estimate."""

    hardware: str
    """Name of the profile."""
    unit: str
    """What `gpu_hours` counts: GPU-hours, or core-hours on a CPU."""
    runs: Mapping[str, RunEstimate]
    """By run id."""
    gpu_hours: float
    """Of all runs that fit."""
    gpu_hours_by_budget: Mapping[int, float]
    """A run that two budgets share counts under the first."""
    cost: float | None
    """gpu_hours times the price, in the price's currency; None without a price."""
    not_fitting: tuple[str, ...]
    """A line for each shape that does not fit, with its reason."""
    num_calibrated: int
    """Runs whose step time was measured."""
    assumptions: tuple[str, ...]


def estimate_run(
    spec: RunSpec, hardware: Hardware, calibration: Calibration | None = None
) -> RunEstimate:
    """Return time and memory of one run on a device.

    Raises:
        UserError: the calibration is of another kind of device.
    """
    return _Estimator(hardware, calibration).run(spec)


def estimate_plan(
    plan: Plan,
    hardware: Hardware,
    price: float | None = None,
    max_gpu_hours: float | None = None,
    calibration: Calibration | None = None,
) -> PlanEstimate:
    """Return time, memory and cost of all runs of a plan.

    Args:
        plan: the plan.
        hardware: the device that every run is estimated for.
        price: of a device-hour; None: the profile's, which may be unknown too.
        max_gpu_hours: a hard cap on the sum.
        calibration: measured step times, used where they cover a run's shape.

    Raises:
        UserError: the plan takes more than the cap (with the budgets to drop), a price or cap that
            is not positive, or a calibration of another kind of device.
    """
    for name, value in (("--price", price), ("--max-gpu-hours", max_gpu_hours)):
        if value is not None and not 0 < value < float("inf"):
            raise UserError(name, value, "a positive number", "correct it")
    estimator = _Estimator(hardware, calibration)
    runs = {
        run.run_id: estimator.run(run.spec, run.ledger)
        if isinstance(run.spec, RunSpec)
        else estimate_own(run, hardware, plan.study.placement.get("ranks", 1))
        for run in plan.unique_runs
    }
    by_budget = _hours_by_budget(plan, runs)
    total = sum(by_budget.values())
    if max_gpu_hours is not None and total > max_gpu_hours:
        raise _over_the_cap(by_budget, total, max_gpu_hours)
    rate = hardware.price_per_hour if price is None else price
    return PlanEstimate(
        hardware=hardware.name,
        unit="core-hours" if hardware.kind == "cpu" else "GPU-hours",
        runs=runs,
        gpu_hours=total,
        gpu_hours_by_budget=by_budget,
        cost=None if rate is None else rate * total,
        not_fitting=_not_fitting(plan.unique_runs, runs),
        num_calibrated=sum(e.source == "calibrated" for e in runs.values()),
        assumptions=estimator.assumptions,
    )


class _Estimator:
    """Estimates by shape; runs that differ in steps, seed or data only are worked out once."""

    def __init__(self, hardware: Hardware, calibration: Calibration | None) -> None:
        self._hardware = hardware
        self._measured: dict[Hashable, MeasuredStep] = {}
        self._by_shape: dict[Hashable, RunEstimate] = {}
        self.assumptions = (
            *time.assumptions(hardware),
            *MEMORY_ASSUMPTIONS,
            *PLACEMENT_ASSUMPTIONS,
        )
        if calibration is not None:
            check_same_kind(calibration, hardware.kind)
            self._measured = calibration.by_shape()
            measured = f"step times of {len(self._measured)} shapes, {calibration.describe()}"
            self.assumptions = (f"calibrated: {measured}, each alone", *self.assumptions)

    def run(self, spec: RunSpec, ledger: Ledger | None = None) -> RunEstimate:
        """Return the estimate of a run; ``ledger`` where it is known already."""
        key = shape_key(spec)
        if key not in self._by_shape:
            shape = model_shape(spec, ledger)
            self._by_shape[key] = self._shape(shape, self._measured.get(key))
        estimate = self._by_shape[key]
        if estimate.step_s is None:
            return estimate
        assert estimate.placement is not None
        device_s = estimate.step_s * spec.steps * estimate.placement.num_devices
        return dataclasses.replace(estimate, gpu_hours=device_s / 3600)

    def _shape(self, shape: ModelShape, measured: MeasuredStep | None) -> RunEstimate:
        placed = choose_placement(shape, self._hardware)
        if measured is not None:
            # It was measured on one device with the whole batch, so there it fits.
            placed = dataclasses.replace(
                placed,
                micro_batch=shape.batch_size,
                grad_accum=1,
                num_devices=1,
                parallel="single",
                checkpointing=False,
                fits=True,
                reason="fits one device: measured",
            )
        step = estimate_step(shape, self._hardware, placed)
        step_s = measured.step_s if measured is not None else step.total_s
        return RunEstimate(
            step_s=step_s if placed.fits else None,
            gpu_hours=None,
            peak_mem_bytes=placed.peak_mem_bytes,
            placement=placed,
            memory=placement_memory(shape, placed),
            memory_other=placement_memory(
                shape, dataclasses.replace(placed, checkpointing=not placed.checkpointing)
            ),
            parts=step.parts,
            assumptions=self.assumptions,
            source="roofline" if measured is None else "calibrated",
        )


# Without a word of the command's own precision, that of nearly all training.
_OWN_PRECISION = {"cpu": "fp32", "cuda": "bf16"}


def estimate_own(run: PlannedRun, hardware: Hardware, num_devices: int) -> RunEstimate:
    """Return the time of a run by a command of one's own, from its FLOPs alone."""
    precision = _OWN_PRECISION[hardware.kind]
    device_s = run.flops / hardware.matmul_rate(precision)
    return RunEstimate(
        step_s=device_s / run.spec.steps / num_devices,
        gpu_hours=device_s / 3600,
        peak_mem_bytes=None,
        placement=None,
        memory=None,
        memory_other=None,
        parts={},
        assumptions=(
            f"own trainer: its products reach {hardware.matmul_efficiency:.0%} of "
            f"{hardware.name}'s peak in {precision}, nothing else takes time; memory is not known",
        ),
        source="flops",
    )


def _hours_by_budget(plan: Plan, runs: Mapping[str, RunEstimate]) -> dict[int, float]:
    hours = dict.fromkeys((run.budget_flops for run in plan.runs), 0.0)
    counted: set[str] = set()
    for run in plan.runs:
        if run.run_id not in counted:
            counted.add(run.run_id)
            hours[run.budget_flops] += runs[run.run_id].gpu_hours or 0.0
    return hours


def _over_the_cap(by_budget: Mapping[int, float], total: float, cap: float) -> UserError:
    """Return the error that names the fewest largest budgets to drop for the cap."""
    dropped: list[int] = []
    left = total
    for budget in sorted(by_budget, reverse=True):
        if left <= cap:
            break
        dropped.append(budget)
        left -= by_budget[budget]
    allowed = f"at least the {total:,.4g} GPU-hours this plan is estimated to take"
    if len(dropped) == len(by_budget):
        return UserError("--max-gpu-hours", cap, allowed, "raise it: no budget alone fits it")
    names = ", ".join(map(format_flops, sorted(dropped)))
    do = f"drop budget{'s' if len(dropped) > 1 else ''} {names} (leaves {left:,.4g}) or raise it"
    return UserError("--max-gpu-hours", shown(f"{cap:g}"), allowed, do)


def _not_fitting(
    planned: tuple[PlannedRun, ...], runs: Mapping[str, RunEstimate]
) -> tuple[str, ...]:
    placed = ((run, runs[run.run_id].placement) for run in planned)
    lines = {
        f"{run.arch} size {run.size}: {placement.reason}": None
        for run, placement in placed
        if placement is not None and not placement.fits
    }
    return tuple(lines)


ESTIMATES_FILE = "estimates.json"
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
            run_id: est_columns(run)
            | {
                "source": run.source,
                "placement": None if run.placement is None else asdict(run.placement),
            }
            for run_id, run in estimate.runs.items()
        },
    }


def estimate_for(
    planned: Plan,
    folder: Path,
    hardware: str | None = None,
    price: float | None = None,
    max_gpu_hours: float | None = None,
    calibration: Path | None = None,
) -> PlanEstimate:
    """Estimate a plan as the command line does; see the options of `isoflop plan`.

    Args:
        planned: the plan.
        folder: its folder, whose calibration is used where none is named.
        hardware: a profile; None: the usual one for the recipe's precision.
        price: of a device-hour.
        max_gpu_hours: a hard cap.
        calibration: a file of measured step times.

    Raises:
        UserError: an unknown profile, a damaged calibration, or a plan over the cap.
    """
    study = planned.study
    if study.trainer is not None:
        usual = "cpu2" if study.placement.get("device") == "cpu" else "h100"
    else:
        usual = "cpu2" if get_recipe(study.recipe).precision == "fp32" else "h100"
    profile = load_hardware(hardware or usual)
    measured = _calibration(calibration, folder, profile)
    return estimate_plan(planned, profile, price, max_gpu_hours, measured)


def refresh_estimates(plan: Plan, folder: Path) -> None:
    """Estimate a grown plan for the hardware it was estimated for before, if it was."""
    stored = load_estimates(folder)
    if stored is not None:
        store_estimates(plan, estimate_for(plan, folder, stored.hardware), folder)


def _calibration(path: Path | None, folder: Path, profile: Hardware) -> Calibration | None:
    """Return the calibration that is named, or the folder's own if it is of the profile's kind."""
    if path is not None:
        return load_calibration(path)
    if not (folder / CALIBRATION_FILE).exists():
        return None
    found = load_calibration(folder / CALIBRATION_FILE)
    # What was measured on one kind of device says nothing of another.
    return found if found.kind == profile.kind else None

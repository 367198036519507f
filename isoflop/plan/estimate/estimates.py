"""Estimates of runs and of whole plans: seconds, GPU-hours, memory, money."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from isoflop.accounting import Ledger
from isoflop.errors import UserError, shown
from isoflop.numbers import format_flops
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
from isoflop.plan.estimate.measured import NEAREST_SHAPES, MeasuredRatio, Scale, scale_of
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
from isoflop.plan.estimate.own import CommandEstimator
from isoflop.plan.estimate.time import estimate_step
from isoflop.plan.planner import Plan
from isoflop.plan.trunks import Trunk, branches_of, trunks_of
from isoflop.recipe import get_recipe
from isoflop.spec import RunSpec

if TYPE_CHECKING:
    from isoflop.plan.runs import PlannedRun
    from isoflop.study import Study


Source = Literal["roofline", "calibrated", "scaled", "interpolated", "flops"]


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
    """Roofline seconds per step by component; they add up to step_s unless it was measured, or
    scaled."""
    assumptions: tuple[str, ...]
    source: Source
    """`calibrated`: step_s was measured, for this very shape; `scaled`: the roofline times what
    measured over predicted is for other shapes; `interpolated`: measured for other rungs of a
    command; `flops`: only FLOPs are known."""
    start_s: float | None = None
    """Seconds of the run but for its steps, which are in gpu_hours; None: not known."""
    num_ranks: int = 1
    """Of a trainer of one's own: devices that share a run."""
    scale: Scale | None = None
    """By what the roofline is multiplied, where `source` is `scaled`."""
    trunk_gpu_hours: float = 0.0
    """Of gpu_hours, those of steps that a longer run of the plan does for this one, too."""

    def hours_of(self, num_steps: int) -> float | None:
        """Return the device-hours of some steps, and of the start; None: it does not fit."""
        if self.step_s is None:
            return None
        return (self.step_s * num_steps + (self.start_s or 0.0)) * self.num_devices / 3600

    @property
    def gpu_hours_spent(self) -> float:
        """Device-hours that are spent for this run alone; 0 where it does not fit."""
        return (self.gpu_hours or 0.0) - self.trunk_gpu_hours

    @property
    def num_devices(self) -> int:
        """Devices that train the run together."""
        return self.num_ranks if self.placement is None else self.placement.num_devices

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
    """Of all runs that fit, as they are executed: what runs of a trunk share counts once."""
    gpu_hours_by_budget: Mapping[int, float]
    """A run that two budgets share counts under the first, a trunk under that of its longest."""
    cost: float | None
    """gpu_hours times the price, in the price's currency; None without a price."""
    not_fitting: tuple[str, ...]
    """A line for each shape that does not fit, with its reason."""
    assumptions: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    """What a reader has to know beside the numbers: a line each."""

    @property
    def named(self) -> str:
        """The unit of hours, and what they are: `GPU-hours (estimate, h100)`."""
        return f"{self.unit} (estimate, {self.hardware})"

    @property
    def gpu_hours_saved(self) -> float:
        """What the runs would take more if each were trained alone."""
        return sum(run.trunk_gpu_hours for run in self.runs.values())

    @property
    def num_calibrated(self) -> int:
        """Runs whose step time was measured."""
        return self.num_of("calibrated")

    def num_of(self, source: Source) -> int:
        """Return how many runs' step times are from there."""
        return sum(run.source == source for run in self.runs.values())


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

    A run's own figures are as if it were trained alone; totals count once what runs share.

    Args:
        plan: the plan.
        hardware: the device that every run is estimated for.
        price: of a device-hour; None: the profile's, which may be unknown too.
        max_gpu_hours: a hard cap on the sum.
        calibration: measured step times, used where they cover a run's shape; other shapes'
            rooflines are scaled by them.

    Raises:
        UserError: the plan takes more than the cap (with the budgets to drop), a price or cap that
            is not positive, or a calibration of another kind of device.
    """
    for name, value in (("--price", price), ("--max-gpu-hours", max_gpu_hours)):
        if value is not None and not 0 < value < float("inf"):
            raise UserError(name, value, "a positive number", "correct it")
    built_in = _Estimator(hardware, calibration)
    own = None if plan.study.trainer is None else CommandEstimator(plan, hardware, calibration)
    runs = {
        run.run_id: built_in.run(run.spec, run.ledger)
        if isinstance(run.spec, RunSpec)
        else _of_command(run, own)
        for run in plan.unique_runs
    }
    trunks = trunks_of(plan)
    runs |= _with_trunks(trunks, runs)
    by_budget = _hours_by_budget(plan, runs)
    total = sum(by_budget.values())
    if max_gpu_hours is not None and total > max_gpu_hours:
        raise _over_the_cap(plan, runs, total, max_gpu_hours)
    rate = hardware.price_per_hour if price is None else price
    return PlanEstimate(
        hardware=hardware.name,
        unit="core-hours" if hardware.kind == "cpu" else "GPU-hours",
        runs=runs,
        gpu_hours=total,
        gpu_hours_by_budget=by_budget,
        cost=None if rate is None else rate * total,
        not_fitting=_not_fitting(plan.unique_runs, runs),
        assumptions=(
            *(built_in.assumptions if own is None or built_in.num_shapes else ()),
            *(own.assumptions if own is not None else ()),
            *((_TRUNKS_ASSUMED,) if trunks else ()),
        ),
        warnings=() if own is None else own.warnings,
    )


_TRUNKS_ASSUMED = (
    "trunks: hours and cost of a plan, and hours by budget, are what is executed when all of its "
    "runs are trained; those of a run are as if it were trained alone; the steps that runs share "
    "are taken off the shorter ones, start-up is not; to save and read a state takes no time"
)


def _with_trunks(
    trunks: Iterable[Trunk], runs: Mapping[str, RunEstimate]
) -> dict[str, RunEstimate]:
    """Return the estimates of the runs that begin where a longer one passes, by run id."""
    found = {}
    for run_id, (_, fork) in branches_of(trunks).items():
        alone = runs[run_id]
        if alone.step_s is not None:
            hours = alone.step_s * fork * alone.num_devices / 3600
            found[run_id] = dataclasses.replace(alone, trunk_gpu_hours=hours)
    return found


def _of_command(run: PlannedRun, own: CommandEstimator | None) -> RunEstimate:
    assert own is not None
    estimate = own.run(run)
    wall_s = (estimate.start_s or 0.0) + estimate.step_s * run.spec.steps
    return RunEstimate(
        step_s=estimate.step_s,
        gpu_hours=wall_s * own.num_ranks / 3600,
        peak_mem_bytes=estimate.peak_mem_bytes,
        placement=None,
        memory=None,
        memory_other=None,
        parts={},
        assumptions=own.assumptions,
        source=estimate.source,
        start_s=estimate.start_s,
        num_ranks=own.num_ranks,
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
        if calibration is not None and (self._measured or not calibration.commands):
            measured = f"step times of {len(self._measured)} shapes, {calibration.describe()}"
            self.assumptions = (
                f"calibrated: {measured}, each alone",
                "scaled: of shapes that were not measured, the roofline times the mean of measured "
                f"over predicted of the nearest {NEAREST_SHAPES} of the family that were, or of "
                "all families where none of it was",
                *self.assumptions,
            )
        self._ratios = tuple(
            ratio for each in self._measured.values() if (ratio := self._ratio(each)) is not None
        )

    @property
    def num_shapes(self) -> int:
        """Shapes that were estimated so far."""
        return len(self._by_shape)

    def run(self, spec: RunSpec, ledger: Ledger | None = None) -> RunEstimate:
        """Return the estimate of a run; ``ledger`` where it is known already."""
        key = shape_key(spec)
        if key not in self._by_shape:
            shape = model_shape(spec, ledger)
            self._by_shape[key] = self._shape(spec.family, shape, self._measured.get(key))
        estimate = self._by_shape[key]
        if estimate.step_s is None:
            return estimate
        assert estimate.placement is not None
        device_s = estimate.step_s * spec.steps * estimate.placement.num_devices
        return dataclasses.replace(estimate, gpu_hours=device_s / 3600)

    def _shape(self, family: str, shape: ModelShape, measured: MeasuredStep | None) -> RunEstimate:
        placed = choose_placement(shape, self._hardware)
        if measured is not None:
            placed = _as_measured(placed, shape, measured)
        step = estimate_step(shape, self._hardware, placed)
        step_s, scale = step.total_s, None
        if measured is not None:
            step_s = measured.step_s
        elif (scale := scale_of(family, step.total_s, self._ratios)) is not None:
            step_s = scale.ratio * step.total_s
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
            source="calibrated" if measured else "roofline" if scale is None else "scaled",
            scale=scale,
        )

    def _ratio(self, measured: MeasuredStep) -> MeasuredRatio | None:
        """Return measured over predicted; None of a family whose code is not here."""
        try:
            shape = model_shape(measured.shape.as_spec())
        except UserError:
            return None
        placed = _as_measured(choose_placement(shape, self._hardware), shape, measured)
        predicted_s = estimate_step(shape, self._hardware, placed).total_s
        return MeasuredRatio(
            family=measured.shape.family,
            predicted_s=predicted_s,
            ratio=measured.step_s / predicted_s,
        )


def _as_measured(
    placed: PlacementEstimate, shape: ModelShape, measured: MeasuredStep
) -> PlacementEstimate:
    """Return the placement that was measured: on one device, where it fits therefore."""
    micro_batch = measured.micro_batch or shape.batch_size
    return dataclasses.replace(
        placed,
        micro_batch=micro_batch,
        grad_accum=-(-shape.batch_size // micro_batch),
        num_devices=1,
        parallel="single",
        checkpointing=measured.checkpointing,
        fits=True,
        reason="fits one device: measured",
    )


def _hours_by_budget(plan: Plan, runs: Mapping[str, RunEstimate]) -> dict[int, float]:
    hours = dict.fromkeys((run.budget_flops for run in plan.runs), 0.0)
    counted: set[str] = set()
    for run in plan.runs:
        if run.run_id not in counted:
            counted.add(run.run_id)
            hours[run.budget_flops] += runs[run.run_id].gpu_hours_spent
    return hours


def _over_the_cap(
    plan: Plan, runs: Mapping[str, RunEstimate], total: float, cap: float
) -> UserError:
    """Return the error that names the fewest largest budgets to drop for the cap."""
    dropped: list[int] = []
    left = total
    budgets = {run.budget_flops for run in plan.runs}
    for budget in sorted(budgets, reverse=True):
        if left <= cap:
            break
        dropped.append(budget)
        left = _hours_without(plan, runs, dropped)
    allowed = f"at least the {total:,.4g} GPU-hours this plan is estimated to take"
    if len(dropped) == len(budgets):
        return UserError("--max-gpu-hours", cap, allowed, "raise it: no budget alone fits it")
    names = ", ".join(map(format_flops, sorted(dropped)))
    do = f"drop budget{'s' if len(dropped) > 1 else ''} {names} (leaves {left:,.4g}) or raise it"
    return UserError("--max-gpu-hours", shown(f"{cap:g}"), allowed, do)


def _hours_without(plan: Plan, runs: Mapping[str, RunEstimate], dropped: Collection[int]) -> float:
    """Return the device-hours of a plan without some budgets, whose trunks then are shorter."""
    rest = dataclasses.replace(
        plan, runs=tuple(run for run in plan.runs if run.budget_flops not in dropped)
    )
    alone = {
        run.run_id: dataclasses.replace(runs[run.run_id], trunk_gpu_hours=0.0)
        for run in rest.unique_runs
    }
    alone |= _with_trunks(trunks_of(rest), alone)
    return sum(run.gpu_hours_spent for run in alone.values())


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
    named = None if calibration is None else load_calibration(calibration)
    found = named or _calibration_beside(folder)
    profile = load_hardware(hardware or _usual_hardware(planned.study, found))
    if named is not None or found is None or found.kind == profile.kind:
        return estimate_plan(planned, profile, price, max_gpu_hours, found)
    # What was measured on one kind of device says nothing of another.
    estimate = estimate_plan(planned, profile, price, max_gpu_hours)
    if planned.study.trainer is None:
        return estimate
    unused = f"{CALIBRATION_FILE} is not used for {profile.name}: it was {found.describe()}"
    return dataclasses.replace(estimate, warnings=(*estimate.warnings, unused))


def _usual_hardware(study: Study, calibration: Calibration | None) -> str:
    if study.trainer is None:
        return "cpu2" if get_recipe(study.recipe).precision == "fp32" else "h100"
    device = study.placement.get("device")
    if device is None and calibration is not None and calibration.commands:
        device = calibration.kind
    return "cpu2" if device == "cpu" else "h100"


def _calibration_beside(folder: Path) -> Calibration | None:
    path = folder / CALIBRATION_FILE
    return load_calibration(path) if path.exists() else None

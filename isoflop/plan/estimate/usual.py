"""The estimate of a plan in its folder: the usual hardware, and the folder's own calibration."""

from __future__ import annotations

from pathlib import Path

from isoflop.plan.estimate.calibration import FILE_NAME, Calibration, load_calibration
from isoflop.plan.estimate.estimates import PlanEstimate, estimate_plan
from isoflop.plan.estimate.hardware import Hardware, load_hardware
from isoflop.plan.estimate.stored import load_estimates, store_estimates
from isoflop.plan.planner import Plan
from isoflop.recipe import get_recipe


def estimate_for(
    planned: Plan,
    folder: Path,
    hardware: str | None = None,
    price: float | None = None,
    max_gpu_hours: float | None = None,
    calibration: Path | None = None,
) -> PlanEstimate:
    """Estimates a plan as the command line does; see the options of `isoflop plan`.

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
    usual = "cpu2" if get_recipe(planned.study.recipe).precision == "fp32" else "h100"
    profile = load_hardware(hardware or usual)
    measured = _calibration(calibration, folder, profile)
    return estimate_plan(planned, profile, price, max_gpu_hours, measured)


def estimate_again(plan: Plan, folder: Path) -> None:
    """Estimates a grown plan for the hardware it was estimated for before, if it was."""
    stored = load_estimates(folder)
    if stored is not None:
        store_estimates(plan, estimate_for(plan, folder, stored.hardware), folder)


def _calibration(path: Path | None, folder: Path, profile: Hardware) -> Calibration | None:
    """Return the calibration that is named, or the folder's own if it is of the profile's kind."""
    if path is not None:
        return load_calibration(path)
    if not (folder / FILE_NAME).exists():
        return None
    found = load_calibration(folder / FILE_NAME)
    # What was measured on one kind of device says nothing of another.
    return found if found.kind == profile.kind else None

"""What a plan will take: seconds, GPU-hours, memory, money. Everything here is an estimate.

A roofline over the ledger's components for a hardware profile (slurm/hardware_*.toml), or step
times that `isoflop calibrate` measured; each estimate lists its assumptions. Imports no torch.
"""

from isoflop.plan.estimate.estimates import (
    PlanEstimate,
    RunEstimate,
    estimate_for,
    estimate_plan,
    estimate_run,
)
from isoflop.plan.estimate.hardware import (
    Calibration,
    Hardware,
    hardware_names,
    load_calibration,
    load_hardware,
)
from isoflop.plan.estimate.stored import load_estimates, refresh_estimates, write_with_estimates

__all__ = [
    "Calibration",
    "Hardware",
    "PlanEstimate",
    "RunEstimate",
    "estimate_for",
    "estimate_plan",
    "estimate_run",
    "hardware_names",
    "load_calibration",
    "load_estimates",
    "load_hardware",
    "refresh_estimates",
    "write_with_estimates",
]

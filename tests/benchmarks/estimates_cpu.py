"""Predicted against measured step times of a study that was trained on this machine's CPU.

Three numbers per arch and width: the median step that the runs recorded (one run per core, side by
side), the roofline's prediction from the profile, and the step measured alone just now
(`isoflop calibrate`). Both predictions are also added up to core-hours.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections import defaultdict
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from isoflop.plan.artefact import read_plan
from isoflop.plan.estimate import PlanEstimate, estimate_plan, load_hardware
from isoflop.plan.planner import Plan
from isoflop.tables import RUNS, read_table
from isoflop.train.calibrate import calibrate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("results/quickstart"))
    parser.add_argument("--hardware", default="cpu2")
    parser.add_argument("--steps", type=int, default=10)
    given = parser.parse_args()
    plan = read_plan(given.folder)
    hardware = load_hardware(given.hardware)
    measured = {
        row["run_id"]: row
        for row in read_table(given.folder / "runs.parquet", RUNS)
        if row["step_s_median"] is not None
    }
    alone = calibrate([run.spec for run in plan.unique_runs], steps=given.steps)
    roofline = estimate_plan(plan, hardware)
    calibrated = estimate_plan(plan, hardware, calibration=alone)
    print_steps(plan, measured, roofline, calibrated)
    print_totals(plan, measured, roofline, calibrated)


def print_steps(plan: Plan, measured: dict, roofline: PlanEstimate, alone: PlanEstimate) -> None:
    by_shape: dict[tuple[str, int], list[str]] = defaultdict(list)
    for run in plan.unique_runs:
        if run.run_id in measured:
            by_shape[run.arch, run.spec.d_model].append(run.run_id)
    print("seconds per step, ms; ratios are predicted / measured in the run")
    print(
        f"{'arch':10s} {'width':>5s} {'in the run':>11s} {'roofline':>9s} {'ratio':>6s} "
        f"{'alone':>7s} {'ratio':>6s} {'peak MB':>8s} {'predicted':>10s}"
    )
    ratios = defaultdict(list)
    for (arch, width), ids in sorted(by_shape.items()):
        step = statistics.median(measured[i]["step_s_median"] for i in ids)
        peak = statistics.median(measured[i]["peak_mem_bytes"] for i in ids)
        predicted, now = roofline.runs[ids[0]], alone.runs[ids[0]]
        ratios[arch].append((predicted.step_s / step, now.step_s / step))
        print(
            f"{arch:10s} {width:5d} {1e3 * step:11.1f} {1e3 * predicted.step_s:9.1f} "
            f"{predicted.step_s / step:6.2f} {1e3 * now.step_s:7.1f} {now.step_s / step:6.2f} "
            f"{peak / 1e6:8.0f} {predicted.peak_mem_bytes / 1e6:10.0f}"
        )
    print("\ngeometric mean of the ratios, and their range")
    for arch, pairs in ratios.items():
        for name, values in zip(("roofline", "alone"), zip(*pairs, strict=True), strict=True):
            mean = statistics.geometric_mean(values)
            print(f"{arch:10s} {name:9s} {mean:5.2f}  ({min(values):.2f} to {max(values):.2f})")


def print_totals(plan: Plan, measured: dict, roofline: PlanEstimate, alone: PlanEstimate) -> None:
    ids = [run.run_id for run in plan.unique_runs if run.run_id in measured]
    hours = sum(measured[i]["wall_s"] for i in ids) / 3600
    print(f"\ncore-hours of {len(ids)} runs, training only: measured {hours:.3f}", end="")
    for name, estimate in (("roofline", roofline), ("alone", alone)):
        total = sum(estimate.runs[i].gpu_hours or 0.0 for i in ids)
        print(f", {name} {total:.3f} ({total / hours:.2f})", end="")
    print()


if __name__ == "__main__":
    main()

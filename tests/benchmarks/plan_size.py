"""Planning, writing, reading, comparing and estimating a plan of 10,000 runs, in seconds.

The baseline is the paper's own plan of 92 runs, measured in the same process.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from isoflop.plan.artefact import read_plan, write_plan
from isoflop.plan.edit import diff_plans
from isoflop.plan.estimate import estimate_plan, load_hardware
from isoflop.plan.planner import Plan, make_plan
from isoflop.study import Study, paper_study

BUDGETS = (10**17, 6 * 10**17, 10**18, 6 * 10**18)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.perf_counter()
    value = work()
    return time.perf_counter() - begin, value


def measure(study: Study, folder: Path) -> tuple[Plan, dict[str, float]]:
    hardware = load_hardware("h100")
    spent: dict[str, float] = {}
    spent["make"], plan = timed(lambda: make_plan(study))
    spent["estimate"], _ = timed(lambda: estimate_plan(plan, hardware))
    spent["write"], _ = timed(lambda: write_plan(plan, folder))
    spent["read and check"], again = timed(lambda: read_plan(folder))
    spent["diff"], _ = timed(lambda: diff_plans(plan, again))
    return plan, spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=109)
    seeds = parser.parse_args().seeds
    small = paper_study(BUDGETS)
    large = dataclasses.replace(small, name="large", seeds=tuple(range(seeds)))
    with tempfile.TemporaryDirectory() as folder:
        few, few_s = measure(small, Path(folder) / "small")
        many, many_s = measure(large, Path(folder) / "large")
    print(f"{'seconds':16s} {len(few.runs):>8,} runs {len(many.runs):>8,} runs {'ratio':>8s}")
    for name, spent in many_s.items():
        print(f"{name:16s} {few_s[name]:13.3f} {spent:13.3f} {spent / few_s[name]:8.1f}")


if __name__ == "__main__":
    main()

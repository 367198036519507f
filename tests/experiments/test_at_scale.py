"""The page on the paper's study at scale: the planner's numbers, and answers by their rules."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from experiments.made_scripts import EXPERIMENTS, script
from isoflop.analysis.compare.multipliers import COMPARE
from isoflop.analysis.validity import VALIDITY
from isoflop.plan.artefact import plan_to_json, read_plan
from isoflop.plan.estimate import PlanEstimate, estimate_plan, load_hardware
from isoflop.plan.planner import Plan, make_plan
from isoflop.study.file import load_study
from isoflop.tables import write_table

at_scale, clock_parts, seconds_per_flop = (
    script(n) for n in ("at_scale", "at_scale_clock", "seconds_per_flop")
)
PAPER = EXPERIMENTS.parent / "results" / "paper"
LARGEST = 6 * 10**18


@pytest.fixture(scope="module")
def plan() -> Plan:
    return read_plan(PAPER)


@pytest.fixture(scope="module")
def h100(plan: Plan) -> PlanEstimate:
    return estimate_plan(plan, load_hardware("h100"))


def test_the_committed_plan_is_that_of_the_study_file(plan: Plan) -> None:
    assert plan_to_json(plan) == plan_to_json(make_plan(load_study(EXPERIMENTS / "paper.toml")))


def test_the_committed_page_is_what_the_script_prints() -> None:
    done = subprocess.run(
        [sys.executable, EXPERIMENTS / "at_scale.py", "--no-figure"],
        capture_output=True,
        text=True,
        check=True,
        cwd=EXPERIMENTS.parent,
    )
    assert done.stdout == (PAPER / "README.md").read_text(encoding="utf-8")


def test_the_page_is_made_without_torch() -> None:
    code = "import sys; import at_scale; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=EXPERIMENTS)


def test_device_seconds_are_the_hours_of_the_estimate(plan: Plan, h100: PlanEstimate) -> None:
    seconds = clock_parts.device_seconds(plan, h100, load_hardware("h100"))
    assert len(seconds) == 92
    alone = h100.gpu_hours + h100.gpu_hours_saved
    assert sum(seconds.values()) / 3600 == pytest.approx(alone, rel=1e-12)
    text = at_scale.hours_section(plan, {"h100": h100}, 3.0)
    assert f"| {h100.gpu_hours:,.0f} | {3 * h100.gpu_hours:,.0f} |" in text
    assert f"{h100.gpu_hours_saved:,.0f} hours" in text


def test_a_pace_is_that_of_the_middle_sizes_and_knows_its_grid(
    plan: Plan, h100: PlanEstimate
) -> None:
    seconds = clock_parts.device_seconds(plan, h100, load_hardware("h100"))
    runs = seconds_per_flop.cells(plan)["mlp", LARGEST]
    assert [run.size for run in runs] == [5, 6, 7, 8]
    per_flop = [seconds[run.run_id] / run.flops for run in runs]
    found = seconds_per_flop.by_cell(plan, seconds)["mlp", LARGEST]
    assert found.s_per_flop == pytest.approx((per_flop[1] + per_flop[2]) / 2, rel=1e-12)
    assert (found.low, found.high) == (min(per_flop), max(per_flop))
    lacking = {name: s for name, s in seconds.items() if name != runs[0].run_id}
    assert ("mlp", LARGEST) not in seconds_per_flop.by_cell(plan, lacking)


def test_the_middle_of_a_grid_is_by_place_and_not_by_value() -> None:
    assert seconds_per_flop.centre([5.0, 1.0, 9.0]) == 1.0
    assert seconds_per_flop.centre([5.0, 1.0, 3.0, 9.0]) == 2.0


def test_the_parts_add_up_to_the_relative_pace(plan: Plan, h100: PlanEstimate) -> None:
    of = clock_parts.seconds_of_devices(plan, {"h100": h100}, [load_hardware("h100")])["h100"][
        "as estimated"
    ]
    needed = of["sgatlin", LARGEST].relative(of["swiglu", LARGEST])
    last = clock_parts.parts_section(plan, h100).splitlines()[-1]
    assert last.split("|")[-2].strip() == f"{100 * needed:.0f}"


def test_other_assumptions_change_what_they_name(plan: Plan, h100: PlanEstimate) -> None:
    seconds = {
        change: clock_parts.device_seconds(plan, h100, load_hardware("h100"), change)
        for change in clock_parts.CHANGES
    }
    whole, bf16, free = (seconds[change] for change in clock_parts.CHANGES)
    for run in plan.unique_runs:
        parts = h100.runs[run.run_id].parts
        scale = run.spec.steps * h100.runs[run.run_id].placement.num_devices
        saved = parts["head"] * (1 - 494.5e12 / 989e12) * scale
        assert whole[run.run_id] - bf16[run.run_id] == pytest.approx(saved, rel=1e-9)
        routed = run.arch in ("peer", "sgatlin")
        gathers = (parts["experts"] + parts["sort"]) * scale if routed else 0.0
        assert bf16[run.run_id] - free[run.run_id] == pytest.approx(gathers, rel=1e-9, abs=1e-9)


def _measured(low: float, high: float) -> Any:
    multiplier = clock_parts.Multiplier(budget_flops=1e12, value=2.0, ci_lo=low, ci_hi=high)
    return clock_parts.Measured(noise=None, multipliers={"sgatlin": multiplier})


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (2.6, 3.0, "Yes on every device"),
        (1.1, 1.5, "No on every device"),
        (2.2, 2.3, "Undecided"),
        (1.0, 3.0, "Undecided"),
    ],
)
def test_the_answer_follows_the_interval(low: float, high: float, said: str) -> None:
    of = {
        device: {
            change: {
                ("sgatlin", LARGEST): seconds_per_flop.SecondsPerFlop(
                    s_per_flop=needed, low=needed, high=needed
                ),
                ("swiglu", LARGEST): seconds_per_flop.SecondsPerFlop(
                    s_per_flop=1.0, low=1.0, high=1.0
                ),
            }
            for change in clock_parts.CHANGES
        }
        for device, needed in (("slow", 2.5), ("quick", 2.0))
    }
    assert said in clock_parts.answer(of, _measured(low, high), LARGEST)
    nothing = clock_parts.Measured(noise=None, multipliers={})
    assert "Not measured yet" in clock_parts.answer(of, nothing, LARGEST)


def _compared(budget: float, multiplier: float, **others: Any) -> dict[str, Any]:
    values = {
        "arch": "sgatlin",
        "reference": "swiglu",
        "resource": "flops",
        "status": "estimate",
        "ci_lo_simultaneous": multiplier - 0.1,
        "ci_hi_simultaneous": multiplier + 0.1,
    }
    return COMPARE.row(**{**values, **others}, budget_flops=budget, multiplier=multiplier)


def test_noise_and_multipliers_are_read_from_a_fitted_study(tmp_path: Path) -> None:
    nothing = clock_parts.measured_in(tmp_path)
    assert (nothing.noise, nothing.multipliers) == (None, {})
    rows = [
        _compared(1e12, 1.7),
        _compared(1e11, 1.4),
        _compared(1e13, 9.0, status="lower_bound"),
        _compared(1e13, 9.0, resource="wall_s"),
        _compared(1e13, 1.0, arch="swiglu"),
    ]
    write_table(tmp_path / "compare.parquet", rows, COMPARE)
    checks = [
        VALIDITY.row(check="seed_noise", arch="mlp", value=0.5),
        VALIDITY.row(check="seed_noise", value=0.002),
    ]
    write_table(tmp_path / "validity.parquet", checks, VALIDITY)
    found = clock_parts.measured_in(tmp_path)
    assert found.noise == 0.002
    assert set(found.multipliers) == {"sgatlin"}
    assert found.multipliers["sgatlin"].value == 1.7

"""Estimates for commands of the user's own: from FLOPs alone, measured, and between rungs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from isoflop.cli import main
from isoflop.errors import UserError
from isoflop.plan.artefact import write_plan
from isoflop.plan.estimate import (
    PlanEstimate,
    RunEstimate,
    estimate_for,
    estimate_plan,
    load_calibration,
    load_hardware,
    write_with_estimates,
)
from isoflop.plan.estimate.hardware import write_calibration
from isoflop.plan.estimate.measured import TimedRun, command_key
from isoflop.plan.estimate.own import on_line
from isoflop.plan.planner import Plan, make_plan
from isoflop.study import Study
from made_trainer import BRANCHING, calibration, measured, own_study


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return make_plan(own_study(tmp_path / "code"))


def placed(study: Study, **placement: Any) -> Study:
    return dataclasses.replace(study, placement=placement)


def of(plan: Plan, estimate: PlanEstimate, arch: str, size: int) -> RunEstimate:
    run = next(run for run in plan.runs if (run.arch, run.size) == (arch, size))
    return estimate.runs[run.run_id]


def test_from_flops_alone_every_rank_does_its_share(plan: Plan) -> None:
    cpu = load_hardware("cpu2")
    one = estimate_plan(plan, cpu)
    four = estimate_plan(dataclasses.replace(plan, study=placed(plan.study, ranks=4)), cpu)
    for run in plan.runs:
        alone, shared = one.runs[run.run_id], four.runs[run.run_id]
        assert alone.step_s is not None
        assert shared.step_s == pytest.approx(alone.step_s / 4)
        assert shared.gpu_hours == alone.gpu_hours
        assert alone.gpu_hours == pytest.approx(run.flops / cpu.matmul_rate("fp32") / 3600)
        assert (alone.source, alone.start_s, alone.peak_mem_bytes) == ("flops", None, None)
    assert "from FLOPs alone" in "\n".join(one.assumptions)
    assert "AdamW" not in "\n".join(one.assumptions)
    (line,) = one.warnings
    assert line.startswith("from FLOPs alone, without start-up")


def test_what_was_measured_is_taken_and_other_rungs_lie_between(plan: Plan) -> None:
    found = calibration(
        *(measured(plan, "plain", size) for size in (1, 3)),
        measured(plan, "gated", 2, peak_mem_bytes=None),
    )
    estimate = estimate_plan(plan, load_hardware("cpu2"), calibration=found)
    for arch, size, source, step_s, memory in (
        ("plain", 1, "calibrated", 0.1, 10**9),
        ("plain", 2, "interpolated", 0.4, 4 * 10**9),
        ("plain", 3, "calibrated", 0.9, 9 * 10**9),
        ("gated", 1, "interpolated", 0.1, None),
        ("gated", 2, "calibrated", 0.4, None),
    ):
        run = of(plan, estimate, arch, size)
        assert (run.source, run.start_s, run.peak_mem_bytes) == (source, 5.0, memory)
        assert run.step_s == pytest.approx(step_s)
    first = plan.runs[0]
    assert estimate.runs[first.run_id].gpu_hours == pytest.approx(
        (5.0 + 0.1 * first.spec.steps) / 3600
    )
    assert estimate.warnings == ()
    assert "FLOPs alone" not in "\n".join(estimate.assumptions)


@pytest.mark.parametrize(
    ("changes", "source", "warning"),
    [
        ({"code": "0" * 64}, "calibrated", "measured with other code of the trainer"),
        ({"command_key": "0" * 64}, "flops", "(calibrated: other commands)"),
        ({"num_ranks": 2}, "flops", "(calibrated: other commands)"),
        ({"rung": {"depth": 7}, "step_flops": 10**6}, "interpolated", None),
    ],
)
def test_what_was_measured_of_something_else_is_said(
    plan: Plan, changes: dict[str, Any], source: str, warning: str | None
) -> None:
    found = calibration(
        measured(plan, "plain", 1, **changes),
        *(measured(plan, "gated", size) for size in (1, 2, 3)),
    )
    estimate = estimate_plan(plan, load_hardware("cpu2"), calibration=found)
    assert of(plan, estimate, "plain", 1).source == source
    assert of(plan, estimate, "gated", 1).source == "calibrated"
    lines = [line for line in estimate.warnings if "plain" in line]
    assert len(lines) == (warning is not None)
    assert all(str(warning) in line and "gated" not in line for line in lines)


def test_steps_that_took_no_time_are_warned_of_unless_all_were_run(plan: Plan) -> None:
    def lines(steps: int) -> list[str]:
        runs = (TimedRun(steps=3, wall_s=5.0), TimedRun(steps=steps, wall_s=4.0))
        found = calibration(
            measured(plan, "plain", 1, step_s=0.0, runs=runs), measured(plan, "gated", 1)
        )
        return list(estimate_plan(plan, load_hardware("cpu2"), calibration=found).warnings)

    (line,) = lines(624)
    assert "was not told from start-up for plain depth 1: longer runs" in line
    assert lines(625) == []


def test_the_key_is_the_command_without_rung_steps_and_seed(plan: Plan, tmp_path: Path) -> None:
    trainer = plan.study.trainer
    assert trainer is not None
    plain, gated = (plan.study.trainer_arch(arch) for arch in ("plain", "gated"))
    assert command_key(trainer, plain) != command_key(trainer, gated)
    ladder = dataclasses.replace(trainer, ladder={"depth": (5, 6, 7)}, code=str(tmp_path))
    assert command_key(ladder, plain) == command_key(trainer, plain)
    for change in ({"batch_tokens": 128}, {"env": {"LR": "1"}}, {"command": ("x", "{steps}")}):
        other = dataclasses.replace(trainer, **change)
        assert command_key(other, plain) != command_key(trainer, plain)


@pytest.mark.parametrize(
    ("points", "x", "value"),
    [
        ([(2, 4.0)], 3, 4.0),
        ([(1, 1.0), (3, 3.0)], 2, 2.0),
        ([(3, 3.0), (1, 1.0)], 5, 5.0),
        ([(1, 5.0), (3, 3.0)], 2, 4.0),
        # Noise must not make a longer run of a larger model shorter, or one below 0.
        ([(1, 5.0), (3, 3.0)], 9, 3.0),
        ([(1, 5.0), (3, 3.0)], 0.5, 5.0),
        ([(2, 1.0), (3, 3.0)], 1, 0.0),
        ([(1, 1.0), (1, 3.0), (2, 4.0)], 1, 2.0),
        ([(1, 1.0), (1, 3.0)], 7, 2.0),
        ([(1, 1.0), (2, 5.0), (3, 6.0)], 2.5, 5.5),
    ],
)
def test_values_between_points(points: list[tuple[float, float]], x: float, value: float) -> None:
    assert on_line(points, x) == pytest.approx(value)


def test_a_step_of_a_smaller_rung_takes_no_less_than_its_share() -> None:
    assert on_line([(2, 4.0)], 3, through_0=True) == 6.0
    assert on_line([(2, 1.0), (3, 3.0)], 1, through_0=True) == 0.5


def test_the_kind_of_device_that_was_measured_is_the_usual_one(plan: Plan, tmp_path: Path) -> None:
    assert estimate_for(plan, tmp_path).hardware == "h100"
    on_cpu = dataclasses.replace(plan, study=placed(plan.study, device="cpu"))
    assert estimate_for(on_cpu, tmp_path).hardware == "cpu2"
    write_calibration(tmp_path / "calibration.json", calibration(measured(plan, "plain", 1)))
    assert load_calibration(tmp_path) == calibration(measured(plan, "plain", 1))
    estimate = estimate_for(plan, tmp_path)
    assert (estimate.hardware, estimate.num_calibrated) == ("cpu2", 3)
    for gpu in (
        estimate_for(plan, tmp_path, "h100"),
        estimate_for(dataclasses.replace(plan, study=placed(plan.study, device="cuda")), tmp_path),
    ):
        assert gpu.num_calibrated == 0
        assert "calibration.json is not used for h100" in gpu.warnings[-1]
    with pytest.raises(UserError, match="kind of device"):
        estimate_for(plan, tmp_path, "h100", calibration=tmp_path)


def test_plan_and_show_say_what_times_rest_on(plan: Plan, tmp_path: Path) -> None:
    def shown(*options: str) -> str:
        result = CliRunner().invoke(main, ["show", str(tmp_path), *options])
        assert result.exit_code == 0, result.output
        return " ".join(result.output.split())

    write_plan(plan, tmp_path)
    write_with_estimates(plan, estimate_for(plan, tmp_path, "cpu2"), tmp_path)
    assert "estimate on cpu2: under 0.0001 core-hours; nothing measured" in shown()
    assert "from FLOPs alone, without start-up, evaluation and data: times of plain" in shown()
    assert "<0.0001" in shown()
    assert "e-1" not in shown()
    found = calibration(*(measured(plan, "plain", size) for size in (1, 3)))
    write_calibration(tmp_path / "calibration.json", found)
    assert "step times of 6 of 18 runs measured, of 3 between rungs that were (" in shown()
    assert "times of gated (calibrated: other commands)" in shown()
    one = shown(plan.runs[0].run_id)
    assert "step 0.1 s (calibrated)" in one
    assert "start-up 5 s" in one
    assert "a machine (cpu), 2026-01-02, each alone" in shown("--explain")


def test_a_command_that_branches_saves_steps_and_no_start_up(tmp_path: Path) -> None:
    plan = make_plan(placed(own_study(tmp_path / "code", **BRANCHING), ranks=2))
    known = calibration(measured(plan, "plain", 2, num_ranks=2))
    estimate = estimate_plan(plan, load_hardware("cpu2"), calibration=known)
    largest = max(run.budget_flops for run in plan.runs)
    saved = 0.0
    for run in plan.runs:
        mine = estimate.runs[run.run_id]
        start_s = mine.start_s or 0.0
        fork = run.spec.steps - int(0.2 * run.spec.steps) if run.budget_flops < largest else 0
        assert mine.gpu_hours == pytest.approx(2 * (start_s + mine.step_s * run.spec.steps) / 3600)
        assert mine.trunk_gpu_hours == pytest.approx(2 * mine.step_s * fork / 3600)
        saved += mine.trunk_gpu_hours
    assert estimate.gpu_hours_saved == pytest.approx(saved)
    assert saved > 0
    assert "start-up is not" in estimate.assumptions[-1]

"""Time against FLOPs, from a made calibration whose answer is known."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from experiments.made_scripts import script
from isoflop.analysis.optima import OPTIMA
from isoflop.analysis.optima_methods import DEFAULT_METHOD
from isoflop.errors import UserError
from isoflop.plan.artefact import write_plan
from isoflop.plan.estimate import Calibration
from isoflop.plan.estimate.hardware import MeasuredStep, StepShape, write_calibration
from isoflop.plan.planner import Plan, make_plan
from isoflop.study import Hypothesis, Study
from isoflop.tables import RUNS, write_table

clock = script("clock")
BUDGET = 10**10
STUDY = Study(
    name="made", budgets=(BUDGET,), archs=("mlp", "sgatlin"), sizes=(1, 2, 3), recipe="micro-v1"
)
# Training FLOPs per second of the two families; sgatlin's grow with its size.
MLP_RATE = 2e10
SGATLIN_RATES = {1: 0.5e10, 2: 1e10, 3: 2e10}


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(STUDY)


@pytest.fixture(scope="module")
def calibration(plan: Plan) -> Calibration:
    entries = []
    for run in plan.runs:
        rate = MLP_RATE if run.arch == "mlp" else SGATLIN_RATES[run.size]
        step_s = run.flops / run.spec.steps / rate
        entries.append(
            MeasuredStep(
                shape=StepShape.of(run.spec),
                step_s=step_s,
                step_s_min=step_s / 1.25,
                step_s_max=step_s * 2,
                num_steps=10,
                peak_mem_bytes=None,
            )
        )
    return Calibration(
        kind="cpu",
        machine="a made processor",
        torch="2.0",
        date="2026-11-24",
        num_threads=1,
        entries=tuple(entries),
    )


def test_at_the_centre_the_rate_is_the_middle_sizes(plan: Plan, calibration: Calibration) -> None:
    found = clock.clocks(plan, calibration, {})
    mlp, sgatlin = found["mlp", BUDGET], found["sgatlin", BUDGET]
    assert mlp.flops_per_s == pytest.approx(MLP_RATE, rel=1e-12)
    assert sgatlin.seconds_per_flop.relative(mlp.seconds_per_flop) == pytest.approx(2.0, rel=1e-12)
    assert (sgatlin.slowest, sgatlin.fastest) == pytest.approx((0.5e10, 1.25e10), rel=1e-12)
    middle = next(run for run in plan.runs if (run.arch, run.size) == ("sgatlin", 2))
    assert sgatlin.step_s == pytest.approx(middle.flops / middle.spec.steps / 1e10, rel=1e-12)
    assert not sgatlin.at_optimum


def test_at_an_optimum_it_is_interpolated_between_sizes(
    plan: Plan, calibration: Calibration
) -> None:
    sizes = {run.size: run.n_params for run in plan.runs if run.arch == "sgatlin"}
    halfway = (sizes[2] * sizes[3]) ** 0.5
    found = clock.clocks(plan, calibration, {("sgatlin", BUDGET): halfway})
    assert found["sgatlin", BUDGET].flops_per_s == pytest.approx(2**0.5 * 1e10, rel=1e-9)
    assert found["sgatlin", BUDGET].at_optimum


def test_only_interior_optima_of_the_default_method_count(tmp_path: Path) -> None:
    made = {"arch": "mlp", "axis": "n_params", "method": DEFAULT_METHOD, "status": "interior"}
    rows = [
        OPTIMA.row(**made, budget_flops=1e10, x_opt=5e4),
        OPTIMA.row(**{**made, "status": "edge_low"}, budget_flops=2e10, x_opt=1.0),
        OPTIMA.row(**{**made, "axis": "n_tokens"}, budget_flops=3e10, x_opt=1.0),
        OPTIMA.row(**{**made, "method": "akima"}, budget_flops=1e10, x_opt=1.0),
    ]
    assert clock.interior_optima(tmp_path) == {}
    write_table(tmp_path / "optima.parquet", rows, OPTIMA)
    assert clock.interior_optima(tmp_path) == {("mlp", BUDGET): 5e4}


def test_the_page_says_where_and_how_much_slower(
    plan: Plan, calibration: Calibration, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_plan(plan, tmp_path)
    write_calibration(tmp_path / "calibration.json", calibration)
    clock.main([str(tmp_path)])
    text = capsys.readouterr().out
    assert "a made processor" in text
    assert "| sgatlin, 1e10 | centre | " in text
    assert "| 10.00 | 2.00 (1.60 to 4.00) |" in text
    assert "2.00 to 2.00 times as long as mlp's" in text


def test_times_of_the_runs_are_replaced_by_measured_ones(
    plan: Plan, calibration: Calibration, tmp_path: Path
) -> None:
    assert clock.timed_fits(tmp_path, plan, calibration) is None
    rows = [
        RUNS.row(
            **run.row(),
            loss=2.0 + 0.1 * (run.size - 2) ** 2,
            wall_s=1e6,
            status="done",
        )
        for run in plan.runs
    ]
    write_table(tmp_path / "runs.parquet", rows, RUNS)
    fits = clock.timed_fits(tmp_path, plan, calibration)
    times = {p.run_id: p.wall_s for points in fits.groups.values() for p in points}
    for run in plan.runs:
        rate = MLP_RATE if run.arch == "mlp" else SGATLIN_RATES[run.size]
        assert times[run.run_id] == pytest.approx(run.flops / rate, rel=1e-12)
    write_table(tmp_path / "runs.parquet", [{**rows[0], "run_id": "0" * 64}], RUNS)
    with pytest.raises(UserError, match="runs of the plan"):
        clock.timed_fits(tmp_path, plan, calibration)


def test_rules_on_time_are_judged_with_measured_times(
    plan: Plan, calibration: Calibration, tmp_path: Path
) -> None:
    rule = Hypothesis(id="H1", claim="in less time", decide="multiplier(sgatlin, mlp, wall_s) > 1")
    other = Hypothesis(id="H2", claim="in fewer FLOPs", decide="multiplier(sgatlin, mlp) > 1")
    study = dataclasses.replace(plan.study, hypotheses=(rule, other))
    rows = [
        RUNS.row(**run.row(), loss=2.0 + 0.1 * (run.size - 2) ** 2, status="done")
        for run in plan.runs
    ]
    write_table(tmp_path / "runs.parquet", rows, RUNS)
    fits = clock.timed_fits(tmp_path, plan, calibration)
    text = clock.time_section(fits, dataclasses.replace(plan, study=study), "mlp")
    assert "H1, `multiplier(sgatlin, mlp, wall_s) > 1`: **undecided**" in text
    assert "training time" in text
    assert "H2" not in text


def test_a_shape_that_was_not_measured_is_named(plan: Plan, calibration: Calibration) -> None:
    short = dataclasses.replace(calibration, entries=calibration.entries[:-1])
    with pytest.raises(UserError, match="without sgatlin size 3"):
        clock.clocks(plan, short, {})


def test_a_reference_that_is_not_there_is_refused(
    plan: Plan, calibration: Calibration, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_plan(plan, tmp_path)
    write_calibration(tmp_path / "calibration.json", calibration)
    with pytest.raises(SystemExit, match="2"):
        clock.main([str(tmp_path), "--reference", "gru"])
    assert "--reference = gru" in capsys.readouterr().err

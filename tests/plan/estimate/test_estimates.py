from __future__ import annotations

import dataclasses
import math
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from isoflop.errors import UserError
from isoflop.plan.artefact import read_plan
from isoflop.plan.estimate import (
    Calibration,
    estimate_plan,
    estimate_run,
    estimates,
    load_hardware,
)
from isoflop.plan.estimate.hardware import MeasuredStep, StepShape, shape_key
from isoflop.plan.estimate.memory import model_shape
from isoflop.plan.estimate.time import estimate_step
from isoflop.plan.planner import Plan, make_plan
from isoflop.spec import RunSpec
from isoflop.study import paper_study
from isoflop.tables import RUNS, read_table
from made_shapes import rung_spec
from made_studies import micro

RESULTS = Path(__file__).resolve().parents[3] / "results"
H100, CPU = load_hardware("h100"), load_hardware("cpu2")


@pytest.fixture(scope="module")
def paper_plan() -> Plan:
    return make_plan(paper_study((10**17, 6 * 10**18)))


def calibration_of(*specs: RunSpec, kind: str = "cpu", step_s: float = 0.5) -> Calibration:
    return Calibration(
        kind=kind,
        machine="a machine",
        torch="2.0",
        date="2026-01-02",
        num_threads=1,
        entries=tuple(
            MeasuredStep(
                shape=StepShape.of(spec),
                step_s=step_s,
                step_s_min=step_s,
                step_s_max=step_s,
                num_steps=10,
                peak_mem_bytes=None,
            )
            for spec in specs
        ),
    )


def test_a_run_s_hours_follow_from_its_steps() -> None:
    spec = rung_spec("sgatlin", 8)
    run = estimate_run(spec, H100)
    assert run.source == "roofline"
    assert run.step_s == pytest.approx(sum(run.parts.values()))
    assert run.gpu_hours == pytest.approx(run.step_s * spec.steps * 2 / 3600)
    longer = estimate_run(dataclasses.replace(spec, steps=3 * spec.steps, seed=5), H100)
    assert longer.gpu_hours == pytest.approx(3 * run.gpu_hours)
    assert longer.step_s == run.step_s
    assert any("AdamW" in line for line in run.assumptions)


def test_a_run_that_does_not_fit_has_no_time_and_says_so() -> None:
    run = estimate_run(rung_spec("mlp", 4), CPU)
    assert run.step_s is None
    assert run.gpu_hours is None
    assert not run.placement.fits
    assert run.peak_mem_bytes > CPU.memory_bytes


def test_a_plan_adds_up(paper_plan: Plan) -> None:
    estimate = estimate_plan(paper_plan, H100, price=2.5)
    assert set(estimate.runs) == {run.run_id for run in paper_plan.runs}
    hours = [run.gpu_hours for run in estimate.runs.values()]
    assert estimate.gpu_hours + estimate.gpu_hours_saved == pytest.approx(sum(hours))
    assert estimate.gpu_hours == pytest.approx(sum(estimate.gpu_hours_by_budget.values()))
    assert estimate.cost == pytest.approx(2.5 * estimate.gpu_hours)
    assert estimate.num_calibrated == 0
    assert not estimate.not_fitting


def test_a_price_comes_from_the_person_or_the_profile_or_nowhere(paper_plan: Plan) -> None:
    assert estimate_plan(paper_plan, H100).cost is None
    priced = dataclasses.replace(H100, price_per_hour=2.0)
    estimate = estimate_plan(paper_plan, priced)
    assert estimate.cost == pytest.approx(2 * estimate.gpu_hours)
    assert estimate_plan(paper_plan, priced, price=4).cost == pytest.approx(2 * estimate.cost)


def test_runs_that_do_not_fit_are_named_once_and_count_nothing(paper_plan: Plan) -> None:
    estimate = estimate_plan(paper_plan, CPU)
    assert len(estimate.not_fitting) == len(set(estimate.not_fitting))
    assert any(line.startswith("mlp size 6: does not fit") for line in estimate.not_fitting)
    assert estimate.gpu_hours == sum(r.gpu_hours_spent for r in estimate.runs.values())
    assert all(r.gpu_hours_spent == 0.0 for r in estimate.runs.values() if not r.fits)


def test_the_cap_names_the_total_and_the_budgets_to_drop(paper_plan: Plan) -> None:
    estimate = estimate_plan(paper_plan, H100)
    assert estimate_plan(paper_plan, H100, max_gpu_hours=estimate.gpu_hours) == estimate
    with pytest.raises(UserError, match="drop budget 6e18 .leaves") as caught:
        estimate_plan(paper_plan, H100, max_gpu_hours=100)
    assert f"at least the {estimate.gpu_hours:,.4g} GPU-hours" in str(caught.value)
    assert "--max-gpu-hours = 100: " in str(caught.value)
    with pytest.raises(UserError, match="no budget alone fits"):
        estimate_plan(paper_plan, H100, max_gpu_hours=1)


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf")])
def test_a_price_or_cap_that_is_none_is_refused(value: float, paper_plan: Plan) -> None:
    with pytest.raises(UserError, match="--price"):
        estimate_plan(paper_plan, H100, price=value)
    with pytest.raises(UserError, match="--max-gpu-hours"):
        estimate_plan(paper_plan, H100, max_gpu_hours=value)


def test_measured_steps_take_the_roofline_s_place_and_say_so() -> None:
    plan = make_plan(micro(archs=("mlp", "sgatlin"), seeds=(0, 1)))
    measured = plan.unique_runs[0].spec
    estimate = estimate_plan(plan, CPU, calibration=calibration_of(measured))
    # Both seeds of the one shape.
    assert estimate.num_calibrated == 2
    run = estimate.runs[plan.unique_runs[0].run_id]
    assert (run.source, run.step_s) == ("calibrated", 0.5)
    assert run.gpu_hours == pytest.approx(0.5 * measured.steps / 3600)
    assert "measured on a machine" in estimate.assumptions[0]
    others = [r for r in estimate.runs.values() if r.source == "scaled"]
    assert len(others) == len(estimate.runs) - 2


def test_shapes_that_were_not_measured_are_scaled_by_the_nearest_of_their_family() -> None:
    specs = {size: rung_spec("mlp", size, "micro-v1") for size in range(1, 7)}
    roofline = {size: estimate_run(spec, CPU).step_s for size, spec in specs.items()}
    times = {1: 9.0, 3: 2.0, 4: 3.0, 6: 1.5}
    entries = [
        calibration_of(specs[size], step_s=times[size] * roofline[size]).entries[0]
        for size in times
    ]
    other = calibration_of(rung_spec("moe", 2, "micro-v1"), step_s=7.0).entries[0]
    known = dataclasses.replace(calibration_of(), entries=(*entries, other))
    run = estimate_run(specs[5], CPU, known)
    # By 3, 4 and 6; the smallest is too far, moe another family.
    assert run.source == "scaled"
    assert run.step_s == pytest.approx(9 ** (1 / 3) * roofline[5])
    assert (run.scale.low, run.scale.high) == pytest.approx((1.5, 3.0))
    assert run.scale.describe() == (
        "scaled from 3 measured shapes: 2.08 times the roofline, 1.50 to 3.00"
    )
    assert run.gpu_hours == pytest.approx(run.step_s * specs[5].steps / 3600)
    assert estimate_run(specs[4], CPU, known).source == "calibrated"
    swiglu = estimate_run(rung_spec("swiglu", 5, "micro-v1"), CPU, known)
    assert "of other families" in swiglu.scale.describe()
    alone = estimate_run(specs[5], CPU, dataclasses.replace(known, entries=(other,)))
    assert "scaled from 1 measured shape of other families" in alone.scale.describe()
    assert estimate_run(specs[5], CPU, calibration_of()).source == "roofline"


def test_a_measured_step_in_micro_batches_is_compared_with_one_of_that_layout() -> None:
    spec = rung_spec("mlp", 6)
    entry = dataclasses.replace(
        calibration_of(spec, kind="cuda", step_s=1.0).entries[0], micro_batch=48, checkpointing=True
    )
    known = dataclasses.replace(calibration_of(kind="cuda"), entries=(entry,))
    placed = estimate_run(spec, H100, known).placement
    assert (placed.micro_batch, placed.grad_accum, placed.checkpointing) == (48, 3, True)
    scaled = estimate_run(rung_spec("mlp", 7), H100, known)
    expected = estimate_step(model_shape(spec), H100, placed).total_s
    assert scaled.scale.ratio == pytest.approx(1 / expected)


def test_left_out_one_by_one_the_steps_of_a_study_are_nearer_scaled_than_by_the_roofline() -> None:
    """Steps that results/cpu_reference took on a busy machine, each shape in turn unknown."""
    folder = RESULTS / "cpu_reference"
    found: dict[object, list[tuple[RunSpec, float]]] = {}
    took = {
        row["run_id"]: row["step_s_median"] for row in read_table(folder / "runs.parquet", RUNS)
    }
    for run in read_plan(folder).unique_runs:
        if took.get(run.run_id) is not None:
            found.setdefault(shape_key(run.spec), []).append((run.spec, took[run.run_id]))
    steps = [(pairs[0][0], statistics.median(s for _, s in pairs)) for pairs in found.values()]
    entries = [calibration_of(spec, step_s=step_s).entries[0] for spec, step_s in steps]

    def error(calibrated: bool) -> float:
        """Return the root mean square of ln predicted over measured."""
        logs = []
        for number, (spec, step_s) in enumerate(steps):
            others = tuple(e for i, e in enumerate(entries) if i != number) if calibrated else ()
            known = dataclasses.replace(calibration_of(), entries=others)
            predicted = estimate_run(spec, CPU, known).step_s
            logs.append(math.log(predicted / step_s))
        return math.sqrt(statistics.fmean(each**2 for each in logs))

    assert len(steps) > 10
    assert error(calibrated=True) < 0.35 * error(calibrated=False)


def test_a_measured_run_fits_whatever_the_profile_says() -> None:
    spec = rung_spec("mlp", 2, batch_size=64)
    assert estimate_run(spec, CPU).step_s is None
    assert estimate_run(spec, CPU, calibration_of(spec)).step_s == 0.5


def test_a_cpu_s_times_are_no_estimate_for_a_gpu(paper_plan: Plan) -> None:
    with pytest.raises(UserError, match="calibration = .*cuda"):
        estimate_plan(paper_plan, H100, calibration=calibration_of(paper_plan.runs[0].spec))


def test_runs_of_one_shape_are_worked_out_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []
    original: Callable[..., object] = estimates.model_shape

    def counting(*arguments: object) -> object:
        calls.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(estimates, "model_shape", counting)
    plan = make_plan(micro(seeds=tuple(range(40)), budgets=(10**10, 2 * 10**10)))
    estimate = estimate_plan(plan, CPU)
    assert len(estimate.runs) == 5 * 2 * 2 * 40
    assert len(calls) == 5 * 2
    # The plan has counted its models already.
    assert all(ledger is not None for _, ledger in calls)


@pytest.mark.parametrize("budget", [10**22, 10**26])
def test_budgets_of_any_size_are_estimated(budget: int) -> None:
    plan = make_plan(paper_study((budget,)))
    estimate = estimate_plan(plan, H100)
    for run in estimate.runs.values():
        assert run.placement.fits == (run.gpu_hours is not None)
    if budget == 10**26:
        assert estimate.not_fitting


def test_estimating_imports_nothing_heavy() -> None:
    script = (
        "import sys\n"
        "from isoflop.plan.estimate import load_hardware, estimate_plan\n"
        "from isoflop.plan.planner import make_plan\n"
        "from isoflop.study import paper_study\n"
        "estimate_plan(make_plan(paper_study((10**17,))), load_hardware('h100'))\n"
        "found = {'torch', 'numpy', 'pandas', 'scipy'} & set(sys.modules)\n"
        "assert not found, found\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


DOUBLING = (10**10, 2 * 10**10, 4 * 10**10)


def shared(**changes: object) -> Plan:
    return make_plan(micro(**{"recipe": "micro-v3", "budgets": DOUBLING, "sizes": (2,), **changes}))


def test_totals_are_what_is_executed_and_a_run_s_own_hours_are_not() -> None:
    plan, alone = shared(seeds=(0, 1)), shared(seeds=(0, 1), share="none")
    estimate, each = (estimate_plan(p, CPU, price=3.0) for p in (plan, alone))
    assert each.gpu_hours_saved == 0.0
    for run in plan.unique_runs:
        mine = estimate.runs[run.run_id]
        assert mine.gpu_hours == each.runs[run.run_id].gpu_hours
        fork = run.spec.steps - int(0.2 * run.spec.steps)
        is_branch = run.budget_flops < DOUBLING[-1]
        trained = run.spec.steps - fork if is_branch else run.spec.steps
        assert mine.gpu_hours_spent == pytest.approx(mine.step_s * trained / 3600)
    assert estimate.gpu_hours == pytest.approx(sum(estimate.gpu_hours_by_budget.values()))
    assert estimate.gpu_hours + estimate.gpu_hours_saved == pytest.approx(each.gpu_hours)
    assert estimate.cost == pytest.approx(3.0 * estimate.gpu_hours)
    assert estimate.gpu_hours_by_budget[DOUBLING[-1]] == each.gpu_hours_by_budget[DOUBLING[-1]]
    assert sum(line.startswith("trunks: ") for line in estimate.assumptions) == 1
    assert not any(line.startswith("trunks: ") for line in each.assumptions)


def test_without_its_largest_budget_a_trunk_ends_at_the_next_and_the_cap_counts_so() -> None:
    plan = shared()
    estimate = estimate_plan(plan, CPU)
    rest = estimate_plan(shared(budgets=DOUBLING[:2]), CPU).gpu_hours
    # Less than that is left of the whole by taking off the hours of the largest budget.
    assert estimate.gpu_hours - estimate.gpu_hours_by_budget[DOUBLING[-1]] < 0.5 * rest
    with pytest.raises(UserError, match=r"drop budget 4e10 \(leaves") as caught:
        estimate_plan(plan, CPU, max_gpu_hours=1.01 * rest)
    assert f"leaves {rest:,.4g}" in str(caught.value)
    with pytest.raises(UserError, match="drop budgets 2e10, 4e10"):
        estimate_plan(plan, CPU, max_gpu_hours=0.99 * rest)
    # What would take too long alone is no more than is allowed.
    assert estimate_plan(plan, CPU, max_gpu_hours=estimate.gpu_hours) == estimate


def test_what_does_not_fit_saves_nothing() -> None:
    plan = make_plan(paper_study((10**18, 2 * 10**18)))
    estimate = estimate_plan(plan, CPU)
    unfit = [run for run in estimate.runs.values() if not run.fits]
    assert unfit
    assert {run.trunk_gpu_hours for run in unfit} == {0.0}
    assert estimate.gpu_hours == sum(run.gpu_hours_spent for run in estimate.runs.values())

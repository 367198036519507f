"""What new runs cost where trunks lie in the folder, are yet to be trained, or left nothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from click.testing import CliRunner

from isoflop.cli import main
from isoflop.launch.prices import NewRuns, price_new_runs
from isoflop.launch.run_folder import RunFolder
from isoflop.plan.artefact import read_plan
from isoflop.plan.estimate import estimate_for, write_with_estimates
from isoflop.plan.planner import Plan, make_plan
from isoflop.plan.runs import PlannedRun
from isoflop.plan.trunks import flops_executed, flops_of_steps
from isoflop.study import Study
from made_studies import micro

DOUBLING = tuple(2**power * 10**10 for power in range(4))


class Made:
    """A study of one size whose plan grows."""

    def __init__(self, folder: Path, budgets: tuple[int, ...], **changes: object) -> None:
        self.folder = folder
        one_size = {"sizes": (2,), "archs": ("mlp",), "max_epochs": 9.0}
        self._study = micro(recipe="micro-v3", budgets=budgets, **one_size, **changes)
        plan = make_plan(self._study)
        write_with_estimates(plan, estimate_for(plan, folder), folder)

    def run(self, budget: int) -> PlannedRun:
        return next(r for r in make_plan(self._with(budget)).runs if r.budget_flops == budget)

    def finish(self, *budgets: int) -> None:
        for budget in budgets:
            run = self.run(budget)
            folder = RunFolder(self.folder, run.run_id)
            folder.write_spec(run.spec)
            attempt = folder.claim({})
            assert attempt is not None
            values = {"status": "done", "status_reason": None, "loss": 3.0}
            assert folder.write_result(attempt, {**values, "num_steps": run.spec.steps})

    def keep(self, budget: int) -> int:
        """Leave the state before its decay in the run's folder; return its step."""
        run = self.run(budget)
        step = run.spec.steps - int(0.2 * run.spec.steps)
        (RunFolder(self.folder, run.run_id).forks / str(step)).mkdir(parents=True)
        return step

    def price(self, *budgets: int) -> NewRuns:
        there = read_plan(self.folder)
        plan = self.grown(*budgets)
        new = {run.run_id for run in plan.runs} - {run.run_id for run in there.runs}
        price = price_new_runs(self.folder, plan, new, estimate_for(plan, self.folder))
        assert price is not None
        return price

    def grown(self, *budgets: int) -> Plan:
        return make_plan(self._with(*budgets))

    def _with(self, *budgets: int) -> Study:
        every = tuple(sorted({*self._study.budgets, *budgets}))
        return dataclasses.replace(self._study, budgets=every)


def spent(price: NewRuns) -> tuple[int, int, int]:
    return price.num_there, price.num_coming, price.num_left_nothing


def test_a_longer_budget_takes_off_what_the_shorter_have_not_been_trained_for(
    tmp_path: Path,
) -> None:
    made = Made(tmp_path, DOUBLING[:2])
    price = made.price(DOUBLING[2])
    before, after = made.grown(), made.grown(DOUBLING[2])
    assert price.flops_to_execute == flops_executed(after) - flops_executed(before)
    assert price.flops_to_execute < price.flops == made.run(DOUBLING[2]).flops
    hours = [estimate_for(plan, tmp_path).gpu_hours for plan in (before, after)]
    assert price.gpu_hours == pytest.approx(hours[1] - hours[0])
    assert spent(price) == (0, 0, 0)


def test_a_longer_budget_begins_at_what_was_kept_and_is_trained_whole_where_nothing_was(
    tmp_path: Path,
) -> None:
    made = Made(tmp_path, DOUBLING[:2])
    made.finish(*DOUBLING[:2])
    price = made.price(*DOUBLING[2:])
    long = made.run(DOUBLING[3])
    # The third begins where the fourth passes, whose trunk left nothing.
    assert spent(price) == (0, 1, 1)
    assert price.flops == made.run(DOUBLING[2]).flops + long.flops
    tail = int(0.2 * made.run(DOUBLING[2]).spec.steps)
    assert price.flops_to_execute == long.flops + flops_of_steps(made.run(DOUBLING[2]), tail)
    kept = made.keep(DOUBLING[1])
    price = made.price(DOUBLING[3])
    assert spent(price) == (1, 0, 0)
    assert price.flops_to_execute == long.flops - flops_of_steps(long, kept)


def test_a_study_that_keeps_trunks_is_not_told_to(tmp_path: Path) -> None:
    made = Made(tmp_path, DOUBLING[:2], keep_trunks=True)
    made.finish(*DOUBLING[:2])
    assert spent(made.price(DOUBLING[2])) == (0, 0, 0)


def test_a_budget_between_begins_where_the_longer_run_is_yet_to_pass(tmp_path: Path) -> None:
    made = Made(tmp_path, (DOUBLING[0], DOUBLING[3]))
    made.finish(DOUBLING[0])
    price = made.price(DOUBLING[1])
    between = made.run(DOUBLING[1])
    assert spent(price) == (0, 1, 0)
    assert price.flops_to_execute == flops_of_steps(between, int(0.2 * between.spec.steps))
    # The longer one is done: what would have helped is not what a study could have kept.
    made.finish(DOUBLING[3])
    assert spent(made.price(DOUBLING[1])) == (0, 0, 0)
    assert made.price(DOUBLING[1]).flops_to_execute == between.flops


def test_a_plan_that_shares_nothing_has_no_price_of_trunks(tmp_path: Path) -> None:
    plan = make_plan(micro(budgets=DOUBLING[:2], sizes=(2,), archs=("mlp",)))
    assert price_new_runs(tmp_path, plan, {plan.runs[0].run_id}, None) is None


def test_extend_says_what_it_costs_three_times_over(tmp_path: Path) -> None:
    made = Made(tmp_path, DOUBLING[:1])

    def extend(*words: str) -> str:
        done = CliRunner().invoke(main, ["extend", str(tmp_path), *words])
        assert done.exit_code == 0, done.output
        return done.output

    text = extend("--budgets", "2e10")
    first = flops_executed(make_plan(made.grown(DOUBLING[1]).study))
    assert "executed, if trained from nothing: " in text
    assert "FLOPs more to execute, of 2e10 if each were trained alone" in text
    assert "core-hours (estimate, cpu2)" in text
    made.finish(*DOUBLING[:2])
    text = extend("--budgets", "4e10")
    assert "1 new run could begin where a run that is done began to decay" in text
    text = extend("--seeds", "1")
    assert "of 3 new runs 2 begin from a state that a longer run is yet to reach" in text
    assert flops_executed(read_plan(tmp_path)) > first
    assert "trunks" not in extend("--seeds", "1")

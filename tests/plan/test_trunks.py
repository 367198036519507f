"""Trunks: which runs are one training, until where, and what that saves."""

from __future__ import annotations

import dataclasses

import pytest

from isoflop.errors import UserError
from isoflop.plan.planner import make_plan
from isoflop.plan.trunks import branches_of, decay_start, flops_of_steps, trunks_of
from isoflop.recipe import RECIPES
from isoflop.study import Study, paper_study
from isoflop.train.optimizer import learning_rate
from made_studies import micro

BUDGETS = (10**10, 2 * 10**10, 4 * 10**10)


def shared(**changes: object) -> Study:
    return micro(recipe="micro-v3", budgets=BUDGETS, sizes=(2, 3), **changes)


def test_a_trunk_is_what_differs_in_steps_alone() -> None:
    plan = make_plan(shared(seeds=(0, 1), archs=("mlp", "sgatlin")))
    trunks = trunks_of(plan)
    assert len(trunks) == 2 * 2 * 2
    for trunk in trunks:
        assert len(trunk.runs) == 3
        steps = [run.spec.steps for run in trunk.runs]
        assert steps == sorted(steps)
        first = dataclasses.replace(trunk.longest.family_spec, steps=1)
        assert all(dataclasses.replace(r.family_spec, steps=1) == first for r in trunk.runs)
        assert trunk.longest.budget_flops == BUDGETS[-1]
    found = branches_of(trunks)
    assert found.keys() == {run.run_id for run in plan.runs if run.budget_flops < BUDGETS[-1]}


def test_until_its_fork_a_run_has_the_learning_rates_of_every_longer_one() -> None:
    plan = make_plan(shared(archs=("mlp",)))
    recipe = RECIPES["micro-v3"]

    def rates(steps: int, until: int) -> list[float]:
        warmup = recipe.num_warmup_steps(steps)
        return [
            learning_rate(
                step, steps, recipe.peak_lr, warmup, recipe.decay_fraction, recipe.schedule
            )
            for step in range(until)
        ]

    for trunk in trunks_of(plan):
        longest = trunk.longest.spec.steps
        for run, fork in trunk.branches:
            assert 0 < fork < run.spec.steps
            assert rates(run.spec.steps, fork) == rates(longest, fork)
            later = rates(run.spec.steps, run.spec.steps)
            assert later[fork + 1] < recipe.peak_lr


def test_what_is_saved_is_what_lies_before_the_forks() -> None:
    plan = make_plan(shared())
    saved = 0
    for run in plan.unique_runs:
        if run.budget_flops < BUDGETS[-1]:
            fork = run.spec.steps - int(0.2 * run.spec.steps)
            assert fork == decay_start(run.spec, plan.study)
            saved += run.flops * fork // run.spec.steps
            assert flops_of_steps(run, run.spec.steps) == run.flops
    assert sum(trunk.flops_saved for trunk in trunks_of(plan)) == saved


def test_the_saving_of_doubling_budgets_of_the_paper_is_the_published_one() -> None:
    doubling = make_plan(paper_study(tuple(2**power * 10**18 for power in range(4))))
    saved = sum(trunk.flops_saved for trunk in trunks_of(doubling))
    assert saved / sum(run.flops for run in doubling.unique_runs) == pytest.approx(0.312, abs=2e-3)
    paper = make_plan(paper_study((10**17, 6 * 10**17, 10**18, 6 * 10**18)))
    saved = sum(trunk.flops_saved for trunk in trunks_of(paper))
    assert saved / sum(run.flops for run in paper.unique_runs) == pytest.approx(0.085, abs=1e-3)


def test_nothing_is_shared_where_it_is_switched_off_or_the_recipe_does_not_allow_it() -> None:
    assert trunks_of(make_plan(shared(share="none"))) == ()
    assert trunks_of(make_plan(micro(budgets=BUDGETS, sizes=(2, 3)))) == ()
    one_budget = micro(recipe="micro-v3", budgets=BUDGETS[:1], sizes=(2, 3))
    assert trunks_of(make_plan(one_budget)) == ()
    with pytest.raises(UserError, match="fixed number of warm-up steps"):
        micro(share="trunks")
    with pytest.raises(UserError, match="share"):
        shared(share="trunk")


def test_run_ids_and_plans_do_not_know_of_it() -> None:
    plans = [make_plan(shared(share=share)) for share in (None, "trunks", "none")]
    ids = [[run.run_id for run in plan.runs] for plan in plans]
    assert ids[0] == ids[1] == ids[2]
    assert "share" not in plans[0].study.to_json()
    assert plans[1].study.to_json()["share"] == "trunks"

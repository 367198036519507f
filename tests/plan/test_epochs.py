"""Studies whose runs are set by passes over the data in place of a budget."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from isoflop.accounting import get_convention
from isoflop.analysis.power import estimate_power
from isoflop.errors import UserError
from isoflop.plan.artefact import read_plan, write_plan
from isoflop.plan.estimate import estimate_for
from isoflop.plan.grow import extend_plan
from isoflop.plan.planner import make_plan
from isoflop.plan.runs import run_ledger, steps_of_epochs
from isoflop.study import Study
from isoflop.study.file import study_from_toml
from isoflop.validate import validated
from made_studies import check_edit_is_refused, micro

NUM_TOKENS = 1_444_062
PER_STEP = 4 * 32


def by_epochs(**changes: Any) -> Study:
    values = {"budgets": (), "epochs": (0.1, 0.5), "archs": ("mlp", "sgatlin"), "seeds": (0, 1)}
    return micro(**(values | changes))


def test_every_run_makes_the_whole_steps_of_its_epochs_and_spends_its_budget() -> None:
    plan = make_plan(by_epochs())
    assert plan.num_train_tokens == NUM_TOKENS
    assert [(r.spec.steps, r.arch, r.size, r.spec.seed) for r in plan.runs] == [
        (steps, arch, size, seed)
        for steps in (144_406 // PER_STEP, 722_031 // PER_STEP)
        for arch in ("mlp", "sgatlin")
        for size in (1, 2)
        for seed in (0, 1)
    ]
    for run in plan.runs:
        convention = get_convention(plan.study.convention)
        assert run.budget_flops == run.flops == convention(run_ledger(run.spec)) * run.n_tokens
        assert run.residual == 0
        assert min(abs(run.epochs - e) for e in plan.study.epochs) * NUM_TOKENS < PER_STEP


def test_a_tenth_of_the_data_is_exactly_a_tenth() -> None:
    # 0.1 and 0.7 as floats are a little more and a little less than they say.
    assert steps_of_epochs(0.7, 10**30, 1) == 7 * 10**29
    assert steps_of_epochs(1.0, 255, 256) == 0
    assert steps_of_epochs(3.0, 2**60, 2**10) == 3 * 2**50


@pytest.mark.parametrize("changes", [{}, {"sizes": None}, {"match": "flops_per_token"}])
def test_the_plan_survives_its_file(changes: dict[str, Any], tmp_path: Path) -> None:
    plan = make_plan(by_epochs(tolerance=0.1, **changes))
    assert write_plan(plan, tmp_path)
    assert read_plan(tmp_path) == plan
    assert validated(Study, json.loads(json.dumps(plan.study.to_json()))) == plan.study


def _first(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda plan: plan["runs"][0].update(values)


def _epochs(to: list[float]) -> Callable[[dict[str, Any]], None]:
    return lambda plan: plan["study"].update(epochs=to)


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (_epochs([0.1, 0.6]), "runs\\[8\\] = .*: must be mlp size 1 seed 0 at 0.6 epochs"),
        (_epochs([0.1]), "runs\\[8\\] = .*: must be nothing"),
        (_epochs([0.1, 0.5, 0.9]), "runs\\[16\\] = nothing: must be mlp .* at 0.9 epochs"),
        (lambda plan: plan["runs"].pop(3), "runs\\[3\\]"),
    ],
)
def test_an_edited_plan_is_refused(
    edit: Callable[[dict[str, Any]], object], named: str, tmp_path: Path
) -> None:
    check_edit_is_refused(by_epochs(), edit, named, tmp_path)


def test_a_budget_of_its_own_is_what_the_run_takes(tmp_path: Path) -> None:
    plan = make_plan(by_epochs())
    first = plan.runs[0]
    budget = first.budget_flops + 1
    richer = dataclasses.replace(first, budget_flops=budget, residual=1 / budget)
    write_plan(dataclasses.replace(plan, runs=(richer, *plan.runs[1:])), tmp_path)
    with pytest.raises(
        UserError, match="runs\\[0\\].budget_flops = .*: must be what the run takes"
    ):
        read_plan(tmp_path)


@pytest.mark.parametrize(
    ("study", "message"),
    [
        ({"epochs": [0]}, "epochs = 0.0: must be a number above 0"),
        ({"epochs": [float("inf")]}, "epochs = inf"),
        ({"epochs": [2, 1]}, "epochs = \\[2.0, 1.0\\]: must be ascending"),
        ({"epochs": [1, 1]}, "must be ascending, each once"),
        ({"epochs": ["1"]}, "study.epochs.0 = '1'"),
        ({"epochs": [1], "sizes": "auto"}, "sizes = 'auto': must be rungs for all"),
        ({"epochs": [1], "recipe": "paper-v1"}, "sizes = None: must be rungs for all"),
        ({"epochs": [1], "sizes": {"1e10": [1]}}, "sizes = .*: must be rungs for all"),
        (
            {"epochs": [1], "more_seeds": {"1e10": {"mlp": {"1": [1]}}}},
            "more_seeds = 'given': must be left out where epochs are",
        ),
    ],
)
def test_a_mistake_is_one_clear_line(study: dict[str, Any], message: str) -> None:
    values = {"name": "s", "archs": ["mlp"], "recipe": "micro-v1"} | study
    with pytest.raises(UserError, match=message) as caught:
        study_from_toml({"study": values})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": (5.0,)}, "data.max_epochs = 4.0"),
        ({"epochs": (1e-5,)}, "steps = 0"),
        ({"epochs": (0.5, 0.500001)}, "epochs = .*: must be further apart"),
        (
            {"source": "slimpajama-6b", "recipe": "tinystories-v1", "sizes": (1,)},
            "epochs = .*: must be left out: how much text slimpajama-6b has",
        ),
    ],
)
def test_what_cannot_be_planned_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_plan(by_epochs(**changes))


def test_it_grows_by_seeds_alone() -> None:
    plan = make_plan(by_epochs())
    grown = extend_plan(plan, seeds=(2,))
    assert {r.run_id for r in plan.runs} < {r.run_id for r in grown.runs}
    assert len(grown.runs) == 24
    for more in ({"budgets": (10**10,)}, {"sizes": (3,)}):
        with pytest.raises(UserError, match="must be --seeds alone where"):
            extend_plan(plan, **more)


def test_estimates_are_by_run_and_power_has_nothing_to_say(tmp_path: Path) -> None:
    plan = make_plan(by_epochs())
    assert estimate_for(plan, tmp_path, "h100").gpu_hours > 0
    with pytest.raises(UserError, match="leave --power out"):
        estimate_power(plan)

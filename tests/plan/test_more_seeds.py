"""Seeds of single sizes: in the study file, the plan and its growth."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from isoflop.cli.diff import diff_lines
from isoflop.errors import UserError
from isoflop.plan.artefact import plan_to_json, read_plan, write_plan
from isoflop.plan.edit import diff_plans
from isoflop.plan.grow import extend_plan, grow_plan
from isoflop.plan.planner import make_plan
from isoflop.study import Study
from isoflop.study.file import study_from_toml
from isoflop.validate import validated
from made_studies import check_edit_is_refused, micro

BUDGET = 10**10
MORE = {BUDGET: {"sgatlin": {2: (1, 2)}}}


def small(**changes: Any) -> Study:
    return micro(**({"archs": ("mlp", "sgatlin"), "more_seeds": MORE} | changes))


def from_toml(**study: Any) -> Study:
    values = {"name": "s", "budgets": [1e10], "archs": ["mlp", "sgatlin"], "sizes": [1, 2]}
    return study_from_toml({"study": values | study})


def test_only_the_named_size_is_repeated_in_the_plan_s_order() -> None:
    plan = make_plan(small())
    assert [(r.arch, r.size, r.spec.seed) for r in plan.runs] == [
        ("mlp", 1, 0),
        ("mlp", 2, 0),
        ("sgatlin", 1, 0),
        ("sgatlin", 2, 0),
        ("sgatlin", 2, 1),
        ("sgatlin", 2, 2),
    ]
    assert len({r.run_id for r in plan.runs}) == 6


def test_a_study_file_says_it_by_budget_arch_and_size() -> None:
    study = from_toml(more_seeds={"1e10": {"sgatlin": {"2": [1, 2]}}})
    assert study.more_seeds == MORE
    assert validated(Study, json.loads(json.dumps(study.to_json()))) == study


def test_without_it_a_plan_is_what_it_was_before_there_was_such_an_entry() -> None:
    assert "more_seeds" not in plan_to_json(make_plan(small(more_seeds={})))["study"]


@pytest.mark.parametrize("sizes", [(1, 2), "auto", {BUDGET: {"default": (2, 1)}}])
def test_the_plan_survives_its_file(sizes: Any, tmp_path: Path) -> None:
    plain = make_plan(small(sizes=sizes, more_seeds={}))
    size = next(r.size for r in plain.runs if r.arch == "sgatlin")
    plan = make_plan(small(sizes=sizes, more_seeds={BUDGET: {"sgatlin": {size: (4, 3)}}}))
    write_plan(plan, tmp_path)
    assert read_plan(tmp_path) == plan
    assert grow_plan(plain, plan.study) == plan


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"1e11": {"mlp": {"1": [1]}}}, "more_seeds = '1e11': must be a budget \\(1e10\\)"),
        ({"1e10": {"moe": {"1": [1]}}}, "more_seeds = 'moe': must be one of mlp, sgatlin"),
        ({"1e10": {"mlp": {"3": [1]}}}, "more_seeds.1e10.mlp = 3: must be a size that is planned"),
        ({"1e10": {"mlp": {"1": []}}}, "more_seeds.1e10.mlp.1 = \\[\\]"),
        ({"1e10": {"mlp": {"1": [-1]}}}, "more_seeds.1e10.mlp.1 = -1: must be 0 or more"),
        ({"1e10": {"mlp": {"1": [1, 1]}}}, "more_seeds.1e10.mlp.1 = \\[1, 1\\]: must be distinct"),
        ({"1e10": {"mlp": {"01": [1]}}}, "more_seeds = '01': must be a size such as 4"),
        ({"1e10": {"mlp": {"one": [1]}}}, "more_seeds = 'one': must be a size"),
        ({"1e10": {"mlp": [1]}}, "study.more_seeds.1e10.mlp = "),
        ({"many": {}}, "more_seeds = many"),
    ],
)
def test_a_mistake_is_one_clear_line(more: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        from_toml(more_seeds=more)
    assert "\n" not in str(caught.value)


def test_a_size_that_the_recipe_does_not_plan_is_refused_when_planning() -> None:
    with pytest.raises(UserError, match="more_seeds.1e10.mlp = 16: must be a size that is planned"):
        make_plan(small(sizes="auto", more_seeds={BUDGET: {"mlp": {16: (1,)}}}))


def _drop_last(values: dict[str, Any]) -> None:
    del values["runs"][-1]


def _other_size(values: dict[str, Any]) -> None:
    values["study"]["more_seeds"] = {str(BUDGET): {"sgatlin": {"1": [1, 2]}}}


def _no_size(values: dict[str, Any]) -> None:
    values["study"]["sizes"] = None
    values["study"]["more_seeds"][str(BUDGET)]["mlp"] = {"7": [1]}


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (_drop_last, "runs\\[5\\] = nothing: must be sgatlin size 2 seed 2 at 1e10"),
        (_other_size, "runs\\[3\\] = .*: must be sgatlin size 1 seed 1"),
        (_no_size, "more_seeds.1e10.mlp = 7"),
    ],
)
def test_an_edited_plan_is_refused(edit: Any, named: str, tmp_path: Path) -> None:
    check_edit_is_refused(small(), edit, named, tmp_path)


def test_growth_by_seeds_sizes_and_budgets_keeps_them() -> None:
    before = make_plan(small())
    after = extend_plan(before, seeds=(1,), sizes=(3,), budgets=(5 * BUDGET,))
    assert {r.run_id for r in before.runs} < {r.run_id for r in after.runs}
    repeated = [r.spec.seed for r in after.runs if (r.arch, r.size) == ("sgatlin", 2)]
    # At the first budget with its own seed 2; a seed that all sizes have is not counted twice.
    assert repeated == [0, 1, 2, 0, 1]


def test_growth_may_not_take_them_away() -> None:
    with pytest.raises(UserError, match="sgatlin size 2 seed 1 at 1e10"):
        grow_plan(make_plan(small()), small(more_seeds={}))


def test_a_difference_names_the_entry_in_either_direction() -> None:
    without, with_them = make_plan(small(more_seeds={})), make_plan(small())
    there = diff_plans(without, with_them)
    assert [name for name, _, _ in there.study] == ["more_seeds"]
    assert [name for name, _, _ in diff_plans(with_them, without).study] == ["more_seeds"]
    lines = diff_lines(there, ("paper", "paper"))
    assert lines[0].startswith("study.more_seeds: none -> 1e10: sgatlin ")
    assert not dataclasses.asdict(there)["removed"]

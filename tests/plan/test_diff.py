from __future__ import annotations

from pathlib import Path

import pytest

from isoflop.errors import UserError
from isoflop.plan.artefact import write_plan
from isoflop.plan.edit import diff_plans, load_plan
from isoflop.plan.planner import Plan, make_plan
from isoflop.study import Hypothesis, Variant
from made_studies import micro

PLAN = make_plan(micro(archs=("mlp", "sgatlin")))


def test_a_plan_does_not_differ_from_itself() -> None:
    difference = diff_plans(PLAN, PLAN)
    assert difference.is_empty
    assert difference.same == PLAN.runs
    assert difference.new_flops == 0


def test_seeds_are_added_one_way_and_removed_the_other() -> None:
    more = make_plan(micro(archs=("mlp", "sgatlin"), seeds=(0, 7)))
    there = diff_plans(PLAN, more)
    assert {run.spec.seed for run in there.added} == {7}
    assert there.same == PLAN.runs
    assert (there.removed, there.changed) == ((), ())
    assert there.study == (("seeds", [0], [0, 7]),)
    assert there.new_flops == sum(run.flops for run in there.added)
    assert there.flops[1] - there.flops[0] == there.new_flops
    back = diff_plans(more, PLAN)
    assert back.removed == there.added
    assert not back.added
    assert back.new_flops == 0


def test_a_changed_run_names_the_fields_of_its_identity() -> None:
    other = make_plan(micro(archs=("mlp", "sgatlin"), batch_size=8))
    difference = diff_plans(PLAN, other)
    assert len(difference.changed) == len(PLAN.runs)
    assert (difference.same, difference.added, difference.removed) == ((), (), ())
    for change in difference.changed:
        assert change.fields == ("batch_size", "steps")
        assert change.before.arch == change.after.arch


def test_a_changed_configuration_is_named_by_its_dotted_field() -> None:
    def plan(width: int) -> Plan:
        variant = Variant(arch="x", family="mlp", overrides={"hidden_width": width})
        return make_plan(micro(archs=("x",), sizes=(1,), variants=(variant,)))

    change = diff_plans(plan(40), plan(41)).changed[0]
    assert "config.hidden_width" in change.fields


def test_the_same_training_under_another_label_is_nothing_new_to_train() -> None:
    variant = Variant(arch="plain", family="mlp", overrides={})
    other = make_plan(micro(archs=("plain", "sgatlin"), variants=(variant,)))
    difference = diff_plans(PLAN, other)
    assert {run.arch for run in difference.added} == {"plain"}
    assert {run.arch for run in difference.removed} == {"mlp"}
    assert {run.run_id for run in difference.added} <= difference.common_ids
    assert difference.new_flops == 0
    assert not difference.is_empty


def test_a_changed_hypothesis_is_a_difference_though_no_run_is() -> None:
    hypothesis = Hypothesis(id="H1", claim="better", decide="multiplier > 1")
    other = make_plan(micro(archs=("mlp", "sgatlin"), hypotheses=(hypothesis,)))
    difference = diff_plans(PLAN, other)
    assert len(difference.same) == len(PLAN.runs)
    assert [name for name, _, _ in difference.study] == ["hypotheses"]
    assert not difference.is_empty


def test_runs_that_two_budgets_share_cost_once() -> None:
    # One step costs far more than the difference between these budgets.
    twice = make_plan(micro(archs=("mlp",), sizes=(1,), budgets=(10**10, 10**10 + 1)))
    once = make_plan(micro(archs=("mlp",), sizes=(1,), budgets=(10**10,)))
    difference = diff_plans(once, twice)
    assert len(difference.added) == 1
    assert difference.new_flops == 0
    assert difference.flops[0] == difference.flops[1]


def test_missing_estimates_are_missing() -> None:
    assert diff_plans(PLAN, PLAN).gpu_hours is None


def test_a_plan_is_found_in_its_folder_or_by_its_file(tmp_path: Path) -> None:
    write_plan(PLAN, tmp_path / "a")
    copy = tmp_path / "old.json"
    copy.write_bytes((tmp_path / "a" / "plan.json").read_bytes())
    assert load_plan(tmp_path / "a") == load_plan(copy) == PLAN
    for nothing in (tmp_path / "b", tmp_path / "none.json"):
        with pytest.raises(UserError):
            load_plan(nothing)

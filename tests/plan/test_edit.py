from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.errors import UserError
from isoflop.plan.artefact import read_plan, write_plan
from isoflop.plan.edit import (
    diff_plans,
    filter_runs,
    find_run,
    load_plan,
    select_runs,
    sort_runs,
)
from isoflop.plan.grow import extend_folder, extend_plan, grow_plan
from isoflop.plan.planner import Plan, make_plan
from isoflop.study import Hypothesis, Study, Variant, paper_study
from isoflop.validate import validated
from made_studies import micro

TWO_BUDGETS = make_plan(micro(budgets=(10**10, 2 * 10**10), seeds=(0, 1)))


def test_a_run_is_found_by_its_id_and_by_its_shortest_unambiguous_start() -> None:
    ids = {run.run_id for run in TWO_BUDGETS.runs}
    for run in TWO_BUDGETS.runs:
        digits = next(
            n for n in range(1, 65) if sum(i.startswith(run.run_id[:n]) for i in ids) == 1
        )
        for prefix in (run.run_id, run.run_id[:digits], run.run_id[:12].upper()):
            assert find_run(TWO_BUDGETS, prefix) == (run,)


@pytest.mark.parametrize("prefix", ["", "g", "0" * 64, " ", "f" * 65])
def test_what_no_id_starts_with_is_refused(prefix: str) -> None:
    with pytest.raises(UserError, match="first digits of a run id"):
        find_run(TWO_BUDGETS, prefix)


def test_an_ambiguous_start_names_a_few_and_counts_the_rest() -> None:
    runs = tuple(
        dataclasses.replace(run, run_id=f"ab{index}" + "0" * 61)
        for index, run in enumerate(TWO_BUDGETS.runs[:6])
    )
    with pytest.raises(UserError, match="now ab0000000000, ab1000000000, ab2000000000 and 3 more"):
        find_run(dataclasses.replace(TWO_BUDGETS, runs=runs), "ab")


def test_a_run_of_two_budgets_is_found_once_with_both_places() -> None:
    shared = make_plan(micro(archs=("mlp",), sizes=(1,), budgets=(10**10, 10**10 + 1)))
    found = find_run(shared, shared.runs[0].run_id[:12])
    assert [run.budget_flops for run in found] == [10**10, 10**10 + 1]


def test_filters_combine_and_keep_the_order() -> None:
    found = filter_runs(TWO_BUDGETS, archs=["moe", "mlp"], budgets=[2 * 10**10], sizes=[2])
    assert [(r.arch, r.size, r.spec.seed) for r in found] == [
        ("mlp", 2, 0),
        ("mlp", 2, 1),
        ("moe", 2, 0),
        ("moe", 2, 1),
    ]
    assert filter_runs(TWO_BUDGETS) == TWO_BUDGETS.runs


@pytest.mark.parametrize(
    ("filters", "named"),
    [
        ({"archs": ["rnn"]}, "--arch = rnn: must be one of mlp, swiglu"),
        ({"budgets": [10**9]}, "--budget = 1e9: must be one of 1e10, 2e10"),
        ({"budgets": [10**10 + 1]}, "--budget = 1.0000000001e10: must be one of 1e10"),
        ({"sizes": [3]}, "--size = 3: must be one of 1, 2"),
    ],
)
def test_a_filter_that_nothing_can_pass_is_refused(
    filters: dict[str, list[object]], named: str
) -> None:
    with pytest.raises(UserError, match=named):
        filter_runs(TWO_BUDGETS, **filters)  # type: ignore[arg-type]


def test_values_that_exist_but_not_together_are_refused() -> None:
    plan = make_plan(micro(sizes={10**10: {"default": (1,), "mlp": (2,)}}))
    with pytest.raises(UserError, match="these together"):
        filter_runs(plan, archs=["mlp"], sizes=[1])


def test_runs_are_selected_by_id_arch_and_budget_together() -> None:
    plan = TWO_BUDGETS
    first = plan.runs[0]
    both = {run.run_id for run in plan.runs if run.arch in ("moe", "mlp")}
    low = {run.run_id for run in plan.runs if run.budget_flops == 10**10}
    assert select_runs(plan) is None
    assert select_runs(plan, archs=["moe", "mlp"]) == both
    assert select_runs(plan, archs=["moe", "mlp"], budgets=[10**10]) == both & low
    assert select_runs(plan, [first.run_id[:12]], archs=[first.arch]) == {first.run_id}
    # Under two budgets one training: named by either.
    shared = make_plan(micro(archs=("mlp",), sizes=(1,), budgets=(10**10, 10**10 + 1)))
    assert select_runs(shared, budgets=[10**10 + 1]) == {shared.runs[0].run_id}


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"archs": ["swigul"]}, "--archs = swigul: must be one of mlp, .*; write swiglu"),
        ({"archs": ["zzz"]}, "--archs = zzz: must be one of mlp, .*; correct it"),
        ({"budgets": [19 * 10**9]}, "--budgets = 1.9e10: must be one of 1e10, 2e10; write 2e10"),
        ({"prefixes": ["mlp"]}, "run = 'mlp': must be the first digits"),
        ({"prefixes": [TWO_BUDGETS.runs[0].run_id], "archs": ["moe"]}, "runs = these together"),
    ],
)
def test_what_no_run_has_is_named_with_the_nearest(wanted: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        select_runs(TWO_BUDGETS, **wanted)


def test_sorting_is_stable_both_ways() -> None:
    up = sort_runs(TWO_BUDGETS.runs, "size")
    down = sort_runs(TWO_BUDGETS.runs, "size", descending=True)
    assert [run.size for run in up] == [1] * 20 + [2] * 20
    assert [run.size for run in down] == [2] * 20 + [1] * 20
    assert up[:20] == down[20:] == tuple(run for run in TWO_BUDGETS.runs if run.size == 1)


def _unknown_epochs() -> Plan:
    first, *rest = TWO_BUDGETS.runs
    return dataclasses.replace(TWO_BUDGETS, runs=(dataclasses.replace(first, epochs=None), *rest))


def test_what_is_not_known_comes_last() -> None:
    plan = _unknown_epochs()
    for descending in (False, True):
        assert sort_runs(plan.runs, "epochs", descending=descending)[-1] == plan.runs[0]


def test_an_unknown_column_is_refused_with_those_there_are() -> None:
    with pytest.raises(UserError, match="--sort = 'loss': must be one of run_id, arch"):
        sort_runs(TWO_BUDGETS.runs, "loss")


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


SMALL = {"archs": ("mlp", "sgatlin")}


def small(**changes: Any) -> Study:
    return micro(**(SMALL | changes))


def places(plan: Plan) -> dict[tuple[int, str, int, int], str]:
    return {(r.budget_flops, r.arch, r.size, r.spec.seed): r.run_id for r in plan.runs}


TABLE = {10**10: {"default": (1, 2), "mlp": (2,)}}


@pytest.mark.parametrize(
    ("study", "more"),
    [
        (small(), {"budgets": (5 * 10**9, 5 * 10**10)}),
        (small(), {"seeds": (5, 1)}),
        (small(), {"sizes": (4, 3)}),
        (small(), {"sizes": (3,), "at": (5 * 10**10,), "budgets": (5 * 10**10,)}),
        (small(), {"budgets": (5 * 10**10,), "seeds": (9,), "sizes": (3,)}),
        (small(sizes=(2, 1)), {"seeds": (1,)}),
        (small(sizes=TABLE), {"seeds": (1,)}),
        (small(sizes=TABLE), {"sizes": (3,)}),
        (small(sizes=TABLE), {"sizes": (3, 4), "at": (5 * 10**10,), "budgets": (5 * 10**10,)}),
        (small(sizes="auto"), {"seeds": (1,)}),
        (small(sizes="auto"), {"budgets": (2 * 10**10,)}),
        (small(sizes="auto", num_sizes=4), {"sizes": (8,)}),
        (paper_study((10**17,)), {"budgets": (10**18, 3 * 10**17)}),
        (paper_study((10**17,)), {"sizes": (7,)}),
        (paper_study((10**17,)), {"sizes": (8,), "at": (10**18,), "budgets": (10**18,)}),
        (paper_study((3 * 10**15,)), {"budgets": (10**16,), "seeds": (2,)}),
    ],
)
def test_a_grown_plan_has_every_old_run_and_is_what_its_study_plans_afresh(
    study: Study, more: dict[str, Any], tmp_path: Path
) -> None:
    write_plan(make_plan(study), tmp_path)
    before = read_plan(tmp_path)
    after, difference = extend_folder(tmp_path, **more)
    assert places(before).items() < places(after).items()
    assert len(difference.added) == len(after.runs) - len(before.runs)
    assert read_plan(tmp_path) == after
    frozen = json.loads((tmp_path / "plan.json").read_text())["study"]
    assert make_plan(validated(Study, frozen)) == after
    rows = pq.read_table(tmp_path / "plan.parquet").to_pylist()
    assert [row["run_id"] for row in rows] == [run.run_id for run in after.runs]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["plan.json", "plan.parquet"]


def test_growing_adds_exactly_what_was_asked_for() -> None:
    before = make_plan(small())
    after = extend_plan(before, budgets=(5 * 10**10,), seeds=(3,), sizes=(4,))
    assert after.study == small(budgets=(10**10, 5 * 10**10), seeds=(0, 3), sizes=(1, 2, 4))
    # A new budget takes the sizes named for all, and the new ones at those budgets only.
    some = extend_plan(before, sizes=(4,), budgets=(5 * 10**10,), at=(5 * 10**10,))
    assert some.study.sizes == {10**10: {"default": (1, 2)}, 5 * 10**10: {"default": (1, 2, 4)}}


def test_a_table_keeps_its_differences_between_archs() -> None:
    after = extend_plan(make_plan(small(sizes=TABLE)), sizes=(3,))
    assert after.study.sizes == {10**10: {"mlp": (2, 3), "sgatlin": (1, 2, 3)}}


def test_sizes_left_to_the_recipe_stay_left_to_it_where_none_are_named() -> None:
    before = make_plan(paper_study((10**17,)))
    assert extend_plan(before, budgets=(10**18,)).study.sizes is None
    assert extend_plan(before, seeds=(2,)).study.sizes is None
    assert extend_plan(make_plan(small(sizes="auto")), seeds=(1,)).study.sizes == "auto"


def test_asking_again_changes_nothing(tmp_path: Path) -> None:
    write_plan(make_plan(small()), tmp_path)
    extend_folder(tmp_path, seeds=(1,), budgets=(5 * 10**10,), sizes=(3,))
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in tmp_path.iterdir()}
    _, difference = extend_folder(tmp_path, seeds=(1, 0), budgets=(5 * 10**10,), sizes=(3, 1))
    assert difference.is_empty
    assert {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in tmp_path.iterdir()} == before


def test_the_run_folders_of_old_runs_are_those_of_the_new_plan(tmp_path: Path) -> None:
    write_plan(make_plan(small()), tmp_path)
    result = tmp_path / "runs" / "0" / "result.json"
    result.parent.mkdir(parents=True)
    result.write_text("{}")
    extend_folder(tmp_path, seeds=(1,))
    assert result.read_text() == "{}"


@pytest.mark.parametrize(
    ("study", "more", "named"),
    [
        (small(), {}, "something to add"),
        (small(), {"budgets": (0,)}, "budgets = 0"),
        (small(), {"budgets": (10**6,)}, "steps = "),
        (small(), {"seeds": (-1,)}, "seeds = -1"),
        (small(), {"sizes": (99,)}, "sizes = 99"),
        (small(), {"sizes": (0,)}, "sizes = 0"),
        (small(), {"sizes": (3,), "at": (5 * 10**10,)}, "--at = 5e10: must be budgets of the plan"),
        (small(), {"seeds": (3,), "at": (10**10,)}, "--at = 1e10: must be given together"),
        (small(sizes=TABLE), {"budgets": (5 * 10**10,)}, "--sizes = None: .* new budget 5e10"),
        (
            small(sizes=TABLE),
            {"budgets": (5 * 10**10,), "sizes": (3,), "at": (10**10,)},
            "--sizes = None: .* new budget 5e10",
        ),
    ],
)
def test_what_cannot_be_added_is_refused_and_nothing_written(
    study: Study, more: dict[str, Any], named: str, tmp_path: Path
) -> None:
    write_plan(make_plan(study), tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(UserError, match=named):
        extend_folder(tmp_path, **more)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


HYPOTHESIS = Hypothesis(id="H1", claim="better", decide="multiplier > 1")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seeds": (1,)}, "extend = mlp size 1 seed 0 at 1e10: must be planned as before"),
        ({"sizes": (2, 3)}, "size 1"),
        ({"budgets": (5 * 10**10,)}, "4 runs would go or change"),
        ({"batch_size": 8}, "batch_size = 8"),
        ({"archs": ("mlp",)}, "archs"),
        ({"convention": "paper+head"}, "convention"),
        ({"hypotheses": (HYPOTHESIS,)}, "hypotheses"),
        ({"name": "other"}, "name = 'other'"),
        ({"keep_weights": "all"}, "keep_weights"),
    ],
)
def test_growth_may_not_remove_or_change_anything(change: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        grow_plan(make_plan(small()), small(**change))


def test_a_family_whose_source_changed_is_refused() -> None:
    before = make_plan(small())
    planned = dataclasses.replace(before, family_digests={"mlp": "0" * 64})
    with pytest.raises(UserError, match="family mlp = None: must be the one that was planned"):
        grow_plan(planned, small(seeds=(0, 1)))


def test_a_folder_without_a_plan_cannot_grow(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="with a plan.json"):
        extend_folder(tmp_path, seeds=(1,))
    assert not list(tmp_path.iterdir())


def test_a_parquet_that_a_crash_left_ahead_of_the_plan_is_put_right(tmp_path: Path) -> None:
    write_plan(make_plan(small()), tmp_path)
    old = (tmp_path / "plan.json").read_bytes()
    extend_folder(tmp_path, seeds=(1,))
    whole = (tmp_path / "plan.json").read_bytes()
    (tmp_path / "plan.json").write_bytes(old)
    assert len(read_plan(tmp_path).runs) == 4
    extend_folder(tmp_path, seeds=(1,))
    assert (tmp_path / "plan.json").read_bytes() == whole


@settings(max_examples=15)
@given(
    seeds=st.lists(st.integers(0, 5), max_size=3),
    sizes=st.lists(st.integers(1, 4), max_size=3),
    budgets=st.lists(st.sampled_from([10**10, 2 * 10**10, 5 * 10**10]), max_size=2),
)
def test_any_growth_is_the_same_in_one_step_or_several(
    seeds: list[int], sizes: list[int], budgets: list[int]
) -> None:
    before = make_plan(small())
    if not (seeds or sizes or budgets):
        return
    at_once = extend_plan(before, seeds=seeds, sizes=sizes, budgets=budgets)
    slowly = before
    for seed in seeds:
        slowly = extend_plan(slowly, seeds=(seed,))
    for budget in budgets:
        slowly = extend_plan(slowly, budgets=(budget,))
    for size in sizes:
        slowly = extend_plan(slowly, sizes=(size,))
    assert slowly == at_once
    assert places(before).items() <= places(at_once).items()

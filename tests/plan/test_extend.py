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
from isoflop.plan.edit import extend_folder, extend_plan, grow_plan
from isoflop.plan.planner import Plan, make_plan
from isoflop.study import Hypothesis, Study, paper_study
from isoflop.study.file import study_from_json
from made_studies import micro

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
    assert make_plan(study_from_json(frozen)) == after
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

from __future__ import annotations

import dataclasses

import pytest

from isoflop.errors import UserError
from isoflop.plan.edit import filter_runs, find_run, sort_runs
from isoflop.plan.planner import Plan, make_plan
from made_studies import micro

PLAN = make_plan(micro(budgets=(10**10, 2 * 10**10), seeds=(0, 1)))


def test_a_run_is_found_by_its_id_and_by_its_shortest_unambiguous_start() -> None:
    ids = {run.run_id for run in PLAN.runs}
    for run in PLAN.runs:
        digits = next(
            n for n in range(1, 65) if sum(i.startswith(run.run_id[:n]) for i in ids) == 1
        )
        for prefix in (run.run_id, run.run_id[:digits], run.run_id[:12].upper()):
            assert find_run(PLAN, prefix) == (run,)


@pytest.mark.parametrize("prefix", ["", "g", "0" * 64, " ", "f" * 65])
def test_what_no_id_starts_with_is_refused(prefix: str) -> None:
    with pytest.raises(UserError, match="first digits of a run id"):
        find_run(PLAN, prefix)


def test_an_ambiguous_start_names_a_few_and_counts_the_rest() -> None:
    runs = tuple(
        dataclasses.replace(run, run_id=f"ab{index}" + "0" * 61)
        for index, run in enumerate(PLAN.runs[:6])
    )
    with pytest.raises(UserError, match="now ab0000000000, ab1000000000, ab2000000000 and 3 more"):
        find_run(dataclasses.replace(PLAN, runs=runs), "ab")


def test_a_run_of_two_budgets_is_found_once_with_both_places() -> None:
    shared = make_plan(micro(archs=("mlp",), sizes=(1,), budgets=(10**10, 10**10 + 1)))
    found = find_run(shared, shared.runs[0].run_id[:12])
    assert [run.budget_flops for run in found] == [10**10, 10**10 + 1]


def test_filters_combine_and_keep_the_order() -> None:
    found = filter_runs(PLAN, archs=["moe", "mlp"], budgets=[2 * 10**10], sizes=[2])
    assert [(r.arch, r.size, r.spec.seed) for r in found] == [
        ("mlp", 2, 0),
        ("mlp", 2, 1),
        ("moe", 2, 0),
        ("moe", 2, 1),
    ]
    assert filter_runs(PLAN) == PLAN.runs


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
        filter_runs(PLAN, **filters)  # type: ignore[arg-type]


def test_values_that_exist_but_not_together_are_refused() -> None:
    plan = make_plan(micro(sizes={10**10: {"default": (1,), "mlp": (2,)}}))
    with pytest.raises(UserError, match="these together"):
        filter_runs(plan, archs=["mlp"], sizes=[1])


def test_sorting_is_stable_both_ways() -> None:
    up = sort_runs(PLAN.runs, "size")
    down = sort_runs(PLAN.runs, "size", descending=True)
    assert [run.size for run in up] == [1] * 20 + [2] * 20
    assert [run.size for run in down] == [2] * 20 + [1] * 20
    assert up[:20] == down[20:] == tuple(run for run in PLAN.runs if run.size == 1)


def _unknown_epochs() -> Plan:
    first, *rest = PLAN.runs
    return dataclasses.replace(PLAN, runs=(dataclasses.replace(first, epochs=None), *rest))


def test_what_is_not_known_comes_last() -> None:
    plan = _unknown_epochs()
    for descending in (False, True):
        assert sort_runs(plan.runs, "epochs", descending=descending)[-1] == plan.runs[0]


def test_an_unknown_column_is_refused_with_those_there_are() -> None:
    with pytest.raises(UserError, match="--sort = 'loss': must be one of run_id, arch"):
        sort_runs(PLAN.runs, "loss")

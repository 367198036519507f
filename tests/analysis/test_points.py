"""Which rows may enter a fit, and that no row is dropped without a reason."""

from __future__ import annotations

import math
from typing import Any

import pytest

from analysis.made_runs import row
from isoflop.analysis import select_points


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"status": "diverged", "loss": 9.0}, "diverged"),
        ({"status": "failed", "loss": None}, "failed"),
        ({"status": "missing", "loss": None}, "missing"),
        ({"status": "running"}, "unknown_status"),
        ({"status": None}, "unknown_status"),
        ({"excluded_reason": "loss spike"}, "excluded_in_table"),
        ({"loss": None}, "no_loss"),
        ({"loss": math.nan}, "bad_loss"),
        ({"loss": math.inf}, "bad_loss"),
        ({"loss": -math.inf}, "bad_loss"),
        ({"loss": 0.0}, "bad_loss"),
        ({"loss": -1.0}, "bad_loss"),
        ({"loss": 701.0}, "bad_loss"),
        ({"n_params": None}, "no_params"),
        ({"n_params": 0}, "no_params"),
        ({"n_tokens": None}, "no_tokens"),
        ({"n_tokens": -5}, "no_tokens"),
        ({"arch": None}, "no_arch"),
        ({"arch": None, "excluded_reason": "damaged file"}, "excluded_in_table"),
        ({"budget_flops": 0.0}, "no_budget"),
        ({"budget_flops": math.inf}, "no_budget"),
        ({"budget_flops": None, "loss": math.nan}, "bad_loss"),
        ({"budget_flops": math.nan, "status": "diverged"}, "diverged"),
    ],
)
def test_a_row_that_is_no_point_is_excluded_with_its_reason(
    changes: dict[str, Any], reason: str
) -> None:
    selection = select_points([row(), {**row(), **changes}])
    assert [e.reason for e in selection.excluded] == [reason]
    assert selection.excluded_counts() == {reason: 1}
    assert [len(points) for points in selection.groups.values()] == [1]


def test_words_of_the_table_are_kept_as_detail() -> None:
    rows = [
        row(status="diverged", status_reason="loss is NaN at step 12"),
        row(excluded_reason="loss spike"),
    ]
    details = {e.reason: e.detail for e in select_points(rows).excluded}
    assert details == {
        "diverged": "loss is NaN at step 12",
        "excluded_in_table": "loss spike",
    }


def test_a_group_without_points_is_kept_empty() -> None:
    selection = select_points([row(arch="peer", status="failed", loss=None)])
    assert selection.groups == {("peer", 1e17): ()}


def test_a_row_repeated_is_excluded_and_other_seeds_are_not() -> None:
    rows = [row(run_id="a", seed=0), row(run_id="b", seed=1), row(run_id="a", seed=0)]
    selection = select_points(rows)
    assert [p.run_id for p in selection.groups["mlp", 1e17]] == ["a", "b"]
    assert [(e.run_id, e.reason) for e in selection.excluded] == [("a", "exact_dup")]


def test_two_sizes_under_one_id_are_two_runs() -> None:
    selection = select_points([row(run_id="sweep", n_params=n) for n in (1e6, 2e6, 2e6)])
    assert [p.n_params for p in selection.groups["mlp", 1e17]] == [1e6, 2e6]
    assert [e.reason for e in selection.excluded] == ["exact_dup"]


def test_without_run_ids_the_whole_cell_and_its_loss_tell_runs_apart() -> None:
    rows = [row(), row(), row(seed=1), row(loss=3.1), row(n_tokens=7e9), row(arch="peer")]
    selection = select_points(rows, "seeds")
    assert [e.reason for e in selection.excluded] == ["exact_dup"]
    assert sum(map(len, selection.groups.values())) == 5


def test_a_table_without_statuses_is_of_finished_runs() -> None:
    bare = {name: value for name, value in row().items() if "status" not in name}
    assert not select_points([bare]).excluded


def test_flops_of_zero_are_a_reason_and_unknown_ones_are_not() -> None:
    selection = select_points(
        [row(flops=0), row(flops=None, seed=0), row(flops=1e17, loss=3.1, seed=1)]
    )
    assert [e.reason for e in selection.excluded] == ["no_flops"]
    assert [p.flops for p in selection.groups["mlp", 1e17]] == [None, 1e17]


@pytest.mark.parametrize(
    ("value", "is_point"),
    [(None, True), (False, True), ("", True), (math.nan, True), (True, False), ("spike", False)],
)
def test_excluded_reason_may_come_from_a_data_frame(value: Any, is_point: bool) -> None:
    selection = select_points([row(excluded_reason=value, seed=math.nan)])
    assert len(selection.excluded) == (not is_point)
    if is_point:
        assert selection.groups["mlp", 1e17][0].seed is None


def test_points_are_in_the_order_of_sizes_and_seeds() -> None:
    rows = [row(n_params=n, seed=s, loss=3 - s / 10) for n in (2e7, 1e7) for s in (1, 0)]
    points = select_points(rows).groups["mlp", 1e17]
    assert [(p.n_params, p.seed) for p in points] == [(1e7, 0), (1e7, 1), (2e7, 0), (2e7, 1)]
    assert points[0].size_key == points[1].size_key != points[2].size_key


def test_a_run_that_two_budgets_share_counts_in_both() -> None:
    rows = [row(run_id="a", budget=1e17), row(run_id="a", budget=1.0001e17)]
    selection = select_points(rows)
    assert not selection.excluded
    assert len(selection.groups) == 2


def test_points_and_excluded_rows_add_up_to_the_table() -> None:
    rows = [row(run_id=str(i), seed=i, loss=None if i % 3 == 0 else 3.0) for i in range(20)]
    selection = select_points(rows)
    assert len(selection.excluded) == 7
    assert sum(len(points) for points in selection.groups.values()) == 13


def test_a_run_without_a_budget_is_loose_and_one_that_repeats_another_is_a_copy() -> None:
    whole = [row(n_params=n, flops=9e16, run_id=f"{n:g}") for n in (1e7, 2e7)]
    free = [
        row(n_params=5e7, n_tokens=1e9, seed=1, budget=None, flops=4e17, run_id="a"),
        row(n_params=4e7, n_tokens=1e9, seed=1, budget=None, flops=None, run_id="b"),
        row(n_params=3e7, n_tokens=1e9, arch="dense", budget=None, run_id="c"),
    ]
    copies = [{**whole[0], "budget_flops": math.nan}, free[0]]
    for table in (copies + free + whole, whole + free + copies):
        selection = select_points(table)
        assert [p.n_params for p in selection.groups["mlp", 1e17]] == [1e7, 2e7]
        assert list(selection.groups) == [("mlp", 1e17)]
        assert [(p.arch, p.n_params, p.budget_flops) for p in selection.loose] == [
            ("dense", 3e7, 6 * 3e7 * 1e9),
            ("mlp", 4e7, 6 * 4e7 * 1e9),
            ("mlp", 5e7, 4e17),
        ]
        assert {(e.reason, e.run_id) for e in selection.excluded} == {
            ("exact_dup", "a"),
            ("exact_dup", "1e+07"),
        }

"""Budgets written or met a little differently, and clusters of the FLOPs spent."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.errors import UserError
from isoflop.ingest.budgets import label_budgets, near_budgets

LOG_BUDGETS = st.lists(st.floats(math.log(1e12), math.log(1e26)), min_size=1, max_size=40)


def run(arch: str, n_params: float, flops: float | None, **others: Any) -> dict[str, Any]:
    n_tokens = 1e9 if flops is None else flops / (6 * n_params)
    made = {"arch": arch, "n_params": n_params, "n_tokens": n_tokens, "flops": flops, "loss": 3.0}
    return {**made, **others}


def met(
    budgets: Sequence[float], seed: int, archs: Sequence[str] = ("mlp", "moe"), below: float = 0.2
) -> tuple[list[dict[str, Any]], list[float]]:
    """Runs of 1 to 11 sizes a budget and arch that spent up to a share less; and the budgets."""
    random = np.random.default_rng(seed)
    rows, nominal = [], []
    for budget, arch in itertools.product(budgets, archs):
        for place in range(int(random.integers(3, 12))):
            spent = budget * (1 - below * random.random())
            rows.append(run(arch, 1e7 * 1.5**place, spent))
            nominal.append(budget)
    return rows, nominal


@given(LOG_BUDGETS, st.randoms(use_true_random=False), st.integers(-20, 20))
def test_groups_hold_no_wide_gap_and_follow_order_and_unit(
    logs: list[float], random: Any, power: int
) -> None:
    budgets = [math.exp(log) for log in logs]
    groups = near_budgets(budgets)
    assert [budget for group in groups for budget in group] == sorted(set(budgets))
    assert all(group[-1] / group[0] < 1.5 for group in groups)
    shuffled = [*budgets, *budgets[:3]]
    random.shuffle(shuffled)
    assert near_budgets(shuffled) == groups
    # By powers of two, which round nothing.
    scaled = near_budgets([budget * 2.0**power for budget in budgets])
    assert [len(group) for group in scaled] == [len(group) for group in groups]


@settings(max_examples=40)
@given(
    st.integers(1, 40),
    st.sampled_from([10**0.25, 2.0, 3.0, 10**0.5]),
    st.floats(0, 0.2),
    st.integers(0, 10**6),
)
def test_ladders_met_up_to_a_fifth_below_are_found_whole(
    num: int, step: float, below: float, seed: int
) -> None:
    rows, nominal = met([1e15 * step**i for i in range(num)], seed, below=below)
    labelled = label_budgets(rows, "auto")
    names = {
        (budget, row["budget_flops"]) for budget, row in zip(nominal, labelled.rows, strict=True)
    }
    assert len(names) == len({name for _, name in names}) == num
    assert all(abs(math.log(name / budget)) < 0.3 for budget, name in names)
    assert [cluster.budget_flops for cluster in labelled.clusters] == sorted(n for _, n in names)
    assert sum(cluster.num_runs for cluster in labelled.clusters) == len(rows)


def test_written_differently_is_one_and_one_percent_on_purpose_is_two() -> None:
    written = [0.9999e18, 1.0001e18, 1.99999e18, 2.00001e18, 4e18]
    assert [len(group) for group in near_budgets(written)] == [2, 2, 1]
    curve = frozenset({1e7, 2e7, 4e7})
    purpose = {1e18: {"mlp": curve}, 1.01e18: {"mlp": curve}, 1e19: {"mlp": curve}}
    assert [len(group) for group in near_budgets(purpose, purpose)] == [1, 1, 1]
    others = {1e18: {"mlp": curve}, 1.01e18: {"moe": curve}, 1e19: {"mlp": curve}}
    assert [len(group) for group in near_budgets(others, others)] == [2, 1]
    # Two archs of which each has a ladder of its own, too far apart to be one budget.
    ladders = {1e18: {"mlp": curve}, 1.2e18: {"moe": curve}, 2e18: {"mlp": curve}}
    assert [len(group) for group in near_budgets(ladders, ladders)] == [1, 1, 1]
    assert near_budgets([]) == ()


def test_rounding_names_groups_in_few_digits_and_leaves_the_rest_alone() -> None:
    budgets = [0.9999e18, 1.0001e18, 1.7781e18, 1.7785e18, 3.3333e18, math.nan]
    rows = [run("mlp", 1e7, None, budget_flops=budget) for budget in budgets]
    rows.append(run("mlp", 1e7, None, budget_flops=1.0001e18, loss=None, status="diverged"))
    labelled = label_budgets(rows, "round")
    named = [row["budget_flops"] for row in labelled.rows]
    assert named[:5] == [1e18, 1e18, 1.78e18, 1.78e18, 3.3333e18]
    assert math.isnan(named[5])
    assert named[6] == 1e18
    assert [cluster.num_budgets for cluster in labelled.clusters] == [2, 2]
    assert labelled.clusters[0].spread == pytest.approx(2e-4, rel=1e-3)
    assert rows[0]["budget_flops"] == 0.9999e18


def test_clusters_take_rows_without_budgets_and_place_the_unfinished() -> None:
    rows, _ = met([1e18, 1e19], 0, ["mlp"], below=0.01)
    rows += [
        run("moe", 3e7, 0.999e19, budget_flops=5e30),
        run("mlp", 3e7, None, budget_flops=1e19, loss=None, status="diverged"),
        run("mlp", 3e7, 1e12, budget_flops=None, loss=None, status="failed"),
    ]
    labelled = label_budgets(rows, "auto")
    low, high = (cluster.budget_flops for cluster in labelled.clusters)
    assert [row["budget_flops"] for row in labelled.rows[-3:]] == [high, high, None]
    assert labelled.clusters[1].sizes["moe"] == 1
    assert low < high


def test_one_row_without_flops_and_all_are_counted_as_6nd() -> None:
    rows, _ = met([1e18, 1e19], 0, below=0.0)
    # A convention three times 6ND, and not stated by one run.
    rows = [{**row, "flops": 3 * row["flops"]} for row in rows]
    rows[0]["flops"] = None
    found = [cluster.budget_flops for cluster in label_budgets(rows, "auto").clusters]
    assert found == pytest.approx([1e18, 1e19])


@pytest.mark.parametrize("num", [40, 137, 1000])
def test_flops_that_gather_nowhere_are_refused_in_one_line(num: int) -> None:
    random = np.random.default_rng(num)
    spent = 10 ** random.uniform(17, 21, num)
    rows = [run("mlp", 10 ** random.uniform(6, 9), float(flops)) for flops in spent]
    with pytest.raises(
        UserError, match=rf"--budgets = auto \(flops of {num:,} runs spread"
    ) as raised:
        label_budgets(rows, "auto")
    assert "surface and the frontier" in str(raised.value)
    with pytest.raises(UserError, match="no run with an arch"):
        label_budgets([run("mlp", 1e7, 1e18, loss=None)], "auto")


def test_a_grid_of_sizes_and_tokens_in_steps_gathers_on_its_diagonals() -> None:
    grid = itertools.product([1e7 * 2**i for i in range(6)], [1e9 * 2**j for j in range(6)])
    rows = [run("mlp", n, 6 * n * d) for n, d in grid]
    clusters = label_budgets(rows, "auto").clusters
    assert [cluster.sizes["mlp"] for cluster in clusters] == [1, 2, 3, 4, 5, 6, 5, 4, 3, 2, 1]

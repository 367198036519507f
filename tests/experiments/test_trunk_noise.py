"""The correlation of noise along trunks, from made tables whose answer is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from experiments.made_scripts import script

trunk_noise = script("trunk_noise")
BUDGETS = (1e10, 2e10, 4e10, 8e10)


def rows(kept: float, *, num_sizes: int = 200, seeds: int = 2) -> list[dict[str, Any]]:
    """Noise of 1 % that a budget has in common with the one before by ``kept``, and so on."""
    rng = np.random.default_rng(0)
    found = []
    for size in range(num_sizes):
        for seed in range(seeds):
            noise = rng.standard_normal()
            for place, budget in enumerate(BUDGETS):
                if place:
                    noise = kept * noise + math.sqrt(1 - kept**2) * rng.standard_normal()
                row = {"arch": "mlp", "n_params": 100.0 + size, "seed": seed, "status": "done"}
                found.append(row | {"budget_flops": budget, "loss": 2 * math.exp(0.01 * noise)})
    return found


def test_correlations_by_distance_are_those_made() -> None:
    everything, *by_lag = trunk_noise.alike(rows(0.7))
    assert [one.factor for one in by_lag] == [2, 4, 8]
    assert [one.num_pairs for one in by_lag] == [600, 400, 200]
    for power, one in enumerate(by_lag, start=1):
        assert one.ci_lo < 0.7**power < one.ci_hi
        assert one.rho == pytest.approx(0.7**power, abs=0.1)
        assert one.ci_hi - one.ci_lo < 0.4
    assert by_lag[2].rho < everything.rho < by_lag[0].rho
    assert trunk_noise.alike(rows(0.0))[0].rho == pytest.approx(0, abs=0.1)


def test_the_noise_of_a_seed_is_that_of_a_budget() -> None:
    sds = trunk_noise.seed_sds(trunk_noise.differences(rows(0.5)))
    assert list(sds) == [("mlp", budget) for budget in BUDGETS]
    assert all(sd == pytest.approx(0.01, rel=0.15) for sd in sds.values())


def test_runs_that_are_not_there_are_left_out_and_one_seed_tells_nothing() -> None:
    table = rows(0.5, num_sizes=6)
    table[0]["status"], table[1]["loss"] = "failed", None
    everything, *_ = trunk_noise.alike(table)
    assert everything.num_pairs == 5 * 6 + 1
    (nothing,) = trunk_noise.alike(rows(0.5, seeds=1))
    assert (nothing.rho, nothing.num_pairs) == (None, 0)
    assert trunk_noise.lines(rows(0.5, seeds=1)) == [
        "all pairs of budgets: no size has two seeds at two budgets"
    ]

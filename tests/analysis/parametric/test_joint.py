from __future__ import annotations

import numpy as np
import pytest

from analysis.parametric.made_laws import point, studied
from isoflop.analysis.parametric import Resampling, fit_joint, has_experts
from isoflop.analysis.points import Point

TRUE = {"E": 1.7, "A": 400.0, "B": 1500.0, "alpha": 0.34, "beta": 0.36, "gamma": 0.12}
NO_BOOT = Resampling(n_boot=0)


def _points(
    sparsities=(2.0, 4.0, 8.0, 16.0), noise: float = 0.0, gamma: float = 0.12, seed: int = 0
) -> list[Point]:
    """Five active sizes at three budgets and each sparsity N / N_active, D = C / 6 N_active."""
    rng = np.random.default_rng(seed)
    points = []
    for budget in (1e17, 1e18, 1e19):
        for active in np.geomspace(1e7, 1.6e8, 5) * (budget / 1e18) ** 0.5:
            for sparsity in sparsities:
                tokens = budget / 6 / active
                loss = (
                    TRUE["E"]
                    + TRUE["A"] * active ** -TRUE["alpha"] * sparsity**-gamma
                    + TRUE["B"] * tokens ** -TRUE["beta"]
                )
                points.append(
                    point(
                        "moe",
                        budget_flops=budget,
                        n_params=active * sparsity,
                        n_active=active,
                        n_tokens=tokens,
                        loss=loss * np.exp(noise * rng.normal()),
                    )
                )
    return points


@pytest.mark.parametrize("method", ["huber", "vpnls"])
def test_a_noise_free_law_comes_back(method: str) -> None:
    fit = fit_joint(_points(), arch="moe", method=method, resampling=NO_BOOT)
    assert fit.status == "ok"
    for name, value in TRUE.items():
        assert fit.values[name] == pytest.approx(value, rel=1e-6), name


@pytest.mark.parametrize("gamma", [0.0, -0.1, 0.34])
def test_experts_may_be_worth_nothing_do_harm_or_count_in_full(gamma: float) -> None:
    fit = fit_joint(_points(gamma=gamma), arch="moe", resampling=NO_BOOT)
    assert fit.status == "ok"
    assert fit.values["gamma"] == pytest.approx(gamma, abs=1e-6)


def test_noisy_points_give_intervals_over_the_truth() -> None:
    fit = fit_joint(_points(noise=0.001), arch="moe", resampling=Resampling(n_boot=100))
    assert fit.bootstrap_kind == "case"
    for name in ("alpha", "beta", "gamma"):
        low, high = fit.interval(name)
        assert low < TRUE[name] < high
        assert high - low < 0.1
    assert [row.parameter for row in fit.rows()] == ["A", "alpha", "gamma", "B", "beta", "E"]


def test_one_sparsity_gets_a_verdict() -> None:
    fit = fit_joint(_points(sparsities=(8.0,)), arch="moe", resampling=NO_BOOT)
    assert fit.status == "sparsity_not_varied"
    assert fit.values == {}
    assert {row.value for row in fit.rows()} == {None}


def test_sparsity_that_follows_from_size_gets_a_verdict() -> None:
    tied = [
        point(
            "moe",
            budget_flops=p.budget_flops,
            n_params=p.n_active**1.2,
            n_active=p.n_active,
            n_tokens=p.n_tokens,
            loss=p.loss,
        )
        for p in _points(sparsities=(8.0,))
    ]
    fit = fit_joint(tied, arch="moe", resampling=NO_BOOT)
    assert fit.status == "sparsity_not_varied"


def test_too_few_and_unknown_points_get_a_verdict() -> None:
    assert fit_joint(_points()[:6], arch="moe").status == "too_few"
    fit = fit_joint(studied(), arch="dense")
    assert (fit.status, fit.n_points) == ("too_few", 0)
    assert fit.rows()[0].budget_lo is None


def test_one_budget_at_one_ratio_of_tokens_is_degenerate() -> None:
    one_budget = [p for p in _points() if p.budget_flops == 1e18]
    assert fit_joint(one_budget, arch="moe", resampling=NO_BOOT).status == "degenerate"


def test_only_points_that_use_fewer_parameters_than_they_have_are_of_experts() -> None:
    assert has_experts(_points()[:1])
    assert not has_experts(studied())
    dense = point(budget_flops=1e18, n_params=1e8, n_active=1e8, n_tokens=1e9, loss=3.0)
    assert not has_experts([dense])

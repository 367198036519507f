from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from analysis.parametric.made_laws import BESIROGLU, BUDGETS, SURFACES, changed, point, studied
from isoflop.analysis.parametric import (
    ChinchillaLaw,
    Resampling,
    fit_surface,
    surface_draws,
    surface_of,
)
from isoflop.arrays import percentiles

METHODS = ("huber", "vpnls")
NO_BOOT = Resampling(n_boot=0)


def _fit(points, method="huber", resampling=NO_BOOT):
    return fit_surface(points, arch="dense", method=method, resampling=resampling)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SURFACES)
def test_noise_free_surfaces_come_back(name: str, method: str) -> None:
    law = SURFACES[name]
    points = studied(law, [10.0**k for k in range(17, 22)], num=15, factor=16)
    fit = _fit(points, method)
    assert fit.status == "ok"
    for parameter in ("E", "A", "B", "alpha", "beta", "a", "b"):
        assert fit.values[parameter] == pytest.approx(getattr(law, parameter), rel=1e-6)
    assert fit.objective < 1e-20
    assert fit.share_of_starts_at_optimum > 0.9


@hypothesis_settings(max_examples=15)
@given(
    alpha=st.floats(0.15, 0.7),
    beta=st.floats(0.15, 0.7),
    floor=st.floats(0.3, 3.0),
    method=st.sampled_from(METHODS),
)
def test_any_noise_free_study_of_four_budgets_comes_back(alpha, beta, floor, method) -> None:
    # Coefficients that make both terms 0.5 at 1e8 parameters and 2e9 tokens.
    law = ChinchillaLaw(E=floor, A=0.5 * 1e8**alpha, B=0.5 * 2e9**beta, alpha=alpha, beta=beta)
    fit = _fit(studied(law), method)
    for parameter in ("E", "alpha", "beta"):
        assert fit.values[parameter] == pytest.approx(getattr(law, parameter), rel=1e-6)


def test_optimum_is_the_smallest_loss_of_its_compute() -> None:
    n_params, n_tokens = BESIROGLU.optimum(1e21)
    assert 6 * n_params * n_tokens == pytest.approx(1e21, rel=1e-12)
    sizes = n_params * np.geomspace(0.5, 2, 201)
    losses = BESIROGLU.loss(sizes, 1e21 / 6 / sizes)
    assert losses.argmin() == 100
    assert BESIROGLU.optimal_loss(1e21) == pytest.approx(losses.min(), rel=1e-12)
    larger, _ = BESIROGLU.optimum(1e22)
    assert math.log10(larger / n_params) == pytest.approx(BESIROGLU.a, rel=1e-12)
    assert BESIROGLU.a + BESIROGLU.b == pytest.approx(1.0, rel=1e-15)
    assert np.isnan(ChinchillaLaw(E=1.0, A=1.0, B=1.0, alpha=-0.1, beta=0.3).optimum(1e21)[0])


def test_order_and_duplication_of_rows_change_nothing() -> None:
    points = studied(noise=0.003)
    shuffled = points.copy()
    random.Random(1).shuffle(shuffled)
    with_draws = Resampling(n_boot=20)
    first, second = (_fit(p, resampling=with_draws) for p in (points, shuffled))
    assert first == second
    assert all(np.array_equal(first.draws[k], second.draws[k]) for k in first.draws)
    doubled = _fit(points + shuffled)
    for parameter, value in first.values.items():
        assert doubled.values[parameter] == pytest.approx(value, rel=1e-6)
    assert doubled.objective == pytest.approx(2 * first.objective, rel=1e-9)
    assert doubled.rmse == pytest.approx(first.rmse, rel=1e-9)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("field", "factor", "expected"),
    [
        ("n_params", 1e-6, lambda v: {"A": v["A"] * 1e-6 ** v["alpha"]}),
        ("n_tokens", 1e3, lambda v: {"B": v["B"] * 1e3 ** v["beta"]}),
        ("loss", 1 / math.log(2), lambda v: {k: v[k] / math.log(2) for k in "EAB"}),
        ("budget_flops", 1e3, lambda v: {}),
    ],
)
def test_other_units_move_only_coefficients(field, factor, expected, method) -> None:
    points = studied(noise=0.003)
    old = _fit(points, method).values
    new = _fit(changed(points, **{field: lambda value: value * factor}), method).values
    for parameter, value in {**old, **expected(old)}.items():
        assert new[parameter] == pytest.approx(value, rel=1e-5), parameter


@pytest.mark.parametrize("method", METHODS)
def test_data_that_cannot_tell_get_a_verdict_and_null_rows(method: str) -> None:
    sizes = np.geomspace(1e7, 1e9, 12)
    one_ratio = [
        point(budget_flops=1e18, n_params=n, n_tokens=20 * n, loss=BESIROGLU.loss(n, 20 * n))
        for n in sizes
    ]
    one_size = [
        point(budget_flops=1e18, n_params=1e8, n_tokens=d, loss=BESIROGLU.loss(1e8, d))
        for d in 20 * sizes
    ]
    for points, status in (
        ([], "too_few"),
        (studied(num=5, budgets=(1e17,)), "too_few"),
        (studied(num=1, budgets=BUDGETS, repeats=5), "too_few"),
        (studied(num=9, budgets=(1e17,)), "degenerate"),
        (one_ratio, "degenerate"),
        (one_size, "degenerate"),
    ):
        fit = _fit(points, method, Resampling(n_boot=10))
        assert fit.status == status
        assert fit.reason
        assert [row.value for row in fit.rows()] == [None] * 7
        assert all(row.ci_lo is None and row.status == status for row in fit.rows())
        with pytest.raises(ValueError, match=status):
            surface_of(fit)
        assert surface_draws(fit) is None


@pytest.mark.parametrize("method", METHODS)
def test_a_surface_without_a_floor_is_at_its_bound(method: str) -> None:
    law = ChinchillaLaw(E=0.0, A=40.0, B=90.0, alpha=0.2, beta=0.25)
    fit = _fit(studied(law), method)
    assert fit.status == "at_bound"
    assert fit.reason == "E goes to zero"
    assert fit.values["alpha"] == pytest.approx(0.2, rel=1e-3)
    assert fit.values["E"] < 1e-3 * min(p.loss for p in studied(law))
    # A floor below zero cannot be had; noisy losses of one settle at the bound.
    steep = changed(studied(law, noise=0.002), loss=lambda loss: loss - 0.3)
    fit = _fit(steep, method, Resampling(n_boot=20))
    assert fit.status == "at_bound"
    assert fit.n_failed("alpha") == 0
    assert fit.values["E"] == 0.0
    assert fit.interval("E")[0] == 0.0


def test_losses_that_rise_with_size_have_no_optimum() -> None:
    points = [
        point(budget_flops=1e18, n_params=n, n_tokens=d, loss=1.0 + 1e-3 * n**0.3 + 40 * d**-0.2)
        for n in np.geomspace(1e7, 1e9, 5)
        for d in np.geomspace(1e9, 1e10, 4)
    ]
    fit = _fit(points, resampling=Resampling(n_boot=10))
    assert fit.status == "at_bound"
    assert "alpha" in fit.reason
    assert np.isnan(fit.values["a"])
    assert fit.n_failed("a") == 10
    assert fit.interval("a") is None
    by_parameter = {row.parameter: row for row in fit.rows()}
    assert by_parameter["a"].value is None
    assert by_parameter["alpha"].value == pytest.approx(-0.3, rel=1e-5)


def test_a_row_for_every_parameter() -> None:
    fit = _fit(studied(noise=0.003), resampling=Resampling(n_boot=40))
    rows = fit.rows()
    assert [row.parameter for row in rows] == ["A", "alpha", "B", "beta", "E", "a", "b"]
    for row in rows:
        assert row.ci_lo < row.value < row.ci_hi
        assert (row.form, row.method, row.n_points) == ("chinchilla", "huber", 28)
        assert (row.bootstrap_kind, row.n_boot, row.n_failed) == ("residual", 40, 0)
        assert (row.budget_lo, row.budget_hi, row.confidence) == (1e17, 3e18, 0.95)
        assert row.n_starts == 50


def test_draws_give_intervals_of_anything_derived() -> None:
    fit = _fit(studied(noise=0.003), resampling=Resampling(n_boot=100))
    laws = surface_draws(fit)
    low, high = percentiles(laws.optimum(1e18)[0], 0.95)
    assert low < surface_of(fit).optimum(1e18)[0] < high
    within = percentiles(laws.optimal_loss(1e18), 0.95)
    beyond = percentiles(laws.optimal_loss(1e24), 0.95)
    assert beyond[1] - beyond[0] > 3 * (within[1] - within[0])


def test_no_draws_no_intervals() -> None:
    fit = _fit(studied(noise=0.003))
    assert fit.bootstrap_kind is None
    assert fit.interval("alpha") is None
    assert fit.rows()[0].n_failed is None

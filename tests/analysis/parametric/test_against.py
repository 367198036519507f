"""A fitted law held against given parameters, all at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import f as f_distribution

from analysis.parametric.made_laws import (
    BESIROGLU,
    chinchilla_points,
    chinchilla_published,
    point,
    studied,
)
from isoflop.analysis.parametric import (
    Constraints,
    ParametricFit,
    Resampling,
    fit_frontier,
    fit_joint,
    fit_surface,
    law_test,
)
from isoflop.analysis.points import Point
from isoflop.errors import UserError

NAMES = ("E", "A", "alpha", "B", "beta")
TRUTH = {name: float(getattr(BESIROGLU, name)) for name in NAMES}


def _fit(points: list[Point], n_boot: int = 0, **options: Any) -> ParametricFit:
    resampling = Resampling(n_boot=n_boot)
    return fit_surface(points, arch="dense", resampling=resampling, **options)


def test_hoffmanns_parameters_are_rejected_by_the_240_points_and_besiroglus_are_not() -> None:
    published = chinchilla_published()
    tex = published["hoffmann"]["tex_source"]
    unrounded = {
        "E": np.exp(tex["e"]),
        "A": np.exp(tex["a"]),
        "B": np.exp(tex["b"]),
        "alpha": tex["alpha"],
        "beta": tex["beta"],
    }
    fit = _fit(chinchilla_points(), n_boot=300)
    for given in (published["hoffmann"]["rounded"], unrounded):
        found = law_test(fit, given, n_draws=200)
        assert found.is_rejected
        assert found.p_value == 1 / 201
        assert found.dof == 5
        assert found.chi2_p_value is not None
        assert found.chi2_p_value < 1e-12
    for given in (published["published"]["paper"], published["published"]["notebook_grid"]):
        law = {name: given[name] for name in NAMES}
        found = law_test(fit, law, n_draws=200)
        assert not found.is_rejected
        assert found.chi2_p_value is not None
        assert found.chi2_p_value > 0.5


def test_a_law_is_not_rejected_by_itself_and_one_parameter_off_is() -> None:
    fit = _fit(studied(noise=0.003), n_boot=150)
    own = {name: fit.values[name] for name in NAMES}
    itself = law_test(fit, own, n_draws=100)
    assert (itself.p_value, itself.ratio, itself.chi2) == (1.0, 0.0, 0.0)
    for name in NAMES:
        assert law_test(fit, {**own, name: own[name] * 1.1}, n_draws=100).is_rejected, name


def test_parameters_in_their_own_intervals_can_be_rejected_together() -> None:
    """A and alpha at the two ends that never go together."""
    fit = _fit(studied(noise=0.003), n_boot=150)
    ends = {"A": fit.interval("A"), "alpha": fit.interval("alpha")}
    assert ends["A"] is not None
    assert ends["alpha"] is not None
    apart = {**{name: fit.values[name] for name in NAMES}}
    apart.update(A=ends["A"][1], alpha=ends["alpha"][0])
    found = law_test(fit, apart, n_draws=100)
    assert found.is_rejected
    assert found.chi2_p_value is not None
    assert found.chi2_p_value < 1e-6


def test_for_least_squares_the_p_value_is_near_that_of_the_f_statistic() -> None:
    points = studied(noise=0.004, seed=11)
    fit = _fit(points, method="vpnls")
    for factor in (1.002, 1.005, 1.01):
        found = law_test(fit, {**TRUTH, "beta": TRUTH["beta"] * factor}, n_draws=1500)
        exact = f_distribution.sf(found.ratio * (len(points) - 5) / 5, 5, len(points) - 5)
        assert found.p_value == pytest.approx(exact, abs=0.05)


def test_a_constrained_fit_has_fewer_degrees_of_freedom_and_refuses_what_it_excludes() -> None:
    points = studied(noise=0.004)
    fit = _fit(points, n_boot=150, constraints=Constraints(tied=True, fixed_e=1.8172))
    own = {name: fit.values[name] for name in NAMES}
    found = law_test(fit, {**own, "A": own["A"] * 1.0001}, n_draws=100)
    assert found.dof == 3
    assert found.chi2 is not None
    assert not found.is_rejected
    with pytest.raises(UserError, match="as the fit ties them"):
        law_test(fit, {**own, "beta": 0.3})
    with pytest.raises(UserError, match="as in the fit"):
        law_test(fit, {**own, "E": 1.7})


@pytest.mark.parametrize(
    "given",
    [
        {"E": 1.8},
        {**TRUTH, "gamma": 1.0},
        {**TRUTH, "A": 0.0},
        {**TRUTH, "B": -3.0},
        {**TRUTH, "alpha": float("nan")},
        {**TRUTH, "E": float("inf")},
    ],
)
def test_what_is_no_law_is_refused_in_one_line(given: dict[str, float]) -> None:
    with pytest.raises(UserError) as error:
        law_test(_fit(studied(noise=0.003)), given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("changes", [{"A": 1e300}, {"E": 1e9}, {"alpha": 400.0}, {"B": 1e-300}])
@pytest.mark.parametrize("method", ["huber", "vpnls"])
def test_an_absurd_law_is_rejected(method: Any, changes: dict[str, float]) -> None:
    fit = _fit(studied(noise=0.003), method=method)
    found = law_test(fit, {**TRUTH, **changes}, n_draws=50)
    assert found.p_value < 0.05
    assert found.chi2 is None


def test_exact_points_reject_any_other_law() -> None:
    fit = _fit(studied(), method="vpnls")
    assert law_test(fit, {**TRUTH, "E": 1.83}, n_draws=50).is_rejected


def test_the_joint_law_can_be_tested_and_a_frontier_cannot() -> None:
    points = [
        point(
            "moe",
            budget_flops=p.budget_flops,
            n_params=p.n_params * (4 if i % 2 else 16),
            n_active=p.n_params,
            n_tokens=p.n_tokens,
            loss=p.loss,
        )
        for i, p in enumerate(studied(noise=0.002))
    ]
    fit = fit_joint(points, arch="moe", resampling=Resampling(n_boot=0))
    # Parameters that a token does not use are worth nothing here.
    assert not law_test(fit, {**TRUTH, "gamma": 0.0}, n_draws=100).is_rejected
    assert law_test(fit, {**TRUTH, "gamma": -0.05}, n_draws=100).is_rejected
    with pytest.raises(ValueError, match="no frontier law"):
        law_test(fit_frontier((), arch="moe", method="parabola"), TRUTH)


@pytest.mark.slow
def test_the_truth_is_rejected_as_often_as_by_the_f_statistic() -> None:
    """In 100 studies with Gaussian noise, for which that statistic is nearly exact."""
    ours, exact = [], []
    for seed in range(100):
        found = law_test(_fit(studied(noise=0.004, seed=seed), method="vpnls"), TRUTH, n_draws=150)
        ours.append(found.p_value)
        exact.append(f_distribution.sf(found.ratio * 23 / 5, 5, 23))
    differences = np.subtract(ours, exact)
    assert np.abs(differences).mean() < 0.03
    assert abs(differences.mean()) < 0.02
    assert abs(np.mean(np.less(ours, 0.05)) - np.mean(np.less(exact, 0.05))) <= 0.02

"""What a user sets of the surface: tied exponents, a given floor, Huber's δ."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize

from analysis.parametric.made_laws import BESIROGLU, BUDGETS, SURFACES, point, studied
from isoflop.analysis import FitOptions, Fits
from isoflop.analysis.parametric import (
    ChinchillaLaw,
    Constraints,
    ParametricFit,
    Resampling,
    fit_joint,
    fit_surface,
    surface_of,
)
from isoflop.analysis.parametric.terms import Criterion
from isoflop.analysis.points import Point, Selection
from isoflop.analysis.validity.held_out import held_out_findings

NO_DRAWS = Resampling(n_boot=0)


def _fit(
    points: list[Point], method: Criterion = "huber", n_boot: int = 0, **constraints: Any
) -> ParametricFit:
    return fit_surface(
        points,
        arch="dense",
        method=method,
        resampling=Resampling(n_boot=n_boot),
        constraints=Constraints(**constraints),
    )


def _by_scipy(points: list[Point], method: Criterion, start: ChinchillaLaw, **given: Any) -> float:
    """The smallest criterion that scipy finds, by the formula and not by the fit's own terms."""
    n, d, loss = (
        np.array([getattr(p, name) for p in points]) for name in ("n_params", "n_tokens", "loss")
    )
    tied, fixed_e, delta = given.get("tied"), given.get("fixed_e"), given.get("huber_delta", 1e-3)

    # Coefficients at the centre of the data hardly depend on the exponents.
    size, tokens = np.exp(np.log(n).mean()), np.exp(np.log(d).mean())

    def criterion(x: np.ndarray) -> float:
        beta = x[1] if tied else x[3]
        floor = x[4] if fixed_e is None else fixed_e
        predicted = floor + x[0] * (n / size) ** -x[1] + x[2] * (d / tokens) ** -beta
        if method == "vpnls":
            return float(((loss - predicted) ** 2).sum())
        away = np.abs(np.log(loss / predicted))
        return float(np.where(away <= delta, away**2 / 2, delta * (away - delta / 2)).sum())

    x = [start.A * size**-start.alpha, start.alpha, start.B * tokens**-start.beta, start.beta]
    x = [1.01 * value for value in (*x, start.E)]
    options = {"xatol": 1e-9, "fatol": 1e-15, "maxfev": 1000}
    for _ in range(3):
        x = minimize(criterion, x, method="Nelder-Mead", options=options).x
    return float(criterion(x))


@pytest.mark.parametrize("method", ["huber", "vpnls"])
@pytest.mark.parametrize(
    "given",
    [
        {"tied": True},
        {"fixed_e": 1.75},
        {"tied": True, "fixed_e": 1.85, "huber_delta": 1e-2},
    ],
    ids=lambda given: "-".join(given),
)
def test_a_constrained_fit_keeps_to_what_is_given_and_is_the_best_that_does(
    method: Criterion, given: dict[str, Any]
) -> None:
    points = studied(noise=0.004, seed=5)
    fit, free = _fit(points, method, **given), _fit(points, method, huber_delta=1e-3)
    law = surface_of(fit)
    assert fit.status == "ok"
    if given.get("tied"):
        assert law.alpha == law.beta
    assert given.get("fixed_e", law.E) == law.E
    assert fit.objective is not None
    reached = _by_scipy(points, method, law, **given)
    assert fit.objective <= reached * (1 + 1e-9)
    if method == "vpnls" or "huber_delta" not in given:
        assert fit.objective > free.objective * (1 + 1e-6)


def test_points_of_a_tied_surface_with_a_known_floor_give_it_back() -> None:
    truth = SURFACES["symmetric"]
    points = studied(truth)
    for given in ({"tied": True}, {"tied": True, "fixed_e": 1.69}, {"fixed_e": 1.69}):
        fit = _fit(points, "vpnls", **given)
        for name in ("E", "A", "B", "alpha", "beta"):
            assert fit.values[name] == pytest.approx(getattr(truth, name), rel=1e-6), name


def test_what_is_given_has_no_interval_and_is_in_the_settings() -> None:
    fit = _fit(studied(noise=0.004), n_boot=30, tied=True, fixed_e=1.8, huber_delta=0.002)
    rows = {row.parameter: row for row in fit.rows()}
    assert {row.settings for row in rows.values()} == {
        "sum of Huber(0.002) of ln L residuals; alpha = beta; E = 1.8 given"
    }
    without = {name for name, row in rows.items() if row.ci_lo is None}
    assert without == {"E", "a", "b"}
    assert (rows["a"].value, rows["E"].value) == (0.5, 1.8)
    assert (fit.draws["alpha"] == fit.draws["beta"]).all()
    free = _fit(studied(noise=0.004))
    assert free.settings == "sum of Huber(0.001) of ln L residuals"


def test_residuals_of_a_constrained_fit_are_widened_by_its_own_degrees_of_freedom() -> None:
    """Five points fit three free parameters but not five."""
    points = studied(SURFACES["symmetric"], noise=0.002, num=5, budgets=(1e17, 1e18))[1::2]
    assert len(points) == 5
    assert _fit(points).status == "too_few"
    fit = _fit(points, n_boot=20, tied=True, fixed_e=1.69)
    assert fit.has_values
    assert fit.interval("A") is not None


@pytest.mark.parametrize("floor", [0.0, 1e-9, 2.9, 3.4, 9.0, 1e6])
@pytest.mark.parametrize("tied", [False, True])
def test_any_floor_gives_a_law_or_a_verdict(floor: float, tied: bool) -> None:
    points = studied(noise=0.002)
    highest = max(point.loss for point in points)
    for method in ("huber", "vpnls"):
        fit = _fit(points, method, fixed_e=floor, tied=tied)
        if floor > highest:
            assert fit.status in ("at_bound", "not_converged")
        if fit.has_values:
            assert fit.values["E"] == floor


def test_the_joint_law_takes_constraints_too() -> None:
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
    constraints = Constraints(tied=True, fixed_e=1.8)
    fit = fit_joint(points, arch="moe", resampling=NO_DRAWS, constraints=constraints)
    assert fit.status == "ok"
    assert fit.values["alpha"] == fit.values["beta"]
    assert fit.values["E"] == 1.8
    assert fit.values["gamma"] != 0


def test_tied_exponents_extrapolate_better_from_small_runs() -> None:
    """Four sizes at two ratios, to a model a hundred times larger (Gadre et al. 2024)."""
    truth = ChinchillaLaw(E=1.7, A=180.0, B=420.0, alpha=0.28, beta=0.28)
    errors: dict[bool, list[float]] = {False: [], True: []}
    for seed in range(8):
        rng = np.random.default_rng(seed)
        points = [
            point(
                budget_flops=6 * n * n * ratio,
                n_params=n,
                n_tokens=n * ratio,
                loss=float(truth.loss(n, n * ratio) * np.exp(0.003 * rng.normal())),
            )
            for n in (1e7, 3e7, 8e7, 2e8)
            for ratio in (20.0, 320.0)
        ]
        for tied, found in errors.items():
            law = surface_of(_fit(points, "vpnls", tied=tied))
            found.append(abs(law.loss(7e9, 140e9) / truth.loss(7e9, 140e9) - 1))
    assert np.median(errors[True]) < 0.8 * np.median(errors[False])


def test_the_held_out_check_is_made_under_the_constraints() -> None:
    points = studied(noise=0.004, num=5)
    groups = {
        ("dense", budget): tuple(p for p in points if p.budget_flops == budget)
        for budget in BUDGETS
    }
    fits = Fits(
        selection=Selection(groups=groups, excluded=()),
        options=FitOptions(tied=True, fixed_e=1.8),
        optima=(),
    )
    scored = held_out_findings(fits)[-1].value
    law = surface_of(
        _fit([p for p in points if p.budget_flops < 3e18], "vpnls", tied=True, fixed_e=1.8)
    )
    errors = [
        abs(law.loss(p.n_params, p.n_tokens) / p.loss - 1) for p in points if p.budget_flops == 3e18
    ]
    assert scored == pytest.approx(np.mean(errors))


def test_case_draws_of_many_points_are_constrained_too() -> None:
    points = studied(BESIROGLU, (*BUDGETS, 1e19, 3e19, 1e20, 3e20, 1e21), noise=0.003)
    fit = _fit(points, "vpnls", n_boot=100, fixed_e=1.8172)
    assert fit.bootstrap_kind == "case"
    assert fit.n_failed("beta") == 0
    low, high = fit.interval("beta") or (0.0, 0.0)
    assert low < BESIROGLU.beta < high
    free = _fit(points, "vpnls", n_boot=100)
    wide = free.interval("beta") or (0.0, 0.0)
    assert high - low < 0.9 * (wide[1] - wide[0])

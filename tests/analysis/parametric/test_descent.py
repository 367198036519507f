"""The batched Newton steps against scipy's optimisers, one vector at a time."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from analysis.parametric.made_laws import studied
from isoflop.analysis.parametric.descent import minimise
from isoflop.analysis.parametric.forms import CHINCHILLA
from isoflop.analysis.parametric.solve import grid_starts, projected_starts, solve
from isoflop.analysis.parametric.terms import Problem, evaluate, make_problem
from isoflop.arrays import Floats


def _problem(method: str, noise: float = 0.004) -> Problem:
    points = studied(noise=noise)
    n, d, loss = (
        np.array([getattr(p, name) for p in points]) for name in ("n_params", "n_tokens", "loss")
    )
    return make_problem(CHINCHILLA, method, ((n,), (d,), ()), loss)


def _scipy(problem: Problem, start: Floats, weight: Floats) -> tuple[Floats, float]:
    def value_and_gradient(theta: Floats) -> tuple[float, Floats]:
        value, gradient, _ = evaluate(problem, theta[None], problem.target[None], weight[None])
        return float(value[0]), gradient[0]

    found = minimize(
        value_and_gradient,
        start,
        jac=True,
        method="L-BFGS-B",
        options={"ftol": 0.0, "gtol": 1e-10, "maxiter": 5000, "maxfun": 20_000},
    )
    return found.x, float(found.fun)


@pytest.mark.parametrize("method", ["huber", "vpnls"])
def test_refits_of_draws_equal_scipys(method: str) -> None:
    problem = _problem(method)
    best = solve(problem).theta
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, problem.num_points, (8, problem.num_points))
    weights = np.stack([np.bincount(row, minlength=problem.num_points) for row in drawn])
    weights = weights.astype(float)
    ours = minimise(problem, np.tile(best, (8, 1)), problem.target[None], weights)
    assert ours.converged.all()
    for i, weight in enumerate(weights):
        theta, value = _scipy(problem, best, weight)
        assert ours.value[i] <= value * (1 + 1e-9)
        np.testing.assert_allclose(ours.theta[i], theta, atol=2e-3)
        assert value <= ours.value[i] * (1 + 1e-5), "scipy found a worse point to compare with"


def test_warm_starts_find_what_many_starts_find() -> None:
    problem = _problem("huber")
    best = solve(problem).theta
    starts = grid_starts(problem)
    rng = np.random.default_rng(3)
    for _ in range(5):
        drawn = rng.integers(0, problem.num_points, problem.num_points)
        weight = np.bincount(drawn, minlength=problem.num_points).astype(float)[None]
        warm = minimise(problem, best[None], problem.target[None], weight)
        many = minimise(problem, starts, problem.target[None], weight)
        assert warm.value[0] <= many.value[many.converged].min() * (1 + 1e-9)


def test_a_batch_moves_as_its_vectors_do_alone() -> None:
    problem = _problem("huber")
    starts = grid_starts(problem)[::7]
    ones = np.ones((1, problem.num_points))
    together = minimise(problem, starts, problem.target[None], ones)
    for i, start in enumerate(starts):
        alone = minimise(problem, start[None], problem.target[None], ones)
        np.testing.assert_allclose(alone.theta[0], together.theta[i], rtol=1e-6, atol=1e-8)


def test_a_vector_that_runs_out_of_steps_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    for steps in ("_MAX_DIRECT_STEPS", "_MAX_WIDE_STEPS", "_MAX_STEPS"):
        monkeypatch.setattr(f"isoflop.analysis.parametric.descent.{steps}", 2)
    problem = _problem("huber")
    ones = np.ones((1, problem.num_points))
    found = minimise(problem, grid_starts(problem), problem.target[None], ones)
    assert not found.converged.all()


def test_residuals_far_beyond_delta_settle_too() -> None:
    problem = _problem("huber", noise=0.03)
    found = minimise(
        problem, grid_starts(problem), problem.target[None], np.ones((1, problem.num_points))
    )
    best = found.value.min()
    assert found.converged.mean() > 0.9
    assert np.count_nonzero(found.value <= best * (1 + 1e-6)) >= 10
    for start in found.theta[found.value.argsort()[:2]]:
        _, value = _scipy(problem, start, np.ones(problem.num_points))
        assert best <= value * (1 + 1e-9)


def test_projection_starts_at_a_noise_free_surface_within_its_grid() -> None:
    problem = _problem("vpnls", noise=0.0)
    starts = projected_starts(problem, 3)[:3]
    ones = np.ones((1, problem.num_points))
    value, _, _ = evaluate(problem, starts, np.tile(problem.target, (3, 1)), np.tile(ones, (3, 1)))
    assert (np.sqrt(2 * value / problem.num_points) * 1e-3 < 0.01).all()
    assert (np.diff(value) >= 0).all()


def test_only_one_start_at_the_best_objective_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = _problem("vpnls")
    one = projected_starts(problem, 1)[:1]
    monkeypatch.setattr(
        "isoflop.analysis.parametric.solve.projected_starts", lambda problem, num: one
    )
    solution = solve(problem)
    assert solution.status == "single_start"
    assert solution.n_starts == 1

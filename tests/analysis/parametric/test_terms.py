from __future__ import annotations

import numpy as np
import pytest

from isoflop.analysis.parametric.forms import CHINCHILLA, FRONTIER, JOINT
from isoflop.analysis.parametric.terms import Problem, evaluate, make_problem, predict


def _problem(form_name: str, method: str) -> Problem:
    rng = np.random.default_rng(5)
    n, d, x = np.exp(rng.uniform(15, 22, (3, 30)))
    form, inputs = {
        "chinchilla": (CHINCHILLA, ((n,), (d,), ())),
        "joint": (JOINT, ((n, x), (d,), ())),
        "frontier": (FRONTIER, ((n,), ())),
    }[form_name]
    return make_problem(form, method, inputs, np.exp(rng.normal(1.0, 0.2, 30)))


@pytest.mark.parametrize("form", ["chinchilla", "joint", "frontier"])
@pytest.mark.parametrize("method", ["huber", "vpnls"])
def test_derivatives_are_those_of_finite_differences(form: str, method: str) -> None:
    problem = _problem(form, method)
    rng = np.random.default_rng(1)
    theta = rng.normal(-0.5, 0.3, (3, len(problem.form.parameters)))
    weight = rng.integers(0, 3, (3, 30)).astype(float)
    # Residuals within δ of the target make the quadratic part of Huber's criterion count.
    target = predict(problem, theta)[0] + rng.normal(0, 1e-3, (3, 30))
    _, gradient, hessian = evaluate(problem, theta, target, weight)
    step = 1e-8
    for i in range(theta.shape[1]):
        ends = [theta.copy(), theta.copy()]
        ends[0][:, i] -= step
        ends[1][:, i] += step
        low, high = (evaluate(problem, end, target, weight) for end in ends)
        slope = (high[0] - low[0]) / (2 * step)
        np.testing.assert_allclose(gradient[:, i], slope, rtol=1e-5, atol=1e-4)
        bend = (high[1] - low[1]) / (2 * step)
        np.testing.assert_allclose(hessian[:, i], bend, rtol=1e-5, atol=1e-6 * np.abs(bend).max())


def test_natural_parameters_predict_what_standardised_ones_do() -> None:
    problem = _problem("joint", "huber")
    theta = np.random.default_rng(2).normal(0, 0.3, (1, 6))
    natural = {name: value[0] for name, value in problem.natural(theta).items()}
    rng = np.random.default_rng(5)
    n, d, x = np.exp(rng.uniform(15, 22, (3, 30)))
    loss = (
        natural["E"]
        + natural["A"] * n ** -natural["alpha"] * x ** -natural["gamma"]
        + natural["B"] * d ** -natural["beta"]
    )
    predicted = np.exp(predict(problem, theta)[0][0] + problem.log_scale)
    np.testing.assert_allclose(predicted, loss, rtol=1e-12)


def test_far_parameters_overflow_nowhere() -> None:
    for method in ("huber", "vpnls"):
        problem = _problem("chinchilla", method)
        theta = np.full((1, 5), 1e4)
        value, gradient, hessian = evaluate(problem, theta, problem.target[None], np.ones((1, 30)))
        assert np.isfinite(value).all()
        assert np.isfinite(gradient).all()
        assert np.isfinite(hessian).all()

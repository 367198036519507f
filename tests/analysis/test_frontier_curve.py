"""Inverting a frontier in many draws, and what an interval with failed draws lets us claim."""

from __future__ import annotations

import numpy as np
import pytest

from isoflop.analysis.compare.claims import interval, order, strict_interval
from isoflop.analysis.compare.frontier_curve import FrontierCurve


def test_failed_draws_count_against_a_claim() -> None:
    draws = np.full(1000, 2.0)
    assert order(strict_interval(draws, 0.95), 1.0) == "higher"
    draws[:30] = np.nan
    assert interval(draws, 0.95) == (2.0, 2.0)
    assert order(strict_interval(draws, 0.95), 1.0) == "none"
    draws[20:] = 2.0
    assert order(strict_interval(draws, 0.95), 1.0) == "higher"
    assert strict_interval(None, 0.95) == (None, None)


def test_a_draw_without_one_of_the_optima_uses_the_others() -> None:
    curve = FrontierCurve(
        log_r=np.array([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0], [0.0, np.nan, np.nan]]),
        log_loss=np.array([[2.0, 1.0, 0.5], [2.0, np.nan, 0.0], [2.0, np.nan, np.nan]]),
    )
    found = curve.invert(np.array([1.5, 1.5, 1.5]))
    assert found.log_r[:2] == pytest.approx([0.5, 0.5])
    assert np.isnan(found.log_r[2])
    assert found.elasticity[:2] == pytest.approx([-1.0, -1.0])


def test_an_optimum_lies_exactly_on_its_own_frontier_and_a_bent_frontier_has_no_inverse() -> None:
    rng = np.random.default_rng(0)
    # Below and above one unit of the resource: the logarithm changes its sign.
    log_r = np.sort(rng.normal(0, 3, (200, 5)), axis=1)
    log_loss = -np.cumsum(rng.uniform(0.01, 0.1, (200, 5)), axis=1)
    for index in range(5):
        found = FrontierCurve(log_r=log_r, log_loss=log_loss).invert(log_loss[:, index])
        assert np.array_equal(found.log_r, log_r[:, index])
        assert not found.extrapolated.any()
    log_loss[:100, 2] = log_loss[:100, 1] + 0.001
    found = FrontierCurve(log_r=log_r, log_loss=log_loss).invert(log_loss[:, 4])
    assert np.isnan(found.log_r[:100]).all()
    assert np.isfinite(found.log_r[100:]).all()

"""Inverting a frontier in many draws, and what an interval with failed draws lets us claim."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from isoflop.analysis.compare.claims import (
    agreeing,
    interval,
    joint_claims,
    order,
    stretched,
    strict_interval,
)
from isoflop.analysis.compare.frontier_curve import REACH, FrontierCurve, draw_floors


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


def with_floor(floor: float, budgets: np.ndarray) -> np.ndarray:
    return np.log(floor + 3e3 * budgets**-0.2)


def test_a_power_law_with_a_floor_is_inverted_without_the_bias_of_the_chord() -> None:
    budgets = np.array([1e17, 3e17, 1e18, 3e18])
    log_r, log_loss = np.log(budgets)[None], with_floor(1.8, budgets)[None]
    floor = draw_floors(log_r, log_loss, np.full(4, 1e-6))
    assert floor[0] == pytest.approx(1.8, abs=0.03 * np.exp(log_loss.min()))
    curve = FrontierCurve(log_r=log_r, log_loss=log_loss, floor=floor)
    chord = FrontierCurve(log_r=log_r, log_loss=log_loss)
    for wanted, allowed in ((1.7e17, 5e-4), (1.7e18, 5e-4), (1e19, 0.02)):
        loss = with_floor(1.8, np.array([wanted]))
        found = curve.invert(loss)
        assert found.log_r[0] == pytest.approx(np.log(wanted), abs=allowed)
        assert abs(chord.invert(loss).log_r[0] - np.log(wanted)) > 0.005
        assert found.extrapolated[0] == (wanted > 3e18)
        slope = (with_floor(1.8, np.array([wanted * 1.001])) - loss)[0] / np.log(1.001)
        # Between optima the slope is that of the segment in the excess, which bends in the loss.
        assert found.elasticity[0] == pytest.approx(slope, rel=0.02)
        assert curve.at(found.log_r, slack=10)[0] == pytest.approx(loss[0], rel=1e-9)


def test_far_beyond_its_optima_a_frontier_says_nothing() -> None:
    budgets = np.array([1e17, 1e18])
    curve = FrontierCurve(
        log_r=np.log(budgets)[None].repeat(2, axis=0),
        log_loss=with_floor(1.8, budgets)[None].repeat(2, axis=0),
        floor=np.array([1.8, 1.8]),
    )
    found = curve.invert(np.log(np.array([1.79, 1.9])))
    assert found.too_far.all()
    assert found.log_r == pytest.approx(np.full(2, np.log(1e18) + REACH))
    assert np.isnan(curve.at(np.log(np.array([1.2e18, 9e16])), slack=0.05)).all()
    assert np.isfinite(curve.at(np.log(np.array([1.04e18, 9.7e16])), slack=0.05)).all()
    # A step that is nearly none makes a draw so steep that its loss overflows, without a warning.
    steep = dataclasses.replace(curve, log_r=np.log(budgets[0]) + np.array([[0.0, 1e-6]] * 2))
    assert np.isnan(steep.at(np.log(np.array([1e14, 1e22])), slack=0.05)).all()


def test_floors_of_draws_hold_what_two_optima_do_not_tell() -> None:
    log_r, log_loss = np.log([[1e17, 1e18]]), np.log([[3.4, 3.0]])
    floors = draw_floors(
        log_r.repeat(2000, axis=0), log_loss.repeat(2000, axis=0), np.full(2, 1e-3), seed=0
    )
    assert np.quantile(floors / 3.0, [0.1, 0.9]) == pytest.approx([0.18, 0.82], abs=0.05)
    assert draw_floors(log_r, log_loss, np.full(2, 1e-3))[0] == pytest.approx(1.5)
    lost = draw_floors(log_r * np.nan, log_loss, np.full(2, 1e-3), seed=0)
    assert np.isfinite(lost).all()


def test_the_maximum_over_comparisons_holds_all_at_once() -> None:
    """Of independent comparisons without any difference one is claimed in 5 % of tables."""
    rng = np.random.default_rng(0)
    wrong, alone = 0, 0
    for _ in range(400):
        estimates = rng.standard_normal(8)
        drawn = [estimate + rng.standard_normal(400) for estimate in estimates]
        found = joint_claims(drawn, 0.95)
        wrong += set(found.orders) != {"none"}
        alone += sum(order(strict_interval(one, 0.95), 0.0) != "none" for one in drawn)
        assert 1.25 < found.stretch < 1.55
    assert 0.025 < wrong / 400 < 0.08
    assert 0.03 < alone / 400 / 8 < 0.07


def test_equal_comparisons_cost_nothing_and_clear_ones_step_down() -> None:
    rng = np.random.default_rng(1)
    noise = rng.standard_normal(4000)
    same = joint_claims([2.2 + noise] * 20, 0.95)
    assert set(same.orders) == {"higher"}
    assert same.stretch == pytest.approx(1.0, abs=0.02)
    clear = [50 + rng.standard_normal(4000) for _ in range(15)]
    last = 2.2 + noise
    assert joint_claims([*clear, last], 0.95).orders[-1] == "higher"
    found = joint_claims([*(rng.standard_normal(4000) for _ in range(15)), last], 0.95)
    assert set(found.orders) == {"none"}


def test_failed_draws_and_missing_ones_claim_nothing() -> None:
    rng = np.random.default_rng(2)
    failing = np.where(rng.random(1000) < 0.05, np.nan, 50 + rng.standard_normal(1000))
    found = joint_claims([failing, None, 50 + rng.standard_normal(1000)], 0.95)
    assert found.orders == ("none", "none", "higher")
    assert joint_claims([], 0.95).stretch == 1.0


def test_an_interval_agrees_with_what_is_claimed() -> None:
    found = joint_claims([np.linspace(-1, 3, 1001), np.linspace(-1, 3, 1001)[::-1]], 0.95)
    low, high = stretched(np.linspace(-1, 3, 1001), (-0.9, 2.9), found)
    assert (low, high) == pytest.approx((1 - 1.9 * found.stretch, 1 + 1.9 * found.stretch))
    assert agreeing((-0.1, 2.0), "higher") == (0.0, 2.0)
    assert agreeing((0.1, 2.0), "none") == (0.0, 2.0)
    assert agreeing((-2.0, 0.1), "lower") == (-2.0, 0.0)
    assert agreeing((None, None), "lower") == (None, None)

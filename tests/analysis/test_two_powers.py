"""Two power laws and a slope: exact on its own form, hardly biased on others, linear, hardy."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.methods import SURFACES, Design, outcomes
from isoflop.analysis.optima_methods import (
    ABOVE,
    BELOW,
    INTERIOR,
    METHODS,
    NO_MINIMUM,
    TOO_FEW,
    Method,
)
from isoflop.analysis.two_powers import RATE, RIDGE, fit_two_powers
from isoflop.arrays import Floats

FIND = METHODS["two_powers"].find
LINEAR = [name for name, method in METHODS.items() if method.fit is not None]


def grid(width: float, num: int, middle: float = 0.0) -> Floats:
    """ln of sizes within a factor of their middle."""
    return middle + np.linspace(-1, 1, num) * math.log(width)


def own_form(log_x: Floats, lowest: float) -> Floats:
    """1.8 + 1.2·cosh(k·(x − lowest)): two power laws of one rate, without a slope."""
    return np.asarray(1.8 + 1.2 * np.cosh(RATE * (log_x - lowest)))


@pytest.mark.parametrize("width", [1.02, 2.0, 16.0, 1e6])
@pytest.mark.parametrize("num", [3, 8])
@pytest.mark.parametrize("off", [0.0, -0.4, 0.97])
def test_its_own_form_is_recovered(width: float, num: int, off: float) -> None:
    log_x = grid(width, num, 18.0)
    lowest = 18.0 + off * math.log(width)
    losses = own_form(log_x, lowest)
    minima = FIND(log_x, losses[None], None)
    assert minima.code.tolist() == [INTERIOR]
    # A millionth of the half-width: on narrow grids the losses differ by their last digits.
    assert minima.log_x[0] == pytest.approx(lowest, abs=1e-6 * math.log(width))
    assert minima.loss[0] == pytest.approx(3.0, abs=1e-11 * losses.max())
    assert minima.curvature[0] == pytest.approx(0.6 * RATE**2, rel=1e-4)


@pytest.mark.parametrize("surface", SURFACES)
def test_on_wide_grids_of_exact_surfaces_it_is_nearer_than_the_parabola(surface: str) -> None:
    law = SURFACES[surface]
    best, tokens = law.optimum(1e18)
    offsets = grid(16.0, 11)
    losses = law.loss(best * np.exp(offsets), tokens / np.exp(offsets))

    def off(method: Method) -> tuple[float, float]:
        minima = METHODS[method].find(offsets, losses[None], None)
        return abs(minima.log_x[0]), abs(math.log(minima.loss[0] / law.loss(best, tokens)))

    size, loss = off("two_powers")
    size_of_parabola, loss_of_parabola = off("parabola")
    assert size < 0.15 * size_of_parabola + 1e-9
    assert loss < 0.3 * loss_of_parabola
    assert size < 0.005 or surface == "asymmetric" or (surface == "hoffmann" and size < 0.007)


DESIGNS = [
    Design(width=4, num_sizes=7),
    Design(width=4, num_sizes=7, shift=0.7),
    Design(width=16, num_sizes=7),
    Design(width=16, num_sizes=11, shift=-0.7),
    Design(width=8, num_sizes=7, shift=0.87),
    Design(width=16, num_sizes=11, num_missing=3),
]


@pytest.mark.parametrize("design", DESIGNS, ids=lambda design: design.name)
def test_its_bias_is_small_against_its_spread(design: Design) -> None:
    found = outcomes(SURFACES["besiroglu"], design, 0.002, 2000, is_heavy=False)["two_powers"]
    for values in ([o.size.held for o in found], [o.loss.held for o in found]):
        assert sum(values) / len(values) > 0.93


def test_on_narrow_grids_it_is_as_sharp_as_the_parabola() -> None:
    design = Design(width=4, num_sizes=7)
    found = outcomes(SURFACES["besiroglu"], design, 0.005, 2000, is_heavy=False)
    spread = {method: found[method][0].size.spread for method in ("two_powers", "parabola")}
    assert spread["two_powers"] < 1.05 * spread["parabola"]


@pytest.mark.parametrize("method", LINEAR)
def test_the_smoother_makes_the_curve(method: Method) -> None:
    rng = np.random.default_rng(1)
    log_x = np.sort(rng.uniform(15.0, 19.0, 9))
    log_x[3] = log_x[4]
    losses = own_form(log_x, 17.2) + rng.normal(0, 0.02, 9)
    used = METHODS[method]
    smoother = used.smoother(log_x)
    curve = used.curve(log_x, losses, log_x)
    np.testing.assert_allclose(smoother @ losses, curve, rtol=1e-12)
    np.testing.assert_allclose(smoother, smoother.T, atol=1e-12)
    smooth, is_fitted = used.smooth(log_x, losses)
    np.testing.assert_allclose(smooth, curve, rtol=1e-12)
    assert is_fitted.all()


def test_coefficients_grow_from_three_to_four_with_the_width() -> None:
    count = METHODS["two_powers"].num_coefficients
    assert count(grid(4.0, 3)) == pytest.approx(3.0, abs=1e-9)
    widths = [1.001, 2.0, 4.0, 8.0, 16.0, 256.0]
    counts = [count(grid(width, 9, 20.0)) for width in widths]
    assert counts == sorted(counts)
    assert counts[0] == pytest.approx(3.0, abs=1e-6)
    assert counts[2] < 3.15
    assert 3.8 < counts[4] < counts[5] < 4.0


def test_repeats_are_no_degrees_of_freedom_of_lack_of_fit() -> None:
    log_x = np.repeat(grid(4.0, 7), 3)
    every = np.ones(21, dtype=np.bool_)
    for name in ("parabola", "parabola_robust"):
        assert METHODS[name].lack_of_fit_dof(log_x, every) == pytest.approx(4.0, abs=1e-9)
    assert 3.5 < METHODS["two_powers"].lack_of_fit_dof(log_x, every) < 4.0


def test_other_methods_have_the_coefficients_of_their_form() -> None:
    log_x = np.repeat(grid(16.0, 7), 2)
    counts = {name: method.num_coefficients(log_x) for name, method in METHODS.items()}
    assert counts["parabola"] == pytest.approx(3.0, abs=1e-9)
    assert (counts["parabola_window"], counts["parabola_robust"]) == (3, 3)
    assert counts["akima"] == 7


def test_the_slope_minimises_what_the_ridge_says() -> None:
    rng = np.random.default_rng(2)
    log_x = grid(16.0, 9, 18.0)
    losses = own_form(log_x, 18.5) + rng.normal(0, 0.03, 9)
    curve = fit_two_powers(log_x, losses[None])
    best = curve.coefficients[0]

    def objective(coefficients: Floats) -> float:
        moved = type(curve)(
            centre=curve.centre, coefficients=coefficients[None], bend=curve.bend
        ).at(log_x)[0]
        relative = (losses - moved) / losses.max()
        return float(relative @ relative + RIDGE * (coefficients[3] / losses.max()) ** 2)

    for index in range(4):
        for step in (-1e-4, 1e-4):
            moved = best.copy()
            moved[index] += step
            assert objective(moved) > objective(best)


def test_the_curve_leans_where_the_exponents_differ() -> None:
    law = SURFACES["hoffmann"]
    best, tokens = law.optimum(1e18)
    offsets = grid(16.0, 15)
    slope = fit_two_powers(
        offsets, law.loss(best * np.exp(offsets), tokens / np.exp(offsets))[None]
    ).coefficients[0, 3]
    # d = (α − β)·L''/k² at the minimum, of which the ridge leaves nine tenths.
    bend = law.alpha * law.beta * (law.alpha + law.beta) / law.beta
    bend *= law.A / best**law.alpha
    assert slope == pytest.approx((law.alpha - law.beta) * bend / RATE**2, rel=0.2)


def test_weights_are_repetitions() -> None:
    rng = np.random.default_rng(3)
    log_x = grid(8.0, 7, 18.0)
    losses = own_form(log_x, 18.2) + rng.normal(0, 0.01, 7)
    weight = np.array([2.0, 1.0, 0.0, 3.0, 1.0, 1.0, 2.0])
    weighted = FIND(log_x, losses[None], weight[None])
    times = weight.astype(int)
    repeated = FIND(np.repeat(log_x, times), np.repeat(losses, times)[None], None)
    for name in ("log_x", "loss", "curvature"):
        np.testing.assert_allclose(getattr(weighted, name), getattr(repeated, name), rtol=1e-9)


def test_draws_of_two_sizes_are_too_few() -> None:
    log_x = grid(4.0, 5)
    losses = np.tile(own_form(log_x, 0.1), (2, 1))
    weight = np.array([[3.0, 0.0, 0.0, 2.0, 0.0], [1.0, 1.0, 1.0, 1.0, 1.0]])
    assert FIND(log_x, losses, weight).code.tolist() == [TOO_FEW, INTERIOR]


@pytest.mark.parametrize("width", [1 + 1e-9, 1.01, 4.0, 1e9, 1e150])
def test_any_losses_at_any_sizes_get_a_code(width: float) -> None:
    rng = np.random.default_rng(4)
    log_x = grid(width, 6)
    losses = np.exp(rng.normal(0, 3, (400, 6)))
    minima = FIND(log_x, losses, None)
    assert set(minima.code.tolist()) <= {INTERIOR, BELOW, ABOVE, NO_MINIMUM}
    inside = minima.code == INTERIOR
    assert inside.any()
    assert (np.isfinite(minima.log_x) == inside).all()
    assert (np.isfinite(minima.loss) == inside).all()
    assert np.isfinite(minima.curvature).all()
    assert ((minima.log_x[inside] >= log_x[0]) & (minima.log_x[inside] <= log_x[-1])).all()
    curves = fit_two_powers(log_x, losses)
    sampled = curves.at(np.linspace(log_x[0], log_x[-1], 2001))[inside]
    largest = losses[inside].max(axis=1)
    # No point of the curve is lower than what is called its lowest.
    assert ((minima.loss[inside] - sampled.min(axis=1)) / largest).max() < 1e-6


@pytest.mark.parametrize("unit", [1e-250, 1e-3, 1e250])
def test_the_unit_of_the_loss_moves_no_optimum(unit: float) -> None:
    rng = np.random.default_rng(5)
    log_x = grid(16.0, 9, 18.0)
    losses = own_form(log_x, 18.5) + rng.normal(0, 0.03, (50, 9))
    before, after = FIND(log_x, losses, None), FIND(log_x, unit * losses, None)
    assert (before.code == after.code).all()
    np.testing.assert_allclose(after.log_x, before.log_x, rtol=1e-9)
    np.testing.assert_allclose(after.loss, unit * before.loss, rtol=1e-9)
    np.testing.assert_allclose(after.curvature, unit * before.curvature, rtol=1e-6)


def test_a_minimum_beyond_all_numbers_is_an_edge() -> None:
    # Falling ever slower over sizes of three hundred decades.
    log_x = np.linspace(0.0, 700.0, 5)
    losses = np.array([[5.0, 2.0, 2.0 - 1e-4, 2.0 - 2e-4, 2.0 - 3e-4]])
    assert FIND(log_x, losses, None).code[0] in (ABOVE, INTERIOR)
    assert FIND(log_x, losses[:, ::-1], None).code[0] in (BELOW, INTERIOR)


def test_a_curve_that_falls_again_is_at_its_edge() -> None:
    # Steep on the left, then flat, then down: a minimum and a maximum inside, the end lowest.
    log_x = grid(1e3, 9)
    losses = 3 + 0.3 * np.exp(-(log_x + 4)) - 0.01 * np.maximum(log_x, 0) ** 2
    assert FIND(log_x, losses[None], None).code[0] in (ABOVE, NO_MINIMUM)

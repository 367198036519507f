"""Draws and intervals: pairing, kinds, failures, and what they do not depend on."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest

from analysis.made_runs import curve, parabola, row, spaced
from isoflop.analysis import FitOptions, fit_optima, select_points
from isoflop.analysis.bootstrap import (
    Draws,
    draw_optima,
    kind_for_optima,
    seed_noise,
    student_factor,
)
from isoflop.analysis.optima import find_optima, with_intervals
from isoflop.analysis.optima_methods import METHODS, Method
from isoflop.arrays import percentiles

KEY = ("mlp", 1e17)


def noisy(
    arch: str = "mlp",
    *,
    budget: float = 1e17,
    num: int = 7,
    noise: float = 0.002,
    seeds: int = 1,
    number: int = 0,
) -> list[dict[str, Any]]:
    """A profile about 1e7 parameters with Gaussian noise."""
    rng = random.Random(f"{number} {budget}")
    return [
        {**one, "seed": seed, "loss": one["loss"] * math.exp(rng.gauss(0, noise))}
        for seed in range(seeds)
        for one in curve(parabola(1e7), spaced(1e7, num), arch, budget)
    ]


def drawn(rows: list[dict[str, Any]], method: Method = "parabola", **options: Any) -> Draws:
    return draw_optima(select_points(rows), axis="n_params", method=method, **options)


def spread(draws: Draws) -> float:
    return float(np.nanstd(np.log(draws.x_opt[KEY])))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["residual", "parametric", "case"])
def test_draws_lie_about_the_estimate(kind: Any, method: Method) -> None:
    rows = noisy(seeds=2)
    draws = drawn(rows, method, kind=kind)
    (optimum,) = find_optima(select_points(rows).groups, ["n_params"], [method])
    interior = draws.edge[KEY] == 0
    assert interior.mean() > 0.9
    assert np.isnan(draws.x_opt[KEY]).tolist() == (~interior).tolist()
    middle = float(np.nanmedian(np.log(draws.x_opt[KEY])))
    assert middle == pytest.approx(math.log(optimum.x_opt), abs=0.2)
    assert 0.003 < float(np.nanstd(np.log(draws.x_opt[KEY]))) < 0.4


def test_cases_are_shared_by_families_of_one_design_and_noise_is_not() -> None:
    rows = [*noisy("mlp"), *noisy("sgatlin")]
    cases = drawn(rows, kind="case")
    np.testing.assert_array_equal(cases.x_opt[KEY], cases.x_opt["sgatlin", 1e17])
    # A budget's cases depend on that budget alone.
    alone = drawn([*rows, *noisy("mlp", num=12, budget=1e18)], kind="case")
    np.testing.assert_array_equal(alone.x_opt[KEY], cases.x_opt[KEY])
    draws = drawn(rows)
    assert np.corrcoef(draws.x_opt[KEY], draws.x_opt["sgatlin", 1e17])[0, 1] < 0.2


def test_the_seed_decides() -> None:
    first, again, other = drawn(noisy()), drawn(noisy()), drawn(noisy(), seed=1)
    np.testing.assert_array_equal(first.x_opt[KEY], again.x_opt[KEY])
    assert not np.array_equal(first.x_opt[KEY], other.x_opt[KEY])


def test_noise_free_losses_have_no_spread() -> None:
    assert spread(drawn(noisy(noise=0.0))) < 1e-6


def test_four_times_the_noise_is_four_times_the_spread() -> None:
    narrow, wide = (spread(drawn(noisy(noise=sd, num=12))) for sd in (0.0005, 0.002))
    assert wide / narrow == pytest.approx(4, rel=0.2)


def test_auto_is_the_noise_model() -> None:
    assert kind_for_optima() == "parametric"
    assert kind_for_optima("case") == "case"


def test_seed_noise_pools_the_cells() -> None:
    cells = {1e7: (3.0, 3.1), 2e7: (3.2, 3.2, 3.2 * math.exp(0.03)), 4e7: (3.0,)}
    rows = [
        row(n_params=n, loss=loss, seed=seed)
        for n, losses in cells.items()
        for seed, loss in enumerate(losses)
    ]
    noise = seed_noise(select_points(rows))
    expected = math.log(3.1 / 3.0) ** 2 / 2 + 0.03**2 * 2 / 3
    assert (noise.dof, noise.n_cells) == (3, 2)
    assert noise.relative_sd == pytest.approx(math.sqrt(expected / 3), rel=1e-9)
    assert seed_noise(select_points(rows), arch="peer").dof == 0


def test_no_interval_without_a_residual() -> None:
    rows = noisy(num=3)
    assert drawn(rows).x_opt == {}
    (optimum,) = (
        o for o in fit_optima(select_points(rows)).optima_of("mlp", "n_params", "parabola")
    )
    assert (optimum.status, optimum.ci_lo, optimum.n_boot) == ("interior", None, None)


def test_an_interval_at_the_end_of_the_grid_says_so() -> None:
    rng = random.Random(4)
    rows = curve(lambda n: parabola(3.1e6)(n) + rng.gauss(0, 0.02), spaced(1e7, 9))
    fits = fit_optima(select_points(rows), methods=["parabola"], axes=["n_params"])
    (optimum,) = fits.optima_of("mlp", method="parabola")
    assert optimum.status == "interior"
    assert optimum.ci_at_edge == "low"
    assert optimum.ci_lo == optimum.grid_lo < optimum.x_opt < optimum.ci_hi < optimum.grid_hi
    assert 50 < optimum.n_failed < 500


def test_no_interval_when_half_of_the_draws_fail() -> None:
    (optimum,) = find_optima(select_points(noisy()).groups, ["n_params"], ["parabola"])
    draws = drawn(noisy())
    draws.edge[KEY][:500] = -1
    (found,) = with_intervals([optimum], {("n_params", "parabola"): draws})
    assert (found.ci_lo, found.loss_ci_lo, found.n_failed) == (None, None, 500)
    draws.edge[KEY][0] = 0
    (found,) = with_intervals([optimum], {("n_params", "parabola"): draws})
    assert found.ci_lo is not None


def test_an_edge_has_no_interval() -> None:
    rows = curve(parabola(1e5), spaced(1e7, 7))
    optima = fit_optima(select_points(rows), FitOptions(n_boot=50)).optima
    assert {o.status for o in optima} >= {"edge_low"}
    assert all(o.ci_lo is None for o in optima if o.is_bound)


def test_resources_at_the_drawn_optima() -> None:
    rows = [{**r, "wall_s": r["n_params"] ** 2, "flops": 6e16} for r in noisy()]
    draws = drawn(rows)
    x = draws.x_opt[KEY]
    np.testing.assert_array_equal(draws.resource["n_params"][KEY], x)
    np.testing.assert_allclose(draws.resource["n_tokens"][KEY], 1e17 / 6 / x, rtol=1e-9)
    np.testing.assert_allclose(draws.resource["wall_s"][KEY], x**2, rtol=1e-9)
    np.testing.assert_allclose(draws.resource["flops"][KEY], 6e16, rtol=1e-12)
    assert draws.resource["peak_mem_bytes"] == {}


def test_the_students_factor_gives_the_quantiles_of_t() -> None:
    rng = np.random.default_rng(0)
    for dof, quantile in ((3, 3.182), (10, 2.228), (200, 1.972)):
        factor = student_factor(rng.chisquare(dof, 400_000), dof)
        t = factor * rng.standard_normal(400_000)
        assert np.quantile(t, 0.975) == pytest.approx(quantile, rel=0.02)


def test_percentiles_need_half_of_the_draws() -> None:
    draws = np.arange(101.0)
    assert percentiles(draws, 0.9) == pytest.approx((5.0, 95.0))
    draws[:50] = np.nan
    assert percentiles(draws, 0.9) is not None
    draws[50] = np.inf
    assert percentiles(draws, 0.9) is None


def test_a_flat_profile_has_no_optimum() -> None:
    """Curvature that the noise could have made is none, whatever the vertex."""
    statuses = []
    for number in range(40):
        rng = random.Random(number)
        rows = curve(lambda n, rng=rng: 3.0 * math.exp(rng.gauss(0, 0.01)), spaced(1e7, 7))
        fits = fit_optima(select_points(rows), FitOptions(n_boot=200), axes=["n_params"])
        statuses += [o.status for o in fits.optima_of("mlp")]
        assert all(o.x_opt is None for o in fits.optima_of("mlp") if o.status == "flat")
    assert statuses.count("flat") > 10
    assert statuses.count("interior") <= 4


def test_a_minimum_far_below_every_loss_is_no_optimum() -> None:
    rows = curve(parabola(1e7), spaced(1e7, 7))
    rows[-1] = {**rows[-1], "loss": 9.0}
    (optimum,) = find_optima(select_points(rows, screened=False).groups, ["n_params"], ["parabola"])
    assert (optimum.status, optimum.x_opt, optimum.loss_opt) == ("below_data", None, None)
    assert find_optima(select_points(rows[:-1]).groups, ["n_params"], ["parabola"])[0].is_point


def test_the_noise_of_an_optimum_is_in_its_row() -> None:
    rows = [*noisy(seeds=3), *noisy(seeds=3, budget=1e18, number=1)]
    for optimum in fit_optima(select_points(rows), axes=["n_params"]).optima_of("mlp"):
        assert optimum.noise_sd == pytest.approx(0.002, rel=0.5)
        assert optimum.noise_dof > 14
        assert optimum.noise_source == "scatter and repeats"
        assert optimum.noise_equal_p is not None
        assert optimum.lack_of_fit_p is not None
        assert 0 < optimum.curvature_ci_lo < optimum.curvature < optimum.curvature_ci_hi

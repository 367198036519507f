"""Power laws: a published bias to six digits, exact recovery, and what may not enter."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from analysis.made_runs import curve, parabola, row, spaced, study
from benchmarks.simulated_studies import ALPHA, BETA, Family, rows_of
from isoflop.analysis import (
    FitOptions,
    Fits,
    fit_optima,
    load_rows,
    select_points,
)
from isoflop.analysis.bootstrap import Draws
from isoflop.analysis.laws import LAW_AXES, LawAxis, drawn_optima, fit_laws, law_draws, weighed
from isoflop.analysis.optima import Optimum, find_optima, find_optimum
from isoflop.analysis.optima_methods import DEFAULT_METHOD, Method
from isoflop.arrays import percentiles

# Czech, "Problems with Chinchilla Approach 2", tables 1 to 3: noise-free surfaces
# L = E + A/N^alpha + B/D^beta, on which parabolas give a biased intercept. Per surface:
# (A, B, alpha, beta), exponent b, intercept b0 of the parabolas, error of D* at 1e24 FLOPs.
APPROACH_2 = {
    "symmetric": ((400.0, 400.0, 0.31, 0.31), 0.5, -0.389076, 0.0),
    "chinchilla": ((406.4, 410.7, 0.34, 0.28), 0.548387, -0.578092, -0.051),
    "asymmetric": ((406.4, 410.7, 0.465, 0.155), 0.75, -1.459957, -0.2312),
}
TRUE_INTERCEPT = {"symmetric": -0.389076, "chinchilla": -0.555357, "asymmetric": -1.345791}


def fit_rows(rows: list[dict[str, Any]]) -> Fits:
    """Parabolas and their laws, without intervals."""
    return fit_optima(
        select_points(rows), FitOptions(n_boot=0, method="parabola"), methods=["parabola"]
    )


def surface_rows(a: float, b: float, alpha: float, beta: float) -> list[dict[str, Any]]:
    rows = []
    for budget in (1e17, 1e18, 1e19, 1e20, 1e21):
        scale = (alpha * a / (beta * b)) ** (1 / (alpha + beta))
        best = scale * (budget / 6) ** (beta / (alpha + beta))
        for size in spaced(best, num=15, factor=16.0):
            tokens = budget / (6 * size)
            rows.append(row("mlp", budget, size, 1.69 + a / size**alpha + b / tokens**beta))
    return rows


@pytest.mark.parametrize("surface", APPROACH_2)
def test_the_published_bias_of_parabolas_is_reproduced(surface: str) -> None:
    parameters, exponent, intercept, error = APPROACH_2[surface]
    law = fit_rows(surface_rows(*parameters)).law("mlp", "n_tokens")
    assert law.exponent == pytest.approx(exponent, abs=2e-6)
    assert law.log_coefficient is not None
    assert law.log_coefficient / math.log(10) == pytest.approx(intercept, abs=2e-6)
    true = 10 ** (TRUE_INTERCEPT[surface] + exponent * 24)
    assert law.at(1e24) / true - 1 == pytest.approx(error, abs=1e-4)


@pytest.mark.parametrize(
    ("method", "error"),
    [
        ("two_powers", -0.0228),
        ("parabola_window", -0.0549),
        ("akima", 0.0130),
        ("parabola_robust", -0.2286),
    ],
)
def test_the_bias_of_the_other_methods_on_the_asymmetric_surface(
    method: Method, error: float
) -> None:
    parameters, exponent, *_ = APPROACH_2["asymmetric"]
    selection = select_points(surface_rows(*parameters))
    fits = fit_optima(selection, FitOptions(n_boot=0), methods=[method], axes=["n_tokens"])
    true = 10 ** (TRUE_INTERCEPT["asymmetric"] + exponent * 24)
    assert fits.law("mlp", "n_tokens", method).at(1e24) / true - 1 == pytest.approx(error, abs=5e-4)


LAW_OF_TOKENS: tuple[str, LawAxis] = ("llama3_dense", "n_tokens")
LLAMA = Path(__file__).parents[3] / "shared" / "scaling-data" / "llama3_isoflop.csv"


@pytest.mark.skipif(not LLAMA.is_file(), reason="the points of the paper's figure are not there")
def test_the_law_of_llama_3() -> None:
    # Llama 3 paper, section 3.2.1: D* = 0.29 C^0.53, 402B parameters on 16.55T tokens at 3.8e25;
    # points extracted from its figure 2.
    selection = select_points(load_rows(LLAMA))
    options = FitOptions(n_boot=0, method="parabola")
    fits = fit_optima(selection, options, methods=["parabola"], axes=["n_params", "n_tokens"])
    tokens, size = fits.law("llama3_dense", "n_tokens"), fits.law("llama3_dense", "n_params")
    assert tokens.exponent == pytest.approx(0.53, abs=0.01)
    assert tokens.exponent == pytest.approx(0.5368, abs=5e-5)
    assert tokens.coefficient == pytest.approx(0.29, abs=0.03)
    assert tokens.coefficient == pytest.approx(0.2994, abs=5e-5)
    assert tokens.at(3.8e25) == pytest.approx(16.55e12, rel=0.04)
    assert size.at(3.8e25) == pytest.approx(402e9, rel=0.04)
    without = {key: points for key, points in selection.groups.items() if key[1] < 1e22}
    law = fit_laws(find_optima(without, ["n_tokens"], ["parabola"]))[1]
    assert law.exponent == pytest.approx(0.5108, abs=5e-5)
    assert law.coefficient == pytest.approx(0.971, abs=5e-4)


@pytest.mark.skipif(not LLAMA.is_file(), reason="the points of the paper's figure are not there")
def test_the_default_method_agrees_with_the_law_of_llama_3() -> None:
    groups = select_points(load_rows(LLAMA)).groups
    law = fit_laws(find_optima(groups, ["n_tokens"], [DEFAULT_METHOD]))[1]
    assert law.exponent == pytest.approx(0.53, abs=0.01)
    assert law.coefficient == pytest.approx(0.29, abs=0.03)
    assert law.at(3.8e25) == pytest.approx(16.55e12, rel=0.04)


@pytest.mark.skipif(not LLAMA.is_file(), reason="the points of the paper's figure are not there")
def test_drawn_cases_of_llama_3_that_lost_no_optimum_give_the_interval_of_the_points() -> None:
    # Interval: case bootstrap of the points published. 17 % of the cases lose 3e21 FLOPs, of six
    # points, which are then not sure to curve: the law of the fit is that of the other budgets.
    selection = select_points(load_rows(LLAMA))
    options = FitOptions(bootstrap="case", method="parabola")
    fits = fit_optima(selection, options, methods=["parabola"], axes=["n_tokens"])
    optima = find_optima(selection.groups, ["n_tokens"], ["parabola"])
    drawn = drawn_optima(optima, fits.draws["n_tokens", "parabola"], *LAW_OF_TOKENS, "nominal")
    assert drawn is not None
    is_whole = np.isfinite(drawn.log_y).all(axis=1)
    interval = percentiles(drawn.law().exponent[is_whole], 0.95)
    assert interval == pytest.approx((0.5226, 0.5505), abs=0.01)
    law = fits.law(*LAW_OF_TOKENS)
    assert (law.bootstrap_kind, law.n_failed) == ("case", 0)
    assert law.exponent == pytest.approx(0.53, abs=0.01)
    assert law.exponent_ci is not None
    assert law.exponent_ci[0] < 0.5226 < 0.53 < law.exponent_ci[1]


@pytest.mark.skipif(not LLAMA.is_file(), reason="the points of the paper's figure are not there")
def test_the_interval_of_llama_3_lies_within_that_of_resampled_points() -> None:
    fits = fit_optima(select_points(load_rows(LLAMA)), methods=["parabola"], axes=["n_tokens"])
    law = fits.law("llama3_dense", "n_tokens", "parabola")
    assert law.bootstrap_kind == "parametric"
    assert law.exponent_ci is not None
    low, high = law.exponent_ci
    assert 0.5226 < low < 0.53 < 0.5368 < high < 0.5505
    assert law.log_coefficient_ci[0] < math.log(0.29) < law.log_coefficient_ci[1]


def test_exact_laws_are_recovered() -> None:
    fits = fit_rows(study(["mlp"]))
    size, tokens = fits.law("mlp", "n_params"), fits.law("mlp", "n_tokens")
    assert size.exponent == pytest.approx(0.5, abs=1e-9)
    assert size.coefficient == pytest.approx(0.12, rel=1e-7)
    assert tokens.coefficient == pytest.approx(1 / (6 * 0.12), rel=1e-7)
    assert size.exponent is not None
    assert tokens.exponent is not None
    assert size.exponent + tokens.exponent == pytest.approx(1.0, abs=1e-12)
    assert (size.n_points, size.budget_lo, size.budget_hi) == (3, 3e10, 3e11)
    assert size.rmse == pytest.approx(0.0, abs=1e-9)


def test_the_loss_law_goes_through_the_losses_of_the_optima() -> None:
    rows = [
        r
        for c in (1e17, 1e18, 1e20)
        for r in curve(parabola(c**0.5, floor=40 * c**-0.05), spaced(c**0.5), budget=c)
    ]
    law = fit_rows(rows).law("mlp", "loss")
    assert law.exponent == pytest.approx(-0.05, abs=1e-9)
    assert law.coefficient == pytest.approx(40.0, rel=1e-7)


def noisy() -> list[dict[str, Any]]:
    rng = random.Random(3)
    return [{**r, "loss": r["loss"] + rng.gauss(0, 0.003)} for r in study(["mlp"], num=7)]


def test_exponents_of_parameters_and_tokens_add_up_to_one() -> None:
    # Under C = 6ND, ln D is a constant less ln N: each draw's minimum is the same on both axes.
    fits = fit_optima(select_points(noisy()), FitOptions(n_boot=50))
    for method in ("parabola", "parabola_window", "parabola_robust"):
        size = fits.law("mlp", "n_params", method)
        tokens = fits.law("mlp", "n_tokens", method)
        assert size.exponent + tokens.exponent == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("column", ["n_params", "budget_flops"])
def test_rescaling_moves_only_coefficients(column: str) -> None:
    rows = noisy()
    rescaled = [{**r, column: 1000 * r[column]} for r in rows]
    before, after = (
        fit_optima(select_points(t), FitOptions(n_boot=0), axes=["n_params"])
        for t in (rows, rescaled)
    )
    for one, other in zip(before.laws, after.laws, strict=True):
        if one.exponent is not None:
            assert other.exponent == pytest.approx(one.exponent, abs=1e-6)


def test_laws_by_the_flops_achieved() -> None:
    rows = [{**r, "flops": 0.5 * r["budget_flops"]} for r in study(["mlp"])]
    optima = find_optima(select_points(rows).groups, ["n_params"], ["parabola"])
    law = fit_laws(optima, budget="achieved")[0]
    assert (law.budget, law.budget_lo) == ("achieved", 1.5e10)
    assert law.exponent == pytest.approx(0.5, abs=1e-9)
    assert law.coefficient == pytest.approx(0.12 * 2**0.5, rel=1e-7)
    unknown = find_optima(select_points(study(["mlp"])).groups, ["n_params"], ["parabola"])
    law = fit_laws(unknown, budget="achieved")[0]
    assert (law.exponent, law.n_points, law.status) == (None, 3, "flops_unknown")


def short_of_budget(share: float = 0.3, **others: Any) -> list[dict[str, Any]]:
    """Exact laws in the FLOPs achieved, of which the smallest budgets leave most unspent."""
    rows = []
    for index, budget in enumerate((1e17, 1e18, 1e19, 1e20)):
        spent = budget * (1 - share / 2**index)
        law = 0.1 * spent**0.5
        level = parabola(law, floor=40 * spent**-0.05)
        rows += [{**r, "flops": spent, **others} for r in curve(level, spaced(law), budget=budget)]
    return rows


def test_laws_are_shown_in_the_flops_achieved_and_written_in_both() -> None:
    fits = fit_rows(short_of_budget())
    assert fits.law_budget == "achieved"
    for axis, exponent in (("n_params", 0.5), ("loss", -0.05)):
        assert fits.law("mlp", axis).exponent == pytest.approx(exponent, abs=1e-9)
        nominal = fits.law("mlp", axis, budget="nominal")
        assert abs(nominal.exponent / exponent - 1) > 0.03
        assert (nominal.budget_lo, nominal.budget_hi) == (1e17, 1e20)
    written = [r for law in fits.laws for r in law.rows() if r.parameter == "exponent"]
    assert [r.budget for r in written] == ["nominal"] * 4 + ["achieved"] * 4
    assert {law.budget for law in fits.shown_laws} == {"achieved"}
    asked = replace(fits, options=replace(fits.options, law_budget="nominal"))
    assert asked.law("mlp", "loss") == fits.law("mlp", "loss", budget="nominal")


def test_both_kinds_of_laws_are_written_where_they_are_the_same() -> None:
    rows = [{**r, "flops": r["budget_flops"]} for r in noisy()]
    fits = fit_optima(
        select_points(rows), FitOptions(n_boot=40, method="parabola"), methods=["parabola"]
    )
    for axis in LAW_AXES:
        achieved = fits.law("mlp", axis)
        assert achieved.budget == "achieved"
        assert achieved.exponent_ci is not None
        assert replace(achieved, budget="nominal") == fits.law("mlp", axis, budget="nominal")


def test_one_run_that_does_not_tell_its_flops_makes_nominal_the_default() -> None:
    rows = short_of_budget()
    rows[7] = {**rows[7], "flops": None}
    fits = fit_rows(rows)
    assert fits.law_budget == "nominal"
    assert fits.law("mlp", "n_params", budget="achieved").status == "flops_unknown"
    assert {r.value for r in fits.law("mlp", "loss", budget="achieved").rows()} == {None}
    # One kind for all families, so that they are compared at the same.
    other = [{**r, "arch": "new"} for r in short_of_budget()]
    both = fit_rows(rows + other)
    assert both.law("new", "n_params").budget == "nominal"
    assert both.law("new", "n_params", budget="achieved").exponent == pytest.approx(0.5, abs=1e-9)
    # A bound is no optimum of any law.
    edge = [{**r, "flops": None} for r in curve(parabola(1.0), spaced(1e9), budget=1e21)]
    assert fit_rows(other + edge).law_budget == "achieved"


def test_flops_that_do_not_rise_with_the_budget_are_not_the_default() -> None:
    fits = fit_rows(short_of_budget(flops=1e18))
    assert fits.law_budget == "nominal"
    assert fits.law("mlp", "n_params").exponent is not None
    law = fits.law("mlp", "n_params", budget="achieved")
    assert (law.exponent, law.n_points, law.status) == (None, 4, "degenerate")


def drawn(log_x: list[list[float]], arch: str = "mlp") -> tuple[list[Optimum], Draws]:
    """Optima at budgets e^0, e^1, ... whose estimates and draws of ln x are given by budget."""
    keys = [(arch, math.exp(index)) for index in range(len(log_x))]
    found = find_optimum([], arch="", budget_flops=1.0, axis="n_params")
    known = {
        "method": "parabola",
        "x_opt": 1.0,
        "loss_opt": 1.0,
        "status": "interior",
    }
    optima = [replace(found, arch=arch, budget_flops=budget, **known) for _, budget in keys]
    values = {key: np.exp(np.array(column)) for key, column in zip(keys, log_x, strict=True)}
    num = len(log_x[0])
    lost = {key: np.where(np.isnan(x), 2, 0).astype(np.int8) for key, x in values.items()}
    return optima, Draws(
        axis="n_params",
        method="parabola",
        kind="residual",
        n_boot=num,
        seed=0,
        x_opt=values,
        loss_opt=values,
        edge=lost,
        resource={},
    )


def test_a_draw_that_lost_optima_goes_through_the_others() -> None:
    nan = math.nan
    optima, draws = drawn(
        [[0.0, nan, 0.0, 0.0, nan], [1.0, 1.0, nan, nan, nan], [4.0, 4.0, 4.0, nan, nan]]
    )
    laws = law_draws(optima, draws, "mlp", "n_params", "nominal")
    assert laws is not None
    assert laws.exponent[:3] == pytest.approx([2.0, 3.0, 2.0])
    assert laws.log_coefficient[:3] == pytest.approx([-1 / 3, -2.0, 0.0])
    assert np.isnan(laws.exponent[3:]).all()
    law = fit_laws(optima, {("n_params", "parabola"): draws})[0]
    assert (law.n_boot, law.n_failed) == (5, 2)
    assert law.exponent_ci is not None
    assert 2.0 <= law.exponent_ci[0] < law.exponent_ci[1] <= 3.0
    # An optimum that nothing was drawn for: how sure it is, nobody knows.
    del draws.x_opt["mlp", 1.0]
    assert fit_laws(optima, {("n_params", "parabola"): draws})[0].exponent_ci is None


def test_a_law_of_which_most_draws_failed_has_no_interval() -> None:
    optima, draws = drawn([[0.0] * 5, [1.0, 1.0, math.nan, math.nan, math.nan]])
    law = fit_laws(optima, {("n_params", "parabola"): draws})[0]
    assert (law.exponent_ci, law.n_failed) == (None, 3)


def noisy_at(sds: Sequence[float], num: int = 4000) -> tuple[list[Optimum], Draws]:
    """Optima on y = C whose draws scatter in ln x by the given standard deviations."""
    grid = NormalDist().inv_cdf
    shares = [(index + 0.5) / num for index in range(num)]
    rng = random.Random(0)
    columns = []
    for place, sd in enumerate(sds):
        rng.shuffle(shares)
        columns.append([place + sd * grid(share) for share in shares])
    return drawn(columns)


def test_an_unsure_optimum_has_the_weight_of_its_variance_and_the_others_the_same() -> None:
    optima, draws = noisy_at([0.1, 0.1, 0.13, 0.6])
    table = {("n_params", "parabola"): draws}
    weights = [o.law_weight for o in weighed(optima, table)]
    # The median variance is (0.01 + 0.0169) / 2; twice that over 0.36.
    assert weights == [None, None, None, pytest.approx(0.0269 / 0.36, rel=0.01)]
    heights = (0, 1, 2, 6)
    tilted = [replace(o, x_opt=math.e**y) for o, y in zip(optima, heights, strict=True)]
    law, equal = (fit_laws(found, table)[0] for found in (weighed(tilted, table), tilted))
    slope = np.polyfit(range(4), heights, 1, w=np.sqrt([1, 1, 1, 0.0269 / 0.36]))[0]
    assert law.exponent == pytest.approx(slope, rel=0.002)
    assert equal.exponent == pytest.approx(np.polyfit(range(4), heights, 1)[0])
    assert law.exponent_ci[1] - law.exponent_ci[0] < equal.exponent_ci[1] - equal.exponent_ci[0]
    assert "less weight" in law.rows()[0].settings
    # Not the law of the loss, which bends.
    assert fit_laws(weighed(tilted, table))[3] == fit_laws(tilted)[3]


@pytest.mark.parametrize("sds", [(0.1, 0.12, 0.13, 0.14), (0.1, 5.0), (0.0, 0.0, 0.0), (0.3,)])
def test_optima_that_are_about_as_sure_make_ordinary_least_squares(sds: tuple[float, ...]) -> None:
    optima, draws = noisy_at(sds, num=100)
    table = {("n_params", "parabola"): draws}
    assert weighed(optima, table) == tuple(optima)
    assert weighed(optima, {("n_params", "parabola"): replace(draws, kind="case")}) == tuple(optima)
    assert weighed(optima, {}) == tuple(optima)


def test_an_optimum_that_most_draws_lose_is_less_sure_than_its_draws_show() -> None:
    optima, draws = noisy_at([0.1, 0.1, 0.1])
    key = ("mlp", math.exp(2))
    draws.x_opt[key][::2] = math.nan
    found = weighed(optima, {("n_params", "parabola"): draws})
    assert found[2].law_weight == pytest.approx(0.5, rel=0.05)
    draws.x_opt[key][1:] = math.nan
    found = weighed(optima, {("n_params", "parabola"): draws})
    assert found[2].law_weight == 0.0
    law = fit_laws(found, {("n_params", "parabola"): draws})[0]
    assert law.n_failed == 0
    assert law.exponent_ci is not None


@pytest.mark.parametrize("weak", [0, 1, 3])
def test_an_optimum_that_draws_lose_never_narrows_the_interval_of_the_law(weak: int) -> None:
    rng = np.random.default_rng(weak)
    clean = rng.normal(0, 0.1, (4, 4000)) + np.arange(4)[:, None]
    lossy = clean.copy()
    # The outer third of the draws of one budget is beyond its grid.
    lossy[weak, np.abs(clean[weak] - weak) > 0.1] = math.nan
    widths = []
    for table in (clean, lossy):
        optima, draws = drawn(table.tolist())
        low, high = fit_laws(optima, {("n_params", "parabola"): draws})[0].exponent_ci
        widths.append(high - low)
    assert widths[1] > 0.97 * widths[0]


def test_rescaling_sizes_moves_only_the_coefficient() -> None:
    rows = study(["mlp"])
    rescaled = [{**r, "n_params": 1000 * r["n_params"]} for r in rows]
    before, after = fit_rows(rows), fit_rows(rescaled)
    one, other = before.law("mlp", "n_params"), after.law("mlp", "n_params")
    assert other.exponent == pytest.approx(one.exponent, abs=1e-10)
    assert one.coefficient is not None
    assert other.coefficient == pytest.approx(1000 * one.coefficient, rel=1e-9)
    assert after.law("mlp", "n_tokens") == before.law("mlp", "n_tokens")


def test_large_budgets_do_not_overflow() -> None:
    fits = fit_rows(study(["mlp"], budgets=(1e24, 1e25, 1e26)))
    integers = [
        {**r, "budget_flops": 10**26, "n_params": int(r["n_params"]), "n_tokens": 10**14}
        for r in study(["mlp"], budgets=[1e26])
    ]
    assert fits.law("mlp", "n_params").at(1e26) == pytest.approx(0.12 * 1e13, rel=1e-9)
    assert fit_rows(integers).optima[0].x_opt == pytest.approx(0.12 * 1e13, rel=1e-6)


def test_a_coefficient_that_no_float_holds_is_null_and_the_exponent_stays() -> None:
    rows = [
        r for c, n in ((1e20, 1e7), (1.01e20, 1e8)) for r in curve(parabola(n), spaced(n), budget=c)
    ]
    law = fit_rows(rows).law("mlp", "n_params")
    assert law.exponent == pytest.approx(math.log(10) / math.log(1.01), rel=1e-9)
    assert law.coefficient is None
    assert law.at(1e20) == pytest.approx(1e7, rel=1e-6)


def test_two_optima_give_a_line_without_an_rmse() -> None:
    law = fit_rows(study(["mlp"], budgets=(1e17, 1e18))).law("mlp", "n_params")
    assert law.exponent == pytest.approx(0.5, abs=1e-9)
    assert (law.n_points, law.rmse) == (2, None)


def test_rmse_is_that_of_the_logarithms() -> None:
    # ln N* at three evenly spaced budgets is 0, 0.3, 0 above a level: residuals −.1, .2, −.1.
    centres = {1e17: 1e7, 1e18: 1e7 * math.exp(0.3), 1e19: 1e7}
    rows = [r for c, n in centres.items() for r in curve(parabola(n), spaced(n), budget=c)]
    law = fit_rows(rows).law("mlp", "n_params")
    assert law.exponent == pytest.approx(0.0, abs=1e-9)
    assert law.rmse == pytest.approx(math.sqrt(0.06 / 3), rel=1e-9)


ONE_WEAK = Family(noise={1e17: 0.02, 3e17: 0.003, 1e18: 0.003, 3e18: 0.003})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "widest"),
    [(ONE_WEAK, 0.7), (Family(noise=0.01, missing=0.3), 1.0)],
    ids=["one weak budget", "30 % of sizes missing"],
)
def test_the_interval_of_an_exponent_holds_it_as_often_as_it_says(
    family: Family, widest: float
) -> None:
    hits, widths, equal_widths = 0, [], []
    for number in range(80):
        rows = rows_of("dense", family, np.random.default_rng((17, number)))
        options = FitOptions(n_boot=150, method="parabola")
        fits = fit_optima(select_points(rows), options, methods=["parabola"], axes=["n_params"])
        law = fits.law("dense", "n_params")
        alike = [replace(o, law_weight=None) for o in fits.optima]
        equal = fit_laws(alike, fits.draws)[0]
        assert (law.exponent is None) == (law.exponent_ci is None) == (law.n_points < 2)
        if law.exponent_ci is None or equal.exponent_ci is None:
            continue
        hits += law.exponent_ci[0] <= BETA / (ALPHA + BETA) <= law.exponent_ci[1]
        widths.append(law.exponent_ci[1] - law.exponent_ci[0])
        equal_widths.append(equal.exponent_ci[1] - equal.exponent_ci[0])
    # Where sizes are missing, all but one of the optima are flat in some studies.
    assert len(widths) >= 70
    assert hits >= 0.87 * len(widths)
    assert sum(widths) <= widest * sum(equal_widths)


def test_an_edge_never_enters_a_law() -> None:
    rows = study(["mlp"], budgets=(1e17, 1e18, 1e19))
    edge = curve(parabola(1.0, floor=1.0), spaced(1e9), budget=1e20)
    assert fit_rows(rows + edge).laws == fit_rows(rows).laws


def test_too_few_optima_give_rows_with_null_values() -> None:
    (first, *rest) = study(["mlp"], budgets=[1e17])
    fits = fit_rows([first, *rest, row("peer", status="failed", loss=None)])
    rows = [r for law in fits.laws for r in law.rows()]
    assert len(rows) == 2 * 4 * 2 * 2
    assert {r.parameter for r in rows} == {"exponent", "coefficient"}
    assert all(r.value is None and r.rmse is None for r in rows)
    counts = {(r.arch, r.axis): r.n_points for r in rows}
    assert counts["mlp", "n_params"] == 1
    assert counts["peer", "n_params"] == 0
    with pytest.raises(ValueError, match="no power law for peer"):
        fits.law("peer", "loss").at(1e18)

"""Power laws: a published bias to six digits, exact recovery, and what may not enter."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest

from analysis.made_runs import curve, parabola, row, spaced, study
from isoflop.analysis import (
    FitOptions,
    Fits,
    fit_optima,
    load_rows,
    select_points,
)
from isoflop.analysis.laws import fit_laws
from isoflop.analysis.optima import find_optima
from isoflop.analysis.optima_methods import Method

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
    return fit_optima(select_points(rows), FitOptions(n_boot=0), methods=["parabola"])


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


LLAMA = Path(__file__).parents[3] / "shared" / "scaling-data" / "llama3_isoflop.csv"


@pytest.mark.skipif(not LLAMA.is_file(), reason="the points of the paper's figure are not there")
def test_the_law_of_llama_3() -> None:
    # Llama 3 paper, section 3.2.1: D* = 0.29 C^0.53, 402B parameters on 16.55T tokens at 3.8e25;
    # points extracted from its figure 2. Interval: case bootstrap of those points.
    selection = select_points(load_rows(LLAMA))
    options = FitOptions(bootstrap="case")
    fits = fit_optima(selection, options, methods=["parabola"], axes=["n_params", "n_tokens"])
    tokens, size = fits.law("llama3_dense", "n_tokens"), fits.law("llama3_dense", "n_params")
    assert tokens.exponent == pytest.approx(0.53, abs=0.01)
    assert tokens.exponent == pytest.approx(0.5368, abs=5e-5)
    assert tokens.coefficient == pytest.approx(0.29, abs=0.03)
    assert tokens.coefficient == pytest.approx(0.2994, abs=5e-5)
    assert tokens.at(3.8e25) == pytest.approx(16.55e12, rel=0.04)
    assert size.at(3.8e25) == pytest.approx(402e9, rel=0.04)
    assert tokens.bootstrap_kind == "case"
    assert tokens.exponent_ci == pytest.approx((0.5226, 0.5505), abs=0.01)
    without = {key: points for key, points in selection.groups.items() if key[1] < 1e22}
    law = fit_laws(find_optima(without, ["n_tokens"], ["parabola"]))[1]
    assert law.exponent == pytest.approx(0.5108, abs=5e-5)
    assert law.coefficient == pytest.approx(0.971, abs=5e-4)


@pytest.mark.skipif(not LLAMA.is_file(), reason="the points of the paper's figure are not there")
def test_the_residual_interval_of_llama_3_is_that_of_the_points_published() -> None:
    fits = fit_optima(select_points(load_rows(LLAMA)), methods=["parabola"], axes=["n_tokens"])
    law = fits.law("llama3_dense", "n_tokens")
    assert law.bootstrap_kind == "residual"
    assert law.exponent_ci == pytest.approx((0.5226, 0.5505), abs=0.004)


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
    assert fit_laws(unknown, budget="achieved")[0].exponent is None


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


def test_an_edge_never_enters_a_law() -> None:
    rows = study(["mlp"], budgets=(1e17, 1e18, 1e19))
    edge = curve(parabola(1.0, floor=1.0), spaced(1e9), budget=1e20)
    assert fit_rows(rows + edge).laws == fit_rows(rows).laws


def test_too_few_optima_give_rows_with_null_values() -> None:
    (first, *rest) = study(["mlp"], budgets=[1e17])
    fits = fit_rows([first, *rest, row("peer", status="failed", loss=None)])
    rows = [r for law in fits.laws for r in law.rows()]
    assert len(rows) == 2 * 4 * 2
    assert {r.parameter for r in rows} == {"exponent", "coefficient"}
    assert all(r.value is None and r.rmse is None for r in rows)
    counts = {(r.arch, r.axis): r.n_points for r in rows}
    assert counts["mlp", "n_params"] == 1
    assert counts["peer", "n_params"] == 0
    with pytest.raises(ValueError, match="no power law for peer"):
        fits.law("peer", "loss").at(1e18)

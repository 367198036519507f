from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from analysis.parametric.made_laws import BESIROGLU, studied
from isoflop.analysis.bootstrap import draw_optima
from isoflop.analysis.optima import Optimum, find_optima
from isoflop.analysis.optima_methods import DEFAULT_METHOD
from isoflop.analysis.parametric import FrontierLaw, fit_frontier, frontier_of
from isoflop.analysis.points import GroupKey, Point, Selection

BUDGETS = (1e17, 3e17, 1e18, 3e18, 1e19)
EXPONENT = BESIROGLU.alpha * BESIROGLU.beta / (BESIROGLU.alpha + BESIROGLU.beta)
LAW = FrontierLaw(L_inf=1.7, A=300.0, alpha=0.15)


def _optimum(budget: float, loss: float | None, **others) -> Optimum:
    values = {
        "arch": "dense",
        "budget_flops": budget,
        "axis": "n_params",
        "x_opt": 1e8,
        "loss_opt": loss,
        "curvature": 0.1,
        "status": "interior",
        "n_points": 7,
        "grid_lo": 1e7,
        "grid_hi": 1e9,
    }
    return Optimum(**{**values, **others})


def _optima(budgets: Sequence[float], loss: Callable[[float], float] = LAW.loss) -> list[Optimum]:
    return [_optimum(budget, loss(budget)) for budget in budgets]


def _selection(points: Sequence[Point]) -> Selection:
    groups: dict[GroupKey, list[Point]] = {}
    for p in points:
        groups.setdefault((p.arch, p.budget_flops), []).append(p)
    return Selection(groups={key: tuple(groups[key]) for key in sorted(groups)}, excluded=())


def _fit(optima, **options):
    return fit_frontier(optima, arch="dense", method=DEFAULT_METHOD, **options)


@pytest.mark.parametrize("num", [3, 4, 5])
def test_noise_free_frontiers_come_back(num: int) -> None:
    fit = _fit(_optima(BUDGETS[:num]))
    assert fit.status == "ok"
    for name in ("L_inf", "A", "alpha"):
        assert fit.values[name] == pytest.approx(getattr(LAW, name), rel=1e-6)
    assert (fit.rmse is None) == (num == 3)
    assert fit.interval("alpha") is None
    assert frontier_of(fit).flops(LAW.loss(1e20)) == pytest.approx(1e20, rel=1e-5)


def test_the_frontier_of_a_surface_keeps_its_floor_and_exponent() -> None:
    selection = _selection(studied(budgets=BUDGETS, num=9))
    fit = _fit(find_optima(selection.groups))
    assert fit.values["L_inf"] == pytest.approx(BESIROGLU.E, rel=1e-6)
    assert fit.values["alpha"] == pytest.approx(EXPONENT, rel=1e-6)


def test_only_interior_optima_of_the_arch_and_method_enter() -> None:
    optima = _optima(BUDGETS[:4])
    others = [
        _optimum(1e19, 2.0, status="edge_low"),
        _optimum(1e20, None, status="flat"),
        _optimum(1e21, 2.0, arch="moe"),
        _optimum(1e21, 2.0, axis="n_tokens"),
        _optimum(1e21, 2.0, method="akima"),
        _optimum(1e22, -0.1),
    ]
    fit = _fit([*others, *reversed(optima)])
    assert fit.n_points == 4
    assert fit == _fit(optima)
    assert (fit.budget_lo, fit.budget_hi) == (1e17, 3e18)


def test_two_optima_get_a_verdict() -> None:
    fit = _fit(_optima(BUDGETS[:2]))
    assert fit.status == "too_few"
    assert fit.reason == "2 interior optima; a frontier needs 3"
    assert [(row.parameter, row.value) for row in fit.rows()] == [
        ("A", None),
        ("alpha", None),
        ("L_inf", None),
    ]
    assert all(row.axis == "loss" for row in fit.rows())
    with pytest.raises(ValueError, match="too_few"):
        frontier_of(fit)


def test_a_frontier_that_steepens_has_no_asymptote() -> None:
    fit = _fit(_optima(BUDGETS, lambda c: 4.0 - 0.02 * np.log10(c / 1e17) ** 2))
    assert fit.status == "at_bound"
    fit = _fit(_optima(BUDGETS, lambda c: 60.0 * c**-0.07))
    assert fit.status == "at_bound"
    assert fit.reason == "L_inf goes to zero"


def test_a_frontier_that_rises_is_at_its_bound() -> None:
    fit = _fit(_optima(BUDGETS, lambda c: 2.0 + 1e-3 * c**0.1))
    assert fit.status == "at_bound"
    assert fit.reason == "alpha is not positive"


def test_scaled_budgets_and_losses_move_only_coefficients() -> None:
    noisy = [LAW.loss(c) * (1 + 0.002 * (-1) ** i) for i, c in enumerate(BUDGETS)]
    old = _fit([_optimum(c, loss) for c, loss in zip(BUDGETS, noisy, strict=True)]).values
    new = _fit([_optimum(c / 1e15, 2 * y) for c, y in zip(BUDGETS, noisy, strict=True)]).values
    assert new["alpha"] == pytest.approx(old["alpha"], rel=1e-6)
    assert new["L_inf"] == pytest.approx(2 * old["L_inf"], rel=1e-6)
    assert new["A"] == pytest.approx(2 * old["A"] * 1e15 ** -old["alpha"], rel=1e-6)


def test_intervals_come_from_the_draws_of_the_optima() -> None:
    points = studied(budgets=BUDGETS, noise=0.001, num=9, factor=2.0, seed=1)
    selection = _selection(points)
    draws = draw_optima(selection, axis="n_params", method=DEFAULT_METHOD, n_boot=200)
    fit = _fit(find_optima(selection.groups), draws=draws)
    assert fit.bootstrap_kind == draws.kind
    assert fit.n_boot == 200
    low, high = fit.interval("L_inf")
    assert low < fit.values["L_inf"] < high
    # The frontier of the surface itself: E, and alpha·beta / (alpha + beta).
    assert low < BESIROGLU.E < high
    low, high = fit.interval("alpha")
    assert low < EXPONENT < high
    assert fit.n_failed("alpha") < 20


def test_draws_without_an_optimum_fail_and_are_counted() -> None:
    selection = _selection(studied(budgets=BUDGETS, noise=0.001, num=9))
    draws = draw_optima(selection, axis="n_params", method=DEFAULT_METHOD, n_boot=50)
    draws.loss_opt["dense", 1e18][:7] = np.nan
    fit = _fit(find_optima(selection.groups), draws=draws)
    assert fit.n_failed("A") == 7
    del draws.loss_opt["dense", 1e17]
    assert _fit(find_optima(selection.groups), draws=draws).bootstrap_kind is None


def test_three_optima_get_no_interval_even_with_draws() -> None:
    selection = _selection(studied(budgets=BUDGETS[:3], noise=0.001))
    draws = draw_optima(selection, axis="n_params", method=DEFAULT_METHOD, n_boot=20)
    fit = _fit(find_optima(selection.groups), draws=draws)
    assert fit.interval("alpha") is None
    assert fit.bootstrap_kind is None


def test_a_loss_below_the_asymptote_has_no_compute() -> None:
    assert np.isnan(LAW.flops(1.7))
    assert np.isnan(LAW.flops(1.6))
    assert LAW.flops(LAW.loss(3e18)) == pytest.approx(3e18, rel=1e-12)

"""The law of routed experts on points of known laws."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from analysis.parametric.made_laws import point, studied
from isoflop.analysis.load import load_rows
from isoflop.analysis.parametric import (
    ParametricFit,
    Resampling,
    RoutedLaw,
    fit_parametric,
    fit_routed,
    has_numbers_of_experts,
    law_test,
    routed_of,
)
from isoflop.analysis.points import Point, select_points

# Of the size of those of Clark et al. 2022, table 3 (S-BASE and HASH).
TRUTHS = {
    "s-base": RoutedLaw(a=-0.082, b=-0.108, c=0.009, d=1.104, E_start=1.847, E_max=314.478),
    "hash": RoutedLaw(a=-0.087, b=-0.136, c=0.012, d=1.157, E_start=4.175, E_max=477.741),
}
NAMES = ("a", "b", "c", "d", "E_start", "E_max")
SIZES = (1.5e7, 5.5e7, 1.3e8, 3.7e8, 1.3e9)
EXPERTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
NO_BOOT = Resampling(n_boot=0)


def _points(
    law: RoutedLaw = TRUTHS["s-base"],
    sizes: tuple[float, ...] = SIZES,
    experts: tuple[float, ...] = EXPERTS,
    noise: float = 0.0,
    seed: int = 0,
) -> list[Point]:
    """Every size with every number of experts, on 130e9 tokens; noise in ln L."""
    rng = np.random.default_rng(seed)
    return [
        point(
            "moe",
            budget_flops=6 * size * 130e9,
            n_params=size * (1 + 0.3 * (number - 1)),
            n_active=size,
            n_experts=float(number),
            n_tokens=130e9,
            loss=float(law.loss(size, number) * np.exp(noise * rng.normal())),
        )
        for size in sizes
        for number in experts
    ]


def _fit(points: list[Point], resampling: Resampling = NO_BOOT) -> ParametricFit:
    return fit_routed(points, arch="moe", resampling=resampling)


def _with(old: Point, **changes: Any) -> Point:
    return Point(**{name: getattr(old, name) for name in Point.__dataclass_fields__} | changes)


def test_effective_experts_go_from_e_start_to_e_max() -> None:
    law = TRUTHS["s-base"]
    assert law.effective_experts(1) == pytest.approx(1.847)
    assert law.effective_experts(1e9) == pytest.approx(314.478, rel=1e-6)
    # By hand, of the equation: 1 / (63 + 1 / (1/1.847 - 1/314.478)) + 1 / 314.478.
    assert law.effective_experts(64) == pytest.approx(53.76867, rel=1e-5)


@pytest.mark.parametrize("name", TRUTHS)
def test_a_noise_free_law_comes_back(name: str) -> None:
    fit = _fit(_points(TRUTHS[name]))
    assert fit.status == "ok"
    for parameter in NAMES:
        assert fit.values[parameter] == pytest.approx(getattr(TRUTHS[name], parameter), rel=1e-5)
    assert routed_of(fit).loss(1e9, 64) == pytest.approx(TRUTHS[name].loss(1e9, 64), rel=1e-9)


def test_noisy_points_give_intervals_over_the_truth_and_the_rmse_of_their_noise() -> None:
    fit = _fit(_points(noise=0.001, seed=3), Resampling(n_boot=200))
    assert (fit.status, fit.bootstrap_kind) == ("ok", "residual")
    for name in NAMES:
        low, high = fit.interval(name)
        assert low < getattr(TRUTHS["s-base"], name) < high, name
        assert fit.n_failed(name) == 0
    assert fit.rmse == pytest.approx(0.001, rel=0.3)
    assert fit.objective == pytest.approx(fit.rmse**2 * 50)
    low, high = fit.interval("E_max")
    assert 1.02 < high / low < 3


def test_many_points_are_drawn_as_cases() -> None:
    points = _points(noise=0.001) + _points(noise=0.001, seed=1)
    fit = _fit(points, Resampling(n_boot=100))
    assert fit.bootstrap_kind == "case"
    low, high = fit.interval("a")
    assert low < TRUTHS["s-base"].a < high


def test_the_order_of_rows_and_the_unit_of_the_loss_change_nothing() -> None:
    points = _points(noise=0.002)
    fit, turned = _fit(points), _fit(points[::-1])
    assert turned.values == fit.values
    bits = _fit([_with(p, loss=p.loss / math.log(2)) for p in points])
    for name in ("a", "b", "c", "E_start", "E_max"):
        assert bits.values[name] == pytest.approx(fit.values[name], rel=1e-4), name
    assert bits.values["d"] - fit.values["d"] == pytest.approx(-math.log10(math.log(2)), abs=1e-5)


def test_experts_that_do_not_saturate_are_at_the_bound() -> None:
    law = RoutedLaw(a=-0.08, b=-0.1, c=0.008, d=1.1, E_start=2.0, E_max=np.inf)
    fit = _fit(_points(law))
    assert fit.status == "at_bound"
    assert "saturate" in str(fit.reason)
    assert fit.values["E_max"] == pytest.approx(512e3)
    assert routed_of(fit).loss(1e9, 64) == pytest.approx(law.loss(1e9, 64), rel=1e-4)


def test_dense_points_need_no_n_active_and_unknown_ones_are_left_out() -> None:
    points = [_with(p, n_active=None) if p.n_experts == 1 else p for p in _points()]
    assert _fit(points).values == _fit(_points()).values
    unknown = [_with(p, n_active=None) for p in _points(experts=(3,))]
    unknown += [_with(p, n_experts=bad) for p in _points() for bad in (None, 0.5)]
    assert _fit(points + unknown).n_points == 50


@pytest.mark.parametrize(
    ("points", "status"),
    [
        ([], "too_few"),
        (_points()[:6], "too_few"),
        (_points()[:1] * 40, "too_few"),
        (_points(experts=(1,), sizes=tuple(np.geomspace(1e7, 1e9, 12))), "sparsity_not_varied"),
        (_points(experts=(64,), sizes=tuple(np.geomspace(1e7, 1e9, 12))), "sparsity_not_varied"),
        (_points(experts=(1, 8, 64)), "sparsity_not_varied"),
        (_points(sizes=(1e8,)), "degenerate"),
        (studied(), "too_few"),
    ],
)
def test_degenerate_tables_give_a_verdict(points: list[Point], status: str) -> None:
    fit = _fit(points, Resampling(n_boot=20))
    assert (fit.status, dict(fit.values), dict(fit.draws)) == (status, {}, {})
    assert fit.reason
    assert {row.value for row in fit.rows()} == {None}
    assert [row.parameter for row in fit.rows()] == list(NAMES)


def test_experts_that_follow_from_the_size_are_degenerate() -> None:
    law = TRUTHS["s-base"]
    tied = [
        point(
            "moe",
            budget_flops=1e20,
            n_params=size * number,
            n_active=size,
            n_experts=number,
            n_tokens=1e10,
            loss=float(law.loss(size, number)),
        )
        for number in (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
        for size in (1e7 * number,)
    ]
    assert _fit(tied).status == "degenerate"


def test_runs_on_unequal_tokens_are_refused() -> None:
    points = _points()
    by_budget = [_with(p, n_tokens=1e20 / 6 / p.n_active) for p in points]
    assert _fit(by_budget).status == "tokens_varied"
    whole_steps = [
        _with(p, n_tokens=p.n_tokens * (1 + 0.001 * (i % 5))) for i, p in enumerate(points)
    ]
    assert _fit(whole_steps).status == "ok"


def test_experts_that_do_nothing_claim_no_saturation() -> None:
    law = RoutedLaw(a=-0.08, b=0.0, c=0.0, d=1.1, E_start=2.0, E_max=300.0)
    for noise in (0.0, 0.003):
        fit = _fit(_points(law, noise=noise, seed=2))
        assert fit.status == "ill_conditioned"
        assert "scatter" in str(fit.reason)


@settings(max_examples=8, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(
    rows=st.lists(
        st.tuples(
            st.sampled_from([1.0, 1e3, 7e9, 1e200]),
            st.sampled_from([1e-9, 1.0, 2.0, 3.5, 8.0, 1e5, 1e11, 1e307]),
            st.sampled_from([1e-12, 0.5, 2.0, 3.0, 700.0]),
        ),
        min_size=7,
        max_size=30,
    ),
    kind=st.sampled_from(["auto", "case", "parametric"]),
)
def test_any_table_gives_a_law_or_a_verdict(rows: list[tuple[float, ...]], kind: Any) -> None:
    points = [
        point(budget_flops=1e18, n_params=n, n_active=n, n_experts=e, n_tokens=1e9, loss=loss)
        for n, e, loss in rows
    ]
    fit = _fit(points, Resampling(n_boot=3, kind=kind))
    assert fit.has_values or fit.reason
    assert all(row.value is None or math.isfinite(row.value) for row in fit.rows())


def test_a_table_with_the_column_has_the_law_among_the_others(tmp_path: Path) -> None:
    header = "arch,budget_flops,n_params,n_tokens,flops,loss,n_active,n_experts"
    lines = [
        f"moe,,{p.n_params},{p.n_tokens},{p.budget_flops},{p.loss},{p.n_active},{p.n_experts:g}"
        for p in _points(noise=0.001)
    ]
    path = tmp_path / "runs.csv"
    path.write_text("\n".join([header, *lines]))
    fits = {fit.form: fit for fit in fit_parametric(select_points(load_rows(path)), n_boot=20)}
    assert fits["routed"].status == "ok"
    assert fits["routed"].n_points == 50
    with pytest.raises(ValueError, match="no routed law"):
        law_test(fits["routed"], {})
    path.write_text("\n".join([header, lines[0].rsplit(",", 1)[0] + ",eight"]))
    (note,) = select_points(load_rows(path)).notes
    assert note.startswith("n_experts is no number in 1 run, as in 'eight'")


def test_only_tables_with_the_column_have_the_law() -> None:
    assert not has_numbers_of_experts(studied())
    assert has_numbers_of_experts(_points()[:1])
    with pytest.raises(ValueError, match="no routed law"):
        routed_of(_fit(_points()[:3]))

"""Trunks of a table, how alike their noise is, and draws in which it is shared."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from analysis.made_runs import parabola, row
from isoflop.analysis import FitOptions, fit_optima, select_points
from isoflop.analysis.bootstrap import (
    Resampling,
    draw_losses,
    draw_optima,
    kind_for_law,
    seed_noise,
)
from isoflop.analysis.parametric import fit_surface, law_test
from isoflop.analysis.shared_noise import (
    DEFAULT,
    NOTHING_SHARED,
    Correlation,
    SharedNoise,
    repeats_of,
    shared_noise,
    trunks_of_points,
)
from isoflop.analysis.validity.design import noise_findings

BUDGETS = (1e17, 2e17, 4e17, 8e17)
SIZES = tuple(1e7 * 1.5**i for i in range(-3, 4))


def table(
    rho: float = 0.5,
    *,
    seeds: int = 1,
    archs: tuple[str, ...] = ("mlp",),
    budgets: tuple[float, ...] = BUDGETS,
    noise: float = 0.002,
    number: int = 0,
) -> list[dict[str, Any]]:
    """Runs of all sizes at all budgets; the longest of each size is the trunk of the others."""
    rng = np.random.default_rng(number)
    rows = []
    for arch in archs:
        for size in SIZES:
            for seed in range(seeds):
                common = rng.standard_normal()
                for budget in budgets:
                    own = rng.standard_normal()
                    error = math.sqrt(rho) * common + math.sqrt(1 - rho) * own
                    best = parabola(1e7 * (budget / 3e17) ** 0.5, 6 - 0.07 * math.log(budget))
                    share = 1.0 if budget == max(budgets) else 0.2
                    rows.append(
                        row(arch, budget, size, best(size) * math.exp(noise * error))
                        | {"seed": seed, "flops": budget, "flops_spent": share * budget}
                        | {"batch_size": 8.0, "seq_len": 128.0}
                    )
    return rows


def without(rows: list[dict[str, Any]], *names: str) -> list[dict[str, Any]]:
    return [{k: v for k, v in one.items() if k not in names} for one in rows]


def trunk_sizes(rows: list[dict[str, Any]]) -> list[int]:
    trunk_of = trunks_of_points(select_points(rows).points)
    return sorted(list(trunk_of.values()).count(key) for key in set(trunk_of.values()))


def test_runs_of_one_size_batch_and_seed_are_a_trunk() -> None:
    rows = table(seeds=2)
    assert trunk_sizes(rows) == [4] * 14
    other_batch = [r | {"batch_size": 16.0} if r["budget_flops"] == 8e17 else r for r in rows]
    assert trunk_sizes(other_batch) == [3] * 14
    # One that was trained alone is the same training; so is one whose longest run has failed.
    alone = [r | {"flops_spent": r["flops"]} if r["n_params"] == SIZES[0] else r for r in rows]
    assert trunk_sizes(alone) == [4] * 14
    failed = [r | {"status": "failed"} if r["budget_flops"] == 8e17 else r for r in rows]
    assert trunk_sizes(failed) == [3] * 14


@pytest.mark.parametrize(
    "change",
    [
        {"flops_spent": None},
        {"flops_spent": math.nan},
        # None began at a fork: the trainer of this arch may share none.
        {"flops_spent": 8e17},
    ],
)
def test_without_what_was_spent_nothing_is_shared(change: dict[str, Any]) -> None:
    rows = [r | change for r in table(seeds=2)]
    assert trunk_sizes(rows) == []
    assert shared_noise(select_points(rows)) is NOTHING_SHARED


def test_archs_that_share_none_have_none() -> None:
    rows = table(archs=("mlp", "own"))
    rows = [r | {"flops_spent": r["flops"]} if r["arch"] == "own" else r for r in rows]
    assert {key[0] for key in trunks_of_points(select_points(rows).points).values()} == {"mlp"}


@pytest.mark.parametrize("kind", ["parametric", "residual", "case"])
def test_estimates_do_not_depend_on_trunks_and_intervals_do(kind: Any) -> None:
    rows = table(0.9, archs=("mlp", "swiglu"))
    options = FitOptions(n_boot=60, bootstrap=kind)
    sel, plain = select_points(rows), select_points(without(rows, "flops_spent"))
    shared, alone = (fit_optima(s, options, methods=["two_powers"]) for s in (sel, plain))
    for one, other in zip(shared.optima, alone.optima, strict=True):
        assert (one.x_opt, one.loss_opt, one.n_points) == (
            other.x_opt,
            other.loss_opt,
            other.n_points,
        )
    # Laws of sizes weigh unsure optima by their draws; that of the loss does not.
    of_loss = [[law for law in fits.laws if law.axis == "loss"] for fits in (shared, alone)]
    for one, other in zip(*of_loss, strict=True):
        assert one.exponent == other.exponent
        assert one.exponent_ci != other.exponent_ci


def spread(rows: list[dict[str, Any]], kind: Any) -> tuple[float, float]:
    """Of the level of L* and of what tells two neighbouring budgets apart, in every draw."""
    draws = draw_optima(
        select_points(rows), axis="n_params", method="two_powers", kind=kind, n_boot=600
    )
    log_loss = np.stack([np.log(draws.loss_opt["mlp", b]) for b in BUDGETS[1:3]])
    return float(np.nanstd(log_loss.mean(axis=0))), float(np.nanstd(log_loss[1] - log_loss[0]))


@pytest.mark.parametrize("kind", ["parametric", "residual", "case"])
def test_what_is_shared_moves_all_budgets_together(kind: Any) -> None:
    rows = table(0.9, seeds=4)
    level, difference = spread(rows, kind)
    level_alone, difference_alone = spread(without(rows, "flops_spent"), kind)
    assert level > 1.1 * level_alone
    assert difference < 0.8 * difference_alone


def test_the_spread_within_a_budget_is_as_without_trunks() -> None:
    rows = table(0.9, seeds=2)
    for kind in ("parametric", "residual"):
        sds = []
        for given in (rows, without(rows, "flops_spent")):
            draws = draw_optima(
                select_points(given), axis="n_params", method="two_powers", kind=kind, n_boot=2000
            )
            sds.append(float(np.nanstd(np.log(draws.x_opt["mlp", 4e17]))))
        assert sds[0] == pytest.approx(sds[1], rel=0.08)


def test_case_draws_take_trunks_whole_and_two_families_alike() -> None:
    rows = table(seeds=2, archs=("mlp", "swiglu"))
    draws = draw_optima(
        select_points(rows), axis="n_params", method="parabola", kind="case", n_boot=100
    )
    # Their losses differ by noise alone, their cases not at all.
    for budget in BUDGETS:
        np.testing.assert_array_equal(draws.edge["mlp", budget], draws.edge["swiglu", budget])


def made(rho: float, **options: Any) -> Iterator[SharedNoise]:
    for number in range(40):
        yield shared_noise(select_points(table(rho, number=number, **options), screened=False))


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_repeats_tell_the_correlation(rho: float) -> None:
    found = [repeats_of(one.trunk_of) for one in made(rho, seeds=3)]
    assert {one.num_pairs for one in found} == {7 * 6 * 2}
    assert {one.num_budgets for one in found} == {4}
    assert np.mean([one.rho for one in found]) == pytest.approx(rho, abs=0.05)
    # As sure as it says.
    z = [math.atanh(one.rho) for one in found]
    weight = next(made(rho, seeds=3)).correlation.weight - DEFAULT.weight
    assert np.std(z) == pytest.approx(weight**-0.5, rel=0.35)


def test_one_seed_leaves_the_default_and_many_move_it() -> None:
    one, many = shared_noise(select_points(table())), next(made(0.95, seeds=8))
    assert (one.correlation, one.source, one.num_pairs) == (DEFAULT, "default", 0)
    assert many.source == "repeats and default"
    assert many.correlation.value == pytest.approx(0.95, abs=0.04)
    # Three pairs are alike by chance.
    few = [r for r in table(1.0, seeds=2, budgets=BUDGETS[:2]) if r["n_params"] < 1.01 * SIZES[2]]
    assert shared_noise(select_points(few, screened=False)).correlation == DEFAULT
    # Exact copies have no noise, and tell of none.
    exact = shared_noise(select_points(table(seeds=3, noise=0.0)))
    assert exact.correlation == DEFAULT


def test_seeds_that_oppose_each_other_are_no_less_than_nothing_in_common() -> None:
    correlation = Correlation(z=math.atanh(-0.8), weight=50.0)
    assert correlation.value == 0
    assert correlation.draws(100, 0).min() == 0
    assert correlation.interval(0.95) == (0, 0)


def test_the_checks_say_what_is_shared_and_how_it_is_known() -> None:
    found = {}
    for seeds in (1, 2):
        selection = select_points(table(seeds=seeds))
        fits = fit_optima(selection, FitOptions(n_boot=0), methods=["parabola"])
        found[seeds] = [f for f in noise_findings(fits) if f.check == "shared_noise"]
    (one,), (two,) = found.values()
    assert (one.n_points, one.status) == (0, "info")
    assert one.value == pytest.approx(0.9)
    default = "the default 0.9 (measured in results/trunks)"
    assert one.detail.startswith(f"28 runs in 7 trunks; {default}, since too few sizes")
    pairs = "42 pairs of budgets of repeated sizes"
    assert two.detail == f"56 runs in 14 trunks; {pairs}, drawn towards {default}"
    assert 0 <= two.ci_lo < two.value < two.ci_hi < 1
    plain = select_points(without(table(), "flops_spent"))
    fits = fit_optima(plain, FitOptions(n_boot=0), methods=["parabola"])
    assert "shared_noise" not in {f.check for f in noise_findings(fits)}


def test_the_variance_of_seeds_has_fewer_degrees_of_freedom() -> None:
    rows = table(0.9, seeds=3)
    noise = seed_noise(select_points(rows))
    plain = seed_noise(select_points(without(rows, "flops_spent")))
    assert (noise.relative_sd, noise.dof) == (plain.relative_sd, plain.dof)
    assert plain.effective_dof == plain.dof == 56
    rho = shared_noise(select_points(rows)).correlation.value
    assert noise.effective_dof == pytest.approx(56 / (1 + 3 * rho**2), rel=1e-9)


def resampling(kind: Any, n_boot: int, keys: list[Any], rho: float) -> Resampling:
    shared = SharedNoise(trunk_of={}, correlation=Correlation(z=math.atanh(rho), weight=1e9))
    return Resampling(n_boot=n_boot, kind=kind, shared=shared)


@pytest.mark.parametrize("kind", ["residual", "parametric", "case"])
def test_laws_through_all_points_draw_trunks_together(kind: Any) -> None:
    num = 40
    keys = [("a", i // 4) for i in range(num)]
    target = np.random.default_rng(0).standard_normal(num)
    fitted, cells = np.zeros(num), [i // 2 for i in range(num)]
    targets, weights = draw_losses(
        target,
        fitted,
        cells,
        kind,
        resampling(kind, 4000, keys, 0.8),
        num_coefficients=3,
        arch="a",
        trunks=keys,
    )
    if kind == "case":
        assert (weights.reshape(-1, 10, 4) == weights.reshape(-1, 10, 4)[:, :, :1]).all()
        assert weights.sum() == 4000 * num
        return
    alike = np.corrcoef(targets.T)
    assert np.mean([alike[i, i + 1] for i in range(0, num, 4)]) == pytest.approx(0.8, abs=0.05)
    assert abs(np.mean([alike[i, i + 4] for i in range(0, num - 4, 4)])) < 0.05


def test_trunks_are_what_cases_are_counted_by() -> None:
    cells, trunks = list(range(80)), [("a", i // 2) for i in range(80)]
    assert kind_for_law(cells) == "case"
    assert kind_for_law(cells, "auto", trunks) == "residual"
    assert kind_for_law(cells, "auto", [*trunks[:30], *[None] * 50]) == "case"


def test_a_surface_and_its_test_know_of_trunks() -> None:
    selection = select_points(table(0.9, noise=0.01, budgets=BUDGETS[:3]))
    points = [p for group in selection.groups.values() for p in group]
    given = {"E": 1.8, "A": 480.0, "alpha": 0.35, "B": 2085.0, "beta": 0.37}
    p_values, widths = [], []
    for shared in (shared_noise(selection), NOTHING_SHARED):
        fit = fit_surface(points, arch="mlp", resampling=Resampling(n_boot=10, shared=shared))
        widths.append(fit.interval("alpha"))
        p_values.append(law_test(fit, given, n_draws=10))
    assert widths[0] != widths[1]
    assert p_values[0].ratio == p_values[1].ratio


@pytest.mark.parametrize("kind", ["parametric", "residual", "case"])
def test_a_fit_of_a_table_without_the_column_has_the_same_bits(kind: Any) -> None:
    rows = table(archs=("mlp", "swiglu"), budgets=BUDGETS[:2])
    found = [
        fit_optima(select_points(given), FitOptions(n_boot=20, bootstrap=kind), methods=["akima"])
        for given in (
            without(rows, "flops_spent", "batch_size", "seq_len"),
            [r | {"flops_spent": None} for r in rows],
        )
    ]
    assert repr((found[0].optima, found[0].laws)) == repr((found[1].optima, found[1].laws))

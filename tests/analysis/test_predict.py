"""Predictions from made tables whose answer is known; how often they hold is simulated."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import pytest

from analysis.made_runs import curve, parabola, spaced
from benchmarks.predictions import DESIGNS, RATIOS, measure
from isoflop.analysis import FitOptions, Fits, fit_optima, select_points
from isoflop.analysis.predict import SIZE_AXES, Prediction, predict
from isoflop.errors import UserError

BUDGETS = (1e17, 3e17, 1e18, 3e18)
FLOOR, LEVEL, SLOPE, EXPONENT = 1.8, 1020.0, -0.16, 0.5


def loss_at(budget: float) -> float:
    return FLOOR + LEVEL * budget**SLOPE


def best_at(budget: float) -> float:
    return 0.08 * budget**EXPONENT


def runs(
    arch: str = "mlp",
    budgets: Sequence[float] = BUDGETS,
    noise: float = 1e-4,
    gain: float = 1.0,
    bend: float = 0.0,
) -> list[dict[str, Any]]:
    """Runs of a family that needs 1 / gain of the compute; `bend` curves its N*."""
    rng = random.Random(f"{arch} {noise}")
    rows = []
    for budget in budgets:
        best = best_at(budget) * math.exp(bend * math.log(budget / 1e18) ** 2)
        excess = loss_at(budget * gain) - FLOOR
        profile = parabola(best, floor=FLOOR + excess, bend=0.04 * excess)
        rows += curve(profile, spaced(best, 7), arch, budget)
    for row in rows:
        row["loss"] *= 1 + rng.gauss(0, noise)
    return rows


def fitted(rows: list[dict[str, Any]], **options: Any) -> Fits:
    options = {"n_boot": 200, "reference": "mlp"} | options
    chosen = FitOptions(**options)
    return fit_optima(select_points(rows), chosen, methods=(chosen.method,), axes=SIZE_AXES)


def by_quantity(fits: Fits, budget: float, arch: str = "mlp") -> dict[str, Prediction]:
    return {row.quantity: row for row in predict(fits, budget, [arch])}


def test_laws_without_noise_are_carried_on() -> None:
    fits = fitted(runs() + runs("new", gain=1.3))
    for budget in (1.2e19, 3e19):
        found = by_quantity(fits, budget, "new")
        for name, truth in {
            "n_params": best_at(budget),
            "n_tokens": budget / (6 * best_at(budget)),
            "loss": loss_at(1.3 * budget),
            "multiplier": 1.3,
        }.items():
            row = found[name]
            assert (row.status, row.n_failed, row.ratio) == ("ok", 0, budget / 3e18)
            assert row.value == pytest.approx(truth, rel=0.01 if name != "multiplier" else 0.1)
            assert row.pi_lo is not None
            assert row.pi_hi is not None
            assert row.pi_lo < row.value < row.pi_hi
    # The reference has no multiplier over itself, and nothing here varies the learning rate.
    assert set(by_quantity(fits, 1e19)) == {"n_params", "n_tokens", "loss", "learning_rate"}
    rate = by_quantity(fits, 1e19)["learning_rate"]
    assert (rate.status, rate.value, rate.law) == ("no_law", None, None)


def test_what_small_budgets_did_not_spend_bends_no_law() -> None:
    """Of small budgets much is left over in whole steps; what was achieved is what was bought."""
    shares = dict(zip(BUDGETS, (0.7, 0.85, 0.95, 0.98), strict=True))
    rows = []
    for budget, share in shares.items():
        for row in runs(budgets=[share * budget]):
            rows.append(row | {"budget_flops": budget, "flops": share * budget})
    found = by_quantity(fitted(rows), 3e19)
    assert found["n_params"].value == pytest.approx(best_at(0.98 * 3e19), rel=0.01)
    assert found["loss"].value == pytest.approx(loss_at(0.98 * 3e19), rel=0.003)
    assert found["loss"].ratio == pytest.approx(10)


def test_an_interval_holds_the_new_measurement_and_not_only_the_law() -> None:
    fits = fitted(runs(noise=0.002))
    row = by_quantity(fits, 3e18)["n_params"]
    law = fits.law("mlp", "n_params")
    assert law.exponent_ci is not None
    measured = fits.optima_by_group("n_params")["mlp", 3e18]
    assert row.pi_hi is not None
    assert row.pi_lo is not None
    assert measured.ci_hi is not None
    assert measured.ci_lo is not None
    # At a budget that was measured: the noise of one optimum, and that of the law besides.
    assert math.log(row.pi_hi / row.pi_lo) > 1.15 * math.log(measured.ci_hi / measured.ci_lo)
    wider = by_quantity(fits, 3e19)["n_params"]
    assert wider.pi_hi is not None
    assert wider.pi_lo is not None
    assert wider.pi_hi / wider.pi_lo > row.pi_hi / row.pi_lo


def test_the_same_fit_gives_the_same_predictions_whoever_else_is_asked_for() -> None:
    rows = runs(noise=0.002) + runs("new", noise=0.002, gain=1.3)
    both = predict(fitted(rows), 1e19)
    assert predict(fitted(rows[::-1]), 1e19) == both
    assert predict(fitted(rows), 1e19, ["new"]) == tuple(r for r in both if r.arch == "new")


@pytest.mark.parametrize("budget", [3.1e19, 9e16, 1e30])
def test_a_budget_that_nothing_speaks_for_is_refused(budget: float) -> None:
    with pytest.raises(UserError, match=r"from 1e17 to 3e19, 10 times the largest") as caught:
        predict(fitted(runs()), budget)
    assert "\n" not in str(caught.value)


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(UserError, match=r"--arch = 'moe': must be one of mlp"):
        predict(fitted(runs()), 1e19, ["moe"])


@pytest.mark.parametrize(
    "rows",
    [
        runs(budgets=BUDGETS[:2]),
        [row | {"loss": 3.0} for row in runs()],
        [row | {"loss": math.nan} for row in runs()],
        [row | {"status": "diverged", "loss": None} for row in runs()],
        [row for row in runs() if row["n_params"] < 0.6 * best_at(row["budget_flops"])],
        runs()[::7],
        [
            r | {"loss": 1e-3 + math.log(r["n_params"] / best_at(r["budget_flops"])) ** 4}
            for r in runs()
        ],
        [],
    ],
    ids=["two budgets", "flat", "NaN", "diverged", "one side", "one size", "below 0", "nothing"],
)
def test_a_table_without_laws_is_refused_in_one_line(rows: list[dict[str, Any]]) -> None:
    with pytest.raises(UserError, match="minima inside their grids at") as caught:
        predict(fitted(rows, reference=None), 1e19)
    assert "\n" not in str(caught.value)


def test_a_family_that_cannot_be_predicted_says_why_and_has_no_value() -> None:
    rows = runs() + runs("few", BUDGETS[2:]) + runs("small", (1e17, 2e17, 4e17))
    rows += runs("bent", bend=0.05)
    fits = fitted(rows)
    statuses = {
        arch: {name: row.status for name, row in by_quantity(fits, 2e19, arch).items()}
        for arch in ("few", "small", "bent")
    }
    for arch, why in (("few", "too_few"), ("small", "too_far")):
        assert set(statuses[arch].values()) == {why, "no_law"}
    assert statuses["bent"]["n_params"] == statuses["bent"]["n_tokens"] == "off_law"
    assert statuses["bent"]["loss"] == "ok"
    # A reference that is not predicted: the families keep all but the multiplier.
    other = by_quantity(fitted(rows, reference="few"), 2e19)
    assert (other["multiplier"].status, other["loss"].status) == ("no_reference", "ok")
    for row in predict(fits, 2e19):
        assert (row.value is None) == (row.pi_lo is None) == (row.law is None)
        assert (row.value is None) == (row.status != "ok")


def test_without_draws_there_is_no_prediction() -> None:
    found = by_quantity(fitted(runs(), n_boot=0), 1e19)
    assert found["n_params"].status == found["loss"].status == "no_intervals"


def test_draws_that_fail_too_often_give_no_interval() -> None:
    fits = fitted(runs(noise=0.002))
    draws = fits.draws_of("n_params")
    assert draws is not None
    draws.loss_opt["mlp", 3e18][:20] = math.nan
    row = by_quantity(fits, 1e19)["loss"]
    assert (row.status, row.value, row.n_failed) == ("draws_failed", None, 20)
    draws.loss_opt["mlp", 3e18][8:20] = loss_at(3e18)
    again = by_quantity(fits, 1e19)["loss"]
    assert (again.status, again.n_failed) == ("ok", 8)
    # An optimum that is often lost takes no draw with it; one that all draws lose does.
    for values in (draws.loss_opt, draws.x_opt):
        values["mlp", 1e17][50:100] = math.nan
    lost = by_quantity(fits, 1e19)
    for name, num_failed in {"loss": 8, "n_params": 0}.items():
        assert (lost[name].status, lost[name].n_failed) == ("ok", num_failed)
    draws.x_opt["mlp", 1e17][:] = math.nan
    assert by_quantity(fits, 1e19)["loss"].status == "draws_failed"


@pytest.mark.slow
def test_intervals_hold_what_is_measured_as_often_as_they_say() -> None:
    """The first design alone: tests/benchmarks/predictions.py measures all, in half an hour."""
    hits = measure(DESIGNS[0], 25, FitOptions(n_boot=200, reference="mlp"))
    for ratio in RATIOS:
        for name in (*SIZE_AXES, "loss", "multiplier"):
            count = hits[ratio, name]
            # Multipliers of a study share their reference, so their hits are not independent.
            assert 0.90 <= count.inside / count.predicted <= 0.985, (ratio, name, str(count))
            assert count.refused <= 0.05 * count.predicted

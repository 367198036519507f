from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoflop.analysis import power
from isoflop.analysis.designs import Cell, design_of, executed_flops, total_flops, with_size
from isoflop.analysis.laws import fit_laws
from isoflop.analysis.optima import find_optimum
from isoflop.analysis.points import Point
from isoflop.analysis.power import (
    ALONE,
    CHINCHILLA,
    INDEPENDENT,
    estimate_power,
    fit_known_lines,
    fit_optima,
    true_losses,
)
from isoflop.analysis.shared_noise import DEFAULT
from isoflop.errors import UserError
from isoflop.plan.planner import Plan, make_plan
from isoflop.plan.trunks import trunks_of
from isoflop.study import paper_study
from made_studies import micro

PAPER = make_plan(paper_study((10**17, 10**18)))


def centred_cell(flops: float, num_sizes: int, span: float = 4.0, num_seeds: int = 1) -> Cell:
    """Sizes log-spaced from 1/span to span times the surface's own optimum; tokens are C/(6N)."""
    log_n_opt = math.log(CHINCHILLA.law.optimum(flops)[0])
    log_x = np.linspace(log_n_opt - math.log(span), log_n_opt + math.log(span), num_sizes)
    log_x = np.repeat(log_x, num_seeds)
    return Cell(
        budget_flops=flops,
        log_x=tuple(log_x),
        log_tokens=tuple(math.log(flops / 6) - log_x),
        flops=(flops,) * len(log_x),
    )


def powers(
    budgets: Sequence[float], num_sizes: int, noise: float, num_seeds: int = 1
) -> tuple[power.ArchPower, ...]:
    cells = tuple(centred_cell(float(b), num_sizes, num_seeds=num_seeds) for b in budgets)
    return power._arch_powers({"a": cells, "b": cells}, "a", noise, power.NUM_DRAWS, CHINCHILLA)


# Standard deviations of the exponent over 200 simulated studies, each uncertain by 5 %.
@pytest.mark.parametrize(
    ("budgets", "num_sizes", "noise", "expected_sd"),
    [
        ((1e17, 1e18), 5, 0.002, 0.0085),
        ((1e17, 1e18), 7, 0.005, 0.0195),
        (np.geomspace(1e17, 3e18, 4), 7, 0.002, 0.0053),
        (np.geomspace(1e17, 3e18, 4), 7, 0.005, 0.0134),
        (np.geomspace(1e17, 1e20, 5), 7, 0.002, 0.0033),
        ((1e17, 1e18), 11, 0.005, 0.0153),
        (np.geomspace(1e17, 3e18, 4), 11, 0.002, 0.0044),
        (np.geomspace(1e17, 1e20, 5), 11, 0.002, 0.0027),
    ],
)
def test_the_spread_of_the_exponent_is_that_of_independent_simulations(
    budgets: Sequence[float], num_sizes: int, noise: float, expected_sd: float
) -> None:
    result = powers(budgets, num_sizes, noise)[0]
    assert result.exponent_sd == pytest.approx(expected_sd, rel=0.12)
    assert result.exponent_halfwidth == pytest.approx(1.96 * result.exponent_sd, rel=0.08)
    assert result.edge_share == 0


def test_two_budgets_give_about_four_hundredths() -> None:
    assert powers((1e17, 1e18), 7, 0.005)[0].exponent_halfwidth == pytest.approx(0.04, rel=0.1)


def test_the_surface_has_its_optimum_where_its_terms_balance() -> None:
    cell = centred_cell(1e18, 4001)
    losses = true_losses(cell, 1e18, CHINCHILLA)
    n, d = np.exp(cell.log_x), np.exp(cell.log_tokens)
    np.testing.assert_allclose(losses, CHINCHILLA.law.loss(n, d), rtol=1e-9)
    assert int(losses.argmin()) == 2000


def test_the_spread_shrinks_with_the_noise_and_with_seeds() -> None:
    def sd(noise: float, num_seeds: int = 1) -> float:
        return powers((1e17, 1e18), 7, noise, num_seeds=num_seeds)[0].exponent_sd or math.inf

    assert sd(0.002) == pytest.approx(sd(0.004) / 2, rel=0.02)
    # Not quite like a mean: the more is known, the freer is the slope of the curve, for less bias.
    assert sd(0.002) < sd(0.004, num_seeds=4) < 1.2 * sd(0.002)


def cell_of(log_x: Sequence[float]) -> Cell:
    nothing = (0.0,) * len(log_x)
    return Cell(budget_flops=1e17, log_x=tuple(log_x), log_tokens=nothing, flops=nothing)


losses_of_five = st.lists(st.floats(1.0, 5.0), min_size=5, max_size=5)


@given(st.lists(losses_of_five, min_size=1, max_size=4), st.booleans())
def test_the_fit_is_the_one_of_results(draws: list[list[float]], two_seeds: bool) -> None:
    sizes = [1e6, 2e6, 3e6, 9e6, 9e6 if two_seeds else 2e7]
    log_x, log_loss = fit_optima(cell_of([math.log(x) for x in sizes]), np.array(draws))
    for index, losses in enumerate(draws):
        points = [
            Point(
                run_id=None,
                arch="a",
                budget_flops=1e17,
                n_params=x,
                n_tokens=1e9,
                n_active=None,
                loss=loss,
            )
            for x, loss in zip(sizes, losses, strict=True)
        ]
        optimum = find_optimum(points, arch="a", budget_flops=1e17, axis="n_params")
        usable = optimum.is_point and optimum.loss_opt is not None and optimum.loss_opt > 0
        if not usable:
            assert np.isnan(log_x[index]) or optimum.status in ("flat", "below_data")
            continue
        assert optimum.x_opt is not None
        assert optimum.loss_opt is not None
        assert log_x[index] == pytest.approx(math.log(optimum.x_opt), abs=1e-6)
        assert log_loss[index] == pytest.approx(math.log(optimum.loss_opt), abs=1e-6)


def test_two_sizes_are_no_parabola() -> None:
    log_x, log_loss = fit_optima(cell_of([0.0, 1.0, 1.0]), np.ones((4, 3)))
    assert np.isnan(log_x).all()
    assert np.isnan(log_loss).all()


def test_the_line_is_the_law_of_results_with_lost_budgets_left_out() -> None:
    budgets = [1e17, 3e17, 1e18, 1e19]
    values = np.array([[1e6, 2e6, 5e6, 1e7], [1e6, np.nan, 3e6, 8e6], [1e6] + [np.nan] * 3])
    slope, intercept = fit_known_lines(np.log(budgets), np.log(values))
    points = [
        find_optimum([], arch="a", budget_flops=budget, axis="n_params") for budget in budgets
    ]
    for index in range(2):
        optima = [
            dataclasses.replace(point, x_opt=value, loss_opt=1.0, status="interior")
            for point, value in zip(points, values[index], strict=True)
            if np.isfinite(value)
        ]
        law = fit_laws(optima)[0]
        assert slope[index] == pytest.approx(law.exponent, rel=1e-9)
        assert intercept[index] == pytest.approx(law.log_coefficient, rel=1e-9)
    assert np.isnan(slope[2])


def test_a_report_is_deterministic_and_says_what_it_assumes() -> None:
    report = estimate_power(PAPER)
    assert report == estimate_power(PAPER)
    assert [entry.arch for entry in report.archs] == list(PAPER.study.archs)
    assert sum(entry.num_runs for entry in report.archs) == len(PAPER.runs)
    text = "\n".join(report.assumptions)
    for word in ("estimate", "0.005", "2404.10102", "centre", "two_powers", "multiplier"):
        assert word in text
    assert "below 1e17" not in text


def test_more_runs_give_narrower_intervals_at_their_price() -> None:
    planned, seed, size, budget = estimate_power(PAPER).designs[:4]
    assert planned.cost == 1
    assert (seed.num_runs, seed.cost) == (94, pytest.approx(2))
    assert size.num_runs == 47 + 5 * 2
    assert budget.num_runs == 47 + 4 * 3 + 5 * 2
    # A tenth of the budget's FLOPs were at 1e17, the new budget is at 1e19.
    assert 9 < budget.cost < 11
    assert planned.exponent_halfwidth is not None
    # The grid that a larger size widens is told more of the curve's slope, which has its price.
    for more, at_most in ((seed, 0.85), (size, 0.97), (budget, 0.85)):
        assert more.exponent_halfwidth is not None
        assert more.exponent_halfwidth < at_most * planned.exponent_halfwidth


def test_more_noise_gives_wider_intervals() -> None:
    def widths(noise: float) -> list[float]:
        return [a.exponent_halfwidth or math.inf for a in estimate_power(PAPER, noise=noise).archs]

    assert all(low < high for low, high in zip(widths(0.001), widths(0.004), strict=True))


def test_the_reference_has_no_multiplier_and_the_others_have_one_per_budget() -> None:
    report = estimate_power(PAPER, reference="moe")
    by_arch = {entry.arch: entry.multipliers for entry in report.archs}
    assert report.reference == "moe"
    assert by_arch["moe"] == {}
    for arch in ("mlp", "swiglu", "peer", "sgatlin"):
        assert list(by_arch[arch]) == [1e17, 1e18]
        assert all(factor is not None and factor > 1 for factor in by_arch[arch].values())


def test_one_budget_has_no_exponent_and_one_more_gives_it() -> None:
    planned, seed, _, budget = estimate_power(make_plan(paper_study((10**17,)))).designs
    assert (planned.exponent_halfwidth, planned.multiplier) == (None, None)
    assert seed.exponent_halfwidth is None
    assert budget.exponent_halfwidth is not None


def _two_sizes() -> Plan:
    return make_plan(micro(budgets=(10**10, 3 * 10**10), sizes=(1, 2)))


def test_two_sizes_give_nothing_and_one_more_gives_something() -> None:
    report = estimate_power(_two_sizes(), noise=0.001)
    assert all(entry.edge_share == 1 for entry in report.archs)
    assert report.designs[0].exponent_halfwidth is None
    assert report.designs[2].exponent_halfwidth is not None


def test_a_micro_study_is_placed_where_the_surface_was_measured_and_told_so() -> None:
    plan = make_plan(micro(budgets=(10**10, 3 * 10**10), sizes=(1, 2, 3, 4)))
    report = estimate_power(plan)
    assert "below 1e17" in report.assumptions[-1]
    assert report.designs[0].exponent_halfwidth is not None
    assert report.designs[0].exponent_halfwidth < 1


def test_useless_noise_gives_no_interval_rather_than_a_wrong_one() -> None:
    report = estimate_power(_two_sizes(), noise=0.9)
    assert all(entry.exponent_halfwidth is None for entry in report.archs)
    assert report.designs[0].multiplier is None


@pytest.mark.parametrize("noise", [0.0, -0.1, 1.0, math.nan, math.inf])
def test_nonsense_noise_is_refused(noise: float) -> None:
    with pytest.raises(UserError, match="--noise = "):
        estimate_power(PAPER, noise=noise)


def test_an_unknown_reference_is_refused() -> None:
    with pytest.raises(UserError, match="reference = 'rnn'"):
        estimate_power(PAPER, reference="rnn")


def sharing(**options: Any) -> Plan:
    """Three budgets a factor of 2 apart, of which the smaller ones begin on the largest's way."""
    keys: dict[str, Any] = {"budgets": (2 * 10**10, 4 * 10**10, 8 * 10**10), "sizes": (4, 6, 8)}
    keys |= {"archs": ("swiglu", "sgatlin"), "max_epochs": 8.0}
    return make_plan(micro(recipe="micro-v3", **(keys | options)))


def test_flops_are_those_executed_and_what_is_saved_buys_seeds() -> None:
    plan = sharing()
    saved = sum(trunk.flops_saved for trunk in trunks_of(plan))
    total = sum(run.flops for run in plan.unique_runs)
    assert 0.2 * total < saved < 0.4 * total
    design = design_of(plan)
    assert total_flops(design) == pytest.approx(total, rel=1e-12)
    assert executed_flops(design) == pytest.approx(total - saved, rel=1e-12)
    by_label = {one.label: one for one in estimate_power(plan, num_draws=400).designs}
    planned, alone, other = (by_label[name] for name in ("as planned", ALONE, INDEPENDENT))
    assert planned.cost == 1
    assert alone.cost == other.cost == pytest.approx(total / (total - saved), rel=1e-12)
    # The same results tell the same, whoever trained their common part.
    assert (alone.exponent_halfwidth, alone.multiplier) == (
        planned.exponent_halfwidth,
        planned.multiplier,
    )
    assert other.num_runs == alone.num_runs == planned.num_runs
    assert other.exponent_halfwidth != planned.exponent_halfwidth
    # A second seed is shared like the first.
    assert by_label["one seed more"].cost == pytest.approx(2, rel=1e-12)
    (bought,) = (one for label, one in by_label.items() if "what sharing saves" in label)
    assert planned.num_runs < bought.num_runs < 2 * planned.num_runs
    assert 1 < bought.cost <= alone.cost
    assert bought.multiplier < planned.multiplier
    # The budgets of before begin on the new one's way.
    assert by_label["one budget more"].cost < 1 + 8 * 2


def test_a_plan_that_shares_nothing_is_as_it_was() -> None:
    report = estimate_power(sharing(share="none"), num_draws=200)
    assert [one.label for one in report.designs] == [
        "as planned",
        "one seed more",
        "one size more",
        "one budget more",
    ]
    assert "independent between runs" in report.assumptions[1]
    assert "trunk" not in "".join(report.assumptions)
    told = estimate_power(sharing(), num_draws=200).assumptions[1]
    assert f"alike by {DEFAULT.value:.2g} between runs of one trunk" in told


def test_runs_of_one_trunk_have_noise_in_common_and_others_none() -> None:
    cell = dataclasses.replace(centred_cell(1e17, 3), trunks=("a", "b", None), in_common=(0.0,) * 3)
    rng = np.random.default_rng(0)
    drawn = [power._with_trunks(rng.standard_normal((20_000, 3)), cell, 0) for _ in range(2)]
    alike = np.corrcoef(np.hstack(drawn).T)
    expected = np.eye(6)
    expected[0, 3] = expected[3, 0] = expected[1, 4] = expected[4, 1] = DEFAULT.value
    np.testing.assert_allclose(alike, expected, atol=0.04)
    (other,) = [power._with_trunks(rng.standard_normal((20_000, 3)), cell, 1)]
    assert abs(np.corrcoef(other[:, 0], drawn[0][:, 0])[0, 1]) < 0.04


def test_a_size_more_is_one_training_where_budgets_have_it() -> None:
    design = design_of(sharing(seeds=(0, 1)))
    more = with_size(design)
    labels = [cell.trunks[-2:] for cells in more.values() for cell in cells]
    assert len({label for pair in labels for label in pair}) == 2 * len(design)
    total, before = total_flops(more) - total_flops(design), executed_flops(design)
    assert executed_flops(more) - before < 0.8 * total

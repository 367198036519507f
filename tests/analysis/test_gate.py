"""One run or a few against a frontier whose form is known."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.made_runs import row, spaced
from benchmarks.gate import CASES, Case, measure
from isoflop.analysis import FitOptions, Fits, fit_optima, select_points
from isoflop.analysis.gate import gate
from isoflop.analysis.gate.rule import default_rule, load_rule
from isoflop.analysis.gate.runs import RunNoise, cells_of
from isoflop.errors import UserError

BUDGETS = (1e17, 3e17, 1e18, 3e18)


def best_loss(flops: float) -> float:
    return 1.8 + 1.5 * (flops / 1e17) ** -0.12


def reference(
    budgets: tuple[float, ...] = BUDGETS, shift: float = 1.0, noise: float = 0.001, **others: Any
) -> Fits:
    """A family of that frontier, at 1e16 FLOPs a second."""
    rng = np.random.default_rng(5)
    rows = [
        row(
            "dense",
            budget,
            size,
            best_loss(budget)
            * math.exp(0.02 * math.log(size / 1e7 * shift) ** 2 + rng.normal(0, noise)),
            flops=budget,
            wall_s=budget / 1e16,
        )
        for budget in budgets
        for size in spaced(1e7, 7)
    ]
    options = FitOptions(n_boot=500, **others)
    return fit_optima(select_points(rows), options, methods=[options.method], axes=["n_params"])


@pytest.fixture(scope="module")
def dense() -> Fits:
    return reference()


def run(flops: float, multiplier: float = 1.0, **others: Any) -> dict[str, Any]:
    """A run with the loss that the frontier has at so many times its FLOPs."""
    return {"arch": "new", "flops": flops, "loss": best_loss(flops * multiplier), **others}


def rule_of(tmp_path: Path, text: str) -> Any:
    path = tmp_path / "rule.toml"
    path.write_text(f"[gate]\n{text}\n")
    return load_rule(path)


def test_a_run_taken_from_the_frontier_gives_one(dense: Fits) -> None:
    found = dense.optima_of("dense")
    runs = [{"flops": o.mean_flops, "loss": o.loss_opt} for o in found]
    for got in gate(dense, runs).along("flops"):
        assert got.multiplier == pytest.approx(1.0, abs=1e-9)
        assert got.verdict == "undecided"
        assert got.reason == "the interval holds 1"
        assert got.frontier_loss == pytest.approx(got.loss, rel=1e-12)
    quiet = gate(reference(noise=1e-5), [run(flops) for flops in np.geomspace(1e17, 3e18, 9)])
    for got in quiet.along("flops"):
        assert got.multiplier == pytest.approx(1.0, abs=0.005)
        assert got.frontier_loss == pytest.approx(got.loss, rel=5e-4)


@pytest.mark.parametrize(
    ("multiplier", "verdict"), [(1.5, "pass"), (0.7, "fail"), (1.0, "undecided")]
)
def test_the_verdict_is_the_interval_against_the_rule(
    dense: Fits, multiplier: float, verdict: str
) -> None:
    made = gate(dense, [run(5e17, multiplier, wall_s=500.0)])
    by_flops, by_time = made.rows
    assert made.verdict == by_flops.verdict == verdict
    assert by_flops.ci_lo < multiplier < by_flops.ci_hi
    assert by_flops.rule_sha == default_rule().sha
    # Ten times slower than the reference.
    assert by_time.resource == "wall_s"
    assert by_time.multiplier == pytest.approx(by_flops.multiplier / 10)
    assert by_time.verdict == "fail"


def test_beyond_the_reference_only_the_side_is_known(dense: Fits) -> None:
    runs = [
        # At the largest budget, and far better: what decides are the losses there.
        run(3e18, 4.0),
        # Dearer, and better than all of the reference: how much better it should be nobody knows.
        run(1.2e19, 0.5),
        # Dearer, and worse than the reference's best: whatever the frontier does, it is worse.
        run(1.2e19, 0.1),
        # Cheaper than all of it, and better; and worse.
        run(3e16, 10.0),
        run(3e16, 0.5),
    ]
    got = gate(dense, runs).along("flops")
    assert [one.verdict for one in got] == ["pass", "undecided", "fail", "pass", "undecided"]
    assert [one.extrapolated for one in got] == [True, True, False, False, True]
    assert got[1].reason == (
        "fail only by where the frontier of dense would be 4 times beyond the largest of its optima"
    )
    assert "3.33 times beyond the smallest" in got[4].reason
    # The interval is shown as far as the form goes, and the claim ends with the measurements.
    assert got[0].ci_hi > 3
    assert got[0].claim_lo == pytest.approx(1.05, rel=1e-3)
    assert got[0].claim_hi is None


def test_a_rule_may_ask_for_more_and_for_time(dense: Fits, tmp_path: Path) -> None:
    better = [run(5e17, 1.5, wall_s=20.0)]
    rule = rule_of(tmp_path, 'pass = "lower bound > 1.6"\nfail = "upper bound < 1.6"')
    assert gate(dense, better, rule).verdict == "fail"
    rule = rule_of(tmp_path, 'resource = "wall_s"\npass = "> 3"')
    assert gate(dense, better, rule).verdict == "pass"
    assert gate(dense, [run(5e17, 1.5)], rule).verdict == "undecided"
    # At three times the largest budget, where nothing was measured.
    rule = rule_of(tmp_path, 'pass = "lower bound > 3"')
    top = [run(3e18, 4.0)]
    assert gate(dense, top, rule).verdict == "undecided"
    rule = rule_of(tmp_path, 'pass = "lower bound > 3"\nmax_extrapolation = 4.0')
    assert gate(dense, top, rule).rows[0].claim_lo > 1.05


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('pas = "lower bound > 1"', "gate.pas"),
        ('pass = "upper bound > 1"', "gate.pass = 'upper bound > 1'"),
        ('pass = "interval excludes 1"', "gate.pass"),
        ('fail = "upper bound < 1 at every budget"', "gate.fail"),
        ('fail = "upper bound < 0"', "gate.fail"),
        ("pass = 1.0", "gate.pass = 1.0: must be text in quotes"),
        ("confidence = 1.0", "gate.confidence"),
        ("confidence = nan", "gate.confidence"),
        ("max_extrapolation = 0.5", "gate.max_extrapolation"),
        ("max_extrapolation = inf", "gate.max_extrapolation"),
        ('resource = "n_params"', "gate.resource"),
        ('runs = "most"', "gate.runs"),
        ("runs = ", "--rule"),
    ],
)
def test_a_wrong_rule_is_the_users_mistake(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError) as raised:
        rule_of(tmp_path, text)
    assert str(raised.value).startswith(message)


def test_a_frozen_rule_is_named_by_its_bytes(dense: Fits, tmp_path: Path) -> None:
    rule = rule_of(tmp_path, "confidence = 0.5 # even odds")
    assert rule.sha != default_rule().sha
    assert rule.passes == default_rule().passes
    (wide,) = gate(dense, [run(5e17)]).along("flops")
    (narrow,) = gate(dense, [run(5e17)], rule).along("flops")
    assert narrow.rule_sha == rule.sha
    assert wide.ci_lo < narrow.ci_lo < narrow.ci_hi < wide.ci_hi


def test_seeds_are_averaged_and_a_sweep_is_not(dense: Fits) -> None:
    one = run(5e17, 1.5, n_params=1e7)
    losses = [one["loss"] * factor for factor in (0.99, 1.0, 1.02)]
    seeds = [{**one, "seed": seed, "loss": loss} for seed, loss in enumerate(losses)]
    single, mean = (gate(dense, rows).rows[0] for rows in ([seeds[0]], [*seeds, seeds[1]]))
    assert mean.num_runs == 3
    assert mean.loss == pytest.approx(math.prod(losses) ** (1 / 3))
    assert mean.noise_sd == pytest.approx(single.noise_sd / math.sqrt(3))
    unnamed = [{**seed, "seed": None} for seed in seeds]
    again = [*seeds, {**seeds[0], "loss": 3.0}]
    bad = [seeds[0], {**seeds[1], "loss": math.nan}, seeds[2]]
    assert [len(cells_of(rows)) for rows in (seeds, unnamed, again, bad)] == [1, 3, 4, 2]
    assert [each.num_runs for each in cells_of(bad)] == [2, 1]


def test_of_several_runs_some_are_claimed_by_what_holds_for_all(
    dense: Fits, tmp_path: Path
) -> None:
    runs = [run(flops) for flops in np.geomspace(1e17, 3e18, 8)]
    for got in gate(dense, runs).along("flops"):
        assert got.ci_lo_simultaneous < got.ci_lo < got.ci_hi < got.ci_hi_simultaneous
    (alone,) = gate(dense, runs[:1]).along("flops")
    assert alone.ci_lo_simultaneous == pytest.approx(alone.ci_lo)
    assert alone.ci_hi_simultaneous == pytest.approx(alone.ci_hi)
    any_passes = rule_of(tmp_path, 'runs = "any"')
    good, bad, nan = run(5e17, 1.5), run(5e17, 0.7), {"flops": 5e17, "loss": math.nan}
    for rows, of_all, of_any in (
        ([good, good | {"flops": 4e17}], "pass", "pass"),
        ([good, runs[3]], "undecided", "pass"),
        ([good, nan], "undecided", "pass"),
        ([good, bad], "fail", "pass"),
        ([bad, nan], "fail", "undecided"),
        ([bad, runs[3]], "fail", "undecided"),
        ([bad, bad | {"flops": 6e17}], "fail", "fail"),
    ):
        assert (gate(dense, rows).verdict, gate(dense, rows, any_passes).verdict) == (
            of_all,
            of_any,
        )


def test_of_many_runs_one_is_claimed_only_if_it_stands_out_from_all(
    dense: Fits, tmp_path: Path
) -> None:
    any_passes = rule_of(tmp_path, 'runs = "any"')
    same = [run(flops) for flops in np.geomspace(1e17, 3e18, 80)]
    slightly = run(5e17, 1.08)
    (alone,) = gate(dense, [slightly], any_passes).along("flops")
    assert alone.verdict == "pass"
    made = gate(dense, [*same, slightly], any_passes)
    got = made.along("flops")[-1]
    assert (made.verdict, got.verdict, got.ci_lo) == (
        "undecided",
        "pass",
        pytest.approx(alone.ci_lo, abs=0.01),
    )
    assert got.ci_lo_simultaneous <= 1 < got.ci_lo
    # All have ends, and what is clear is claimed.
    made = gate(dense, [*same, run(5e17, 1.5)], any_passes)
    assert made.verdict == "pass"
    assert made.along("flops")[-1].ci_lo_simultaneous > 1
    assert None not in {one.ci_lo_simultaneous for one in made.along("flops")}


def test_beside_others_a_run_that_leads_beyond_the_reference_is_held_by_losses(
    dense: Fits, tmp_path: Path
) -> None:
    any_passes = rule_of(tmp_path, 'runs = "any"')
    same = [run(flops) for flops in np.geomspace(1e17, 3e18, 20)]
    # Far below all losses of the reference: no draw has an upper end.
    far = {"flops": 3e18, "loss": 1.0}
    made = gate(dense, [*same, far], any_passes)
    assert (made.verdict, made.along("flops")[-1].multiplier) == ("pass", None)
    (dear,) = gate(dense, [far | {"flops": 1.2e19}]).along("flops")
    assert (dear.verdict, dear.claim_lo) == ("undecided", pytest.approx(1.05 / 4, rel=1e-3))
    assert dear.reason.startswith("pass only by where the frontier of dense would be 4 times")
    # Dearer than all, and better; cheaper than all, and worse: nothing is claimed.
    for unknown in (run(1.2e19, 0.5), run(3e16, 0.5)):
        assert gate(dense, [*same, unknown], any_passes).verdict == "undecided"
        assert gate(dense, [*same, unknown]).verdict == "undecided"
    # Dearer than all, and worse than the best: it fails whatever the others do.
    assert gate(dense, [*same, run(1.2e19, 0.1)]).verdict == "fail"


def test_noise_is_that_of_the_budgets_around_and_of_seeds_what_a_size_does_not_share() -> None:
    noise = RunNoise(
        log_flops=np.log([1e17, 1e19]),
        between_sizes=np.array([[0.0, 0.0], [9e-6, 9e-6]]),
        between_runs=np.array([[4e-6, 1e-6], [16e-6, 16e-6]]),
    )
    assert noise.sd(1e17, 1) == pytest.approx([2e-3, 5e-3])
    assert noise.sd(1e18, 1) == pytest.approx([math.sqrt(2) * 1e-3, 5e-3])
    assert noise.sd(1e21, 1) == pytest.approx([1e-3, 5e-3])
    assert noise.sd(None, 1) == pytest.approx([2e-3, 5e-3])
    assert noise.sd(1e19, 4) == pytest.approx([0.5e-3, math.sqrt(13) * 1e-3])


def test_a_run_off_the_reference_s_best_size_is_named_by_it(dense: Fits) -> None:
    runs = [run(flops, n_params=3e7) for flops in (5e17, 1e17, 3.1e18, 9e18)]
    ratios = [got.size_ratio for got in gate(dense, [*runs, run(5e17)]).along("flops")]
    assert ratios[:3] == pytest.approx([3.0] * 3, rel=0.05)
    assert ratios[3:] == [None, None]


@pytest.mark.parametrize(
    ("spoilt", "reason"),
    [
        ({"loss": math.nan}, "bad loss (loss is nan)"),
        ({"loss": None}, "no loss"),
        ({"loss": -1.0}, "bad loss (loss is -1.0)"),
        ({"loss": 1e9}, "bad loss (loss is 1000000000.0)"),
        ({"flops": None}, "flops of the run is missing or not above 0"),
        ({"flops": 0.0}, "flops of the run is missing or not above 0"),
        ({"flops": math.inf}, "flops of the run is missing or not above 0"),
        ({"status": "diverged"}, "diverged"),
        ({"excluded_reason": "by hand"}, "excluded in table (by hand)"),
    ],
)
def test_a_run_that_cannot_be_judged_is_undecided_and_says_why(
    dense: Fits, spoilt: dict[str, Any], reason: str
) -> None:
    made = gate(dense, [run(5e17, 1.5) | spoilt])
    (got,) = made.along("flops")
    assert (made.verdict, got.multiplier, got.ci_lo, got.reason) == (
        "undecided",
        None,
        None,
        reason,
    )


@pytest.mark.parametrize(
    ("fits", "reason"),
    [
        (lambda: reference(shift=100.0), "dense has no optimum inside its grid at any budget"),
        (lambda: reference(method="parabola", seed=1), ""),
        (
            lambda: replace(reference(), draws={}),
            "no draws of the reference: too few sizes or seeds to know its noise",
        ),
        (
            lambda: fit_optima(select_points([]), axes=["n_params"]),
            "the reference's table has no runs",
        ),
    ],
)
def test_a_reference_that_is_none_decides_nothing(fits: Any, reason: str) -> None:
    made = gate(fits(), [run(5e17, 1.5)])
    assert made.along("flops")[0].reason == reason
    assert made.verdict == ("undecided" if reason else "pass")


def test_one_budget_knows_sides_only() -> None:
    one = reference((3e17,))
    runs = [run(3e17, 1.5), run(3e17, 0.7), run(4e17, 0.7), run(4e17, 1.5), run(2e17, 2.0)]
    got = gate(one, runs).along("flops")
    assert [each.verdict for each in got] == ["pass", "fail", "fail", "undecided", "pass"]
    assert {each.multiplier for each in got} == {None}
    assert got[3].reason == "dense has an optimum at one budget, which is no frontier"


def test_a_reference_that_does_not_fall_and_one_without_time() -> None:
    rising = reference((1e17,)), reference((3e17,))
    rows = [
        {**vars_of(point), "budget_flops": budget, "flops": budget, "wall_s": None}
        for fits, budget in zip(rising, (3e17, 1e17), strict=True)
        for point in next(iter(fits.groups.values()))
    ]
    fits = fit_optima(select_points(rows), axes=["n_params"])
    by_flops, by_time = gate(fits, [run(2e17, 1.5, wall_s=5.0)]).rows
    assert by_flops.reason == "the loss of dense does not fall with compute from budget to budget"
    assert by_time.reason == "the table of dense lacks training time"


def vars_of(point: Any) -> dict[str, Any]:
    return {name: getattr(point, name) for name in ("arch", "n_params", "n_tokens", "loss")}


@pytest.mark.slow
@pytest.mark.parametrize("case", [CASES[0], CASES[3]], ids=lambda case: case.name)
def test_intervals_hold_the_true_multiplier(case: Case) -> None:
    tally = measure(case, num_studies=15, n_boot=400)
    for kind in ("at a budget", "between budgets"):
        assert 0.90 <= tally.counts[kind].hits / tally.counts[kind].known <= 0.99, kind
    # All 25 of a study at once; singly they would all hold in about half of the studies.
    assert np.mean(tally.together) >= 0.8
    assert set(tally.verdicts["beyond"]) == {"undecided"}
    assert set(tally.verdicts["m = 2"]) == {"pass"}
    same = tally.verdicts["m = 1"]
    assert same.count("undecided") >= 0.9 * len(same)

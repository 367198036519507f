"""Frontiers of tables without budgets: through the runs that no cheaper run beats."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.made_runs import parabola, row, spaced, study
from isoflop.analysis.envelope import MIN_RUNS, envelope, envelopes, fit_envelope, spent
from isoflop.analysis.fit import fit_rows
from isoflop.analysis.points import Point, select_points
from isoflop.analysis.result import FitOptions, Fits
from isoflop.analysis.validity.attention import attention
from isoflop.errors import UserError

TRUE_MULTIPLIER = 0.9 ** (-(0.34 + 0.28) / (0.34 * 0.28))


def grid(arch: str, level: float = 1.0, noise: float = 0.0, seed: int = 0) -> list[dict[str, Any]]:
    """Sizes by tokens, without budgets, in steps whose products never meet."""
    random = np.random.default_rng(seed)
    return [
        row(
            arch,
            None,
            n_params,
            (1.7 + level * (400 / n_params**0.34 + 400 / n_tokens**0.28))
            * (1 + noise * random.standard_normal()),
            n_tokens=n_tokens,
            flops=6 * n_params * n_tokens,
        )
        for n_params in np.geomspace(1e7, 1e9, 7).tolist()
        for n_tokens in (1.13 * np.geomspace(3e8, 5e10, 6)).tolist()
    ]


def points(flops: list[float], losses: list[float]) -> list[Point]:
    rows = [
        row("mlp", None, 1e6 * (i + 1), loss, n_tokens=1e9, flops=c)
        for i, (c, loss) in enumerate(zip(flops, losses, strict=True))
    ]
    return list(select_points(rows).loose)


def fitted(rows: list[dict[str, Any]], **options: Any) -> Fits:
    return fit_rows(rows, FitOptions(n_boot=options.pop("n_boot", 0), **options))


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=20, unique=True),
    st.randoms(use_true_random=False),
)
def test_an_envelope_is_what_no_run_as_cheap_beats(pairs: Any, random: Any) -> None:
    runs = points([1e18 * c for c, _ in pairs], [float(loss) for _, loss in pairs])
    best = envelope(runs)
    for run in runs:
        is_beaten = any(
            (spent(other) <= spent(run) and other.loss < run.loss)
            or (spent(other) < spent(run) and other.loss <= run.loss)
            for other in runs
        )
        assert (run in best) == (not is_beaten)
    random.shuffle(runs)
    assert envelope(runs) == best
    assert list(best) == sorted(best, key=spent)


def test_a_law_is_found_among_runs_off_it() -> None:
    flops = np.geomspace(1e18, 1e22, 9)
    losses = 1.7 + 900 * flops**-0.15
    above = points([*flops.tolist(), *(1.1 * flops).tolist()], [*losses, *(losses + 0.3)])
    law = fit_envelope(above, arch="mlp", n_boot=50)
    assert (law.status, law.n_points) == ("ok", 9)
    assert law.values["L_inf"] == pytest.approx(1.7, rel=1e-5)
    assert law.values["alpha"] == pytest.approx(0.15, rel=1e-5)
    assert (law.budget_lo, law.budget_hi) == (flops[0], flops[-1])
    low, high = law.interval("alpha") or (math.nan, math.nan)
    assert low <= 0.15 + 1e-9
    assert high > low
    assert {line.budget for line in law.rows()} == {"achieved"}


def test_too_few_runs_on_the_envelope_have_no_values_and_say_so() -> None:
    few = points([1e18, 2e18, 4e18, 8e18, 16e18], [3.0, 2.9, 2.8, 2.85, 2.9])
    law = fit_envelope(few, arch="mlp")
    assert (law.status, law.n_points, dict(law.values)) == ("too_few", 3, {})
    assert str(MIN_RUNS) in (law.reason or "")


def test_families_without_budgets_are_compared_by_their_frontiers() -> None:
    rows = grid("mlp", noise=0.002) + grid("moe", 0.9, noise=0.002, seed=1)
    fits = fitted(rows, n_boot=60, reference="mlp")
    assert fits.compare == ()
    assert len(fits.envelopes) > 5
    for one in fits.envelopes:
        assert (one.arch, one.reference, one.method, one.order_claimed) == (
            "moe",
            "mlp",
            "envelope",
            "none",
        )
        assert one.ci_lo is not None
        assert one.ci_hi is not None
        assert one.ci_lo < TRUE_MULTIPLIER < one.ci_hi
    same = fitted(grid("mlp") + grid("moe"), reference="mlp").envelopes
    assert [one.multiplier for one in same] == pytest.approx([1.0] * len(same), rel=1e-6)
    with pytest.raises(UserError, match="--reference = 'peer': must be one of mlp, moe"):
        fitted(rows, reference="peer")


def test_tables_with_profiles_or_too_few_sizes_have_no_envelope() -> None:
    profiles = study(("mlp",), (1e17, 1e18))
    assert envelopes(select_points(profiles + grid("mlp")[:5])) == {}
    seeds = [row("mlp", c, 1e7, 3.0 - s / 100, seed=s) for c in (1e17, 1e18) for s in (0, 1)]
    assert envelopes(select_points(seeds)) == {}
    assert list(envelopes(select_points(grid("moe") + grid("mlp")))) == ["mlp", "moe"]


def test_flops_that_gather_are_named_where_no_run_has_a_budget() -> None:
    def said(rows: list[dict[str, Any]]) -> list[str]:
        fits = Fits(selection=select_points(rows), optima=())
        return [sentence for sentence in attention(fits) if "--budgets auto" in sentence]

    curves = [
        {**one, "budget_flops": None, "flops": one["budget_flops"]}
        for one in study(("mlp",), (1e17, 1e18))
    ]
    assert said(curves) == [
        "No run has a budget, but FLOPs gather at 2 values: --budgets auto takes these as budgets."
    ]
    assert said(grid("mlp")) == []


def profiles() -> list[dict[str, Any]]:
    """A clean family, an outlier, a family whose optimum is a bound, and a flat one."""
    rows = [{**one, "flops": one["budget_flops"]} for one in study(("mlp", "moe"), (3e10, 1e11))]
    random = np.random.default_rng(0)
    rows = [{**one, "loss": one["loss"] * (1 + 0.002 * random.standard_normal())} for one in rows]
    rows[2]["loss"] *= 1.5
    rows += [row("peer", 1e11, n, parabola(1e4)(n), flops=1e11) for n in spaced(1e6)]
    return rows + [row("flat", 1e11, n, 3.0, flops=1e11) for n in spaced(1e6)]


@pytest.mark.parametrize(
    ("make", "factor"),
    [
        pytest.param(profiles, 1 / math.log(2), marks=pytest.mark.slow),
        pytest.param(profiles, 1e-3, marks=pytest.mark.slow),
        pytest.param(
            lambda: grid("mlp", noise=0.002) + grid("moe", 0.9), 1e3, marks=pytest.mark.slow
        ),
    ],
    ids=["in bits", "in thousandths", "without budgets"],
)
def test_the_unit_of_losses_changes_no_answer(make: Any, factor: float) -> None:
    rows = make()
    scaled = [{**one, "loss": factor * one["loss"]} for one in rows]
    other = fit_rows(scaled, FitOptions(n_boot=10), unit="val_err")
    assert answers(other) == answers(fitted(rows, n_boot=10))


def answers(fits: Fits) -> list[object]:
    """What does not depend on the unit, to seven digits."""
    optima = [(o.status, o.x_opt, o.ci_lo, o.ci_hi, o.law_weight) for o in fits.optima]
    compared = [
        (c.status, c.order_claimed, c.extrapolated, c.multiplier, c.ci_lo, c.ci_hi_simultaneous)
        for c in (*fits.compare, *fits.envelopes)
    ]
    laws = [
        (law.status, law.values.get("alpha"), law.values.get("a"), law.interval("alpha"))
        for law in fits.parametric
    ]
    checks = [] if fits.validity is None else [(f.check, f.status) for f in fits.validity.findings]
    excluded = [(e.arch, e.n_params, e.reason) for e in fits.excluded]
    return [rounded(x) for x in (optima, compared, laws, checks, excluded)]


def rounded(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.5e}"
    return [rounded(v) for v in value] if isinstance(value, list | tuple) else value

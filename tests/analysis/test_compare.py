"""Multipliers, exponents and orders: by hand, on made laws, and under noise."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.made_runs import parabola, row, spaced
from isoflop.analysis.compare.differences import exponent_differences, pair_orders
from isoflop.analysis.compare.multipliers import Comparison, compare_archs
from isoflop.analysis.fit import FitOptions, Fits, fit_optima
from isoflop.analysis.points import select_points
from isoflop.analysis.result import default_reference
from isoflop.errors import UserError

BUDGETS = (1e17, 1e18, 1e19)
GAIN, EXPONENT = 1.8, 0.05


def law(budget: float, gain: float = 1.0) -> float:
    """The optimal loss of a family that does with C what the reference does with gain · C."""
    return 20 * (gain * budget) ** -EXPONENT


def family(
    arch: str,
    *,
    gain: float = 1.0,
    width: float = 1.0,
    power: float = 0.5,
    seconds: float = 1.0,
    budgets: Iterable[float] = BUDGETS,
    noise: float = 0.0,
    shift: float = 1.0,
) -> list[dict[str, Any]]:
    """Runs about N* = width · C^power; the grid's centre is off it by the factor ``shift``."""
    rng = random.Random(f"{arch}{noise}")
    rows = []
    for budget in budgets:
        best = width * budget**power
        curve = parabola(best, law(budget, gain), bend=0.02)
        for size in spaced(best * shift, num=7):
            loss = curve(size) * (1 + rng.gauss(0, noise))
            extras = {"flops": budget * 0.999, "wall_s": seconds * budget / 1e15}
            rows.append(row(arch, budget, size, loss, **extras))
    return rows


def fitted(rows: list[dict[str, Any]], n_boot: int = 0) -> Fits:
    options = FitOptions(n_boot=n_boot, method="parabola")
    return fit_optima(select_points(rows), options, methods=("parabola",), axes=("n_params",))


def by_place(rows: Iterable[Comparison], arch: str) -> dict[tuple[float, str], Comparison]:
    return {(r.budget_flops, r.resource): r for r in rows if r.arch == arch}


def test_known_multipliers_come_out_along_every_resource() -> None:
    rows = family("swiglu") + family("new", gain=GAIN, width=4.0, seconds=3.0)
    found = by_place(compare_archs(fitted(rows)), "new")
    for budget in BUDGETS:
        expected = {
            "flops": GAIN,
            "wall_s": GAIN / 3,
            "n_params": math.sqrt(GAIN) / 4,
            "n_active": math.sqrt(GAIN) / 4,
            "n_tokens": math.sqrt(GAIN) * 4,
        }
        for resource, multiplier in expected.items():
            one = found[budget, resource]
            assert one.status == "estimate"
            assert one.multiplier == pytest.approx(multiplier, rel=1e-8)
            # The last optimum is better than all of the reference's.
            assert one.extrapolated == (budget == BUDGETS[-1])
        slope = found[budget, "flops"].local_slope
        assert slope == pytest.approx(-EXPONENT * law(budget, GAIN), rel=1e-8)
        assert found[budget, "peak_mem_bytes"].status == "no_data"


def test_a_family_over_itself_is_exactly_one_with_an_interval_that_contains_one() -> None:
    fits = fitted(family("swiglu", noise=0.002) + family("new", gain=2, noise=0.002), n_boot=200)
    own = [r for r in compare_archs(fits) if r.arch == "swiglu" and r.status != "no_data"]
    assert len(own) == 3 * 5
    for one in own:
        assert one.multiplier == 1.0
        assert one.ci_lo is not None
        assert one.ci_hi is not None
        assert one.ci_lo <= 1.0 <= one.ci_hi
        assert one.order_claimed == "none"


def test_a_clear_gain_is_claimed_and_none_is_not() -> None:
    rows = family("swiglu", noise=0.001) + family("better", gain=2, noise=0.001)
    fits = fitted(rows + family("same", noise=0.001), n_boot=400)
    found = compare_archs(fits, resources=("flops",))
    for one in by_place(found, "better").values():
        assert one.order_claimed == "higher"
        assert one.ci_lo is not None
        assert one.ci_hi is not None
        assert one.ci_lo < 2 < one.ci_hi
        assert (one.bootstrap_kind, one.n_boot) == ("parametric", 400)
    assert {one.order_claimed for one in by_place(found, "same").values()} == {"none"}
    orders = pair_orders(fits)
    assert {(p.better, p.worse) for p in orders if p.claimed} == {
        ("better", "swiglu"),
        ("better", "same"),
    }
    assert {frozenset((p.better, p.worse)) for p in orders if not p.claimed} == {
        frozenset(("same", "swiglu"))
    }


def test_an_edge_of_the_arch_is_a_lower_bound_where_the_resource_does_not_grow() -> None:
    # The grid ends at a quarter of the optimum: the true loss is lower than that of its end.
    rows = family("swiglu") + family("new", gain=GAIN, shift=1 / 16)
    found = by_place(compare_archs(fitted(rows)), "new")
    for budget in BUDGETS[:2]:
        one = found[budget, "flops"]
        edge_loss = law(budget, GAIN) + 0.02 * math.log(4) ** 2
        assert one.status == "lower_bound"
        assert one.multiplier is not None
        assert one.multiplier == pytest.approx((edge_loss / law(budget)) ** (-1 / EXPONENT))
        assert one.multiplier < GAIN
        assert (one.ci_lo, one.ci_hi, one.order_claimed) == (None, None, "none")
        assert found[budget, "n_tokens"].status == "lower_bound"
        assert found[budget, "n_params"].status == "no_optimum"
        assert found[budget, "n_params"].multiplier is None


def test_a_lower_edge_bounds_what_shrinks_towards_it_and_flops_are_fixed() -> None:
    rows = family("swiglu") + family("new", gain=GAIN, shift=16.0)
    for one in rows:
        # Whole steps: smaller models come closer to the budget.
        one["flops"] *= 1 - 1e-12 * one["n_params"]
    found = by_place(compare_archs(fitted(rows)), "new")
    for budget in BUDGETS[:2]:
        assert found[budget, "flops"].status == "lower_bound"
        assert found[budget, "n_params"].status == "lower_bound"
        assert found[budget, "n_tokens"].status == "no_optimum"


def test_an_edge_of_the_reference_is_an_upper_bound() -> None:
    rows = family("swiglu", budgets=BUDGETS[1:]) + family(
        "swiglu", budgets=BUDGETS[:1], shift=1 / 16
    )
    rows += family("new", gain=1.2)
    found = by_place(compare_archs(fitted(rows)), "new")
    first = found[BUDGETS[0], "flops"]
    # Its edge costs the reference loss, so its frontier is better than the line through the edge.
    assert first.status == "upper_bound"
    assert first.multiplier is not None
    assert first.multiplier > 1.2
    assert found[BUDGETS[1], "flops"].status == "estimate"
    # Two optima of the reference do not tell its floor, which an estimate takes from the prior.
    assert found[BUDGETS[1], "flops"].multiplier == pytest.approx(1.2, rel=0.02)
    # Both arms at an edge bound nothing.
    own = by_place(compare_archs(fitted(rows)), "swiglu")
    assert own[BUDGETS[0], "flops"].status == "no_optimum"


@pytest.mark.parametrize(
    ("gain", "status"), [(GAIN, "lower_bound"), (0.5, "upper_bound"), (1.0, "estimate")]
)
def test_one_budget_tells_the_side(gain: float, status: str) -> None:
    rows = family("swiglu", budgets=[1e18]) + family("new", gain=gain, budgets=[1e18])
    one = by_place(compare_archs(fitted(rows)), "new")[1e18, "flops"]
    assert (one.status, one.multiplier) == (status, pytest.approx(1.0))


def test_two_budgets_have_a_slope() -> None:
    rows = family("swiglu", budgets=BUDGETS[:2]) + family("new", gain=0.5, budgets=BUDGETS[:2])
    found = by_place(compare_archs(fitted(rows)), "new")
    # They do not tell the floor, and the reference has none: beyond and between them it shows.
    beyond, between = (found[b, "flops"].multiplier for b in BUDGETS[:2])
    assert 0.5 < beyond < 0.53
    assert 0.48 < between < 0.5
    assert [found[b, "flops"].extrapolated for b in BUDGETS[:2]] == [True, False]


def test_typed_verdicts_where_there_is_no_frontier() -> None:
    new = family("new", gain=GAIN)
    rising = [
        {**one, "loss": one["loss"] * (1.5 if one["budget_flops"] == 1e18 else 1)}
        for one in family("swiglu")
    ]
    found = compare_archs(fitted(rising + new), resources=("flops",))
    assert {r.status for r in found} == {"not_monotone"}
    two_sizes = [one for one in family("swiglu") if one["budget_flops"] == 1e17][:2]
    found = compare_archs(fitted(two_sizes + new), resources=("flops",))
    assert {r.status for r in found if r.arch == "new"} == {"no_reference"}
    assert {r.status for r in found if r.arch == "swiglu"} == {"no_optimum"}
    assert all(r.meaning for r in found)
    assert compare_archs(fitted([])) == ()


def test_the_reference_is_swiglu_else_mlp_else_the_first_label() -> None:
    assert default_reference(["sgatlin", "mlp", "swiglu"]) == "swiglu"
    assert default_reference(["sgatlin", "mlp"]) == "mlp"
    assert default_reference(["b", "a"]) == "a"
    with pytest.raises(UserError, match="reference = 'moe'"):
        compare_archs(fitted(family("swiglu")).under(reference="moe"))


def test_rescaling_and_row_order_change_no_multiplier() -> None:
    rows = family("swiglu", noise=0.002) + family("new", gain=GAIN, noise=0.002)
    plain = compare_archs(fitted(rows, n_boot=50))
    shuffled = random.Random(3).sample(rows, len(rows))
    assert compare_archs(fitted(shuffled, n_boot=50)) == plain
    smaller = [{**one, "n_params": one["n_params"] / 1000} for one in rows]
    for one, other in zip(compare_archs(fitted(smaller)), compare_archs(fitted(rows)), strict=True):
        if one.multiplier is not None:
            assert one.multiplier == pytest.approx(other.multiplier, rel=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.2, 5.0), st.floats(0.2, 5.0))
def test_more_gain_is_a_larger_multiplier_and_swapping_inverts_it(one: float, two: float) -> None:
    rows = family("a", gain=one, budgets=BUDGETS) + family("b", gain=two, budgets=BUDGETS)
    fits = fitted(rows)
    forth = by_place(compare_archs(fits.under(reference="a"), resources=("flops",)), "b")
    back = by_place(compare_archs(fits.under(reference="b"), resources=("flops",)), "a")
    for key, row_forth in forth.items():
        assert row_forth.multiplier == pytest.approx(two / one, rel=1e-6)
        assert back[key].multiplier == pytest.approx(one / two, rel=1e-6)


def test_exponent_differences_are_those_of_the_shared_budgets() -> None:
    rows = family("swiglu", noise=0.001) + family("new", power=0.6, noise=0.001)
    found = {d.axis: d for d in exponent_differences(fitted(rows, n_boot=300))}
    assert found["n_params"].difference == pytest.approx(0.1, abs=0.02)
    assert found["n_params"].order_claimed == "higher"
    assert found["loss"].order_claimed == "none"
    # An arch with one budget has none to share.
    few = fitted(family("swiglu") + family("new", budgets=[1e17]))
    assert {d.status for d in exponent_differences(few)} == {"too_few"}
    assert {d.difference for d in exponent_differences(few)} == {None}
    # The bent budget of one arch is left out of both.
    bent = family("swiglu") + family("new", power=0.6)
    bent = [r for r in bent if (r["arch"], r["budget_flops"]) != ("new", 1e19)]
    for one in bent:
        if (one["arch"], one["budget_flops"]) == ("swiglu", 1e19):
            one["n_params"] *= 3
    for reference, sign in (("swiglu", 1), ("new", -1)):
        shared = {d.axis: d for d in exponent_differences(fitted(bent).under(reference=reference))}
        assert shared["n_params"].difference == pytest.approx(sign * 0.1)


def test_a_difference_of_exponents_is_over_the_budgets_that_a_draw_left_to_both() -> None:
    rows = family("swiglu") + family("new")
    fits = fitted(rows, n_boot=4)
    draws = fits.draws["n_params", "parabola"]
    for arch, bend in (("swiglu", 1.0), ("new", 1.5)):
        for budget in BUDGETS:
            size = budget**0.5 * (bend if budget == BUDGETS[2] else 1.0)
            draws.x_opt[arch, budget] = np.full(4, size)
    draws.x_opt["swiglu", BUDGETS[2]][1:] = np.nan
    draws.x_opt["new", BUDGETS[1]][2:] = np.nan
    (found,) = exponent_differences(fits, ["n_params"])
    # Draw 0 has all budgets; draw 1 not the bent one; the others one only.
    slopes = np.polyfit(np.log(BUDGETS), [0.0, 0.0, math.log(1.5)], 1)[0], 0.0
    assert (found.n_boot, found.n_failed) == (4, 2)
    assert found.ci_hi == pytest.approx(0.975 * slopes[0])
    assert found.ci_lo == pytest.approx(0.025 * slopes[0])


def test_exponents_of_both_families_have_one_kind_of_compute() -> None:
    spent = {
        budget: budget * share for budget, share in zip(BUDGETS, (0.6, 0.8, 0.99), strict=True)
    }
    full = family("swiglu")
    short = [{**r, "flops": spent[r["budget_flops"]]} for r in family("new")]
    slope = np.polyfit(np.log(list(spent.values())), 0.5 * np.log(BUDGETS), 1)[0]
    (found,) = exponent_differences(fitted(full + short), ["n_params"])
    assert found.difference == pytest.approx(slope - 0.5, abs=1e-9)
    unknown = [{**r, "flops": None} for r in full]
    (found,) = exponent_differences(fitted(unknown + short), ["n_params"])
    assert found.difference == pytest.approx(0.0, abs=1e-9)


def test_an_order_is_claimed_budget_by_budget() -> None:
    rows = family("swiglu", noise=0.001)
    rows += family("new", gain=2, noise=0.001, budgets=BUDGETS[:2])
    rows += family("new", gain=0.5, noise=0.001, budgets=BUDGETS[2:])
    orders = pair_orders(fitted(rows, n_boot=200))
    assert all(pair.claimed for pair in orders)
    assert [pair.better for pair in orders] == ["new", "new", "swiglu"]

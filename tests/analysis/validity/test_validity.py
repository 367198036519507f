"""Checks of validity on tables in which each finding is planted."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import pytest

from analysis.made_runs import parabola, row, spaced
from isoflop.accounting import get_convention, stored_ledger
from isoflop.analysis.fit import FitOptions, Fits, fit_optima
from isoflop.analysis.optima_methods import DEFAULT_METHOD, METHODS
from isoflop.analysis.points import select_points
from isoflop.analysis.validity import Finding, Validity, validity
from isoflop.errors import UserError

BUDGETS = (1e17, 1e18, 1e19, 1e20)


def family(
    arch: str, gain: float = 1.0, noise: float = 0.001, seeds: int = 1, **extras: Any
) -> list[dict[str, Any]]:
    """Seven sizes about N* = C^0.5 / 6^0.5 with L* = 20 (gain · C)^-0.05."""
    rng = random.Random(arch)
    rows = []
    for budget in BUDGETS:
        best = math.sqrt(budget / 6)
        curve = parabola(best, 20 * (gain * budget) ** -0.05, bend=0.02)
        for size in spaced(best, num=7):
            for seed in range(seeds):
                loss = curve(size) * math.exp(rng.gauss(0, noise))
                rows.append(row(arch, budget, size, loss, flops=budget, seed=seed, **extras))
    return rows


def fitted(
    rows: list[dict[str, Any]], n_boot: int = 200, all_methods: bool = False, **chosen: Any
) -> Fits:
    options = FitOptions(n_boot=n_boot, **chosen)
    selected = select_points(rows, options.repeats, screened=options.screen)
    if all_methods:
        return fit_optima(selected, options)
    options = replace(options, method="parabola")
    return fit_optima(selected, options, methods=("parabola",), axes=("n_params",))


def checked(rows: list[dict[str, Any]], **options: Any) -> Validity:
    return validity(rows, fitted(rows, **options))


TWO = family("swiglu") + family("new", gain=2.0)


def one(findings: tuple[Finding, ...], **wanted: Any) -> Finding:
    found = [f for f in findings if all(getattr(f, k) == v for k, v in wanted.items())]
    assert len(found) == 1, found
    return found[0]


def test_findings_fit_their_table_and_do_not_depend_on_row_order() -> None:
    found = checked(TWO, n_boot=50)
    assert checked(random.Random(1).sample(TWO, len(TWO)), n_boot=50) == found
    assert {f.check for f in found.findings} == {
        "selection",
        "held_out",
        "method",
        "convention",
        "seed_noise",
        "unequal_noise",
        "achieved_budget",
        "off_centre",
        "ranking",
    }
    assert validity([], fitted([])) == Validity(findings=())
    with pytest.raises(UserError, match="reference"):
        validity(TWO, fitted(TWO, n_boot=0).under(reference="moe"))


def test_rows_let_in_move_the_answer_and_each_exclusion_is_listed() -> None:
    spiked = row("new", 1e20, 1e9, 2.2, flops=1e20, excluded_reason="loss spike", run_id="r1")
    lost = row("new", 1e20, 2e9, None, status="failed", status_reason="out of memory")
    found = checked([*TWO, spiked, lost])
    listed = [f for f in found.of("selection", "excluded_loss")]
    assert [(f.variant, f.value, f.detail) for f in listed] == [
        ("excluded_in_table", 2.2, "r1 loss spike"),
        ("failed", None, "out of memory"),
    ]
    assert one(found.of("selection"), quantity="rows_let_in").value == 1.0
    moved = one(found.of("selection"), arch="new", quantity="exponent", axis="n_params")
    assert moved.status == "moves"
    assert moved.value is not None
    assert moved.baseline == pytest.approx(0.5, abs=0.02)
    still = one(found.of("selection"), arch="swiglu", quantity="exponent", axis="n_params")
    assert (still.status, still.value) == ("ok", still.baseline)
    at_last = one(found.of("selection"), quantity="multiplier", arch="new", budget_flops=1e20)
    assert at_last.status == "moves"
    assert at_last in found.moved


def test_without_excluded_rows_the_line_says_so() -> None:
    lines = checked(TWO, n_boot=0).of("selection")
    assert [(f.quantity, f.value) for f in lines] == [("rows_let_in", 0.0)]


def test_held_out_errors_of_a_power_law_are_zero_and_of_a_bend_are_not() -> None:
    straight = family("swiglu", noise=0.0)
    found = checked(straight, n_boot=0)
    scores = [f for f in found.of("held_out") if f.variant == "power_law"]
    # Two held-out budgets, four laws each, of which the table was fitted for two.
    assert len(scores) == 8
    measured = [f.value for f in scores if f.axis in ("n_params", "loss")]
    assert measured == pytest.approx([0.0] * 4, abs=1e-9)
    assert {f.status for f in scores if f.axis == "n_tokens"} == {"not_measured"}
    for each in straight:
        if each["budget_flops"] == 1e20:
            each["loss"] *= 1.1
    bent = checked(straight, n_boot=0)
    last = one(bent.of("held_out"), axis="loss", budget_flops=1e20)
    assert last.value == pytest.approx(1 / 1.1 - 1)
    assert "1e17, 1e18, 1e19" in (last.detail or "")
    assert bent.heldout_error("swiglu", "loss") == pytest.approx(1 - 1 / 1.1)
    assert bent.heldout_error("swiglu", "n_params") == pytest.approx(0.0, abs=1e-9)
    assert bent.heldout_error("mlp", "loss") is None


def test_a_surface_fitted_below_predicts_the_next_budget() -> None:
    rows = [
        row("mlp", c, n, 1.7 + 400 / n**0.34 + 400 / (c / 6 / n) ** 0.31, flops=c)
        for c in BUDGETS
        for n in spaced(math.sqrt(c / 6), num=7)
    ]
    found = checked(rows, n_boot=0)
    surface = [f for f in found.of("held_out") if f.variant == "chinchilla"]
    assert [f.budget_flops for f in surface] == [1e19, 1e20]
    assert all(f.value == pytest.approx(0.0, abs=1e-5) for f in surface)
    assert found.heldout_error("mlp", None) == surface[-1].value


def test_methods_and_axes_stand_side_by_side_and_a_kept_ranking_is_ok() -> None:
    found = checked(TWO, n_boot=100, all_methods=True)
    rankings = found.of("method", "ranking")
    assert len(rankings) == 3 * len(METHODS) * len(BUDGETS)
    assert {f.status for f in rankings} == {"ok"}
    assert {f.detail for f in rankings} == {"new > swiglu"}
    exponents = [f for f in found.of("method", "exponent") if f.arch == "new"]
    assert {(f.axis, f.method) for f in exponents} == {
        (axis, method)
        for axis in ("n_params", "n_tokens", "n_active", "loss")
        for method in METHODS
    }
    own = one(
        found.of("method"), arch="new", quantity="exponent", variant=f"n_params/{DEFAULT_METHOD}"
    )
    assert own.value == own.baseline
    assert own.status == "ok"


LEDGER = {
    "flops_attn_proj": 100.0,
    "flops_attn_scores": 64.0,
    "flops_experts": 186.0,
    "flops_router": 0.0,
    "n_layers": 1,
    "n_heads": 1,
    "seq_len": 4,
}


def test_another_convention_turns_a_claimed_order_round() -> None:
    # Under `paper` both cost the same; the head, which `paper` leaves out, is all on one side.
    rows = family("swiglu", flops_head=0.0, **LEDGER)
    rows += family("new", gain=1.5, flops_head=1400.0, **LEDGER)
    for each in rows:
        each.update(n_params=int(each["n_params"]), n_tokens=int(each["n_tokens"]))
        each.update(n_active=each["n_params"], n_nonembed=each["n_params"])
        each["flops"] = float(get_convention("paper")(stored_ledger(each)) * each["n_tokens"])
    found = checked(rows)
    budget = 1e18
    own = one(
        found.of("convention", "ranking"), budget_flops=budget, variant="paper (the table's own)"
    )
    assert (own.status, own.detail) == ("ok", "new > swiglu")
    other = one(found.of("convention", "ranking"), budget_flops=budget, variant="paper+head")
    assert other.status == "moves"
    assert other.detail == "swiglu > new; new over swiglu turns round"
    priced = one(
        found.of("convention", "multiplier"), budget_flops=budget, variant="paper+head", arch="new"
    )
    # (350 + 1400) / 350 times the price.
    assert priced.value is not None
    assert priced.baseline is not None
    assert priced.value == pytest.approx(priced.baseline / 5)
    assert priced.status == "moves"


def test_a_table_without_components_is_priced_by_its_parameters() -> None:
    found = checked(TWO, n_boot=0)
    variants = {f.variant for f in found.of("convention")}
    assert variants == {"6nd (the table's own)", "6nd_active"}
    active = found.of("convention", "multiplier")
    assert {f.status for f in active} == {"not_measured"}
    # n_active is half of n_params for both: the ratio stays.
    for each in active:
        assert each.value == pytest.approx(each.baseline)


def test_seed_noise_is_measured_from_repeated_cells_only() -> None:
    assert one(checked(TWO, n_boot=0).of("seed_noise"), arch=None).status == "not_measured"
    found = checked(family("swiglu", noise=0.01, seeds=4), n_boot=0)
    whole = one(found.of("seed_noise"), arch=None)
    assert whole.n_points == len(BUDGETS) * 7 * 3
    assert whole.value == pytest.approx(0.01, rel=0.25)
    assert whole.ci_lo is not None
    assert whole.ci_hi is not None
    assert whole.ci_lo < 0.01 < whole.ci_hi
    # Square roots of 84 over the 97.5 % and 2.5 % points of chi squared with 84 degrees.
    assert whole.ci_lo / whole.value == pytest.approx(math.sqrt(84 / 111.242), rel=1e-4)
    assert whole.ci_hi / whole.value == pytest.approx(math.sqrt(84 / 60.540), rel=1e-4)


def test_runs_far_from_their_budget_are_called_out() -> None:
    rows = family("swiglu")
    rows[3]["flops"] = 0.9e17
    rows[8]["flops"] = 2e17
    rows[15]["flops"] = None
    found = checked(rows, n_boot=0, screen=False).of("achieved_budget")
    first, second, third, fourth = found
    assert first.status == "attention"
    assert first.value == pytest.approx(-0.1 / 7)
    assert second.status == "attention"
    assert "nearer to another budget" in (second.detail or "")
    assert (third.status, third.n_points) == ("ok", 6)
    assert fourth.value == 0.0


def test_an_optimum_off_the_centre_and_its_drift() -> None:
    rows = [
        row("mlp", c, n, parabola(1e7 * 2**i)(n), flops=c)
        for i, c in enumerate(BUDGETS[:3])
        for n in spaced(1e7, num=5, factor=8.0)
    ]
    found = checked(rows, n_boot=0).of("off_centre")
    assert [f.value for f in found] == pytest.approx([0.0, 1 / 3, 2 / 3, 1 / 3], abs=1e-9)
    assert [f.status for f in found] == ["ok", "ok", "attention", "attention"]


@pytest.mark.parametrize(
    ("edges", "way"),
    [({0: 8.0}, "downwards"), ({3: 1 / 8}, "downwards"), ({0: 1 / 8}, "upwards"),
     ({3: 8.0}, "upwards"), ({0: 8.0, 3: 8.0}, "either way")],
)  # fmt: skip
def test_optima_left_out_at_edges_say_which_way_they_bias_the_law(
    edges: dict[int, float], way: str
) -> None:
    # At the named budgets the grid's centre is that factor off the optimum.
    rows = [
        row("swiglu", c, n, parabola(1e7)(n), flops=c)
        for index, c in enumerate((1e17, 1e18, 1e19, 1e20))
        for n in spaced(1e7 * edges.get(index, 1.0), num=5)
    ]
    (found,) = checked(rows, n_boot=0).of("selected_optima")
    assert (found.status, found.value, found.n_points) == (
        "attention",
        float(len(edges)),
        4 - len(edges),
    )
    assert found.detail is not None
    assert f"biased {way}" in found.detail
    inside = [r for r in rows if r["budget_flops"] in (1e18, 1e19)]
    assert checked(inside, n_boot=0).of("selected_optima") == ()


def test_a_size_that_occurs_twice_with_one_seed() -> None:
    rows = family("swiglu")
    again = {**rows[2], "loss": rows[2]["loss"] + 0.01}
    found = checked([*rows, again], n_boot=0, repeats="seeds").of("duplicate_size")
    assert [(f.arch, f.budget_flops, f.value) for f in found] == [("swiglu", 1e17, 1.0)]
    assert checked(family("swiglu", seeds=2), n_boot=0).of("duplicate_size") == ()

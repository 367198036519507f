"""Rules of hypotheses: what is read, what is refused, and the three verdicts."""

from __future__ import annotations

from typing import Any

import pytest

from analysis.made_runs import parabola, row, spaced
from isoflop.analysis.compare.claims import deciding
from isoflop.analysis.fit import FitOptions, Fits, fit_optima
from isoflop.analysis.hypotheses import judge
from isoflop.analysis.points import select_points
from isoflop.analysis.rules import Rule, parse_rule
from isoflop.study import Hypothesis

BUDGETS = (1e17, 1e18, 1e19)


def rows(arch: str, gain: float, power: float = 0.5, shift: float = 1.0) -> list[dict[str, Any]]:
    """A family whose loss at C is the reference's at gain · C, with a zigzag of one part in 1e3."""
    made = []
    for budget in BUDGETS:
        curve = parabola(budget**power, 20 * (gain * budget) ** -0.05, bend=0.03)
        for index, size in enumerate(spaced(budget**power * shift, num=7)):
            loss = curve(size) * (1 + 0.001 * (-1) ** index)
            made.append(row(arch, budget, size, loss, flops=budget))
    return made


def fits(n_boot: int = 300) -> Fits:
    mixed = [one for one in rows("mixed", 2.0) if one["budget_flops"] < 1e19]
    mixed += [one for one in rows("mixed", 0.5) if one["budget_flops"] == 1e19]
    # Its optimum is close to the end of the grid: some draws lose it.
    brink = rows("brink", 3.0, shift=4**-0.97)
    table = (
        mixed
        + brink
        + rows("base", 1.0)
        + rows("better", 2.0, power=0.6)
        + rows("edge", 3.0, shift=1 / 20)
    )
    options = FitOptions(n_boot=n_boot, method="parabola")
    return fit_optima(
        select_points(table), options, methods=("parabola",), axes=("n_params", "n_tokens")
    )


FITS = fits()


def verdict(rule: str, of: Fits = FITS) -> tuple[str, str]:
    (found,) = judge([Hypothesis(id="H1", claim="a claim", decide=rule)], of)
    assert (found.id, found.claim, found.decide) == ("H1", "a claim", rule)
    return found.verdict, found.detail


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("multiplier(better, base) lower bound > 1 at every budget", "supported"),
        ("multiplier(better, base) > 1", "supported"),
        ("multiplier(better, base) >= 1.5 at the largest budget", "supported"),
        ("multiplier(better, base) upper bound < 3 at 1e18", "supported"),
        ("multiplier(better, base) < 1 at some budget", "not supported"),
        ("multiplier(better, base) lower bound > 2.5 at the smallest budget", "not supported"),
        ("multiplier(base, base) > 1", "not supported"),
        ("multiplier(base, base) >= 1", "supported"),
        # At so many tokens the reference was never measured: no order is claimed.
        ("multiplier(better, base, n_tokens) interval excludes 1", "not supported"),
        ("multiplier(better, base) interval contains 2", "supported"),
        ("exponent(better, n_params) interval contains 0.6", "supported"),
        ("exponent(better, n_params) < 0.5", "not supported"),
        ("exponent(better, n_params) - exponent(base, n_params) lower bound > 0", "supported"),
        ("exponent(better, loss) - exponent(base, loss) interval contains 0", "supported"),
        ("exponent(better, n_tokens) − exponent(base, n_tokens) > −0.05", "not supported"),
        ("loss(better) < loss(base) at every budget", "supported"),
        ("loss(base) < loss(better) at 1e18", "not supported"),
        ("loss(base) / loss(better) lower bound > 1.03 at every budget", "supported"),
        ("loss(base) / loss(better) > 1.05", "not supported"),
    ],
)
def test_rules_with_a_known_answer(rule: str, expected: str) -> None:
    assert verdict(rule)[0] == expected


def test_an_interval_across_the_number_is_undecided_and_shows_its_numbers() -> None:
    answer, detail = verdict("multiplier(better, base) > 2 at 1e18")
    assert answer == "undecided"
    assert detail.startswith("1e18 1.99")
    assert " to " in detail
    assert detail.endswith(": undecided")
    assert "1e19" in verdict("multiplier(better, base) > 2")[1]
    assert "extrapolated" in verdict("multiplier(better, base) > 2 at 1e19")[1]


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ("multiplier(edge, base) > 1", "lower bound"),
        ("loss(edge) < loss(base)", "no interior optimum of both"),
        ("exponent(edge, n_params) > 0", "fewer than two interior optima"),
        ("exponent(edge, n_params) - exponent(base, n_params) > 0", "shared interior optima"),
        ("multiplier(better, base) > 1 at 5e18", "no such budget"),
        ("multiplier(better, moe) > 1", "the table has no arch moe"),
        ("sgatlin should win on FLOPs", "not machine-readable"),
    ],
)
def test_what_the_table_does_not_say_is_undecided(rule: str, reason: str) -> None:
    answer, detail = verdict(rule)
    assert answer == "undecided"
    assert reason in detail


def test_without_intervals_nothing_is_decided() -> None:
    answer, detail = verdict("multiplier(better, base) > 1", fits(n_boot=0))
    assert (answer, "no interval" in detail) == ("undecided", True)


def test_every_and_some_differ_where_budgets_do() -> None:
    assert verdict("multiplier(mixed, base) > 1 at some budget")[0] == "supported"
    assert verdict("multiplier(mixed, base) > 1 at every budget")[0] == "not supported"
    assert verdict("multiplier(mixed, base) > 5 at some budget")[0] == "not supported"


def test_draws_that_lost_their_optimum_support_nothing() -> None:
    answer, detail = verdict("multiplier(brink, base) > 1 at 1e18")
    assert "draws failed" in detail
    assert detail.startswith("1e18 2.94")
    assert answer == "undecided"


def test_one_undecided_budget_leaves_every_undecided_and_some_decided() -> None:
    rule = "multiplier(better, base) interval contains 2"
    assert verdict(f"{rule} at some budget")[0] == "supported"
    # At an edge there is no interval: every is open, some is open too.
    assert verdict("multiplier(edge, base) > 0.5 at some budget")[0] == "undecided"


def test_a_rule_is_read_with_its_defaults() -> None:
    assert parse_rule("multiplier(sgatlin/gelu-post,  swiglu) > 1") == Rule(
        kind="multiplier",
        arch="sgatlin/gelu-post",
        other="swiglu",
        along="flops",
        comparator=">",
        side="lower",
        number=1.0,
        where="every",
    )
    one = parse_rule("loss(a) <= loss(b) at the smallest budget")
    assert one is not None
    assert (one.kind, one.side, one.number, one.where) == ("loss_ratio", "upper", 1.0, "smallest")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "multiplier(a) > 1",
        "multiplier(a, b, joules) > 1",
        "multiplier(a, b) > one",
        "multiplier(a, b) > 1e999",
        "multiplier(a, b) > 1 at noon",
        "multiplier(a, b) > 1 at -1e18",
        "multiplier(a, b) == 1",
        "multiplier(a, b) > 1 and multiplier(b, a) < 1",
        "exponent(a) > 1",
        "exponent(a, wall_s) > 1",
        "exponent(a, n_params) > 1 at every budget",
        "exponent(a, n_params) - exponent(b, n_tokens) > 0",
        "loss(a) > 3",
        "__import__('os').system('true')",
    ],
)
def test_other_text_is_no_rule(text: str) -> None:
    assert parse_rule(text) is None


def test_an_interval_on_one_side_without_a_claim_decides_no_rule() -> None:
    """As beyond the reference's budgets, where the shown interval is cut to end at 1."""
    for strict in ((-0.4, -0.1), (0.1, 0.4)):
        low, high = deciding(strict, "none")
        assert low is not None
        assert high is not None
        assert low < 0 < high
    assert deciding((0.1, 0.4), "higher") == (0.1, 0.4)
    assert deciding((-0.4, -0.1), "lower") == (-0.4, -0.1)
    assert deciding((None, None), "none") == (None, None)

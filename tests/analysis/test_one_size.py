"""Families of one size: means over seeds, paired ratios, and the rules that use them."""

from __future__ import annotations

import math
from typing import Any

import pytest

from analysis.made_runs import row
from isoflop.analysis.compare.claims import rejected_together
from isoflop.analysis.compare.one_size import (
    PairedLoss,
    claim_together,
    has_no_shared_budget,
    is_one_size,
    is_scattered,
    paired_loss,
    seed_means,
)
from isoflop.analysis.fit import FitOptions, Fits, fit_optima
from isoflop.analysis.hypotheses import judge
from isoflop.analysis.points import select_points
from isoflop.analysis.rules import parse_rule
from isoflop.study import Hypothesis

BUDGET = 1e11
# By seed: what the data did to both families alike.
COMMON = (3.0, 3.3, 2.8)


def runs(arch: str, log_gaps: tuple[float, ...], **others: Any) -> list[dict[str, Any]]:
    """One run a seed, each exp(gap) of what the seed does to every family."""
    return [
        row(arch, BUDGET, 1e5, COMMON[seed] * math.exp(gap), seed=seed, **others)
        for seed, gap in enumerate(log_gaps)
    ]


BASE = runs("base", (0.0, 0.0, 0.0))
# Mean 0.02, standard deviation 0.01.
WORSE = runs("worse", (0.01, 0.02, 0.03))
# Student's t at 97.5 % with two degrees of freedom, from a printed table.
T_2 = 4.303


def paired(
    table: list[dict[str, Any]],
    arch: str = "worse",
    reference: str = "base",
    confidence: float = 0.95,
) -> PairedLoss:
    options = FitOptions(confidence=confidence)
    fits = Fits(selection=select_points(table), options=options, optima=())
    return paired_loss(fits, arch, reference, BUDGET)


def verdict(rule: str, table: list[dict[str, Any]]) -> tuple[str, str]:
    options = FitOptions(n_boot=0, method="parabola")
    fits = fit_optima(select_points(table), options, methods=("parabola",), axes=("n_params",))
    (found,) = judge([Hypothesis(id="H1", claim="a claim", decide=rule)], fits)
    return found.verdict, found.detail


def test_the_ratio_is_paired_and_its_interval_is_students() -> None:
    pair = paired(BASE + WORSE)
    half = T_2 * 0.01 / math.sqrt(3)
    assert pair.ratio == pytest.approx(math.exp(0.02), rel=1e-12)
    assert pair.bounds == pytest.approx((math.exp(0.02 - half), math.exp(0.02 + half)), rel=1e-5)
    assert (pair.seeds, pair.problem, pair.note) == ((0, 1, 2), "", "")
    back = paired(BASE + WORSE, "base", "worse")
    assert back.bounds[0] == pytest.approx(1 / (pair.bounds[1] or 0), rel=1e-12)


def test_a_smaller_confidence_narrows_the_interval() -> None:
    wide, narrow = (paired(BASE + WORSE, confidence=share) for share in (0.95, 0.5))
    # t at 75 % with two degrees of freedom: 0.8165.
    assert math.log(narrow.bounds[1] or 0) == pytest.approx(0.02 + 0.8165 * 0.01 / 3**0.5, abs=1e-6)
    assert (narrow.bounds[1] or 0) < (wide.bounds[1] or 0)


def test_the_pairing_ignores_the_order_and_takes_shared_seeds_only() -> None:
    shuffled = list(reversed(BASE)) + WORSE[1:] + [row("worse", BUDGET, 1e5, 9.0, seed=7)]
    pair = paired(shuffled)
    assert pair.seeds == (1, 2)
    assert pair.ratio == pytest.approx(math.exp(0.025), rel=1e-12)
    assert pair.note == "no partner: worse seed 7, base seed 0"


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (BASE + WORSE[:1], "1 shared seed, two are needed"),
        (BASE[:1] + WORSE[1:], "no shared seeds, two are needed"),
        ([{**one, "seed": None} for one in BASE + WORSE], "worse unexplained repeat"),
        ([{**one, "seed": None} for one in (BASE[0], WORSE[0])], "no shared seeds"),
        (BASE + WORSE + [row("worse", BUDGET, 2e5, 3.0, seed=0)], "worse has 2 sizes"),
        (BASE + WORSE + [row("base", BUDGET, 1e5, 3.1, seed=2)], "base unexplained repeat"),
        (
            BASE + WORSE[:2] + runs("worse", (0, 0, 0), status="diverged", run_id="f" * 64)[2:],
            f"runs left out: worse {'f' * 12} diverged",
        ),
        (BASE + WORSE[:2] + [{**WORSE[2], "status": "missing"}], "worse missing"),
        (BASE + WORSE[:2] + [{**WORSE[2], "excluded_reason": "by hand"}], "excluded in table"),
    ],
)
def test_what_has_no_fair_interval_is_undecided_with_its_reason(
    table: list[dict[str, Any]], reason: str
) -> None:
    answer, detail = verdict("seed_mean(worse) > seed_mean(base)", table)
    assert answer == "undecided"
    assert reason in detail


def test_another_budget_or_a_copy_of_a_run_does_not_disturb() -> None:
    elsewhere = [row("worse", 1e12, 1e5, None, status="diverged", seed=0)]
    pair = paired(BASE + WORSE + WORSE[:1] + elsewhere)
    assert pair.problem == ""


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("seed_mean(worse) / seed_mean(base) interval contains 1.03", "supported"),
        ("seed_mean(worse) / seed_mean(base) interval excludes 1.1", "supported"),
        ("seed_mean(worse) / seed_mean(base) > 1", "undecided"),
        ("seed_mean(far) > seed_mean(base)", "supported"),
        ("seed_mean(far) / seed_mean(base) lower bound > 1.4 at every budget", "supported"),
        ("seed_mean(base) < seed_mean(far) at the largest budget", "supported"),
        ("seed_mean(base) > seed_mean(far) at 1e11", "not supported"),
        ("seed_mean(base) >= seed_mean(base) at the smallest budget", "supported"),
        ("seed_mean(base) < seed_mean(far) at 1e12", "undecided"),
        ("seed_mean(base) < seed_mean(absent)", "undecided"),
        # It asks for optima, which one size does not have.
        ("loss(base) < loss(far)", "undecided"),
    ],
)
def test_rules_on_seed_means(rule: str, expected: str) -> None:
    table = BASE + WORSE + runs("far", (0.4, 0.41, 0.4))
    assert verdict(rule, table)[0] == expected


def test_the_detail_shows_ratio_interval_and_seeds() -> None:
    _, detail = verdict("seed_mean(worse) > seed_mean(base)", BASE + WORSE)
    assert detail == "1e11 1.02 (0.9952 to 1.046; seeds 0, 1, 2): undecided"


def test_the_rule_is_read_with_labels_that_have_slashes() -> None:
    found = parse_rule("seed_mean(ladder/1-raw-gate) <= seed_mean(raw/gelu-after)")
    assert found is not None
    assert (found.kind, found.arch, found.other) == (
        "seed_ratio",
        "ladder/1-raw-gate",
        "raw/gelu-after",
    )
    assert (found.comparator, found.side, found.number, found.where) == (
        "<=",
        "upper",
        1.0,
        "every",
    )
    assert parse_rule("seed_mean(a) > 3") is None
    assert parse_rule("seed_mean(a) / loss(b) > 1") is None
    assert parse_rule("seed_mean(a) < loss(b)") is None


def test_means_are_geometric_and_only_of_single_sizes() -> None:
    table = BASE + [row("two", BUDGET, size, 3.0, seed=0) for size in (1e5, 2e5)]
    (mean,) = seed_means(select_points(table))
    assert mean.loss == pytest.approx((3.0 * 3.3 * 2.8) ** (1 / 3), rel=1e-12)
    assert (mean.arch, mean.n_seeds) == ("base", 3)
    assert mean.loss_sd == pytest.approx(0.2517, abs=1e-4)
    assert not is_one_size(select_points(table))
    assert is_one_size(select_points(BASE + WORSE))


def test_sizes_that_all_failed_still_make_a_study_of_many_sizes() -> None:
    unfinished = [*BASE, row("base", BUDGET, 2e5, None, status="missing", seed=0)]
    assert not is_one_size(select_points(unfinished))
    assert not is_one_size(select_points([]))


def test_holm_rejects_from_the_smallest_and_stops_at_the_first_that_fails() -> None:
    # 0.01 <= 0.05 / 4, 0.013 <= 0.05 / 3, 0.03 > 0.05 / 2: the last is not looked at.
    assert rejected_together([0.03, 0.01, 0.04, 0.013], 0.05) == [False, True, False, True]
    # What is not tested takes no share: 0.03 <= 0.05 / 1.
    assert rejected_together([None, 0.03, None], 0.05) == [False, True, False]
    assert rejected_together([], 0.05) == []


def test_an_order_is_claimed_for_all_comparisons_of_a_table_together() -> None:
    """Alone each is claimed: |t| = 0.02 sqrt(3) / 0.004 = 8.7 with two degrees, p = 0.013."""
    base = runs("base", (0.0, 0.0, 0.0))
    others = {f"x{i}": runs(f"x{i}", (0.016, 0.02, 0.024)) for i in range(5)}
    others["far"] = runs("far", (0.4, 0.4001, 0.4002))
    table = base + [one for each in others.values() for one in each]
    pairs = [paired(table, arch) for arch in others]
    assert all((pair.bounds[0] or 0.0) > 1.0 for pair in pairs)
    claims = dict(zip(others, claim_together(pairs, 0.95), strict=True))
    assert {arch for arch, claim in claims.items() if claim.order == "higher"} == {"far"}
    assert all((claims[f"x{i}"].bounds[0] or 2.0) < 1.0 for i in range(5))
    (alone,) = claim_together(pairs[:1], 0.95)
    assert alone.bounds == pytest.approx(pairs[0].bounds)
    assert alone.order == "higher"
    lost = paired(base + others["x0"][:1], "x0")
    assert claim_together([lost, pairs[0]], 0.95)[0].bounds == (None, None)
    # A comparison without an interval takes no share of the 5 %.
    assert claim_together([lost, pairs[0]], 0.95)[1] == alone


def test_identical_losses_claim_nothing_and_equal_gaps_claim_their_order() -> None:
    same = runs("same", (0.0, 0.0, 0.0))
    shifted = runs("shifted", (0.25, 0.25, 0.25))
    pairs = [paired(BASE + same + shifted, arch) for arch in ("same", "shifted")]
    assert [claim.order for claim in claim_together(pairs, 0.95)] == ["none", "higher"]


def test_sizes_that_share_no_budget_are_told_from_one_size_each() -> None:
    ladder = [
        row(arch, 1e17 * 2**i, 1e7 * 2**i, 3.0 - i / 9, seed=0) for arch in "ab" for i in range(4)
    ]
    achieved = [{**one, "budget_flops": 1e17 * 1.1**i} for i, one in enumerate(ladder)]
    for table, no_shared, scattered in (
        (BASE + WORSE, False, False),
        (ladder, True, False),
        (achieved, True, True),
        ([*achieved, row("a", 1e17, 9e7, 3.0)], False, False),
        ([], False, False),
    ):
        selection = select_points(table)
        assert has_no_shared_budget(selection) is no_shared
        assert is_scattered(selection) is scattered

"""Coverage of the intervals on simulated studies; tests/benchmarks/coverage.py has all cases.

Few studies, so the bounds are looser than what the benchmark asks; each of them failed on the
release before its remedy, by far.
"""

from __future__ import annotations

import functools

import pytest

from benchmarks.coverage import CASES, Count, Record, Settings, Tally, measure

OPTIMA = ("ln N*", "L*")


NUM_STUDIES = 20


@functools.cache
def measured(title: str, num_studies: int = NUM_STUDIES) -> Tally:
    (index,) = (index for index, case in enumerate(CASES) if case.title == title)
    return measure([index], num_studies, Settings(n_boot=200, tokens=False))[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "title",
    [
        "noise 0.005, 1 seed, m = 1",
        "noise 0.002, 3 seeds, m = 1",
        "unequal noise, reference quiet, m = 1",
        "falling noise, 3 seeds, m = 1",
        "seed noise .001, scatter .006, 3 seeds, m = 1",
        "sizes ± 16 ×, noise .002, m = 2",
    ],
)
def test_intervals_hold_the_truth_as_often_as_they_say(title: str) -> None:
    tally = measured(title)
    smallest = min(tally.case.reference.budgets)
    for name in OPTIMA:
        assert tally.count(name).missing == 0
        assert tally.count(name).known == 160
        assert 142 <= tally.count(name).hits <= 159
        assert tally.count(name, budget=smallest).hits >= 32
    for name in ("exponent of N*", "exponent of L*"):
        assert tally.count(name).hits >= 34
    assert tally.count("ln m interpolated").hits >= 0.88 * tally.count("ln m interpolated").known


@pytest.mark.slow
@pytest.mark.parametrize(
    ("title", "num_false"),
    [
        ("unequal noise, reference quiet, m = 1", 4),
        ("falling noise, 3 seeds, m = 1", 4),
        ("seed noise .001, scatter .006, 3 seeds, m = 1", 4),
        ("five identical families, noise 0.002", 3),
        ("largest model ends at loss 9, one budget", 2),
        ("largest model ends at loss 9, every budget", 2),
        ("six of 56 rows twice, rounded", 2),
        ("sweep of learning rates, no seeds", 2),
    ],
)
def test_equal_families_are_not_told_apart(title: str, num_false: int) -> None:
    num_studies = 10 if "five" in title else NUM_STUDIES
    assert measured(title, num_studies).rate("false order in a study").times <= num_false


@pytest.mark.slow
@pytest.mark.parametrize(
    "title",
    [
        "new family at 3, 10 and 30 × the reference's last, noise 0.002, m = 1",
        "new family at .3 and .1 × the reference's first, noise 0.002, m = 1.15",
    ],
)
def test_no_order_is_claimed_beyond_the_budgets_of_the_reference(title: str) -> None:
    tally = measured(title, 8)
    assert tally.rate("claim").times == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "title",
    [
        "largest model ends at loss 9, one budget",
        "six of 56 rows twice, rounded",
        "sweep of learning rates, no seeds",
    ],
)
def test_mistakes_in_a_table_are_named(title: str) -> None:
    num_studies = 10 if "five" in title else NUM_STUDIES
    assert measured(title, num_studies).rate("named").times == NUM_STUDIES


@pytest.mark.slow
def test_clean_tables_lose_no_rows() -> None:
    tally = measured("noise 0.005, 1 seed, m = 1")
    assert sum(tally.reasons.values()) <= 0.01 * tally.num_rows


def test_a_count_counts() -> None:
    count = Count()
    for study, (lo, hi) in enumerate([(0.0, 1.0), (2.0, 3.0), (None, None)]):
        record = Record(
            quantity="L*", arch="ref", budget=1e17, estimate=None, lo=lo, hi=hi, truth=0.5
        )
        count.add(record, study)
    assert (count.hits, count.known, count.missing, count.above) == (1, 2, 1, 1)
    assert count.coverage == 0.5
    assert count.standard_error == 0.5

"""Coverage of the intervals on simulated studies; tests/benchmarks/coverage.py has all cases."""

from __future__ import annotations

import pytest

from benchmarks.coverage import CASES, Count, Record, Settings, chosen, measure


@pytest.mark.slow
@pytest.mark.parametrize("case", ["noise 0.005, 1 seed, m = 1", "noise 0.015, 1 seed, m = 1"])
def test_intervals_hold_the_truth_as_often_as_they_say(case: str) -> None:
    (index,) = (index for index in chosen(["coverage"]) if CASES[index].title == case)
    (tally,) = measure([index], 30, Settings(n_boot=300))
    for name in ("ln N*", "ln D*", "L*"):
        count = tally.count(name)
        assert count.missing == 0
        assert count.known == 240
        assert count.coverage is not None
        assert 0.90 <= count.coverage <= 0.98
    for name in ("exponent of N*", "exponent of D*", "exponent of L*"):
        assert tally.count(name).known == 60
        assert tally.count(name).hits >= 53


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

"""Coverage of the intervals on simulated studies; tests/benchmarks/coverage.py has all designs."""

from __future__ import annotations

import pytest

from benchmarks.coverage import DESIGNS, Count, measure
from isoflop.analysis import FitOptions


@pytest.mark.parametrize("design", DESIGNS[:2], ids=lambda design: design.name)
def test_intervals_hold_the_truth_as_often_as_they_say(design: object) -> None:
    (counts,) = measure(design, ["parabola"], 60, FitOptions(n_boot=200)).values()
    for name in ("ln N*", "L*"):
        assert counts[name].missing == 0
        assert 0.90 <= counts[name].hits / counts[name].known <= 0.98
    for name in ("exponent of N*", "exponent of L*"):
        assert counts[name].known == 60
        assert counts[name].hits >= 53


def test_a_count_counts() -> None:
    count = Count()
    for interval in ((0.0, 1.0), (2.0, 3.0), None):
        count.add(interval, 0.5)
    assert str(count) == "0.500 / 1.0000 (1 missing)"

from __future__ import annotations

import pytest

from isoflop.numbers import format_seconds, round_up


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (3599, "59m59s"),
        (3600, "1h00m"),
        (90061, "25h01m"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("count", "rounded"), [(12_301, 13_000), (13_000, 13_000), (99_001, 100_000), (7, 7), (0, 0)]
)
def test_rounding_up_never_goes_below(count: int, rounded: int) -> None:
    assert round_up(count, digits=2) == rounded

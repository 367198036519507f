from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoflop.numbers import format_count, format_flops, format_seconds, read_number, round_up


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


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("125M", 125e6),
        ("3.5B", 3.5e9),
        ("1.2T", 1.2e12),
        ("10k", 1e4),
        (" 70 m ", 70e6),
        ("2 billion", 2e9),
        ("1.5bn", 1.5e9),
        ("1e18", 1e18),
        ("1.E+18", 1e18),
        (".5", 0.5),
        ("16,517,336", 16517336.0),
        ("-1,234.5", -1234.5),
        ("1_000_000", 1e6),
        ("12 %", 0.12),
        ("99.5%", 0.995),
        ("2^20", 2.0**20),
        ("2**20", 2.0**20),
        ("3 × 10^18", 3e18),
        ("1.5*10**-3", 1.5e-3),
        ("−3", -3.0),
        ("1e400", math.inf),
        ("-Infinity", -math.inf),
        (str(2**64 - 1), float(2**64 - 1)),
    ],
)
def test_numbers_are_read_as_people_write_them(text: str, number: float) -> None:
    assert read_number(text) == number


@pytest.mark.parametrize(
    "text",
    [
        *("", "three", "1,5", "0,123", "1,23,456", "12,3456", "1.234,5", "1 000", "1__0", "_1"),
        *("1 epoch", "17Mio", "1h20", "0x10", "１２", "1e", "e5", "--1", "%", "M", "2^", "^2"),
        *("2^99999", "0^-1", "1 2", "nano", "~5", "1e5M%", "10^3^2", "1;5"),
    ],
)
def test_what_is_no_number_is_refused_and_not_guessed(text: str) -> None:
    with pytest.raises(ValueError, match="is no number"):
        read_number(text)


@given(st.floats(allow_nan=False))
def test_what_python_writes_is_read_bit_by_bit(number: float) -> None:
    assert read_number(repr(number)) == number


@given(st.floats(min_value=1.0, max_value=1e14))
def test_what_is_written_for_people_is_read_again(number: float) -> None:
    assert read_number(format_count(number)) == pytest.approx(number, rel=6e-3)
    assert read_number(format_flops(number)) == pytest.approx(number, rel=6e-5)


def test_nan_is_read() -> None:
    assert math.isnan(read_number(" NaN "))

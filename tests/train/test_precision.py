"""Rounding changes losses by less than a seed does: see tests/benchmarks/precision_modes.py."""

from __future__ import annotations

import pytest
import torch

from benchmarks.precision_modes import Sizes, in_tf32, measure


def test_emulated_tf32_is_the_nearest_number_of_ten_bits_ties_to_even() -> None:
    unit = 2.0**-10
    given = [1.0, 1 + unit, 1 + unit / 2, 1 + 1.5 * unit, 1 + 0.51 * unit, -1 - 0.49 * unit, 0.0]
    expected = [1.0, 1 + unit, 1.0, 1 + 2 * unit, 1 + unit, -1.0, 0.0]
    assert in_tf32(torch.tensor(given)).tolist() == expected
    large = torch.randn(10_000, generator=torch.Generator().manual_seed(0)) * 1e20
    error = ((in_tf32(large) - large) / large).abs()
    assert 2.0**-12 < float(error.max()) <= 2.0**-11


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "modes"),
    [
        ("mlp", ["head fp32", "head tf32", "head bf16"]),
        ("sgatlin", ["rows fp32, head fp32", "rows bf16, head tf32"]),
    ],
)
def test_losses_after_300_steps_differ_by_less_than_between_seeds(
    family: str, modes: list[str]
) -> None:
    baseline, *others = measure(family, modes, Sizes(seeds=2, rung=1, layers=1, length=16))
    assert baseline.paired == (0.0, 0.0)
    assert baseline.loss < 4.0
    for row in others:
        # Else nothing was rounded.
        assert row.largest_step > 0
        assert abs(sum(row.paired) / len(row.paired)) < baseline.seed_spread

"""Rates: plain arithmetic, and a peak that is one."""

from __future__ import annotations

import torch

from isoflop.accounting.conventions import get_convention
from isoflop.plan.runs import run_ledger
from isoflop.train.throughput import (
    achieved,
    measured_peak,
    prefixed_flops,
    training_flops_per_token,
)
from made_shapes import rung_spec


def test_rates() -> None:
    rates = achieved(tokens=2000, seconds=4.0, flops_per_token=3e6, peak_flops=6e9)
    assert rates.tokens_per_s == 500
    assert rates.flops_per_s == 1.5e9
    assert rates.share_of_peak == 0.25
    assert str(rates) == "500 tokens/s, 1.5 GFLOP/s (25.0% of peak)"
    unknown = achieved(tokens=2_000_000, seconds=4.0, flops_per_token=3e9, peak_flops=None)
    assert unknown.share_of_peak is None
    assert str(unknown) == "500,000 tokens/s, 1.5 PFLOP/s"


def test_the_conventions_flops_are_counted() -> None:
    spec = rung_spec("sgatlin", 3, "micro-v1")
    for name in ("paper", "paper+head"):
        assert training_flops_per_token(spec, name) == get_convention(name)(run_ledger(spec))
    assert training_flops_per_token(spec) < training_flops_per_token(spec, "paper+head")


def test_a_measured_peak_is_above_what_small_products_reach() -> None:
    peak = measured_peak(torch.device("cpu"), "fp32")
    assert 1e8 < peak < 1e14


def test_units() -> None:
    assert [prefixed_flops(x) for x in (12, 2.5e6, 4e12)] == ["12 FLOP", "2.5 MFLOP", "4 TFLOP"]

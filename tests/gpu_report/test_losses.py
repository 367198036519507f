"""When two trainings pass for equal."""

from __future__ import annotations

import math

import pytest
import torch

from isoflop.gpu_report import losses
from isoflop.gpu_report.records import Job

PLAIN = [5.0 - 0.02 * step for step in range(100)]


def outcomes(monkeypatch, triton, reference=PLAIN, precision="fp32"):
    made = {"bag": PLAIN, "triton": triton, "reference": reference}
    monkeypatch.setattr(losses, "_losses", lambda values, name, device, text: made[name])
    values = {"precision": precision, "num_steps": len(PLAIN)}
    job = Job(stage="losses", case="x", kind="losses", limit_s=1, values=values)
    rows = list(losses.compare_losses(job, torch.device("cpu")))
    return [row.outcome for row in rows if row.unit != "nats"]


def off(share, begin=0):
    return [loss * (1 + share) if step >= begin else loss for step, loss in enumerate(PLAIN)]


def test_what_rounding_does_passes_and_more_than_that_fails_at_once(monkeypatch):
    assert outcomes(monkeypatch, PLAIN) == ["passed"] * 5
    assert outcomes(monkeypatch, off(2e-7)) == ["passed"] * 5
    assert outcomes(monkeypatch, off(1e-5))[:3] == ["failed"] * 3


def test_paths_may_part_later_as_plain_torch_does(monkeypatch):
    assert outcomes(monkeypatch, off(0.008, begin=25)) == ["passed"] * 5
    assert outcomes(monkeypatch, off(0.05, begin=25))[-2:] == ["failed"] * 2
    twice = off(0.02, begin=25)
    assert outcomes(monkeypatch, off(0.05, begin=25), twice) == ["passed"] * 5


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_fails_whoever_has_it(monkeypatch, wrong):
    assert outcomes(monkeypatch, [*PLAIN[:50], wrong, *PLAIN[51:]])[-1] == "failed"
    assert outcomes(monkeypatch, PLAIN, [*PLAIN[:50], wrong, *PLAIN[51:]])[-1] == "failed"

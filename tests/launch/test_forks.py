"""Runs that begin where a longer one passed end in the same bits as if each were trained alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from isoflop.families import family_names
from isoflop.launch import metrics
from isoflop.train import health, routing
from made_trunks import MadeTrunk, alone

LONG, MIDDLE, SHORT = 2, 1, 0


@pytest.fixture(autouse=True)
def cadences(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows every 5, 6 and 12 steps, usage every 4, 5 and 10; and many small spikes."""
    monkeypatch.setattr(metrics, "MAX_METRIC_ROWS", 5)
    monkeypatch.setattr(routing, "LOGGED_STEPS", 6)
    monkeypatch.setattr(health, "SPIKE_MIN_LOSSES", 4)
    monkeypatch.setattr(health, "SPIKE_NATS", -9.0)
    monkeypatch.setattr(health, "SPIKE_SIGMAS", -0.8)


@pytest.mark.parametrize("family", family_names())
def test_branches_are_the_runs_trained_alone(family: str, tmp_path: Path) -> None:
    made = MadeTrunk(tmp_path / "shared", family)
    for number in (LONG, MIDDLE, SHORT):
        assert made.go(number).status == "done"
        wanted = alone(tmp_path / "alone", number, family)
        assert made.ending(number) == wanted
        assert wanted.spikes
        assert bool(wanted.usage) == (family not in ("mlp", "swiglu"))
    assert made.forks(LONG) == [made.fork(SHORT), made.fork(MIDDLE)]
    for number in (MIDDLE, SHORT):
        result = made.of(number).result()
        assert result is not None
        assert result.trunk_steps == made.fork(number)
        (begun,) = made.events(number, "begun", "resumed")
        assert (begun["step"], begun["run_id"]) == (made.fork(number), made.of(LONG).run_id)

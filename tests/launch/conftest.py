"""Fixtures for runs that share a trunk (made_trunks)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from isoflop.launch import execute as executing
from isoflop.launch import metrics
from isoflop.train import health, loop, routing
from made_trunks import Ending, alone


@pytest.fixture
def cadences(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows and usage every 2, 3 and 5 steps; and many small spikes."""
    monkeypatch.setattr(metrics, "MAX_METRIC_ROWS", 4)
    monkeypatch.setattr(routing, "LOGGED_STEPS", 4)
    monkeypatch.setattr(health, "SPIKE_MIN_LOSSES", 2)
    monkeypatch.setattr(health, "SPIKE_NATS", -9.0)
    monkeypatch.setattr(health, "SPIKE_SIGMAS", -0.8)
    monkeypatch.setattr(executing, "_peak", lambda placement, precision: 1e9)


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """An entry for each step that was executed."""
    calls: list[None] = []
    real = loop.gradients_of_batch

    def count(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        return real(*args, **kwargs)

    monkeypatch.setattr(loop, "gradients_of_batch", count)
    return calls


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Ending]:
    """How a run ends that is trained alone; each is trained once."""
    found: dict[str, Ending] = {}

    def of(number: int, family: str = "mlp", **others: Any) -> Ending:
        key = repr((number, family, others))
        if key not in found:
            found[key] = alone(tmp_path_factory.mktemp("alone"), number, family, **others)
        return found[key]

    return of

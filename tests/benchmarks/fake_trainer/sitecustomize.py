"""Tasks whose PYTHONPATH has this folder train nothing: Python runs this file when it starts.

Torch, and what of isoflop.train needs it, is replaced before anything imports it. All the rest of a
task is real: its claim, heartbeat, metrics, tables and result.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

NUM_METRICS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class FakeOutcome:
    """The fields of isoflop.train.loop.RunOutcome."""

    num_steps: int
    status: str = "done"
    status_reason: str | None = None
    loss: float = 2.0
    loss_se: float = 0.1
    perplexity: float = 7.4
    bits_per_byte: float = 2.9
    bits_per_byte_se: float = 0.1
    reference_perplexity: float = 7.4
    wall_s: float = 0.0
    step_s_median: float | None = None
    tokens_per_s: float | None = None
    peak_mem_bytes: int | None = None


def train_run(spec: Any, data: Any, *, hooks: Any, should_stop: Any, **_: Any) -> FakeOutcome:
    """Reports NUM_METRICS steps, the last one among them, at once."""
    from isoflop.train.hooks import StepMetrics

    for step in range(max(0, spec.steps - NUM_METRICS), spec.steps):
        reason = should_stop()
        if reason is not None:
            return FakeOutcome(num_steps=step, status="stopped", status_reason=reason)
        hooks.on_step(
            StepMetrics(step=step, loss=2.0, grad_norm=1.0, lr=1e-3, tokens=step, wall_s=0.0)
        )
    return FakeOutcome(num_steps=spec.steps)


def _replace_training() -> None:
    loop = ModuleType("isoflop.train.loop")
    vars(loop).update(train_run=train_run, Hooks=SimpleNamespace, RunOutcome=FakeOutcome)
    throughput = ModuleType("isoflop.train.throughput")
    vars(throughput).update(
        training_flops_per_token=lambda *_: 1.0,
        measured_peak=lambda *_: 1.0,
        achieved=lambda *_: None,
    )
    sys.modules.update(
        {
            "torch": MagicMock(__version__="none"),
            "isoflop.train.loop": loop,
            "isoflop.train.throughput": throughput,
            "isoflop.train.checkpoint": MagicMock(),
        }
    )


_replace_training()

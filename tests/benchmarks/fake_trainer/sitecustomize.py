"""Tasks whose PYTHONPATH has this folder train nothing: Python runs this file when it starts.

Torch, and what of isoflop.train needs it, is replaced before anything imports it. All the rest of a
task is real: its claim, heartbeat, metrics, tables and result.
"""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

NUM_METRICS = 20


def made_outcome(num_steps: int, status: str = "done", reason: str | None = None) -> Any:
    from isoflop.train.hooks import RunOutcome

    return RunOutcome(
        num_steps=num_steps,
        status=status,
        status_reason=reason,
        loss=2.0,
        loss_se=0.1,
        perplexity=7.4,
        bits_per_byte=2.9,
        bits_per_byte_se=0.1,
        reference_perplexity=7.4,
        wall_s=0.0,
        step_s_median=None,
        tokens_per_s=None,
        peak_mem_bytes=None,
    )


def train_run(spec: Any, data: Any, *, hooks: Any, should_stop: Any, **_: Any) -> Any:
    """Reports NUM_METRICS steps, the last one among them, at once."""
    from isoflop.train.hooks import StepMetrics

    for step in range(max(0, spec.steps - NUM_METRICS), spec.steps):
        reason = should_stop()
        if reason is not None:
            return made_outcome(step, "stopped", reason)
        hooks.on_step(
            StepMetrics(step=step, loss=2.0, grad_norm=1.0, lr=1e-3, tokens=step, wall_s=0.0)
        )
    return made_outcome(spec.steps)


def _replace_training() -> None:
    loop = ModuleType("isoflop.train.loop")
    vars(loop).update(train_run=train_run, Hooks=SimpleNamespace)
    throughput = ModuleType("isoflop.train.throughput")
    vars(throughput).update(
        training_flops_per_token=lambda *_: 1.0,
        measured_peak=lambda *_: 1.0,
        achieved=lambda *_: None,
    )
    sys.modules.update(
        {
            "torch": MagicMock(__version__="none"),
            "isoflop.model": MagicMock(),
            "isoflop.model.weights": MagicMock(),
            "isoflop.train.loop": loop,
            "isoflop.train.throughput": throughput,
            "isoflop.train.checkpoint": MagicMock(),
        }
    )


_replace_training()

"""What a run tells those who watch it. Nothing here reaches back into training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class StepMetrics:
    """What one optimizer step reports."""

    step: int
    """From 0."""
    loss: float
    """Nats per token on the step's batch, before its update."""
    grad_norm: float
    """Before clipping."""
    lr: float
    tokens: int
    """Tokens trained on, this step included."""
    wall_s: float
    """Seconds of training in this attempt; neither set-up nor checkpoints nor evaluation."""


class Accumulator(Protocol):
    """Something gathered over the steps of a run; what it gathered is part of each checkpoint."""

    def state(self) -> dict[str, Any]:
        """Return all of it, as plain JSON values (finite numbers)."""

    def load(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state`."""


def _nothing(*_: Any) -> None:
    pass


@dataclass(frozen=True, kw_only=True, slots=True)
class Hooks:
    """Called by the main rank alone."""

    on_step: Callable[[StepMetrics], None] = _nothing
    """After each completed step."""
    on_event: Callable[[str, dict[str, Any]], None] = _nothing
    """A kind and its values: `resumed` (step), `checkpoint` (step, seconds), `checkpoint_failed`
    (step, reason), `evaluation` (step, loss, loss_se), `spike` and `usage`
    (isoflop.train.health.Monitor)."""
    on_final_weights: Callable[[dict[str, Tensor]], None] | None = None
    """The weights after the last step, evaluated and found finite."""

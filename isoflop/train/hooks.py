"""Callbacks of a run, and its outcome. Nothing here reaches back into training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor

from isoflop.placement import Head


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
        """Restore what :meth:`state` returned."""


def _nothing(*_: Any) -> None:
    pass


@dataclass(frozen=True, kw_only=True, slots=True)
class Hooks:
    """Called by the main rank alone."""

    on_step: Callable[[StepMetrics], None] = _nothing
    """After each completed step."""
    on_event: Callable[[str, dict[str, Any]], None] = _nothing
    """A kind and its values: `resumed` (step), `begun` (step, run_id: whose fork it is),
    `checkpoint` and `fork` (step, seconds), `checkpoint_failed` and `fork_failed` (step, reason),
    `evaluation` (step, loss, loss_se), `spike` and `usage` (isoflop.train.health.Monitor)."""
    on_final_weights: Callable[[dict[str, Tensor]], None] | None = None
    """The weights after the last step, evaluated and found finite."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOutcome:
    """The outcome of a run. Losses and what follows from them are None unless it is done."""

    status: Literal["done", "diverged", "stopped"]
    """Stopped: asked to; a later call with the same checkpoints goes on."""
    status_reason: str | None
    loss: float | None
    """Held-out nats per token."""
    loss_se: float | None
    perplexity: float | None
    bits_per_byte: float | None
    bits_per_byte_se: float | None
    reference_perplexity: float | None
    """The reference implementation's metric; see :class:`isoflop.train.evaluate.Evaluation`."""
    wall_s: float
    """Training in this call: no set-up, no checkpoints, no evaluation."""
    step_s_median: float | None
    """Seconds, over all steps of the run; None where no step was completed."""
    tokens_per_s: float | None
    """Over all steps of the run; None where no step was completed."""
    peak_mem_bytes: int | None
    """Peak since the run began: resident (imports and data included) on the CPU, allocated on
    CUDA; None where the system does not report it."""
    num_steps: int
    """Optimizer steps completed, those before a resumed checkpoint included."""
    head: Head | None = None
    """How the head's products were rounded; see isoflop.placement."""
    trunk_steps: int = 0
    """Of these, the steps that a longer run did before this one left it."""
    trunk_wall_s: float = 0.0
    """Seconds of these steps, which are not in wall_s."""

"""What a training run came to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOutcome:
    """What a run came to. Losses and what follows from them are None unless it is done."""

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
    CUDA; None where the system does not tell."""
    num_steps: int
    """Optimizer steps completed, those before a resumed checkpoint included."""

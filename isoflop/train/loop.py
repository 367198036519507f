"""One training run, from its spec to its outcome.

Letters: B batch, T tokens.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isoflop.data.windows import shift_right
from isoflop.model import Transformer, build_model, next_token_loss
from isoflop.recipe import get_recipe
from isoflop.train.evaluate import Evaluation, evaluate
from isoflop.train.memory import peak_bytes, reset_peak
from isoflop.train.optimizer import build_adamw, clip_gradients, set_learning_rate
from isoflop.train.precision import compute_type
from isoflop.train.schedule import learning_rate

if TYPE_CHECKING:
    from isoflop.data.windows import TokenData, TrainWindows
    from isoflop.plan.identity import RunSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """Where a run executes; never part of its identity."""

    device: str = "cpu"
    """As torch names it."""
    num_threads: int = 1
    """CPU threads of one operator. Results are bit-identical for equal numbers only."""


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
    """Seconds since training started."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOutcome:
    """What a run came to. Losses and what follows from them are None for a diverged run."""

    status: Literal["done", "diverged"]
    status_reason: str | None
    loss: float | None
    """Held-out nats per token."""
    loss_se: float | None
    perplexity: float | None
    bits_per_byte: float | None
    reference_perplexity: float | None
    """The reference implementation's metric; see :class:`isoflop.train.evaluate.Evaluation`."""
    wall_s: float
    """Training only: no set-up, no evaluation."""
    step_s_median: float | None
    """Seconds; None where no step was completed."""
    tokens_per_s: float | None
    """Over the whole training; None where no step was completed."""
    peak_mem_bytes: int | None
    """Peak since the run began: resident (imports and data included) on the CPU, allocated on
    CUDA; None where the system does not tell."""
    num_steps: int
    """Optimizer steps completed."""


def train_run(
    spec: RunSpec,
    data: TokenData,
    *,
    placement: Placement,
    on_step: Callable[[StepMetrics], None],
    on_final_weights: Callable[[dict[str, Tensor]], None] | None = None,
) -> RunOutcome:
    """Trains ``spec`` to its last step and evaluates it on the whole held-out set.

    A loss or gradient norm that is not finite ends the run at the step where it occurs, before
    that step's update. The number of threads is set for the whole process. Two calls with the
    same spec, data and placement give bit-identical losses and weights on the CPU.

    Args:
        spec: what the run is.
        data: the prepared data that ``spec.data_id`` names.
        placement: where to run.
        on_step: called after each completed step.
        on_final_weights: called with the final weights (not after divergence).

    Raises:
        UserError: the recipe, family or schedule does not allow this spec.
    """
    torch.set_num_threads(placement.num_threads)
    device = torch.device(placement.device)
    reset_peak(device)
    # Only for parameters of a user's own modules that declare no initialisers.
    torch.manual_seed(spec.seed)
    model = build_model(spec).to(device)
    clock = _Clock()
    reason = _train(model, spec, data.train_windows(spec.seq_len), clock, on_step)
    if reason is not None:
        return _outcome(reason, None, clock, spec, device)
    evaluation = evaluate(
        model,
        data.heldout(spec.seq_len),
        batch_size=spec.batch_size,
        precision=spec.precision,
    )
    if not math.isfinite(evaluation.loss):
        return _outcome("non-finite held-out loss", None, clock, spec, device)
    if on_final_weights is not None:
        on_final_weights(model.state_dict())
    return _outcome(None, evaluation, clock, spec, device)


class _Clock:
    """Wall-clock of the training steps."""

    def __init__(self) -> None:
        self.step_s: list[float] = []
        self.wall_s = 0.0
        self._started = self._last = time.perf_counter()

    def start(self) -> None:
        self._started = self._last = time.perf_counter()

    def step_done(self) -> None:
        now = time.perf_counter()
        self.step_s.append(now - self._last)
        self.wall_s = now - self._started
        self._last = now


def _train(
    model: Transformer,
    spec: RunSpec,
    windows: TrainWindows,
    clock: _Clock,
    on_step: Callable[[StepMetrics], None],
) -> str | None:
    """Runs all steps; the reason of a divergence, or None."""
    recipe = get_recipe(spec.recipe)
    optimizer = build_adamw(
        model.named_parameters(),
        weight_decay=recipe.weight_decay,
        beta1=recipe.beta1,
        beta2=recipe.beta2,
        eps=recipe.eps,
    )
    warmup_steps = recipe.num_warmup_steps(spec.steps)
    clock.start()
    for step in range(spec.steps):
        lr = learning_rate(
            step,
            spec.steps,
            recipe.peak_lr,
            warmup_steps,
            recipe.decay_fraction,
            recipe.schedule,
        )
        targets_BT = windows.batch(step, spec.batch_size, spec.seed)
        loss, grad_norm = gradients_of_batch(
            model, targets_BT, clip_norm=recipe.clip_norm, precision=spec.precision
        )
        if not math.isfinite(loss):
            return f"non-finite loss at step {step}"
        if not math.isfinite(grad_norm):
            return f"non-finite gradient norm at step {step}"
        set_learning_rate(optimizer, lr)
        optimizer.step()
        clock.step_done()
        on_step(
            StepMetrics(
                step=step,
                loss=loss,
                grad_norm=grad_norm,
                lr=lr,
                tokens=(step + 1) * targets_BT.size,
                wall_s=clock.wall_s,
            )
        )
    return None


def gradients_of_batch(
    model: Transformer, targets_BT: NDArray[np.uint16], *, clip_norm: float | None, precision: str
) -> tuple[float, float]:
    """Sets the clipped gradients of one batch; its loss (nats) and the norm before clipping."""
    device = model.embedding.device
    inputs = torch.from_numpy(shift_right(targets_BT).astype(np.int64)).to(device)
    targets = torch.from_numpy(targets_BT.astype(np.int64)).to(device)
    model.zero_grad(set_to_none=True)
    with compute_type(precision, device):
        loss = next_token_loss(model(inputs), targets)
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return loss.item(), clip_gradients(gradients, clip_norm)


def _outcome(
    reason: str | None,
    evaluation: Evaluation | None,
    clock: _Clock,
    spec: RunSpec,
    device: torch.device,
) -> RunOutcome:
    num_steps = len(clock.step_s)
    tokens = num_steps * spec.batch_size * spec.seq_len
    return RunOutcome(
        status="done" if reason is None else "diverged",
        status_reason=reason,
        loss=None if evaluation is None else evaluation.loss,
        loss_se=None if evaluation is None else evaluation.loss_se,
        perplexity=None if evaluation is None else evaluation.perplexity,
        bits_per_byte=None if evaluation is None else evaluation.bits_per_byte,
        reference_perplexity=None if evaluation is None else evaluation.reference_perplexity,
        wall_s=clock.wall_s,
        step_s_median=statistics.median(clock.step_s) if num_steps else None,
        tokens_per_s=tokens / clock.wall_s if num_steps else None,
        peak_mem_bytes=peak_bytes(device),
        num_steps=num_steps,
    )

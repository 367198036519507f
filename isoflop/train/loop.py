"""One training run, from its spec to its outcome: exact wherever it was stopped before.

Letters: B batch, T tokens.
"""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from isoflop.errors import UserError
from isoflop.model import build_model
from isoflop.placement import Placement
from isoflop.plan.runs import run_ledger
from isoflop.recipe import get_recipe
from isoflop.train.batch import Batch, Prefetch, rank_batch
from isoflop.train.checkpoint import CheckpointError, CheckpointStore
from isoflop.train.compiled import (
    Compiled,
    NotCompiled,
    compared_part,
    compile_model,
    not_compiled,
)
from isoflop.train.evaluate import Evaluation, evaluate, evaluation_windows
from isoflop.train.health import Monitor, check
from isoflop.train.hooks import Accumulator, Hooks, RunOutcome, StepMetrics
from isoflop.train.memory import keep_freed_memory, reset_peak
from isoflop.train.optimizer import learning_rate, recipe_adamw, set_learning_rate
from isoflop.train.ranks import SINGLE, Ranks
from isoflop.train.state import TrainingState, seed_all
from isoflop.train.step import StepGradients, gradients_of_batch, set_float32_products
from isoflop.train.trunk import SharedTrunk

if TYPE_CHECKING:
    from isoflop.data.windows import HeldoutWindows, TokenData
    from isoflop.model.transformer import Transformer
    from isoflop.spec import RunSpec

__all__ = ["Accumulator", "Hooks", "Placement", "RunOutcome", "StepMetrics", "train_run"]


def train_run(
    spec: RunSpec,
    data: TokenData,
    *,
    placement: Placement,
    ranks: Ranks = SINGLE,
    hooks: Hooks | None = None,
    checkpoints: CheckpointStore | None = None,
    keep_weights: bool = False,
    should_stop: Callable[[], str | None] = lambda: None,
    trunk: SharedTrunk | None = None,
) -> RunOutcome:
    """Train ``spec`` to its last step and evaluate it on the held-out set.

    With ``checkpoints`` it begins at the newest complete one, else with a ``trunk`` at a fork. On
    the CPU in float32, losses and weights are bit-identical for the same spec, data and placement,
    wherever the run began and however often it was stopped or killed. A loss or gradient norm that
    is not finite ends the run at the step where it occurs, before that step's update. Number of
    threads, how CUDA multiplies float32, and the way the C library handles freed memory are set for
    the whole process.

    A checkpoint that cannot be written is reported as an event, and training goes on.

    Args:
        spec: what the run is.
        data: the prepared data that ``spec.data_id`` names.
        placement: where to run, and how often to save.
        ranks: the processes that share the run; all of them call this with equal arguments.
        hooks: callbacks; on the main rank only.
        checkpoints: where to save and to begin; None: nothing is saved.
        keep_weights: write a checkpoint of the last step in any case.
        should_stop: asked between steps; a reason ends the run there, after a checkpoint. The
            request of one rank stops all of them at the same step.
        trunk: where it may begin, and the forks that it leaves for others; None: it shares nothing.

    Raises:
        UserError: the recipe, family or schedule does not allow this spec.
        CheckpointError: ``keep_weights``, and the checkpoint of the last step cannot be written.
    """
    torch.set_num_threads(placement.num_threads)
    set_float32_products(placement)
    keep_freed_memory()
    reset_peak(torch.device(placement.device))
    run = _Run(spec, data, placement, ranks, hooks or Hooks(), checkpoints, trunk)
    run.resume()
    ended = run.train(should_stop)
    if ended is not None:
        return run.outcome(*ended, None)
    run.save_last(keep_weights)
    evaluation = run.evaluate_at_the_end()
    if not math.isfinite(evaluation.loss):
        return run.outcome("diverged", "non-finite held-out loss", None)
    run.hand_over_weights()
    return run.outcome("done", None, evaluation)


class _Run:
    """One call of :func:`train_run`, in parts."""

    def __init__(
        self,
        spec: RunSpec,
        data: TokenData,
        placement: Placement,
        ranks: Ranks,
        hooks: Hooks,
        checkpoints: CheckpointStore | None,
        trunk: SharedTrunk | None,
    ) -> None:
        self._spec = spec
        self._data = data
        self._placement = placement
        self._ranks = ranks
        self._hooks = hooks if ranks.is_main else Hooks()
        self._checkpoints = checkpoints
        self._trunk = trunk
        self._recipe = get_recipe(spec.recipe)
        self._clock = Clock()
        self._may_save = checkpoints is not None
        self._saved_step = 0
        self._state = self._fresh_state(torch.device(placement.device))

    def _fresh_state(self, device: torch.device) -> TrainingState:
        """Return a run before its first step."""
        spec, placement = self._spec, self._placement
        seed_all(spec.seed)
        model = _as_planned(build_model(spec), spec).to(device)
        model.checkpoint_activations = placement.checkpoint_activations
        model.head_in_bf16 = placement.head_used == "bf16"
        model.document_end = self._data.end_of_text_id if spec.document_mask else None
        if placement.compiles:
            self._compile(model)
        self._module: nn.Module = self._ranks.wrap(model)
        # After wrapping, which may replace parameters by this rank's part of them.
        optimizer = recipe_adamw(model, self._recipe)
        self._monitor = self._monitor_of(model)
        return TrainingState(
            model=model,
            optimizer=optimizer,
            device=device,
            accumulators={"health": self._monitor},
        )

    def _compile(self, model: nn.Module) -> None:
        """Compile the model if that changes nothing but rounding; report which of the two.

        Where one rank does without it, all do: they are as slow as that one, and round alike.
        """
        spec = self._spec
        part, in_place = compared_part(spec, self._placement.micro_batch, self._ranks)
        found = compile_model(model, part, precision=spec.precision, in_place=in_place)
        (num_without,) = self._ranks.sum([float(isinstance(found, NotCompiled))])
        if num_without and isinstance(found, Compiled):
            not_compiled(model)
            found = NotCompiled(f"{num_without:.0f} of {self._ranks.size} ranks do without it")
        kind = "compiled" if isinstance(found, Compiled) else "not_compiled"
        self._hooks.on_event(kind, found._asdict())

    def _monitor_of(self, model: nn.Module) -> Monitor:
        on_event, trunk = self._hooks.on_event, self._trunk
        if trunk is None:
            return Monitor(model, self._spec, on_event=on_event, ranks=self._ranks)
        return Monitor(
            model,
            self._spec,
            on_event=on_event,
            ranks=self._ranks,
            others=trunk.others,
            on_usage_of=trunk.on_usage_of,
        )

    def resume(self) -> None:
        """Take over where an earlier attempt was saved, or else where another run left a fork."""
        if self._checkpoints is not None:
            self._state.restore(self._checkpoints, self._ranks)
        self._saved_step = self._state.step
        if self._state.step:
            self._hooks.on_event("resumed", {"step": self._state.step})
        elif self._trunk is not None:
            store = self._trunk.begin(self._state, self._ranks)
            if store is not None:
                values = {"step": self._state.step, "run_id": store.run_id}
                self._hooks.on_event("begun", values)

    def train(
        self, should_stop: Callable[[], str | None]
    ) -> tuple[Literal["diverged", "stopped"], str] | None:
        """Run the steps that are left; return why it ended before the last one, or None."""
        cadence = Cadence(self._placement)
        steps = range(self._state.step, self._spec.steps)
        with Prefetch(self._batch_maker(), steps, self._state.device) as batches:
            ready = iter(batches)
            self._clock.go_on()
            while True:
                # Before anything else, so that no checkpoint of a step says that its fork is there.
                self._leave_fork()
                stop = self._agree_to_stop(should_stop(), cadence)
                if stop is not None:
                    return "stopped", stop
                if self._state.step == self._spec.steps:
                    return None
                reason = self._one_step(next(ready)[1])
                if reason is not None:
                    return "diverged", reason

    def _leave_fork(self) -> None:
        """Write the state for shorter runs that leave this one here."""
        if self._trunk is not None and self._trunk.leave(
            self._state,
            self._ranks,
            batch_size=self._spec.batch_size,
            on_event=self._hooks.on_event,
        ):
            self._clock.go_on()

    def _batch_maker(self) -> Callable[[int], Batch]:
        """Return the batch of a step, from its number alone: the data position is an integer."""
        windows = self._data.train_windows(self._spec.seq_len)
        size, seed = self._spec.batch_size, self._spec.seed
        return lambda step: rank_batch(
            windows.batch(step, size, seed), self._ranks, begin_id=windows.begin_id
        )

    def _one_step(self, batch: Batch) -> str | None:
        """Take one optimizer step; return the reason of a divergence, or None."""
        step, model = self._state.step, self._state.model
        with self._monitor.watching(step):
            gradients = gradients_of_batch(
                self._module,
                batch,
                clip_norm=self._recipe.clip_norm,
                precision=self._spec.precision,
                ranks=self._ranks,
                micro_batch=self._placement.micro_batch,
            )
        reason = check(step, gradients.loss, gradients.grad_norm, model, self._ranks)
        if reason is None:
            self._update(gradients)
            self._evaluate_on_the_way()
        return reason

    def _agree_to_stop(self, reason: str | None, cadence: Cadence) -> str | None:
        """Stop, save or go on between two steps, all ranks together."""
        step = self._state.step
        due = step > self._saved_step and step < self._spec.steps and cadence.is_due(step)
        num_stopping, num_due = self._ranks.sum([float(reason is not None), float(due)])
        if num_stopping or num_due:
            self._save()
            cadence.saved()
            self._clock.go_on()
        if not num_stopping:
            return None
        return reason or "another rank was asked to stop"

    def _update(self, gradients: StepGradients) -> None:
        step = self._state.step
        lr = self._learning_rate(step)
        set_learning_rate(self._state.optimizer, lr)
        self._state.optimizer.step()
        self._state.step_s.append(self._clock.step_done())
        self._state.step = step + 1
        self._monitor.step_done(step, gradients.loss)
        self._hooks.on_step(
            StepMetrics(
                step=step,
                loss=gradients.loss,
                grad_norm=gradients.grad_norm,
                lr=lr,
                tokens=self._state.step * self._spec.batch_size * self._spec.seq_len,
                wall_s=self._clock.wall_s,
            )
        )

    def _learning_rate(self, step: int) -> float:
        return learning_rate(
            step,
            self._spec.steps,
            self._recipe.peak_lr,
            self._recipe.num_warmup_steps(self._spec.steps),
            self._recipe.decay_fraction,
            self._recipe.schedule,
        )

    def _save(self) -> None:
        """Write a checkpoint; one that cannot be written is reported once, and training goes on."""
        try:
            self._write_checkpoint()
        except CheckpointError as error:
            if self._may_save:
                values = {"step": self._state.step, "reason": str(error)}
                self._hooks.on_event("checkpoint_failed", values)
            self._may_save = False

    def _write_checkpoint(self) -> None:
        step = self._state.step
        if self._checkpoints is None or step == self._saved_step:
            return
        # Whether it succeeds or not: all ranks must agree on whether to gather.
        self._saved_step = step
        begin_s = time.perf_counter()
        if self._state.save(
            self._checkpoints,
            self._ranks,
            batch_size=self._spec.batch_size,
            is_last=step == self._spec.steps,
        ):
            # The next one that fails is reported, too.
            self._may_save = True
            seconds = time.perf_counter() - begin_s
            self._hooks.on_event("checkpoint", {"step": step, "seconds": seconds})

    def save_last(self, keep_weights: bool) -> None:
        """Write a checkpoint before the evaluation, if one is to stay or the run had one before.

        Raises:
            CheckpointError: one is to stay and cannot be written.
        """
        if keep_weights:
            self._write_checkpoint()
        elif self._saved_step:
            self._save()

    def evaluate_at_the_end(self) -> Evaluation:
        """Return the held-out loss after the last step; report which experts it takes."""
        with self._monitor.heldout(self._spec.steps - 1) as on_forward:
            return self._evaluate(on_forward)

    @functools.cached_property
    def _heldout(self) -> HeldoutWindows:
        """Read once, at the first evaluation."""
        return evaluation_windows(self._spec, self._data)

    def _evaluate(self, on_forward: Callable[[Tensor], None] | None = None) -> Evaluation:
        return evaluate(
            self._module,
            self._heldout,
            batch_size=self._spec.batch_size,
            precision=self._spec.precision,
            ranks=self._ranks,
            micro_batch=self._placement.micro_batch,
            on_forward=on_forward,
        )

    def _evaluate_on_the_way(self) -> None:
        every, step = self._placement.evaluate_every_steps, self._state.step
        if every is None or step % every or step == self._spec.steps:
            return
        found = self._evaluate()
        values = {"step": step - 1, "loss": found.loss, "loss_se": found.loss_se}
        self._hooks.on_event("evaluation", values)
        self._clock.go_on()

    def hand_over_weights(self) -> None:
        """Call the hook that takes the final weights, if there is one."""
        hook = self._hooks.on_final_weights
        # Only the main rank knows; all must take part in gathering.
        if not self._ranks.broadcast(float(hook is not None)):
            return
        weights = self._ranks.gather(self._state.model, None)[0]
        if hook is not None:
            hook(weights)

    def outcome(
        self,
        status: Literal["done", "diverged", "stopped"],
        reason: str | None,
        evaluation: Evaluation | None,
    ) -> RunOutcome:
        """Return the outcome of the run."""
        step_s = self._state.step_s
        tokens = len(step_s) * self._spec.batch_size * self._spec.seq_len
        return RunOutcome(
            status=status,
            status_reason=reason,
            loss=None if evaluation is None else evaluation.loss,
            loss_se=None if evaluation is None else evaluation.loss_se,
            perplexity=None if evaluation is None else evaluation.perplexity,
            bits_per_byte=None if evaluation is None else evaluation.bits_per_byte,
            bits_per_byte_se=None if evaluation is None else evaluation.bits_per_byte_se,
            reference_perplexity=None if evaluation is None else evaluation.reference_perplexity,
            wall_s=self._clock.wall_s,
            step_s_median=statistics.median(step_s) if step_s else None,
            tokens_per_s=tokens / sum(step_s) if step_s else None,
            peak_mem_bytes=self._state.peak(),
            num_steps=self._state.step,
            head=self._placement.head_used,
            trunk_steps=self._state.trunk_steps,
            trunk_wall_s=self._state.trunk_wall_s,
        )


def _as_planned(model: Transformer, spec: RunSpec) -> Transformer:
    """Return a run's model, which holds what its plan counted.

    Raises:
        UserError: it holds another number of parameters, so that the plan's FLOPs are wrong too.
    """
    held = sum(parameter.numel() for parameter in model.parameters())
    planned = run_ledger(spec).num_params
    if held != planned:
        raise UserError(
            f"family {spec.family}",
            f"a module that builds {held:,} parameters",
            f"the {planned:,} of its ledger and of the plan",
            "correct spec.py or module.py, and plan again",
        )
    return model


class Clock:
    """Wall-clock of this attempt's training steps: not of what comes before a :meth:`go_on`."""

    def __init__(self) -> None:
        self.wall_s = 0.0
        self._last = 0.0

    def go_on(self) -> None:
        """Leave out what was done since the last step."""
        self._last = time.perf_counter()

    def step_done(self) -> float:
        """Return the seconds since the step before, or since :meth:`go_on`."""
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        self.wall_s += seconds
        return seconds


class Cadence:
    """When the next checkpoint is due."""

    def __init__(self, placement: Placement) -> None:
        self._every_s = placement.checkpoint_every_s
        self._every_steps = placement.checkpoint_every_steps
        self._saved_s = time.monotonic()

    def saved(self) -> None:
        """Begin the next interval: a checkpoint was written."""
        self._saved_s = time.monotonic()

    def is_due(self, step: int) -> bool:
        """Return whether one is to be written after ``step`` completed steps."""
        by_steps = self._every_steps is not None and step % self._every_steps == 0
        passed_s = time.monotonic() - self._saved_s
        return by_steps or (self._every_s is not None and passed_s >= self._every_s)

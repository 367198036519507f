"""Small runs on made-up data, stopped wherever a test wants."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from isoflop.families import get_spec
from isoflop.recipe import get_recipe
from isoflop.spec import RunSpec
from isoflop.train.checkpoint import CheckpointStore
from isoflop.train.loop import Hooks, Placement, RunOutcome, StepMetrics, train_run
from made_data import MadeData


def made_spec(family: str = "mlp", **changes: Any) -> RunSpec:
    recipe = get_recipe("micro-v1")
    shape = recipe.shape(1)
    spec = RunSpec(
        family=family,
        config=dataclasses.asdict(get_spec(family).ladder(recipe, 1)),
        d_model=shape.d_model,
        n_layers=shape.n_layers,
        n_heads=shape.n_heads,
        vocab_size=256,
        seq_len=16,
        batch_size=4,
        steps=10,
        data_id="made",
        tokenizer_hash="made",
        seed=0,
        recipe="micro-v1",
        precision="fp32",
    )
    return dataclasses.replace(spec, **changes)


@dataclass
class Recorded:
    """What one run, in one attempt or many, told."""

    outcomes: list[RunOutcome] = field(default_factory=list)
    steps: list[StepMetrics] = field(default_factory=list)
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    weights: dict[str, Tensor] = field(default_factory=dict)

    @property
    def outcome(self) -> RunOutcome:
        return self.outcomes[-1]

    def numbers(self) -> dict[int, tuple[float, float, float]]:
        """Loss, gradient norm and learning rate of each step; of one done again, the last time."""
        return {m.step: (m.loss, m.grad_norm, m.lr) for m in self.steps}

    def attempt(
        self,
        spec: RunSpec,
        *,
        store: CheckpointStore | None = None,
        stop_at: int | None = None,
        on_step: Callable[[StepMetrics], None] = lambda metrics: None,
        placement: Placement | None = None,
        **others: Any,
    ) -> RunOutcome:
        """One call of train_run, asked to stop once ``stop_at`` steps are completed."""
        completed = 0

        def note(metrics: StepMetrics) -> None:
            nonlocal completed
            completed = metrics.step + 1
            self.steps.append(metrics)
            on_step(metrics)

        def event(kind: str, values: dict[str, Any]) -> None:
            nonlocal completed
            if kind == "resumed":
                completed = values["step"]
            self.events.append((kind, values))

        def keep(weights: dict[str, Tensor]) -> None:
            self.weights = {name: value.clone() for name, value in weights.items()}

        self.outcomes.append(
            train_run(
                spec,
                MadeData(),
                placement=placement or Placement(),
                hooks=Hooks(on_step=note, on_event=event, on_final_weights=keep),
                checkpoints=store,
                should_stop=lambda: (
                    "SIGUSR2" if stop_at is not None and completed >= stop_at else None
                ),
                **others,
            )
        )
        return self.outcome


def stopped_at(spec: RunSpec, store: CheckpointStore, stops: Sequence[int]) -> Recorded:
    """A run that is stopped at each of ``stops`` completed steps and then goes to its end."""
    recorded = Recorded()
    for stop in stops:
        outcome = recorded.attempt(spec, store=store, stop_at=stop)
        assert (outcome.status, outcome.num_steps) == ("stopped", stop)
    recorded.attempt(spec, store=store)
    return recorded


def undisturbed(spec: RunSpec, **others: Any) -> Recorded:
    recorded = Recorded()
    recorded.attempt(spec, **others)
    return recorded


def assert_same(found: Recorded, wanted: Recorded) -> None:
    """Bit for bit: losses, gradient norms, weights and everything held-out."""
    assert found.numbers() == wanted.numbers()
    timed = {"wall_s", "step_s_median", "tokens_per_s", "peak_mem_bytes"}
    for name in set(dataclasses.asdict(wanted.outcome)) - timed:
        assert getattr(found.outcome, name) == getattr(wanted.outcome, name), name
    assert found.weights.keys() == wanted.weights.keys()
    for name, value in wanted.weights.items():
        assert torch.equal(found.weights[name], value), name

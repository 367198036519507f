"""A whole run: what it reports, that it repeats bit for bit, and where it stops."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from isoflop.errors import UserError
from isoflop.families import PATHS_VARIABLE, add_family_folder, family_names
from isoflop.plan.runs import run_ledger
from isoflop.recipe import get_recipe
from isoflop.spec import RunSpec
from isoflop.train import loop
from isoflop.train.loop import Hooks, Placement, RunOutcome, StepMetrics, train_run
from isoflop.train.step import StepGradients
from made_data import MadeData, MadeTraining
from made_family import write_low_rank_family
from made_training import made_spec


def run(spec: RunSpec) -> tuple[RunOutcome, list[StepMetrics], dict[str, Tensor]]:
    metrics: list[StepMetrics] = []
    weights: dict[str, Tensor] = {}
    outcome = train_run(
        spec,
        MadeData(),
        placement=Placement(),
        hooks=Hooks(on_step=metrics.append, on_final_weights=weights.update),
    )
    return outcome, metrics, weights


@pytest.mark.parametrize("family", family_names())
def test_two_runs_of_a_spec_are_bit_identical(family: str) -> None:
    first, second = run(made_spec(family)), run(made_spec(family))
    assert [m.loss for m in first[1]] == [m.loss for m in second[1]]
    assert [m.grad_norm for m in first[1]] == [m.grad_norm for m in second[1]]
    assert first[0].loss == second[0].loss
    assert first[0].loss_se == second[0].loss_se
    assert first[2].keys() == second[2].keys()
    for name, value in first[2].items():
        assert torch.equal(value, second[2][name]), name


def test_seeds_differ_in_weights_and_in_batches() -> None:
    first, other = run(made_spec(seed=0)), run(made_spec(seed=1))
    assert first[0].loss != other[0].loss


def test_what_a_run_reports() -> None:
    outcome, metrics, weights = run(made_spec(steps=60))
    assert outcome.status == "done"
    assert outcome.head == "fp32"
    assert outcome.status_reason is None
    assert outcome.num_steps == 60
    assert [m.step for m in metrics] == list(range(60))
    assert [m.tokens for m in metrics] == [64 * (step + 1) for step in range(60)]
    assert metrics[0].lr == 0.0
    assert max(m.lr for m in metrics) == get_recipe("micro-v1").peak_lr
    assert all(a.wall_s < b.wall_s for a, b in itertools.pairwise(metrics))
    assert outcome.wall_s == metrics[-1].wall_s
    assert 0 < outcome.step_s_median < outcome.wall_s
    assert outcome.tokens_per_s == pytest.approx(60 * 64 / outcome.wall_s)
    # At least what importing torch takes.
    assert outcome.peak_mem_bytes > 50e6
    # Learning which 8 of 256 letters occur takes log(256) = 5.5 to near log(8) = 2.08.
    assert metrics[0].loss > 5.0
    assert math.log(8) < outcome.loss < 4.0
    assert outcome.perplexity == pytest.approx(math.exp(outcome.loss))
    assert outcome.bits_per_byte > outcome.loss / math.log(2)
    assert outcome.reference_perplexity is not None
    assert weights["embedding"].shape == (256, made_spec().d_model)


def test_the_first_step_leaves_the_weights_alone() -> None:
    # Its learning rate is 0, and the decay is multiplied by it.
    _, metrics, _ = run(made_spec(steps=10))
    assert metrics[0].lr == 0.0
    same_batch = {0: 0, 1: 0}

    class Repeating(MadeData):
        def train_windows(self, seq_len: int) -> MadeTraining:
            training = MadeTraining(seq_len)
            draw = training.batch
            training.batch = lambda step, size, seed: draw(same_batch.get(step, step), size, seed)
            return training

    losses: list[float] = []
    train_run(
        made_spec(steps=10),
        Repeating(),
        placement=Placement(),
        hooks=Hooks(on_step=lambda m: losses.append(m.loss)),
    )
    assert losses[0] == losses[1]


def poison(monkeypatch: pytest.MonkeyPatch, step: int, what: str) -> None:
    """Makes the loss or the gradient norm of one step not finite."""
    real, calls = loop.gradients_of_batch, iter(range(1000))

    def poisoned(*args: Any, **kwargs: Any) -> StepGradients:
        found = real(*args, **kwargs)
        if next(calls) == step:
            return found._replace(**{what: math.nan if what == "loss" else math.inf})
        return found

    monkeypatch.setattr(loop, "gradients_of_batch", poisoned)


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("loss", "non-finite loss at step 7"),
        (
            "grad_norm",
            "non-finite gradient norm at step 7: each gradient is finite, the norm overflows",
        ),
    ],
)
def test_a_divergence_ends_the_run_at_its_step(
    what: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, 7, what)
    outcome, metrics, weights = run(made_spec())
    assert outcome.status == "diverged"
    assert outcome.status_reason == reason
    assert outcome.num_steps == len(metrics) == 7
    for field in ("loss", "loss_se", "perplexity", "bits_per_byte", "reference_perplexity"):
        assert getattr(outcome, field) is None
    assert outcome.wall_s > 0
    assert not weights


def test_a_real_nan_is_found_at_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    build = loop.build_model

    def with_nan(spec: RunSpec) -> Any:
        model = build(spec)
        with torch.no_grad():
            model.output_norm.scale[0] = math.nan
        return model

    monkeypatch.setattr(loop, "build_model", with_nan)
    outcome, metrics, _ = run(made_spec())
    assert outcome.status_reason == "non-finite loss at step 0"
    assert outcome.num_steps == 0
    assert outcome.step_s_median is None
    assert outcome.tokens_per_s is None
    assert metrics == []


def test_bf16_is_near_fp32_and_keeps_fp32_weights() -> None:
    exact, half = run(made_spec()), run(made_spec(precision="bf16"))
    assert all(value.dtype == torch.float32 for value in half[2].values())
    assert half[0].loss != exact[0].loss
    assert half[0].loss == pytest.approx(exact[0].loss, abs=0.05)


def test_placement_sets_the_threads() -> None:
    before = torch.get_num_threads()
    try:
        train_run(
            made_spec(steps=1),
            MadeData(),
            placement=Placement(num_threads=2),
        )
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_schedule_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="steps = 300"):
        run(made_spec(recipe="paper-v1", steps=300))


def test_batches_may_hold_any_uint16_token() -> None:
    class Wide(MadeData):
        def train_windows(self, seq_len: int) -> MadeTraining:
            training = MadeTraining(seq_len)
            training.batch = lambda step, size, seed: np.full(
                (size, seq_len), 60_000, dtype=np.uint16
            )
            return training

        def heldout(self, seq_len: int) -> Any:
            heldout = super().heldout(seq_len)
            heldout.tokens[heldout.tokens > 0] = 60_000
            return heldout

    outcome = train_run(
        made_spec(vocab_size=60_001, steps=10, batch_size=1),
        Wide(),
        placement=Placement(),
    )
    assert outcome.status == "done"


def test_a_model_with_other_parameters_than_planned_does_not_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PATHS_VARIABLE, "")
    add_family_folder(write_low_rank_family(tmp_path / "low_rank"))
    spec = dataclasses.replace(made_spec(), family="low_rank", config={"rank": 7})
    begun = f"a module that builds .* parameters': must be the {run_ledger(spec).num_params:,} of"
    with pytest.raises(UserError, match=f"family low_rank = '{begun} its ledger and of the plan"):
        run(spec)
    assert run(dataclasses.replace(spec, config={"rank": 6}))[0].status == "done"

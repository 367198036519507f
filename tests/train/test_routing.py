"""Expert usage: what is counted, and what it comes to."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import made_training
from isoflop.model import Transformer, build_model
from isoflop.spec import RunSpec
from isoflop.train.ranks import SINGLE, SingleRank
from isoflop.train.routing import (
    LOGGED_STEPS,
    EverUsed,
    UsageRecorder,
    is_logged,
    usage_figures,
    usage_recorder,
    usage_rows,
)
from isoflop.train.step import gradients_of_batch

ROUTED = {"num_channels": 2, "num_neighbours": 2, "num_experts": 16, "router_width": 6}
CONFIGS: dict[str, dict[str, Any]] = {
    "moe": {"num_experts": 5, "num_active": 2, "hidden_width": 4},
    "peer": ROUTED,
    "sgatlin": ROUTED,
}
B, T = 3, 7


def made_spec(family: str, **config: Any) -> RunSpec:
    shape = {"d_model": 8, "n_layers": 2, "n_heads": 2, "vocab_size": 20, "seq_len": T}
    return made_training.made_spec(
        family, config=CONFIGS[family] | config, batch_size=B, steps=100, seed=3, **shape
    )


def recorder_of(spec: RunSpec) -> tuple[Transformer, UsageRecorder]:
    model = build_model(spec)
    recorder = usage_recorder(model, spec)
    assert recorder is not None
    return model, recorder


def made_batch(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(2, 20, (B, T)).astype(np.uint16)


def train_step(model: Transformer, **more: Any) -> None:
    gradients_of_batch(model, made_batch(), clip_norm=1.0, precision="fp32", **more)


def choices_by_hand(model: Transformer, inputs_BT: Tensor) -> list[Tensor]:
    """idx_TCK of each layer, by forward hooks on the routing alone."""
    chosen: list[Tensor] = []
    for block in model.blocks:
        block.feedforward.gates = lambda idx_TCK, score_TCK: chosen.append(idx_TCK)
    with torch.no_grad():
        model(inputs_BT)
    for block in model.blocks:
        block.feedforward.gates = None
    return chosen


@pytest.mark.parametrize("family", CONFIGS)
def test_counts_are_those_of_all_sequences_together(family: str) -> None:
    model, recorder = recorder_of(made_spec(family))
    inputs_BT = torch.randint(2, 20, (B, T), generator=torch.Generator().manual_seed(1))
    with recorder.recording(), torch.no_grad():
        model(inputs_BT)
    counts_LCE = recorder.take(SINGLE)
    expected = np.zeros_like(counts_LCE)
    for layer, idx_TCK in enumerate(choices_by_hand(model, inputs_BT)):
        assert idx_TCK.shape[0] == B * T
        for token_CK in idx_TCK.tolist():
            for channel, experts in enumerate(token_CK):
                for expert in experts:
                    expected[layer, channel, expert] += 1
    assert np.array_equal(counts_LCE, expected)
    num_chosen = 2
    assert set(counts_LCE.sum(2).ravel()) == {B * T * num_chosen}


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize(
    "setting", ["plain", "micro_batch", "checkpointed", "micro_batch and checkpointed"]
)
def test_a_step_counts_each_token_once_and_changes_nothing(family: str, setting: str) -> None:
    more: dict[str, Any] = {"micro_batch": 2} if "micro_batch" in setting else {}
    gradients = []
    counts = []
    for watched in (True, False):
        model, recorder = recorder_of(made_spec(family))
        model.checkpoint_activations = "checkpointed" in setting
        if watched:
            with recorder.recording():
                train_step(model, **more)
            counts.append(recorder.take(SINGLE))
        else:
            train_step(model, **more)
        gradients.append({name: p.grad for name, p in model.named_parameters()})
        assert all(block.feedforward.gates is None for block in model.blocks)
    for name, grad in gradients[0].items():
        assert torch.equal(grad, gradients[1][name])
    assert set(counts[0].sum(2).ravel()) == {B * T * 2}


def test_only_the_tokens_that_are_asked_for_count() -> None:
    model, recorder = recorder_of(made_spec("sgatlin"))
    inputs_BT = torch.randint(2, 20, (B, T), generator=torch.Generator().manual_seed(1))
    kept_BT = torch.rand(B, T, generator=torch.Generator().manual_seed(2)) < 0.4
    with recorder.recording(), torch.no_grad():
        recorder.count_only(kept_BT)
        model(inputs_BT)
    by_hand = choices_by_hand(model, inputs_BT)[1][kept_BT.flatten()]
    expected = torch.bincount(by_hand[:, 1].flatten().long(), minlength=16)
    assert recorder.take(SINGLE)[1, 1].tolist() == expected.tolist()
    # The next recording begins from nothing, and counts all.
    with recorder.recording(), torch.no_grad():
        model(inputs_BT)
    assert recorder.take(SINGLE).sum() == 2 * 2 * B * T * 2


def test_earlier_hooks_rest_and_come_back() -> None:
    model, recorder = recorder_of(made_spec("moe"))
    calls: list[int] = []

    def hook(idx_TCK: Tensor, score_TCK: Tensor) -> None:
        calls.append(1)

    model.blocks[0].feedforward.gates = hook
    with recorder.recording():
        model(torch.ones(1, 2, dtype=torch.int64))
    assert not calls
    assert model.blocks[0].feedforward.gates is hook
    assert model.blocks[1].feedforward.gates is None


class Twice(SingleRank):
    """Two ranks that have seen the same."""

    size = 2

    def sum(self, values: Any) -> list[float]:
        return [2.0 * value for value in values]


def test_counts_of_several_ranks_are_summed() -> None:
    model, recorder = recorder_of(made_spec("peer"))
    with recorder.recording():
        train_step(model)
    counts = recorder.take(SINGLE)
    assert np.array_equal(recorder.take(Twice()), 2 * counts)


# The compiler's own.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_model_is_counted_too() -> None:
    model, recorder = recorder_of(made_spec("sgatlin"))
    torch._dynamo.reset()
    # The compiler's front alone; what it makes is run as it is.
    model.forward = torch.compile(model.forward, dynamic=False, backend="eager")  # type: ignore[method-assign]
    expected = None
    for _ in range(2):
        train_step(model)
        with recorder.recording():
            train_step(model)
        counts = recorder.take(SINGLE)
        assert set(counts.sum(2).ravel()) == {B * T * 2}
        assert expected is None or np.array_equal(counts, expected)
        expected = counts
    torch._dynamo.reset()


def test_dense_families_have_no_usage() -> None:
    spec = dataclasses.replace(made_spec("moe"), family="mlp", config={"hidden_width": 4})
    assert usage_recorder(build_model(spec), spec) is None


@pytest.mark.parametrize(
    ("family", "config", "shared"),
    [
        ("moe", {}, False),
        ("peer", {}, True),
        ("sgatlin", {}, False),
        ("sgatlin", {"tables": "shared"}, True),
    ],
)
def test_which_tables_are_shared(family: str, config: dict[str, Any], shared: bool) -> None:
    _, recorder = recorder_of(made_spec(family, **config))
    assert recorder.shared is shared


def test_figures_by_hand() -> None:
    figures = usage_figures(np.array([6, 2, 0, 0]))
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(4)
    assert figures["num_experts"] == 4
    assert figures["num_choices"] == 8
    assert figures["fraction_used"] == 0.5
    assert figures["entropy"] == pytest.approx(entropy)
    # Mean 2, squared deviations 16 + 0 + 4 + 4.
    assert figures["cv"] == pytest.approx(math.sqrt(24 / 4) / 2)


@pytest.mark.parametrize(
    ("counts", "fraction", "entropy", "cv"),
    [
        ([5, 5, 5, 5], 1.0, 1.0, 0.0),
        ([9, 0, 0, 0], 0.25, 0.0, math.sqrt(3)),
        ([7], 1.0, None, None),
        ([0, 0, 0], None, None, None),
    ],
)
def test_figures_at_the_ends(
    counts: list[int], fraction: float | None, entropy: float | None, cv: float | None
) -> None:
    figures = usage_figures(np.array(counts))
    assert figures["fraction_used"] == fraction
    assert figures["entropy"] == (None if entropy is None else pytest.approx(entropy))
    assert figures["cv"] == (None if cv is None else pytest.approx(cv))
    json.dumps(figures, allow_nan=False)


def test_uniform_random_choice_has_the_cv_that_is_documented() -> None:
    counts = np.random.default_rng(0).multinomial(2000, np.full(500, 1 / 500))
    assert usage_figures(counts)["cv"] == pytest.approx(math.sqrt(500 / 2000), rel=0.1)


def test_figures_of_the_sum_are_not_the_mean_of_sequences_figures() -> None:
    # Each of two sequences keeps to its half of the experts: evenly used all the same.
    first, second = np.array([4, 4, 0, 0]), np.array([0, 0, 4, 4])
    together = usage_figures(first + second)
    assert (together["fraction_used"], together["cv"]) == (1.0, 0.0)
    assert together["entropy"] == pytest.approx(1.0)
    assert usage_figures(first)["entropy"] == pytest.approx(0.5)


COUNTS_LCE = np.array([[[3, 1, 0, 0], [0, 0, 2, 2]]])


def test_channels_with_one_table_are_added_and_others_put_side_by_side() -> None:
    ever = EverUsed()
    ever.add(COUNTS_LCE)
    for shared, num_experts in ((True, 4), (False, 8)):
        rows = usage_rows(COUNTS_LCE, ever, shared=shared)
        assert [(row["layer"], row["channel"]) for row in rows] == [(0, 0), (0, 1), (0, None)]
        whole = rows[-1]
        assert whole["num_experts"] == num_experts
        assert whole["num_choices"] == 8
        assert whole["fraction_used"] == 4 / num_experts
        assert whole["ever_used"] == 4 / num_experts
        assert rows[0]["ever_used"] == 0.5


def test_one_channel_has_no_row_for_all_of_them() -> None:
    rows = usage_rows(COUNTS_LCE[:, :1], EverUsed(), shared=False)
    assert [row["channel"] for row in rows] == [0]
    assert rows[0]["ever_used"] == 0.0


def test_ever_used_grows_and_survives_a_restart() -> None:
    ever = EverUsed()
    fresh = EverUsed()
    fresh.load(json.loads(json.dumps(ever.state())))
    assert fresh.used_LCE is None
    ever.add(COUNTS_LCE)
    again = EverUsed()
    again.load(json.loads(json.dumps(ever.state())))
    for one in (ever, again):
        one.add(np.roll(COUNTS_LCE, 1, axis=2))
        assert one.used_LCE.tolist() == [[[True, True, True, False], [True, False, True, True]]]
    assert again.state() == ever.state()


@pytest.mark.parametrize("steps", [1, 49, 50, 51, 571, 10_000])
def test_logged_steps(steps: int) -> None:
    logged = [step for step in range(steps) if is_logged(step, steps)]
    assert logged[0] == 0
    assert logged[-1] == steps - 1
    assert min(steps, LOGGED_STEPS) <= len(logged) <= 2 * LOGGED_STEPS

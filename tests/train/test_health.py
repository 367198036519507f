"""Divergence is named, spikes are found, and watching a run leaves no trace in it."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from isoflop.model import build_model
from isoflop.train import health
from isoflop.train.evaluate import evaluate
from isoflop.train.health import Monitor, SpikeDetector
from isoflop.train.ranks import SingleRank
from isoflop.train.routing import is_logged
from isoflop.train.step import gradients_of_batch
from made_data import MadeData
from made_shapes import rung_spec

NAN, INF = math.nan, math.inf


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.zeros(2, 2))
        self.second = nn.Parameter(torch.zeros(3))
        self.unused = nn.Parameter(torch.zeros(1))
        self.first.grad = torch.ones(2, 2)
        self.second.grad = torch.ones(3)


def test_finite_numbers_are_healthy() -> None:
    assert health.check(4, 1.0, 2.0, Two()) is None


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_what_is_not_finite_is_named(bad: float) -> None:
    model = Two()
    assert health.check(7, bad, 1.0, model) == "non-finite loss at step 7"
    # A loss that is not finite makes the gradients so; it comes first.
    assert health.check(7, bad, NAN, model) == "non-finite loss at step 7"
    model.second.grad[1] = bad
    assert health.check(7, 1.0, abs(bad), model) == (
        "non-finite gradient norm at step 7: first in second"
    )
    model.first.grad[0, 0] = bad
    assert health.check(7, 1.0, abs(bad), model) == (
        "non-finite gradient norm at step 7: first in first"
    )


def test_a_norm_that_overflows_is_told_from_a_gradient_that_does() -> None:
    assert health.check(0, 1.0, INF, Two()) == (
        "non-finite gradient norm at step 0: each gradient is finite, the norm overflows"
    )


def test_a_rank_hears_of_what_another_one_found() -> None:
    class Told(SingleRank):
        size = 2

        def sum(self, values: Any) -> list[float]:
            return [a + b for a, b in zip(values, [0.0, 1.0, 0.0], strict=True)]

    assert health.check(0, 1.0, NAN, Two(), Told()) == (
        "non-finite gradient norm at step 0: first in second"
    )


def noise(num: int, scale: float = 0.05, seed: int = 0) -> list[float]:
    return (3.0 + scale * np.random.default_rng(seed).standard_normal(num)).tolist()


def spikes(losses: list[float]) -> list[int]:
    detector = SpikeDetector()
    return [step for step, loss in enumerate(losses) if detector.see(loss) is not None]


def test_the_rule_by_hand() -> None:
    detector = SpikeDetector()
    # Median 3, median absolute deviation 0.1: the limit is 3 + 6 × 1.4826 × 0.1.
    for loss in [2.9, 3.0, 3.1] * 8:
        assert detector.see(loss) is None
    limit = 3.0 + 6 * 1.4826 * 0.1
    assert detector.see(limit - 1e-9) is None
    found = detector.see(limit + 1e-9)
    assert found is not None
    assert found["median"] == 3.0
    assert found["limit"] == pytest.approx(limit)
    assert found["loss"] == limit + 1e-9


def test_noise_a_falling_loss_and_small_bumps_are_no_spikes() -> None:
    assert spikes(noise(5000)) == []
    assert spikes([6.0 * 0.99**step for step in range(600)]) == []
    # However even the losses were, less than 0.1 nats is not a spike.
    assert spikes([3.0] * 40 + [3.0999] + [3.0] * 20) == []
    assert spikes([3.0] * 40 + [3.1001] + [3.0] * 20) == [40]


def test_nothing_is_said_before_there_is_something_to_compare_with() -> None:
    assert spikes([3.0] * 15 + [9.0]) == []
    assert spikes([3.0] * 16 + [9.0]) == [16]


def test_a_spike_of_many_steps_is_one_event_and_a_new_level_becomes_the_rule() -> None:
    losses = [*noise(100), 8.0, 9.0, 7.5, *noise(50, seed=1), 8.0, *noise(20, seed=2)]
    assert spikes(losses) == [100, 153]
    assert spikes([3.0] * 80 + [5.0] * 200 + [8.0]) == [80, 280]


@pytest.mark.parametrize("stop", [0, 5, 16, 100, 101, 102, 140])
def test_a_restart_changes_no_answer(stop: int) -> None:
    losses = [*noise(100), 8.0, 9.0, *noise(50, seed=1), 8.0]
    whole, first = SpikeDetector(), SpikeDetector()
    expected = [whole.see(loss) for loss in losses]
    got = [first.see(loss) for loss in losses[:stop]]
    second = SpikeDetector()
    second.load(json.loads(json.dumps(first.state())))
    got += [second.see(loss) for loss in losses[stop:]]
    assert got == expected
    assert second.state() == whole.state()


STEPS = 120


def train(
    family: str, *, watched: bool, stop: int | None = None
) -> tuple[dict[str, torch.Tensor], list[tuple[str, dict[str, Any]]]]:
    """Weights and events of a short run, with a fresh Monitor from step ``stop`` on."""
    spec = rung_spec(family, 1, "micro-v1", vocab_size=110, seq_len=8, batch_size=2, steps=STEPS)
    data = MadeData()
    windows = data.train_windows(spec.seq_len)
    model = build_model(spec)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    events: list[tuple[str, dict[str, Any]]] = []

    def monitor_of() -> Monitor:
        return Monitor(model, spec, on_event=lambda *event: events.append(event))

    monitor = monitor_of()
    for step in range(12):
        if step == stop:
            state = json.loads(json.dumps(monitor.state()))
            monitor = monitor_of()
            monitor.load(state)
        targets_BT = windows.batch(step, spec.batch_size, 0)
        if watched:
            with monitor.watching(step):
                found = gradients_of_batch(model, targets_BT, clip_norm=1.0, precision="fp32")
        else:
            found = gradients_of_batch(model, targets_BT, clip_norm=1.0, precision="fp32")
        optimizer.step()
        if watched:
            monitor.step_done(step, found.loss)
    if watched:
        with monitor.heldout(11) as on_forward:
            evaluate(model, data.heldout(8), batch_size=4, precision="fp32", on_forward=on_forward)
    return model.state_dict(), events


@pytest.mark.parametrize("family", ["mlp", "moe", "peer", "sgatlin"])
def test_watching_leaves_no_trace_in_training(family: str) -> None:
    weights, _ = train(family, watched=True)
    unwatched, _ = train(family, watched=False)
    for name, value in unwatched.items():
        assert torch.equal(weights[name], value), name


@pytest.mark.parametrize("family", ["moe", "peer", "sgatlin"])
def test_usage_is_told_at_logged_steps_and_of_the_held_out_set(family: str) -> None:
    _, events = train(family, watched=True)
    usage = [values for kind, values in events if kind == "usage"]
    logged = [step for step in range(12) if is_logged(step, STEPS)]
    assert [(u["step"], u["split"]) for u in usage] == [
        *((step, "train") for step in logged),
        (11, "heldout"),
    ]
    num_chosen = 2 if family == "moe" else 4
    for values in usage:
        # 6 windows of 8 tokens, of which 5 are padding; a batch is 2 of 8.
        tokens = 6 * 8 - 5 if values["split"] == "heldout" else 2 * 8
        for row in values["rows"]:
            channels = 4 if row["channel"] is None else 1
            assert row["num_choices"] == tokens * num_chosen * channels
            assert row["ever_used"] >= row["fraction_used"] or values["split"] == "heldout"
    ever = [values["rows"][0]["ever_used"] for values in usage[:-1]]
    assert ever == sorted(ever)
    # What the held-out set used is not what training used.
    assert usage[-1]["rows"][0]["ever_used"] == ever[-1]


def test_a_dense_family_has_no_usage_and_nothing_to_count() -> None:
    _, events = train("mlp", watched=True)
    assert events == []


@pytest.mark.parametrize("stop", [1, 3, 11])
def test_a_restarted_monitor_tells_the_same(stop: int) -> None:
    assert train("sgatlin", watched=True, stop=stop)[1] == train("sgatlin", watched=True)[1]


def test_steps_that_are_not_logged_meet_no_hook() -> None:
    spec = rung_spec("sgatlin", 1, "micro-v1", vocab_size=110, seq_len=8, steps=STEPS)
    model = build_model(spec)
    monitor = Monitor(model, spec, on_event=lambda *event: None)
    for step in range(4):
        with monitor.watching(step):
            hooked = [block.feedforward.gates is not None for block in model.blocks]
        assert set(hooked) == {is_logged(step, STEPS)}


def test_only_the_main_rank_tells() -> None:
    class Follower(SingleRank):
        is_main = False

    spec = rung_spec("mlp", 1, "micro-v1", steps=STEPS)
    events: list[Any] = []
    monitor = Monitor(
        build_model(spec), spec, on_event=lambda *event: events.append(event), ranks=Follower()
    )
    for step in range(40):
        monitor.step_done(step, 9.0 if step == 30 else 3.0)
    assert events == []
    told = Monitor(build_model(spec), spec, on_event=lambda *event: events.append(event))
    for step in range(40):
        told.step_done(step, 9.0 if step == 30 else 3.0)
    assert events == [("spike", {"step": 30, "loss": 9.0, "median": 3.0, "limit": 3.1})]

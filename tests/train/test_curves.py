"""Three 300-step runs of the reference repeated from its weights and batches."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from golden_values import GOLDEN, transformer
from isoflop.model import Transformer
from isoflop.train.evaluate import Evaluation, evaluate
from isoflop.train.loop import gradients_of_batch
from isoflop.train.optimizer import build_adamw, learning_rate, set_learning_rate

FOLDER = GOLDEN / "train_small"
STEPS = 300


@dataclass(frozen=True)
class Windows:
    """The reference's test windows, 8 batches of 8; each is a document of its own here."""

    tokens: NDArray[np.uint16]
    begin_id: int = 1

    @property
    def document_index(self) -> NDArray[np.int64]:
        return np.arange(len(self.tokens))

    @property
    def num_bytes(self) -> int:
        return self.tokens.size


def arrays(name: str) -> dict[str, NDArray]:
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as stored:
        return {key: stored[key] for key in stored.files}


def model_of(run: str) -> Transformer:
    config = json.loads((FOLDER / f"run_{run}.json").read_text())["config"]
    entry = config["model"] | {"vocab": config["dataset"]["vocab_size"]}
    weights = {name: torch.from_numpy(value) for name, value in arrays(f"init_{run}").items()}
    return transformer(entry, weights)


def evaluation_of(model: Transformer) -> Evaluation:
    tokens = arrays("windows")["test"].astype(np.uint16)
    return evaluate(model, Windows(tokens.reshape(-1, 64)), batch_size=8, precision="fp32")


def train(model: Transformer, steps: int = STEPS) -> tuple[NDArray, NDArray]:
    """Loss and gradient norm of each step."""
    optimizer = build_adamw(
        model.named_parameters(), weight_decay=0.1, beta1=0.9, beta2=0.999, eps=1e-8
    )
    curve = []
    for step, targets_BT in enumerate(arrays("windows")["train"][:steps].astype(np.uint16)):
        curve.append(gradients_of_batch(model, targets_BT, clip_norm=1.0, precision="fp32"))
        set_learning_rate(optimizer, learning_rate(step, STEPS, 1e-3, 30, 0.2, "sqrt"))
        optimizer.step()
    losses, norms = zip(*curve, strict=True)
    return np.array(losses), np.array(norms)


def golden_curve(run: str) -> dict[str, NDArray]:
    with (FOLDER / f"curve_{run}.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}


def golden_final(run: str) -> dict[str, float]:
    return json.loads((FOLDER / f"run_{run}.json").read_text())["final"]


@pytest.mark.parametrize("run", ["mlp", "swiglu", "sgatlin"])
def test_metrics_before_training(run: str) -> None:
    evaluation, final = evaluation_of(model_of(run)), golden_final(run)
    # Every window holds 64 targets, so the token-weighted loss is the mean of batch means here.
    assert evaluation.loss == pytest.approx(final["init_loss"], abs=1e-5)
    assert evaluation.reference_perplexity == pytest.approx(final["init_perplexity"], rel=1e-5)
    assert evaluation.perplexity == pytest.approx(math.exp(final["init_loss"]), rel=1e-5)


@pytest.mark.parametrize("run", ["mlp", pytest.param("swiglu", marks=pytest.mark.slow)])
def test_dense_runs_follow_the_reference_at_every_step(run: str) -> None:
    model = model_of(run)
    losses, norms = train(model)
    golden = golden_curve(run)
    assert np.abs(losses - golden["train_loss"]).max() < 1e-4
    assert np.abs(norms / golden["train_grad_norm"] - 1.0).max() < 1e-3
    evaluation, final = evaluation_of(model), golden_final(run)
    assert evaluation.loss == pytest.approx(final["test_loss"], abs=1e-4)
    assert evaluation.reference_perplexity == pytest.approx(final["test_perplexity"], rel=1e-4)
    # The reference's metric is biased up (by 1.1 % here).
    assert evaluation.reference_perplexity > evaluation.perplexity * 1.005


@pytest.mark.slow
def test_sgatlin_follows_the_reference_as_far_as_it_follows_itself() -> None:
    # Once a single top-k choice flips, trajectories part, and which flips first depends on the
    # processor: the reference against itself, from weights multiplied by 1 + 1e-6 * normal, differs
    # by 5.3e-2 at the worst step and by 8.6e-3 on average. So after the first ten steps the nearer
    # of its two runs counts.
    model = model_of("sgatlin")
    losses, _ = train(model)
    golden, perturbed = (
        np.abs(losses - golden_curve(name)["train_loss"])
        for name in ("sgatlin", "sgatlin_perturb1e-6")
    )
    assert golden[:10].max() < 1e-4
    assert np.minimum(golden, perturbed).max() < 0.05
    assert golden.mean() < 0.02
    evaluation, final = evaluation_of(model), golden_final("sgatlin")
    assert evaluation.loss == pytest.approx(final["test_loss"], abs=0.02)

"""Held-out metrics against sums done by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from isoflop.train.evaluate import Evaluation, evaluate
from made_data import MadeHeldout


class Fixed(nn.Module):
    """Gives target token t the probability softmax(table)[t], whatever the inputs."""

    def __init__(self, table_V: Tensor) -> None:
        super().__init__()
        self.embedding = nn.Parameter(table_V)
        self.inputs: list[Tensor] = []

    def forward(self, inputs_BT: Tensor) -> Tensor:
        self.inputs.append(inputs_BT)
        return self.embedding.expand(*inputs_BT.shape, -1)


TABLE_V = torch.tensor([9.0, 8.0, 0.3, -0.7, 1.1])
NLL_V = -torch.log_softmax(TABLE_V.double(), 0)
# Three documents: two windows, one window, one short window.
TOKENS_WT = np.array([[2, 3, 4], [2, 1, 0], [4, 4, 1], [1, 0, 0]], dtype=np.uint16)
DOCUMENTS = [0, 0, 1, 2]


def run(documents: list[int] = DOCUMENTS, batch_size: int = 2) -> tuple[Evaluation, Fixed]:
    model = Fixed(TABLE_V)
    heldout = MadeHeldout(TOKENS_WT, documents, num_bytes=7)
    return evaluate(model, heldout, batch_size=batch_size, precision="fp32"), model


def test_every_token_weighs_the_same_and_pads_nothing() -> None:
    evaluation, _ = run()
    nll = [float(NLL_V[t]) for t in TOKENS_WT.flatten() if t != 0]
    assert evaluation.num_tokens == len(nll) == 9
    assert evaluation.loss == pytest.approx(sum(nll) / 9, rel=1e-6)
    assert evaluation.perplexity == pytest.approx(math.exp(sum(nll) / 9), rel=1e-6)
    assert evaluation.bits_per_byte == pytest.approx(sum(nll) / math.log(2) / 7, rel=1e-6)


def test_inputs_are_shifted_right_with_the_begin_token() -> None:
    _, model = run(batch_size=4)
    (inputs_BT,) = model.inputs
    assert inputs_BT.tolist() == [[1, 2, 3], [1, 2, 1], [1, 4, 4], [1, 1, 0]]


def test_standard_error_is_the_ratio_estimators() -> None:
    evaluation, _ = run()
    n_2, n_3, n_4, n_1 = (float(NLL_V[t]) for t in (2, 3, 4, 1))
    losses, counts = [n_2 + n_3 + n_4 + n_2 + n_1, 2 * n_4 + n_1, n_1], [5, 3, 1]
    ratio = sum(losses) / 9
    squares = sum((s - ratio * n) ** 2 for s, n in zip(losses, counts, strict=True))
    assert evaluation.loss_se == pytest.approx(math.sqrt(3 / 2 * squares) / 9, rel=1e-6)


def test_standard_error_agrees_with_resampling_documents() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 8, 200)
    tokens = np.zeros((200, 8), dtype=np.uint16)
    for row, size in enumerate(sizes):
        # Documents differ in their mix of tokens, so tokens of one are not independent.
        tokens[row, :size] = np.where(rng.random(size) < rng.random(), 2, 3)
    heldout = MadeHeldout(tokens, list(range(200)), num_bytes=1)
    evaluation = evaluate(Fixed(TABLE_V), heldout, batch_size=50, precision="fp32")
    nll = np.where(tokens == 0, 0.0, NLL_V.numpy()[tokens]).sum(1)
    draws = rng.integers(0, 200, (4000, 200))
    means = nll[draws].sum(1) / sizes[draws].sum(1)
    assert evaluation.loss_se == pytest.approx(means.std(), rel=0.06)


def test_standard_error_needs_two_documents() -> None:
    assert run(documents=[0, 0, 0, 0])[0].loss_se is None
    assert run(documents=[5, 5, 5, 5])[0].loss_se is None


@pytest.mark.parametrize("batch_size", [1, 3, 4, 100])
def test_the_loss_does_not_depend_on_the_batch_size(batch_size: int) -> None:
    evaluation, expected = run(batch_size=batch_size)[0], run()[0]
    assert evaluation.loss == expected.loss
    assert evaluation.loss_se == expected.loss_se


def test_reference_perplexity_is_the_mean_over_full_batches() -> None:
    n_2, n_3, n_4, n_1 = (float(NLL_V[t]) for t in (2, 3, 4, 1))
    first = (n_2 + n_3 + n_4 + n_2 + n_1) / 5
    second = (2 * n_4 + n_1 + n_1) / 4
    expected = (math.exp(first) + math.exp(second)) / 2
    assert run(batch_size=2)[0].reference_perplexity == pytest.approx(expected, rel=1e-6)
    first_three = (n_2 + n_3 + n_4 + n_2 + n_1 + 2 * n_4 + n_1) / 8
    evaluation = run(batch_size=3)[0]
    assert evaluation.reference_perplexity == pytest.approx(math.exp(first_three), rel=1e-6)
    assert run(batch_size=5)[0].reference_perplexity is None


def test_a_loss_beyond_exps_range_has_infinite_perplexity() -> None:
    table_V = torch.tensor([0.0, 0.0, -2000.0])
    heldout = MadeHeldout(np.full((2, 2), 2, dtype=np.uint16), [0, 1], num_bytes=4)
    evaluation = evaluate(Fixed(table_V), heldout, batch_size=1, precision="fp32")
    assert evaluation.loss == pytest.approx(2000.0, abs=1.0)
    assert evaluation.perplexity == math.inf
    assert evaluation.reference_perplexity == math.inf

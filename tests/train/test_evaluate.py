"""Held-out metrics against sums done by hand."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from isoflop.data.windows import Documents, HeldoutWindows, TokenStream
from isoflop.model import build_model
from isoflop.model.loss import token_losses
from isoflop.train.evaluate import Evaluation, evaluate
from isoflop.train.ranks import SingleRank
from isoflop.train.step import gradients_of_batch
from made_data import MadeData, MadeHeldout
from made_shapes import rung_spec


class Fixed(nn.Module):
    """Gives target token t the probability softmax(table)[t], whatever the inputs."""

    def __init__(self, table_V: Tensor) -> None:
        super().__init__()
        self.embedding = nn.Parameter(table_V)
        self.inputs: list[Tensor] = []

    def forward(self, inputs_BT: Tensor, targets_BT: Tensor, *, per_token: bool) -> Tensor:
        assert per_token
        self.inputs.append(inputs_BT)
        return token_losses(self.embedding.expand(*inputs_BT.shape, -1), targets_BT)


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


def test_standard_error_of_bits_per_byte_is_that_of_the_loss_in_its_unit() -> None:
    evaluation, _ = run()
    assert evaluation.loss_se is not None
    unit = evaluation.bits_per_byte / evaluation.loss
    assert unit == pytest.approx(9 / 7 / math.log(2), rel=1e-12)
    assert evaluation.bits_per_byte_se == pytest.approx(evaluation.loss_se * unit, rel=1e-12)
    assert run(documents=[0, 0, 0, 0])[0].bits_per_byte_se is None


class OneOf(SingleRank):
    """One of several ranks, whose partners answer with what they evaluated before."""

    def __init__(self, rank: int, size: int, others: list[list[float]]) -> None:
        self.rank = rank
        self.size = size
        self.others = others
        self.given: list[float] = []

    def rows(self, batch_size: int) -> slice:
        assert batch_size % self.size == 0
        share = batch_size // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def sum(self, values: Sequence[float]) -> list[float]:
        self.given = list(values)
        return [sum(column) for column in zip(values, *self.others, strict=True)]


@pytest.mark.parametrize("size", [2, 3, 4, 7])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 9])
def test_ranks_share_the_windows_and_all_get_the_same(size: int, batch_size: int) -> None:
    heldout = MadeHeldout(TOKENS_WT, DOCUMENTS, num_bytes=7)
    expected = run(batch_size=batch_size)[0]
    given: list[list[float]] = []
    forwards = []
    for rank in range(size):
        model, ranks = Fixed(TABLE_V), OneOf(rank, size, given[:])
        evaluation = evaluate(model, heldout, batch_size=batch_size, precision="fp32", ranks=ranks)
        given.append(ranks.given)
        forwards.append(len(model.inputs))
    # Each window is one rank's, and the last to answer has heard all.
    for column in zip(*given, strict=True):
        assert sum(value > 0 for value in column) == 1
    assert evaluation == expected
    # A rank without windows of its own takes part in each pass: layouts exchange in it.
    assert set(forwards) == {-(-len(TOKENS_WT) // batch_size)}


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 100])
def test_micro_batches_see_the_same_windows(micro_batch: int) -> None:
    heldout = MadeHeldout(TOKENS_WT, DOCUMENTS, num_bytes=7)
    model = Fixed(TABLE_V)
    seen: list[Tensor] = []
    evaluation = evaluate(
        model,
        heldout,
        batch_size=3,
        precision="fp32",
        micro_batch=micro_batch,
        on_forward=seen.append,
    )
    assert evaluation == run(batch_size=3)[0]
    assert max(len(inputs_BT) for inputs_BT in model.inputs) == min(micro_batch, 3)
    assert torch.cat(seen).tolist() == TOKENS_WT.tolist()
    shifted = [[1, *row[:-1]] for row in TOKENS_WT.tolist()]
    assert torch.cat(model.inputs).tolist() == shifted


class MadeSplit:
    """Held-out windows as the package itself lays documents out."""

    def __init__(self, lengths: list[int], seq_len: int, tmp_path: Path) -> None:
        rng = np.random.default_rng(1)
        self.documents = [rng.integers(1, 5, n).astype(np.uint16) for n in lengths]
        shard = tmp_path / "shard.bin"
        np.concatenate(self.documents).tofile(shard)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        entries = [
            {"num_tokens": n, "num_bytes": n - 1, "token_offset": int(offset)}
            for n, offset in zip(lengths, offsets, strict=False)
        ]
        self.windows = HeldoutWindows(
            TokenStream([shard], np.dtype("<u2")), Documents.from_rows(entries), seq_len, begin_id=1
        )


@pytest.mark.parametrize("seq_len", [1, 3, 8, 50])
def test_long_documents_are_read_whole(tmp_path: Path, seq_len: int) -> None:
    made = MadeSplit([9, 1, 8, 23], seq_len, tmp_path)
    evaluation = evaluate(Fixed(TABLE_V), made.windows, batch_size=4, precision="fp32")
    losses = [float(NLL_V[document.astype(np.int64)].sum()) for document in made.documents]
    assert evaluation.num_tokens == 41
    assert evaluation.loss == pytest.approx(sum(losses) / 41, rel=1e-6)
    assert evaluation.bits_per_byte == pytest.approx(sum(losses) / math.log(2) / 37, rel=1e-6)
    # Windows of one document are one unit of the standard error, however it was cut.
    ratio = sum(losses) / 41
    squares = sum((s - ratio * n) ** 2 for s, n in zip(losses, [9, 1, 8, 23], strict=True))
    assert evaluation.loss_se == pytest.approx(math.sqrt(4 / 3 * squares) / 41, rel=1e-5)


@pytest.mark.parametrize("family", ["mlp", "moe", "peer", "sgatlin"])
def test_evaluating_on_the_way_leaves_no_trace_in_training(family: str) -> None:
    spec = dataclasses.replace(
        rung_spec(family, 1, "micro-v1"), vocab_size=110, seq_len=12, batch_size=4
    )
    data = MadeData()
    windows = data.train_windows(spec.seq_len)
    weights, draws = [], []
    for every in (None, 2):
        torch.manual_seed(5)
        model = build_model(spec)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for step in range(6):
            targets_BT = windows.batch(step, spec.batch_size, 0)
            gradients_of_batch(model, targets_BT, clip_norm=1.0, precision="fp32")
            if every is not None and step % every == 0:
                gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
                evaluate(model, data.heldout(12), batch_size=4, precision="fp32")
                assert model.training
                for name, parameter in model.named_parameters():
                    assert torch.equal(parameter.grad, gradients[name])
                    assert parameter.requires_grad
            optimizer.step()
        weights.append(model.state_dict())
        # The generator stands where it stood.
        draws.append(torch.rand(3))
    assert torch.equal(*draws)
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name

"""Sparse matrices of gates, from a recording and from a model, and what experts keep company."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array

from interpret.made_models import untrained_run
from isoflop.errors import UserError
from isoflop.interpret.geometry.coactivation import (
    coactivation_rows,
    lifts,
    pair_counts,
    row_shares,
)
from isoflop.interpret.geometry.patterns import (
    Patterns,
    TokenRows,
    activations_of,
    as_chosen,
    gate_matrix,
    read_patterns,
    sample_tokens,
)
from isoflop.interpret.load import GateShape, shape_of
from isoflop.interpret.recorder import record
from isoflop.interpret.recording import read_predictions, read_tokens, recording_of


def made_tokens(num: int, **columns: list[int]) -> TokenRows:
    """Tokens of one window each, of documents of their own unless told otherwise."""
    given = {name: np.array(values, dtype=np.int64) for name, values in columns.items()}
    rest = {
        name: np.arange(num, dtype=np.int64)
        for name in TokenRows.__dataclass_fields__
        if name not in given
    }
    return TokenRows(**given, **rest)


def test_columns_are_channel_by_channel_and_a_zero_score_is_a_choice() -> None:
    idx = np.array([[[2, 0], [1, 2]], [[1, 2], [0, 1]]])
    score = np.array([[[0.5, -1.0], [2.0, 0.0]], [[3.0, 4.0], [5.0, 6.0]]])
    matrix = gate_matrix(idx, score, 3)
    assert matrix.toarray().tolist() == [[-1, 0, 0.5, 0, 2, 0], [0, 3, 4, 5, 6, 0]]
    assert as_chosen(matrix).toarray().tolist() == [[1, 0, 1, 0, 1, 1], [0, 1, 1, 1, 1, 0]]
    shape = GateShape(num_layers=1, num_channels=2, num_experts=3)
    patterns = Patterns(tokens=made_tokens(2), layers=(matrix,), shape=shape)
    assert patterns.channel(0, 1).toarray().tolist() == [[0, 2, 0], [5, 6, 0]]


@pytest.mark.parametrize("family", ["sgatlin", "peer", "moe"])
def test_a_recording_gives_the_gates_of_the_model(tmp_path: Path, family: str) -> None:
    loaded = untrained_run(family)
    record(loaded, tmp_path)
    tokens = sample_tokens(tmp_path, max_tokens=10**6, seed=0)
    # In another order than that of the recording.
    tokens = tokens.take(np.random.default_rng(1).permutation(len(tokens)))
    recorded = read_patterns(tmp_path, tokens, shape_of(loaded))
    seen = activations_of(loaded, tokens)
    assert len(recorded.layers) == len(loaded.model.blocks)
    assert recorded.of(None).nnz == sum(layer.nnz for layer in recorded.layers) > 0
    for ours, theirs in zip(recorded.layers, seen.patterns.layers, strict=True):
        assert np.array_equal(as_chosen(ours).toarray(), as_chosen(theirs).toarray())
        np.testing.assert_allclose(ours.toarray(), theirs.toarray(), rtol=1e-5, atol=1e-6)


def test_the_residual_is_what_the_feedforward_norm_reads() -> None:
    loaded = untrained_run()
    assert loaded.heldout is not None
    place = {"window_P": [3, 0, 3], "position_P": [4, 2, 1]}
    seen = activations_of(loaded, made_tokens(3, **place))
    read = []
    block = loaded.model.blocks[1]
    handle = block.feedforward.register_forward_pre_hook(lambda module, x: read.append(x[0]))
    activations_of(loaded, made_tokens(1, window_P=[3], position_P=[4]))
    handle.remove()
    import torch

    x = torch.from_numpy(seen.residual[1][0])
    torch.testing.assert_close(block.feedforward_norm(x), read[0][4], rtol=1e-5, atol=1e-6)


def test_the_sample_is_of_whole_documents_without_begin_tokens(tmp_path: Path) -> None:
    loaded = untrained_run()
    record(loaded, tmp_path)
    whole = sample_tokens(tmp_path, max_tokens=10**6, seed=0)
    assert whole.position_P.min() == 1
    assert not (whole.input_P == 1).any()
    part = sample_tokens(tmp_path, max_tokens=len(whole) // 2, seed=0)
    assert 0 < len(part) <= len(whole) // 2
    for document in np.unique(part.document_P):
        assert (part.document_P == document).sum() == (whole.document_P == document).sum()
    assert len(np.unique(sample_tokens(tmp_path, max_tokens=1, seed=0).document_P)) == 1


def test_predictions_are_those_of_the_model(tmp_path: Path) -> None:
    import torch

    loaded = untrained_run()
    record(loaded, tmp_path)
    tokens = sample_tokens(tmp_path, max_tokens=10**6, seed=0).take(np.array([7, 2]))
    assert loaded.heldout is not None
    rows = read_tokens(tmp_path).rows(tokens.window_P, tokens.position_P)
    for predicted, window, position in zip(
        read_predictions(tmp_path, rows), tokens.window_P, tokens.position_P, strict=True
    ):
        targets = loaded.heldout.tokens[window].astype(np.int64)
        inputs = torch.from_numpy(np.concatenate([[1], targets[:-1]]))
        assert predicted[0][0] == int(loaded.model(inputs[None])[0, position].argmax())


def test_a_recording_of_another_run_is_refused_in_a_line(tmp_path: Path) -> None:
    record(untrained_run("peer"), tmp_path)
    with pytest.raises(UserError, match=r"recording = .*must be of run .*record") as caught:
        recording_of(untrained_run(), tmp_path)
    assert "\n" not in str(caught.value)


def test_coactivation_by_hand() -> None:
    chosen = csr_array(np.array([[1.0, 9, 0, 0], [1, -1, 0, 0], [1, 0, 1, 0]]))
    counts = pair_counts(chosen)
    assert counts.toarray().tolist() == [[0, 2, 1, 0], [2, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(
        row_shares(counts).toarray(), [[0, 2 / 3, 1 / 3, 0], [1, 0, 0, 0], [1, 0, 0, 0], [0] * 4]
    )
    # Row sums 3, 2, 1 of 6: expected are 3 * 2 / 6 and 3 * 1 / 6.
    lift = lifts(counts).toarray()
    assert lift[0, 1] == pytest.approx(2.0)
    assert lift[0, 2] == pytest.approx(2.0)


def one_channel(chosen: np.ndarray, num_experts: int) -> Patterns:
    num_tokens, num_chosen = chosen.shape
    matrix = gate_matrix(chosen[:, None], np.ones((num_tokens, 1, num_chosen)), num_experts)
    shape = GateShape(num_layers=1, num_channels=1, num_experts=num_experts)
    return Patterns(tokens=made_tokens(num_tokens), layers=(matrix,), shape=shape)


def test_even_choices_have_a_lift_of_about_one() -> None:
    rng = np.random.default_rng(0)
    chosen = np.array([rng.choice(12, 4, replace=False) for _ in range(4000)])
    lift = lifts(pair_counts(one_channel(chosen, 12).layers[0])).toarray()
    lift = lift[~np.eye(12, dtype=bool)]
    # No expert meets itself, so the 11 others share what the model gives to 12.
    assert lift.mean() == pytest.approx(12 / 11, abs=0.01)
    # A count is about 364, with a standard deviation of 5 %.
    assert abs(lift - 12 / 11).max() < 0.3


def test_a_planted_pair_comes_first() -> None:
    rng = np.random.default_rng(0)
    chosen = np.array([rng.choice(12, 4, replace=False) for _ in range(2000)])
    chosen[::4] = [[10, 11, *rng.choice(10, 2, replace=False)] for _ in chosen[::4]]
    top, *others = coactivation_rows(one_channel(chosen, 12), num_pairs=5, min_count=10)
    assert (top["expert"], top["other_expert"]) == (10, 11)
    assert len(others) == 4
    # They meet in 500 tokens and 136 of the others, and each is in 1000: 636 / (3000^2 / 24000).
    assert top["lift"] == pytest.approx(1.70, abs=0.1)
    assert max(row["lift"] for row in others) < 1.3


def test_rare_pairs_are_not_listed() -> None:
    patterns = one_channel(np.array([[0, 1], [0, 1], [2, 3]]), 4)
    (row,) = coactivation_rows(patterns, num_pairs=5, min_count=2)
    assert (row["expert"], row["other_expert"], row["count"], row["share"]) == (0, 1, 2, 1.0)

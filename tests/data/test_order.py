"""The tokens of a run are a function of data, sequence length, batch size and seed alone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from isoflop.data.storage import write_manifest
from isoflop.data.windows import TokenData, open_data, permute
from isoflop.families import family_names
from isoflop.model.transformer import Transformer
from isoflop.train.batch import Prefetch, rank_batch
from isoflop.train.checkpoint import CheckpointStore
from isoflop.train.loop import Placement, train_run
from isoflop.train.parallel.layouts import SeveralRanks
from made_training import made_spec

SEQ_LEN = 16
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(prepared: Path) -> TokenData:
    return open_data(prepared)


class OneOf:
    """One rank of several, as far as sharing out a batch goes."""

    rows = SeveralRanks.rows

    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size


def expected(data: TokenData, steps: range, batch_size: int, seed: int) -> np.ndarray:
    """Targets [step · B, T] written down again: no windows, no batches, no ranks."""
    stream = np.fromfile(data.folder / "train-00000.bin", dtype="<u2")
    length = stream.size // SEQ_LEN
    position = np.arange(steps.start * batch_size, steps.stop * batch_size)
    index = [permute(np.array([p % length]), length, seed, p // length)[0] for p in position]
    return np.stack([stream[i * SEQ_LEN :][:SEQ_LEN] for i in index])


def read(
    data: TokenData,
    steps: range,
    *,
    batch_size: int,
    seed: int,
    world: int,
    micro_batch: int | None,
    threaded: bool,
) -> np.ndarray:
    """The same as the training loop reads it, the ranks' shares put together again."""
    shares = []
    for rank in range(world):
        windows = data.train_windows(SEQ_LEN)
        ranks: Any = OneOf(rank, world)

        def make(step: int, windows=windows, ranks=ranks) -> Any:
            return rank_batch(windows.batch(step, batch_size, seed), ranks)

        with Prefetch(make, steps, CPU, threaded=threaded) as batches:
            parts = [
                torch.cat([targets for _, targets in batch.split(micro_batch)])
                for _, batch in batches
            ]
        shares.append(torch.stack(parts))
    return torch.cat(shares, dim=1).reshape(-1, SEQ_LEN).numpy()


@settings(max_examples=40, deadline=None)
@given(
    world=st.sampled_from([1, 2, 3, 4]),
    share=st.integers(1, 5),
    micro_batch=st.none() | st.integers(1, 6),
    # 90,253 windows: some draws begin in one epoch and end in the next.
    resumed_at=st.integers(0, 40) | st.integers(90_200, 90_260),
    num_steps=st.integers(1, 6),
    seed=st.integers(0, 2**32),
    threaded=st.booleans(),
)
def test_a_runs_tokens_are_the_same_however_they_are_read(
    data: TokenData,
    world: int,
    share: int,
    micro_batch: int | None,
    resumed_at: int,
    num_steps: int,
    seed: int,
    threaded: bool,
) -> None:
    batch_size = world * share
    first = resumed_at // batch_size
    steps = range(first, first + num_steps)
    found = read(
        data,
        steps,
        batch_size=batch_size,
        seed=seed,
        world=world,
        micro_batch=micro_batch,
        threaded=threaded,
    )
    assert np.array_equal(found, expected(data, steps, batch_size, seed))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    """Targets of every forward pass of a model in training, in order."""
    targets: list[Tensor] = []
    forward = Transformer.forward

    def recording(self: Transformer, inputs_BT: Tensor, targets_BT: Tensor, **kwargs: Any) -> Any:
        assert torch.equal(inputs_BT[:, 1:], targets_BT[:, :-1])
        assert (inputs_BT[:, 0] == self.expected_begin).all()
        if torch.is_grad_enabled():
            targets.append(targets_BT.clone())
        return forward(self, inputs_BT, targets_BT, **kwargs)

    monkeypatch.setattr(Transformer, "forward", recording)
    monkeypatch.setattr(Transformer, "expected_begin", 1, raising=False)
    return targets


class Short:
    """Prepared data of which only a part is held out, so that evaluating takes no time."""

    def __init__(self, data: TokenData) -> None:
        self._data = data
        self.end_of_text_id = data.end_of_text_id

    def train_windows(self, seq_len: int) -> Any:
        return self._data.train_windows(seq_len)

    def heldout(self, seq_len: int) -> Any:
        heldout = self._data.heldout(seq_len)
        heldout.tokens = heldout.tokens[:4]
        heldout.document_index = heldout.document_index[:4]
        return heldout


@pytest.mark.slow
@pytest.mark.parametrize("family", family_names())
def test_every_family_reads_the_same_tokens_also_after_a_stop(
    data: TokenData, tmp_path: Path, seen: list[Tensor], family: str
) -> None:
    spec = made_spec(family, batch_size=4, steps=10, seed=7)
    store = CheckpointStore(tmp_path, run_id="made")
    for micro_batch, num_steps in ((2, 3), (None, 10)):
        outcome = train_run(
            spec,
            Short(data),  # type: ignore[arg-type]
            placement=Placement(micro_batch=micro_batch),
            checkpoints=store,
            should_stop=lambda stop=num_steps: (
                "SIGUSR2" if sum(map(len, seen)) >= 4 * stop and stop < 10 else None
            ),
        )
        assert outcome.num_steps == num_steps
    assert np.array_equal(torch.cat(seen).numpy(), expected(data, range(10), 4, seed=7))


def test_windows_begin_with_the_tokenizers_begin_token(
    data: TokenData, tmp_path: Path, seen: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "set"
    shutil.copytree(data.folder, folder)
    write_manifest(folder, {**data.manifest, "begin_id": 200})
    monkeypatch.setattr(Transformer, "expected_begin", 200)
    train_run(made_spec(steps=10), Short(open_data(folder)), placement=Placement())  # type: ignore[arg-type]
    assert len(seen) == 10

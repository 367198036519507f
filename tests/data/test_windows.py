from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from isoflop.data import prepare as prepare_module
from isoflop.data.permutation import permute
from isoflop.data.prepare import prepare
from isoflop.data.windows import TokenData, open_data, shift_right


@pytest.fixture(scope="module")
def data(prepared: Path) -> TokenData:
    return open_data(prepared)


@pytest.fixture
def small(tmp_path: Path, make_corpus, some_texts) -> TokenData:
    make_corpus(tmp_path, some_texts)
    return open_data(prepare("sotu", "byte", tmp_path))


def stream_of(data: TokenData, split: str) -> np.ndarray:
    shards = data.manifest["splits"][split]["shards"]
    return np.concatenate([np.fromfile(data.folder / s["file"], dtype="<u2") for s in shards])


def test_a_window_is_its_slice_of_the_training_stream(data: TokenData) -> None:
    windows = data.train_windows(128)
    stream = stream_of(data, "train")
    assert windows.num_windows == stream.size // 128 == 11_281
    batch = windows.batch(3, 16, seed=5)
    assert (batch.shape, batch.dtype) == ((16, 128), np.dtype(np.uint16))
    index = permute(np.arange(48, 64), windows.num_windows, 5, 0)
    assert np.array_equal(batch, stream[index[:, None] * 128 + np.arange(128)])


def test_a_batch_does_not_depend_on_what_was_read_before(data: TokenData) -> None:
    resumed = open_data(data.folder).train_windows(64).batch(7, 8, seed=1)
    windows = data.train_windows(64)
    in_order = [windows.batch(step, 8, seed=1) for step in range(8)]
    backwards = [windows.batch(step, 8, seed=1) for step in reversed(range(8))][::-1]
    assert np.array_equal(in_order, backwards)
    assert np.array_equal(in_order[7], resumed)


def test_the_order_of_windows_does_not_depend_on_the_batch_size(small: TokenData) -> None:
    windows = small.train_windows(16)
    by_6 = np.concatenate([windows.batch(step, 6, seed=2) for step in range(40)])
    by_40 = np.concatenate([windows.batch(step, 40, seed=2) for step in range(6)])
    assert np.array_equal(by_6, by_40)


def test_seeds_read_different_windows(data: TokenData) -> None:
    windows = data.train_windows(64)
    first, second = (windows.window_index(0, 32, seed).tolist() for seed in (0, 1))
    assert first != second


@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
def test_each_epoch_reads_every_window_once(small: TokenData, batch_size: int) -> None:
    windows = small.train_windows(24)
    count = windows.num_windows
    num_steps = -(-3 * count // batch_size)
    read = np.concatenate(
        [windows.window_index(step, batch_size, seed=9) for step in range(num_steps)]
    )
    epochs = read[: 3 * count].reshape(3, count)
    assert np.array_equal(np.sort(epochs, axis=1), np.tile(np.arange(count), (3, 1)))
    assert not np.array_equal(epochs[0], epochs[1])


@pytest.mark.parametrize("shard_tokens", [1, 13, 500])
def test_windows_cross_shards(
    tmp_path: Path, make_corpus, some_texts, small: TokenData, monkeypatch, shard_tokens: int
) -> None:
    monkeypatch.setattr(prepare_module, "MAX_SHARD_TOKENS", shard_tokens)
    make_corpus(tmp_path / "cut", some_texts[:12])
    make_corpus(tmp_path / "one", some_texts[:12])
    cut = open_data(prepare("sotu", "byte", tmp_path / "cut"))
    monkeypatch.undo()
    one = open_data(prepare("sotu", "byte", tmp_path / "one"))
    assert len(cut.manifest["splits"]["train"]["shards"]) > 1
    assert cut.identity == one.identity
    for step in range(4):
        assert np.array_equal(
            cut.train_windows(32).batch(step, 8, 0), one.train_windows(32).batch(step, 8, 0)
        )
    assert np.array_equal(cut.heldout(32).tokens, one.heldout(32).tokens)


def test_the_longest_window_and_one_too_long(small: TokenData, refused) -> None:
    count = small.identity.num_train_tokens
    assert count is not None
    longest = small.train_windows(count)
    assert longest.num_windows == 1
    assert np.array_equal(longest.batch(5, 2, 0), np.tile(stream_of(small, "train"), (2, 1)))
    with refused(f"seq_len = {count + 1}: .*{count} training tokens"):
        small.train_windows(count + 1)


@pytest.mark.parametrize("seq_len", [0, -8])
def test_empty_windows_are_refused(small: TokenData, refused, seq_len: int) -> None:
    with refused("at least 1"):
        small.train_windows(seq_len)
    with refused("at least 1"):
        small.heldout(seq_len)


@pytest.mark.parametrize(("step", "batch_size"), [(-1, 4), (0, 0)])
def test_impossible_steps_are_refused(small: TokenData, step: int, batch_size: int) -> None:
    with pytest.raises(ValueError, match="must be >= 0 and >= 1"):
        small.train_windows(8).batch(step, batch_size, 0)


def test_the_held_out_set_of_the_embedded_corpus(data: TokenData) -> None:
    heldout = data.heldout(128)
    assert (heldout.num_documents, heldout.num_bytes, heldout.num_tokens) == (4, 149_648, 149_652)
    assert heldout.tokens.shape == (1170, 128)
    assert heldout.num_tokens == np.count_nonzero(heldout.tokens)


@pytest.mark.parametrize("seq_len", [1, 2, 12, 13, 50, 4096])
def test_every_held_out_token_is_in_one_window(small: TokenData, some_texts, seq_len: int) -> None:
    heldout = small.heldout(seq_len)
    rows = small.manifest["splits"]["heldout"]["documents"]
    assert heldout.num_documents == len(rows) == 3
    assert heldout.num_tokens == heldout.num_bytes + heldout.num_documents
    for index, row in enumerate(rows):
        window = heldout.tokens[heldout.document_index == index]
        text = some_texts[int(row["id"].removeprefix("doc"))]
        assert window.shape[0] == -(-(len(text) + 1) // seq_len)
        flat = window.reshape(-1)
        assert flat[: len(text) + 1].tolist() == [*text, 1]
        assert not flat[len(text) + 1 :].any()
    assert heldout.document_index.shape == heldout.tokens.shape[:1]


def test_inputs_are_the_window_shifted_right_after_begin() -> None:
    window = np.array([[7, 8, 1], [9, 1, 0]], dtype=np.uint16)
    assert shift_right(window).tolist() == [[1, 7, 8], [1, 9, 1]]
    assert shift_right(window[:, :1]).tolist() == [[1], [1]]
    assert window.tolist() == [[7, 8, 1], [9, 1, 0]]

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isoflop.data import shards
from isoflop.data.prepare import prepare
from isoflop.data.sources import PrepareOptions
from isoflop.data.storage import TOKENS_SCHEMA, read_manifest, write_manifest
from isoflop.data.tokenizers import PAD_ID
from isoflop.data.windows import HeldoutWindows, TokenData, open_data, permute, shift_right
from isoflop.files import sha256_file


@pytest.fixture(scope="module")
def data(prepared: Path) -> TokenData:
    return open_data(prepared)


@pytest.fixture
def small(tmp_path: Path, make_corpus, some_texts) -> TokenData:
    make_corpus(tmp_path, some_texts)
    return open_data(prepare("sotu", "byte", tmp_path))


def stream_of(data: TokenData, split: str) -> np.ndarray:
    rows = data.manifest["splits"][split]["shards"]
    return np.concatenate([np.fromfile(data.folder / r["file"], dtype="<u2") for r in rows])


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


@pytest.mark.parametrize("shard_tokens", [1, 13, 150])
def test_windows_cross_shards(
    tmp_path: Path, make_corpus, some_texts, small: TokenData, monkeypatch, shard_tokens: int
) -> None:
    monkeypatch.setattr(shards, "MAX_SHARD_TOKENS", shard_tokens)
    # Each shard is a file that is flushed: of one token each, a long text has many.
    few = [text[:30] for text in some_texts[:12]]
    make_corpus(tmp_path / "cut", few)
    make_corpus(tmp_path / "one", few)
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


def test_the_begin_token_is_the_tokenizers() -> None:
    window = np.array([[7, 8, 9]], dtype=np.uint16)
    assert shift_right(window, 50_256).tolist() == [[50_256, 7, 8]]


def test_epochs_of_a_run(data: TokenData) -> None:
    windows = data.train_windows(128)
    assert windows.epochs(windows.num_windows * 128) == 1
    assert windows.epochs(windows.num_windows * 64 * 5) == 2.5


def rewrite(folder: Path, **changes: Any) -> None:
    manifest = read_manifest(folder, TOKENS_SCHEMA, "")
    write_manifest(folder, {**manifest, **changes})


def test_tokens_of_a_large_vocabulary_are_read_as_32_bits(copied: Path, data: TokenData) -> None:
    manifest = read_manifest(copied, TOKENS_SCHEMA, "")
    for split in manifest["splits"].values():
        (shard,) = split["shards"]
        path = copied / shard["file"]
        wide = np.fromfile(path, dtype="<u2").astype("<u4") + np.uint32(100_000)
        wide.tofile(path)
        shard.update(num_bytes=wide.nbytes, sha256=sha256_file(path))
    write_manifest(copied, {**manifest, "dtype": "<u4", "vocab_size": 100_256})
    wide_data = open_data(copied)
    batch = wide_data.train_windows(64).batch(5, 8, seed=3)
    assert batch.dtype == np.uint32
    assert np.array_equal(batch - 100_000, data.train_windows(64).batch(5, 8, seed=3))
    heldout, narrow = wide_data.heldout(64), data.heldout(64)
    assert heldout.tokens.dtype == np.uint32
    padded = narrow.tokens == 0
    assert np.array_equal(heldout.tokens[~padded] - 100_000, narrow.tokens[~padded])
    assert not heldout.tokens[padded].any()


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"dtype": "<f4"}, "dtype = '<f4': must be one of <u2, <u4"),
        ({"vocab_size": 65_537}, "vocab_size = 65537: must be within <u2"),
        ({"pad_id": 3}, "pad_id = 3: must be 0"),
    ],
)
def test_what_cannot_be_read_is_refused(copied: Path, refused, changes, pattern: str) -> None:
    rewrite(copied, **changes)
    with refused(pattern):
        open_data(copied)


def test_the_wrong_tokenizer_is_refused(copied: Path, refused) -> None:
    rewrite(copied, tokenizer_hash="0" * 64)
    with refused("tokenizer_hash = '0{64}': must be f3229cfe5de8"):
        open_data(copied).tokenizer_spec()


def test_the_table_of_documents_is_read_as_the_rows_of_a_corpus_are(
    tmp_path: Path, make_corpus, some_texts
) -> None:
    make_corpus(tmp_path, some_texts)
    for index, text in enumerate(some_texts):
        (tmp_path / f"doc{index:02d}.txt").write_bytes(text)
    rows = open_data(prepare("sotu", "byte", tmp_path))
    options = PrepareOptions()
    table = open_data(prepare(f"files:{tmp_path}/*.txt", "byte", tmp_path, options=options))
    assert isinstance(rows.manifest["splits"]["heldout"]["documents"], list)
    assert isinstance(table.manifest["splits"]["heldout"]["documents"], dict)
    for split in ("train", "heldout"):
        assert np.array_equal(stream_of(rows, split), stream_of(table, split))
        for name in ("token_offset_M", "num_tokens_M", "num_bytes_M"):
            found, wanted = (getattr(d.documents(split), name) for d in (table, rows))
            assert np.array_equal(found, wanted)
        names = [f"doc{int(n[3:]):02d}.txt" for n in rows.document_names(split, 1, 3)]
        assert table.document_names(split, 1, 3) == names
    assert np.array_equal(table.heldout(16).tokens, rows.heldout(16).tokens)
    assert np.array_equal(table.heldout(16).document_index, rows.heldout(16).document_index)


@pytest.mark.parametrize("num_tokens", [1, 60, 10**6])
def test_groups_hold_every_document_once(small: TokenData, num_tokens: int) -> None:
    documents = small.documents("train")
    groups = list(documents.groups(num_tokens))
    assert [row for first, end in groups for row in range(first, end)] == [*range(len(documents))]
    for first, end in groups:
        assert end == first + 1 or documents.num_tokens_M[first:end].sum() <= num_tokens


def per_document(windows: HeldoutWindows) -> np.ndarray:
    """Tokens of each document that are in the windows."""
    lengths_W = (windows.tokens != PAD_ID).sum(axis=1)
    return np.bincount(windows.document_index, weights=lengths_W)


@pytest.mark.parametrize("most_tokens", [50_000, 12_345, 1_000])
def test_thinning_keeps_every_kth_window_and_counts_what_it_keeps(
    data: TokenData, most_tokens: int
) -> None:
    whole = data.heldout(128)
    kept = whole.thinned(most_tokens)
    every = math.ceil(whole.num_tokens / most_tokens)
    assert every > 1
    assert np.array_equal(kept.tokens, whole.tokens[::every])
    assert np.array_equal(kept.document_index, whole.document_index[::every])
    assert np.array_equal(kept.read(1, 3), whole.tokens[[every, 2 * every]])
    assert kept.num_windows == len(kept.tokens)
    assert kept.num_tokens == int((kept.tokens != PAD_ID).sum())
    assert kept.num_documents == len(np.unique(kept.document_index))
    # What is left out is padding at most: a bound of tokens, to a window of each document.
    assert abs(kept.num_tokens - whole.num_tokens / every) <= 128 * whole.num_documents


def test_thinning_counts_of_each_document_as_large_a_share_of_bytes_as_of_tokens(
    small: TokenData,
) -> None:
    whole = small.heldout(16)
    kept = whole.thinned(whole.num_tokens // 2)
    share_M = per_document(kept) / per_document(whole)[: kept.document_index[-1] + 1]
    # A byte tokenizer has one end-of-text token more than bytes in each document.
    bytes_M = (per_document(whole) - 1)[: len(share_M)]
    assert kept.num_bytes == round(float((bytes_M * share_M).sum()))
    assert 0 < kept.num_bytes < whole.num_bytes


def test_thinning_covers_every_document_that_is_longer_than_the_distance(data: TokenData) -> None:
    whole = data.heldout(128)
    every = 20
    kept = whole.thinned(math.ceil(whole.num_tokens / every))
    windows_M = np.bincount(whole.document_index)
    there_M = np.bincount(kept.document_index, minlength=len(windows_M))
    assert (there_M >= windows_M // every).all()
    assert (there_M <= windows_M // every + 1).all()


def test_what_is_few_enough_is_not_thinned_and_thinning_leaves_the_whole(data: TokenData) -> None:
    whole = data.heldout(128)
    before = (whole.num_tokens, whole.num_bytes, whole.num_documents, whole.num_windows)
    assert whole.thinned(whole.num_tokens) is whole
    assert whole.thinned(10**9) is whole
    assert whole.thinned(whole.num_tokens - 1) is not whole
    assert (whole.num_tokens, whole.num_bytes, whole.num_documents, whole.num_windows) == before


def test_without_any_windows_of_some_documents_only_the_others_count(small: TokenData) -> None:
    whole = small.heldout(4096)
    # One window a document: every second document is left.
    assert whole.num_windows == whole.num_documents > 2
    kept = whole.thinned(math.ceil(whole.num_tokens / 2))
    assert kept.num_documents == math.ceil(whole.num_documents / 2)
    assert kept.num_bytes == kept.num_tokens - kept.num_documents


def whole(length: int, seed: int = 0, epoch: int = 0) -> np.ndarray:
    return permute(np.arange(length), length, seed, epoch)


def chi_square(counts: np.ndarray) -> float:
    expected = counts.sum() / counts.size
    return float(((counts - expected) ** 2 / expected).sum())


def loose_limit(num_bins: int) -> float:
    """Mean plus 6 standard deviations of chi-square with num_bins - 1 degrees of freedom."""
    return num_bins - 1 + 6 * (2 * (num_bins - 1)) ** 0.5


def test_values_are_frozen() -> None:
    # Written results depend on these. If this fails, the change is wrong, not the test.
    assert whole(10).tolist() == [8, 4, 3, 9, 0, 1, 6, 2, 5, 7]
    first = np.arange(8)
    assert permute(first, 1000, 0, 0).tolist() == [908, 957, 102, 642, 369, 326, 193, 123]
    assert permute(first, 1000, 1, 0).tolist() == [446, 642, 985, 111, 632, 777, 965, 226]
    assert permute(first, 1000, 0, 1).tolist() == [644, 227, 605, 322, 535, 97, 287, 813]
    assert permute(np.array([0, 1, 2**61, 2**62 - 1]), 2**62, 7, 3).tolist() == [
        888067781739956231,
        459355525573368246,
        3878997529092712401,
        1147802477269912071,
    ]


@pytest.mark.parametrize("seed", [0, 123456789012345678901234567890])
def test_bijection_for_every_small_length(seed: int) -> None:
    for length in range(1, 301):
        assert np.array_equal(np.sort(whole(length, seed, length)), np.arange(length)), length


@pytest.mark.parametrize("length", [4**9 - 1, 4**9, 4**9 + 1])
def test_bijection_at_the_edges_of_the_feistel_domain(length: int) -> None:
    assert np.bincount(whole(length, 5, 2), minlength=length).tolist() == [1] * length


def test_any_subset_in_any_shape_gives_the_same_values() -> None:
    all_values = whole(5000, 3, 1)
    position = np.array([[4999, 0, 17], [17, 2500, 1]])
    assert np.array_equal(permute(position, 5000, 3, 1), all_values[position])
    assert permute(np.array([], dtype=np.int64), 5000, 3, 1).size == 0
    assert int(permute(np.array(42), 5000, 3, 1)) == all_values[42]


def test_seeds_and_epochs_give_different_orders() -> None:
    keys = list(itertools.product([-1, 0, 1, 2, 11], [0, 1, 2, 12]))
    assert len({whole(500, seed, epoch).tobytes() for seed, epoch in keys}) == len(keys)
    # Two independent permutations agree in 1 place on average.
    agreements = [
        int((whole(500, *a) == whole(500, *b)).sum()) for a, b in itertools.combinations(keys, 2)
    ]
    assert 0.7 < np.mean(agreements) < 1.3


@pytest.mark.parametrize("length", [2, 5])
def test_small_orders_are_uniform_over_seeds(length: int) -> None:
    pairs = np.zeros((length, length), dtype=np.int64)
    for seed in range(1500):
        first, second = permute(np.array([0, length - 1]), length, seed, 0)
        pairs[first, second] += 1
    counts = pairs[~np.eye(length, dtype=bool)]
    assert pairs.trace() == 0
    assert chi_square(counts) < loose_limit(counts.size)


def test_order_looks_uniform_inside_one_epoch() -> None:
    length, num_bins = 100_003, 100
    order = whole(length, 1, 0)
    where = np.histogram(order[: length // 4], bins=num_bins, range=(0, length))[0]
    steps = np.histogram(np.diff(order) % length, bins=num_bins, range=(0, length))[0]
    # Sampled without replacement, so the spread is below chi-square's; a lattice would be at 0.
    assert 0.2 * num_bins < chi_square(where) < loose_limit(num_bins)
    assert 0.2 * num_bins < chi_square(steps) < loose_limit(num_bins)


@pytest.mark.parametrize(
    ("position", "length"), [([-1], 5), ([5], 5), ([0], 0), ([0], 2**62 + 1), ([0, 1], 1)]
)
def test_values_out_of_range_are_refused(position: list[int], length: int) -> None:
    with pytest.raises(ValueError, match="must be in"):
        permute(np.array(position), length, 0, 0)

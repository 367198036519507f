"""Checkpoints that two ranks write together; the ranks are threads that meet at a barrier."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as torch_checkpoint
from safetensors.torch import load_file, save_file
from torch import Tensor

from isoflop.train import checkpoint as module
from isoflop.train import shards
from isoflop.train.checkpoint import CheckpointError, CheckpointStore
from isoflop.train.shards import Rows, Shard, stored_rows

WAIT_S = 30

# Five rows on rank 0 and two on rank 1; what both have; a row of which rank 1 has none.
WHOLE = {
    "table": torch.arange(21.0).reshape(7, 3),
    "shared": torch.arange(4.0),
    "short": torch.ones(1, 2),
}
STATE = {"table/exp_avg": -WHOLE["table"], "table/step": torch.tensor(5.0)}
EXTRA = {"rng": torch.arange(9, dtype=torch.uint8)}


class Two:
    """One of two ranks."""

    size = 2

    def __init__(self, rank: int, meeting: threading.Barrier, told: dict[int, list[float]]) -> None:
        self.rank, self.is_main = rank, rank == 0
        self._meeting, self._told = meeting, told

    def _exchange(self, values: Sequence[float]) -> list[list[float]]:
        self._told[self.rank] = list(values)
        self._meeting.wait(WAIT_S)
        found = [self._told[0], self._told[1]]
        self._meeting.wait(WAIT_S)
        return found

    def broadcast(self, value: float) -> float:
        return self._exchange([value])[0][0]

    def sum(self, values: Sequence[float]) -> list[float]:
        return [a + b for a, b in zip(*self._exchange(values), strict=True)]


def shard_of(rank: int, add: float) -> Shard:
    cut = 5
    rows = {0: slice(0, cut), 1: slice(cut, 7)}[rank]

    def own(whole: Tensor) -> Rows:
        return Rows(0 if rank == 0 else cut, (whole + add)[rows])

    weights = {"table": own(WHOLE["table"])}
    state = {"table/exp_avg": own(STATE["table/exp_avg"])}
    weights["short"] = Rows(rank, (WHOLE["short"] + add)[rank:])
    if rank == 0:
        weights["shared"] = Rows(0, WHOLE["shared"] + add)
        state["table/step"] = Rows(0, STATE["table/step"])
    return Shard(weights=weights, optimizer=state)


def save(
    store: CheckpointStore, step: int, *, whole_weights: bool = False
) -> dict[int, bool | CheckpointError]:
    """What both ranks were told."""
    meeting, told = threading.Barrier(2), dict[int, list[float]]()
    ended: dict[int, bool | CheckpointError] = {}

    def go(rank: int) -> None:
        shard = shard_of(rank, step)
        if whole_weights:
            weights = {name: value + step for name, value in WHOLE.items()} if rank == 0 else {}
            shard = shard.with_whole_weights(weights)
        own = store if rank == 0 else CheckpointStore(store.folder, run_id="run")
        ranks: Any = Two(rank, meeting, told)
        try:
            ended[rank] = own.save_shard(step, shard, EXTRA, {"value": step}, ranks)
        except CheckpointError as error:
            ended[rank] = error

    threads = [threading.Thread(target=go, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * WAIT_S)
    return ended


def store_in(folder: Path, **others: Any) -> CheckpointStore:
    return CheckpointStore(folder / "ckpt", **{"run_id": "run", **others})


def assert_is_there(store: CheckpointStore, step: int) -> None:
    found = store.newest()
    assert found is not None
    assert (found.step, found.meta) == (step, {"value": step})
    expected = {name: value + step for name, value in WHOLE.items()}
    state = {**STATE, "table/exp_avg": STATE["table/exp_avg"] + step}
    for tensors, whole in ((found.weights, expected), (found.optimizer, state)):
        assert set(tensors) == set(whole)
        assert len(tensors) == len(whole)
        for name, value in whole.items():
            assert torch.equal(tensors[name], value), name
    assert found.extra.keys() == EXTRA.keys()
    assert torch.equal(found.extra["rng"], EXTRA["rng"])


@pytest.mark.parametrize("whole_weights", [False, True])
def test_what_two_ranks_write_is_whole_again(tmp_path: Path, whole_weights: bool) -> None:
    store = store_in(tmp_path)
    assert save(store, 3, whole_weights=whole_weights) == {0: True, 1: True}
    weights = {f"weights-0000{rank}-of-00002.safetensors" for rank in (1, 2)}
    assert {path.name for path in (store.folder / "3").iterdir()} == {
        *({"weights.safetensors"} if whole_weights else weights),
        "optimizer-00001-of-00002.safetensors",
        "optimizer-00002-of-00002.safetensors",
        "state.json",
    }
    assert_is_there(store, 3)
    if whole_weights:
        # What a study keeps is read as a single process's is.
        kept = load_file(store.folder / "3" / "weights.safetensors")
        assert torch.equal(kept["table"], WHOLE["table"] + 3)


def test_any_rows_are_read_whoever_wrote_them(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    save(store, 1)
    found = store.newest()
    assert found is not None
    table = WHOLE["table"] + 1
    for first in range(8):
        for last in range(first, 8):
            rows = range(first, last)
            got = stored_rows(found.weights, "table", rows)
            assert torch.equal(got, table[first:last])
            assert got.dtype == table.dtype
    assert stored_rows(found.optimizer, "table/step", range(2, 4)) == STATE["table/step"]
    assert torch.equal(stored_rows(WHOLE, "table", range(2, 4)), WHOLE["table"][2:4])


# Torch's notice that no ranks share the reading.
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_torch_reads_them_by_its_own_storage(tmp_path: Path) -> None:
    """The format is theirs; ours are the seal and the moment from which it counts."""
    store = store_in(tmp_path)
    save(store, 2)
    state = {name: torch.zeros_like(value) for name, value in (WHOLE | STATE).items()}
    reader = torch_checkpoint.HuggingFaceStorageReader(str(store.folder / "2"))
    torch_checkpoint.load(state, storage_reader=reader, no_dist=True)
    for name, value in WHOLE.items():
        assert torch.equal(state[name], value + 2), name
    assert torch.equal(state["table/exp_avg"], STATE["table/exp_avg"] + 2)


def test_at_every_instant_the_one_before_is_there_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is on the disk before and after each operation is what a kill of all ranks leaves."""
    store = store_in(tmp_path)
    save(store, 1)
    lock, instants = threading.Lock(), list[Path]()

    def watched(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            for work in (None, lambda: real(*args, **options)):
                result = work() if work else None
                with lock:
                    instants.append(tmp_path / str(len(instants)))
                    shutil.copytree(store.folder, instants[-1] / "ckpt")
            return result

        return call

    for owner, name in (
        (Path, "mkdir"),
        (Path, "rename"),
        (Path, "write_text"),
        (shards, "save_file"),
        (shards, "fsync_path"),
        (module, "fsync_path"),
    ):
        monkeypatch.setattr(owner, name, watched(getattr(owner, name)))
    assert save(store, 2) == {0: True, 1: True}
    monkeypatch.undo()
    steps = []
    for folder in instants:
        left = store_in(folder)
        newest = left.newest()
        assert newest is not None
        steps.append(newest.step)
        assert_is_there(left, newest.step)
        left.clean_up()
        assert {path.name for path in left.folder.iterdir()} <= {"1", "2"}
    # The order is one; both ranks' files are seen half-way.
    assert steps == sorted(steps)
    assert set(steps) == {1, 2}
    assert len(instants) > 20


def test_a_rank_whose_disk_is_full_is_named_to_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_in(tmp_path)
    save(store, 1)
    real = shards.save_file

    def save_file(tensors: Any, path: Path, **options: Any) -> None:
        if path.name == "optimizer-00002-of-00002.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, path, **options)

    monkeypatch.setattr(shards, "save_file", save_file)
    ended = save(store, 2)
    told = "cannot write the checkpoint of step 2: rank 1: No space left on device"
    assert str(ended[0]) == told
    assert isinstance(ended[1], CheckpointError)
    assert {path.name for path in store.folder.iterdir()} == {"1"}
    assert_is_there(store, 1)


def test_no_rank_writes_where_the_main_one_may_not(tmp_path: Path) -> None:
    answers = iter([True, False])
    assert save(store_in(tmp_path, may_write=lambda: False), 1) == {0: False, 1: False}
    assert not (tmp_path / "ckpt").exists()
    # Succeeded while it wrote: nothing of it stays.
    late = store_in(tmp_path, may_write=lambda: next(answers))
    assert save(late, 1)[0] is False
    assert list(late.folder.iterdir()) == []


def test_the_main_rank_alone_cannot_begin(tmp_path: Path) -> None:
    (tmp_path / "ckpt").write_text("a file")
    ended = save(store_in(tmp_path), 1)
    assert isinstance(ended[0], CheckpointError)
    # Told not to write, instead of waiting.
    assert ended[1] is False


def _seal_again(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """A state that fits its seal: nobody's accident."""
    path = folder / "state.json"
    state = json.loads(path.read_text())
    change(state)
    del state["seal"]
    path.write_text(json.dumps(state | {"seal": module._seal(state)}))


def _lose(folder: Path) -> None:
    (folder / "weights-00002-of-00002.safetensors").unlink()


def _lose_and_forget(folder: Path) -> None:
    _seal_again(folder, lambda s: s["files"].pop("weights-00002-of-00002.safetensors"))


def _exchange_shards(folder: Path) -> None:
    """The header of the second shard where the first's is expected."""
    first, second = (folder / f"weights-0000{n}-of-00002.safetensors" for n in (1, 2))
    first.write_bytes(second.read_bytes())
    record = shards.described(first)
    _seal_again(folder, lambda s: s["files"].update({first.name: record}))


def _call_it_whole(folder: Path) -> None:
    _seal_again(folder, lambda s: s.update(schema=module.SCHEMA))


def _forget_all(folder: Path) -> None:
    _seal_again(folder, lambda s: s["files"].clear())


def _forget_all_but_one(folder: Path) -> None:
    _seal_again(folder, lambda s: [s["files"].popitem() for _ in range(3)])


def _put_a_pipe(folder: Path) -> None:
    """Opening it would wait for a writer."""
    _lose(folder)
    os.mkfifo(folder / "weights-00002-of-00002.safetensors")


def _lie_about_rows(folder: Path) -> None:
    path = folder / "weights-00002-of-00002.safetensors"
    offsets = {name: {"saved_offsets": [10**30]} for name in load_file(path)}
    header = {"DCP_SHARDING_INFO": json.dumps(offsets), "DCP_VERSION": "1.0", "format": "pt"}
    save_file(load_file(path), path, metadata=header)
    record = shards.described(path)
    _seal_again(folder, lambda s: s["files"].update({path.name: record}))


HARMS = [
    *(_lose, _lose_and_forget, _exchange_shards, _call_it_whole),
    *(_forget_all, _forget_all_but_one, _put_a_pipe, _lie_about_rows),
]


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_shard_is_no_checkpoint(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    told: list[int] = []
    store = store_in(tmp_path, on_damaged=lambda step, reason: told.append(step))
    save(store, 1)
    save(store, 2)
    harm(store.folder / "2")
    assert_is_there(store, 1)
    assert told == [2]

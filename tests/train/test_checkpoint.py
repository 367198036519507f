"""Resume is exact; a checkpoint is there whole or not at all; only a run's holder writes."""

from __future__ import annotations

import errno
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from isoflop.families import family_names
from isoflop.train import checkpoint as module
from isoflop.train import loop
from isoflop.train.checkpoint import CheckpointError, CheckpointStore
from isoflop.train.loop import Placement
from made_training import Recorded, assert_same, made_spec, stopped_at, undisturbed

EVERY_STEP = Placement(checkpoint_every_s=None, checkpoint_every_steps=1)


def store_in(folder: Path, **others: Any) -> CheckpointStore:
    return CheckpointStore(folder / "ckpt", **{"run_id": "run", **others})


def save(store: CheckpointStore, step: int, value: float = 0.0) -> bool:
    tensor = torch.full((64,), value)
    return store.save(
        step, {"w": tensor}, {"w/exp_avg": tensor + 1}, {"x": tensor + 2}, {"value": value}
    )


def names(store: CheckpointStore) -> set[str]:
    return {path.name for path in store.folder.iterdir()}


@pytest.mark.parametrize("family", family_names())
def test_stopped_at_any_step_it_ends_as_if_undisturbed(family: str, tmp_path: Path) -> None:
    spec = made_spec(family)
    # Before the first step, twice at the same one, at neighbours, and after the last.
    found = stopped_at(spec, store_in(tmp_path), [0, 1, 1, 2, 7, 10])
    assert_same(found, undisturbed(spec))
    assert found.outcomes[0].status_reason == "SIGUSR2"


def test_a_killed_run_does_lost_steps_again_to_the_same_numbers(tmp_path: Path) -> None:
    spec, store = made_spec("sgatlin"), store_in(tmp_path)
    placement = Placement(checkpoint_every_s=None, checkpoint_every_steps=3)

    class Killed(BaseException):
        pass

    def kill_at(step: int) -> Callable[[Any], None]:
        def on_step(metrics: Any) -> None:
            if metrics.step == step:
                raise Killed

        return on_step

    found = Recorded()
    for step in (1, 4, 4, 9):
        with pytest.raises(Killed):
            found.attempt(spec, store=store, placement=placement, on_step=kill_at(step))
    found.attempt(spec, store=store, placement=placement)
    assert [m.step for m in found.steps] == [0, 1, 0, 1, 2, 3, 4, 3, 4, *range(3, 10), 9]
    assert_same(found, undisturbed(spec))


def test_modules_that_draw_random_numbers_go_on_where_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = loop.build_model

    def noisy(spec: Any) -> Any:
        model = build(spec)
        model.blocks[0].register_forward_hook(
            lambda module, inputs, output: (
                output * (torch.rand(()) + np.random.normal() + random.gauss())
            )
        )
        return model

    monkeypatch.setattr(loop, "build_model", noisy)
    spec = made_spec()
    wanted = undisturbed(spec)
    random.seed(1)
    np.random.seed(1)
    assert_same(stopped_at(spec, store_in(tmp_path), [3, 4]), wanted)
    monkeypatch.setattr(loop, "build_model", build)
    assert undisturbed(spec).numbers() != wanted.numbers()


def test_a_parameter_in_two_places_goes_on_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = loop.build_model

    def tied(spec: Any) -> Any:
        model = build(spec)
        first, second = (block.feedforward for block in model.blocks)
        second.w1 = first.w1
        return model

    monkeypatch.setattr(loop, "build_model", tied)
    # It has fewer parameters than its ledger, which no run may begin with.
    monkeypatch.setattr(loop, "_as_planned", lambda model, spec: model)
    spec, store = made_spec(n_layers=2), store_in(tmp_path)
    found = stopped_at(spec, store, [3, 7])
    assert_same(found, undisturbed(spec))
    assert "blocks.0.feedforward.w1" in found.weights
    assert "blocks.1.feedforward.w1" not in found.weights
    assert "blocks.1.feedforward.w2" in found.weights


def test_what_was_gathered_counts_over_all_attempts(tmp_path: Path) -> None:
    spec = made_spec()
    found = stopped_at(spec, store_in(tmp_path), [4])
    first, second = found.outcomes
    assert (first.num_steps, second.num_steps) == (4, 10)
    seconds = first.wall_s + second.wall_s
    assert second.tokens_per_s == pytest.approx(10 * 64 / seconds)
    assert second.wall_s == found.steps[-1].wall_s
    assert [m.tokens for m in found.steps] == [64 * (step + 1) for step in range(10)]


def test_checkpoints_and_evaluations_take_no_training_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    def taking(seconds: float, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal now
            now += seconds
            return real(*args, **kwargs)

        return call

    monkeypatch.setattr(loop.time, "perf_counter", lambda: now)
    monkeypatch.setattr(loop, "gradients_of_batch", taking(1.0, loop.gradients_of_batch))
    monkeypatch.setattr(loop, "evaluate", taking(100.0, loop.evaluate))
    monkeypatch.setattr(CheckpointStore, "save", taking(1000.0, CheckpointStore.save))
    placement = Placement(checkpoint_every_steps=3, evaluate_every_steps=2)
    found = undisturbed(made_spec(), store=store_in(tmp_path), placement=placement)
    assert [m.wall_s for m in found.steps] == list(range(1, 11))
    assert found.outcome.step_s_median == 1.0
    kinds = [kind for kind, _ in found.events]
    assert kinds.count("checkpoint") == 4
    assert kinds.count("evaluation") == 4


def test_the_cadence_by_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def on_step(metrics: Any) -> None:
        nonlocal now
        now += 4.0

    monkeypatch.setattr(loop.time, "monotonic", lambda: now)
    found = undisturbed(
        made_spec(),
        store=store_in(tmp_path),
        placement=Placement(checkpoint_every_s=10.0),
        on_step=on_step,
    )
    saved = [values["step"] for kind, values in found.events if kind == "checkpoint"]
    # And before the evaluation, since the run was long enough for others.
    assert saved == [3, 6, 9, 10]


def test_a_short_run_writes_no_checkpoint(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    assert undisturbed(made_spec(), store=store).outcome.status == "done"
    assert not store.folder.exists()


def test_evaluating_on_the_way_changes_nothing() -> None:
    spec = made_spec("moe")
    found = undisturbed(spec, placement=Placement(evaluate_every_steps=4))
    assert_same(found, undisturbed(spec))
    steps = [values["step"] for kind, values in found.events if kind == "evaluation"]
    assert steps == [3, 7]


def test_a_divergence_after_a_resume_is_found_at_its_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, store, found = made_spec(), store_in(tmp_path), Recorded()
    found.attempt(spec, store=store, stop_at=6)
    real = loop.gradients_of_batch
    monkeypatch.setattr(
        loop, "gradients_of_batch", lambda *a, **k: real(*a, **k)._replace(loss=float("nan"))
    )
    outcome = found.attempt(spec, store=store)
    assert (outcome.status, outcome.num_steps) == ("diverged", 6)
    assert outcome.status_reason == "non-finite loss at step 6"


def test_the_layout_of_a_checkpoint(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    Recorded().attempt(made_spec(), store=store, stop_at=7)
    folder = store.folder / "7"
    assert names(store) == {"7"}
    assert {p.name for p in folder.iterdir()} == {
        "weights.safetensors",
        "optimizer.safetensors",
        "state.json",
    }
    state = json.loads((folder / "state.json").read_text())
    assert (state["step"], state["run_id"]) == (7, "run")
    assert state["meta"]["data_position"] == 7 * 4
    found = store.newest()
    assert found is not None
    parameters = set(found.weights)
    assert {name.rpartition("/")[0] for name in found.optimizer} == parameters
    assert set(state["files"]["weights.safetensors"]) == {"num_bytes", "sha256"}


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _change_meta(path: Path) -> None:
    path.write_text(path.read_text().replace('"value": 2.0', '"value": 3.0'))


def _seal_again(path: Path, name: str) -> None:
    """A state that fits its seal: nobody's accident."""
    state = json.loads(path.read_text())
    state["files"][name] = 3
    del state["seal"]
    path.write_text(json.dumps(state | {"seal": module._seal(state)}))


DAMAGES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "no weights": ("weights.safetensors", Path.unlink),
    "cut weights": ("weights.safetensors", _cut),
    "flipped weights": ("weights.safetensors", _flip),
    "no optimizer": ("optimizer.safetensors", Path.unlink),
    "flipped optimizer": ("optimizer.safetensors", _flip),
    "no state": ("state.json", Path.unlink),
    "empty state": ("state.json", lambda path: path.write_bytes(b"")),
    "cut state": ("state.json", _cut),
    "no text": ("state.json", lambda path: path.write_bytes(b"\xff\xfe")),
    "a list": ("state.json", lambda path: path.write_text("[]")),
    "no seal": ("state.json", lambda path: path.write_text("{}")),
    "changed meta": ("state.json", _change_meta),
    "too deep": ("state.json", lambda path: path.write_text("[" * 5000 + "]" * 5000)),
    "another file": ("state.json", lambda path: _seal_again(path, "/etc/hostname")),
    "a figure as file": ("state.json", lambda path: _seal_again(path, module.WEIGHTS_FILE)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(damage: str, tmp_path: Path) -> None:
    told: list[tuple[int, str]] = []
    store = store_in(tmp_path, on_damaged=lambda step, reason: told.append((step, reason)))
    assert store.newest() is None
    save(store, 1, 1.0)
    save(store, 2, 2.0)
    whole = store.newest()
    assert whole is not None
    assert (whole.step, whole.meta, told) == (2, {"value": 2.0}, [])
    name, harm = DAMAGES[damage]
    # The last byte of state.json is its final newline: without two of them it is no JSON.
    for _ in range(2 if damage == "cut state" else 1):
        harm(store.folder / "2" / name)
    found = store.newest()
    assert found is not None
    assert (found.step, found.weights["w"][0].item()) == (1, 1.0)
    ((step, reason),) = told
    assert step == 2
    assert name in reason
    # The step comes again, and its checkpoint takes the damaged one's place.
    save(store, 2, 2.0)
    again = store.newest()
    assert again is not None
    assert again.step == 2
    assert names(store) == {"1", "2"}


def test_a_checkpoint_of_another_run_or_step_is_not_taken(tmp_path: Path) -> None:
    save(store_in(tmp_path, run_id="other"), 3)
    told: list[str] = []
    store = store_in(tmp_path, on_damaged=lambda step, reason: told.append(reason))
    assert store.newest() is None
    save(store, 1)
    (store.folder / "1").rename(store.folder / "9")
    assert store.newest() is None
    assert ["run_id is 'other'" in told[0], "step is 1" in told[1]] == [True, True]


def test_two_are_kept_and_what_killed_writers_left_goes(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    left = store.folder / ".7.123-abc.tmp"
    left.mkdir(parents=True)
    (left / "weights.safetensors").write_bytes(b"half")
    assert store.newest() is None
    for step in (9, 10, 11):
        assert save(store, step)
    assert names(store) == {"10", "11"}
    left.mkdir()
    store.clean_up()
    assert names(store) == {"10", "11"}
    # What is beyond the step that is saved was damaged, or it would have been resumed.
    save(store, 5)
    assert names(store) == {"5"}


def test_a_succeeded_writer_changes_nothing(tmp_path: Path) -> None:
    successor = store_in(tmp_path)
    save(successor, 4)
    save(successor, 5)
    orphan = store_in(tmp_path, may_write=lambda: False)
    assert not save(orphan, 6, 6.0)
    assert names(successor) == {"4", "5"}


def test_a_writer_succeeded_in_its_last_moment_harms_nothing(tmp_path: Path) -> None:
    successor = store_in(tmp_path)
    answers = iter([True, True, False])
    orphan = store_in(tmp_path, may_write=lambda: next(answers))
    save(successor, 4, 4.0)
    save(successor, 8, 8.0)
    # It may write when it asks, but its step has been done by the successor by then.
    assert save(orphan, 4, -1.0)
    found = successor.newest()
    assert found is not None
    assert (found.step, found.meta["value"]) == (8, 8.0)
    (successor.folder / "8" / "state.json").unlink()
    found = successor.newest()
    assert found is not None
    assert (found.step, found.meta["value"]) == (4, 4.0)


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("error", [FULL, SafetensorError("I/O error: No space left on device")])
@pytest.mark.parametrize("at", ["first file", "second file", "state", "flush", "rename"])
def test_a_full_disk_costs_a_checkpoint_and_no_older_one(
    at: str, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_in(tmp_path)
    save(store, 1)

    def fail(*_: Any, **__: Any) -> None:
        raise error

    calls = iter(range(10))
    real = module.save_file
    if at == "first file":
        monkeypatch.setattr(module, "save_file", fail)
    elif at == "second file":
        monkeypatch.setattr(module, "save_file", lambda *a: fail() if next(calls) else real(*a))
    elif at == "state":
        monkeypatch.setattr(CheckpointStore, "_write_state", fail)
    elif at == "flush":
        monkeypatch.setattr(module, "_flush", fail)
    else:
        monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(CheckpointError, match="No space left on device"):
        save(store, 2)
    monkeypatch.undo()
    assert names(store) == {"1"}
    assert store.newest() is not None


def test_training_goes_on_without_checkpoints_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise FULL

    monkeypatch.setattr(module, "save_file", fail)
    spec, store = made_spec(), store_in(tmp_path)
    found = undisturbed(spec, store=store, placement=EVERY_STEP)
    failed = [values for kind, values in found.events if kind == "checkpoint_failed"]
    assert failed == [{"step": 1, "reason": f"cannot write the checkpoint of step 1: {FULL}"}]
    assert_same(found, undisturbed(spec))
    # Weights that were asked for are no small matter.
    with pytest.raises(CheckpointError, match="No space left on device"):
        Recorded().attempt(spec, store=store, keep_weights=True)


def test_a_folder_that_cannot_be_made_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "ckpt").write_text("no folder")
    found = undisturbed(made_spec(), store=store_in(tmp_path), placement=EVERY_STEP)
    assert found.outcome.status == "done"
    assert [kind for kind, _ in found.events].count("checkpoint_failed") == 1


def test_kept_weights_are_those_of_the_last_step(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    found = undisturbed(made_spec(), store=store, keep_weights=True)
    kept = store.newest()
    assert kept is not None
    assert kept.step == 10
    assert kept.weights.keys() == found.weights.keys()
    for name, value in found.weights.items():
        assert torch.equal(kept.weights[name], value)

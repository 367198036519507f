"""Runs that begin where a longer one passed end in the same bits as if each were trained alone."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from isoflop.families import family_names
from isoflop.placement import Placement
from isoflop.recipe import RECIPES
from isoflop.train import checkpoint
from isoflop.train.checkpoint import CheckpointStore
from made_trunks import RECIPE, Ending, Killed, MadeTrunk

pytestmark = pytest.mark.usefixtures("cadences")

SHORT, MIDDLE, LONG = 0, 1, 2
FORKS = [8, 11]
# Checkpoints after 5, 10 and 15 steps, between which the forks lie; and at one of them.
OFTEN = Placement(checkpoint_every_s=None, checkpoint_every_steps=5)
AT_FORK = Placement(checkpoint_every_s=None, checkpoint_every_steps=8)


SLOW = pytest.mark.slow
CASES = [
    ("swiglu", {"document_mask": True}),
    ("sgatlin", {"placement": Placement(micro_batch=3, evaluate_every_steps=3)}),
    *(pytest.param(family, {}, marks=SLOW) for family in family_names()),
]


@pytest.mark.parametrize(("family", "others"), CASES)
def test_branches_are_the_runs_trained_alone(
    family: str,
    others: dict[str, Any],
    wanted: Callable[..., Ending],
    tmp_path: Path,
    executed: list[None],
) -> None:
    made = MadeTrunk(tmp_path, family, **others)
    spikes = []
    for number, steps in ((LONG, 20), (MIDDLE, 13 - 11), (SHORT, 10 - 8)):
        executed.clear()
        made.whole(number)
        assert len(executed) == steps
        alike = wanted(number, family, **others)
        assert made.ending(number) == alike
        spikes += alike.spikes
        assert bool(alike.usage) == (family not in ("mlp", "swiglu"))
        evaluated = [row["step"] for row in alike.metrics if row["heldout_loss"] is not None]
        assert bool(evaluated) == ("placement" in others)
        result = made.of(number).result()
        assert result is not None
        assert result.trunk_steps == (0 if number == LONG else FORKS[number])
        assert (result.trunk_wall_s > 0) == (number != LONG)
        assert (result.wall_s or 0) > result.trunk_wall_s
    assert spikes
    assert made.forks(LONG) == FORKS
    for number in (MIDDLE, SHORT):
        (begun,) = made.events(number, "begun", "resumed")
        assert (begun["step"], begun["run_id"]) == (FORKS[number], made.of(LONG).run_id)


@pytest.mark.parametrize(
    ("how", "at", "placement"),
    [
        ("killed", 8, OFTEN),
        pytest.param("killed", 9, OFTEN, marks=SLOW),
        pytest.param("stopped", 8, OFTEN, marks=SLOW),
        pytest.param("killed", 7, OFTEN, marks=SLOW),
        pytest.param("killed", 8, AT_FORK, marks=SLOW),
        pytest.param("killed", 9, AT_FORK, marks=SLOW),
        pytest.param("stopped", 7, OFTEN, marks=SLOW),
        pytest.param("stopped", 9, OFTEN, marks=SLOW),
    ],
)
def test_a_trunk_that_is_stopped_or_killed_about_a_fork_passes_it_again(
    how: str, at: int, placement: Placement, wanted: Callable[..., Ending], tmp_path: Path
) -> None:
    made = MadeTrunk(tmp_path, "sgatlin", placement=placement)
    if how == "stopped":
        assert made.go(LONG, stop_after=at).status == "interrupted"
    else:
        made.kill(LONG, after=at)
    # A kill in the callback of a step comes before the fork.
    assert made.forks(LONG) == ([8] if (at, how) > (8, "killed") else [])
    made.whole(LONG, SHORT, MIDDLE)
    for number in (LONG, SHORT, MIDDLE):
        assert made.ending(number) == wanted(number, "sgatlin", placement=placement)
    assert [row["step"] for row in made.events(LONG, "fork")] == FORKS


@pytest.mark.slow
def test_a_branch_that_begins_before_its_fork(
    wanted: Callable[..., Ending], tmp_path: Path, executed: list[None]
) -> None:
    made = MadeTrunk(tmp_path, "sgatlin")
    made.kill(LONG, after=10)
    executed.clear()
    made.whole(MIDDLE)
    assert len(executed) == 13 - 8
    assert made.ending(MIDDLE) == wanted(MIDDLE, "sgatlin")
    # The fork at which it began is there for the other one already.
    assert (made.forks(LONG), made.forks(MIDDLE)) == ([8], [])
    made.whole(SHORT, LONG)
    assert made.ending(SHORT) == wanted(SHORT, "sgatlin")
    assert made.ending(LONG) == wanted(LONG, "sgatlin")
    # For a run that is done none is left.
    assert made.forks(LONG) == [8]


def test_a_branch_is_a_trunk_itself(wanted: Callable[..., Ending], tmp_path: Path) -> None:
    steps = (10, 13, 16, 20)
    made = MadeTrunk(tmp_path, "sgatlin", steps=steps, placement=OFTEN)
    made.kill(3, after=9)
    # From fork 8 of the longest one it goes on to leave 11 for the one after it.
    made.whole(2)
    assert made.forks(2) == [11]
    (begun,) = made.events(2, "begun")
    assert (begun["run_id"], begun["step"]) == (made.of(3).run_id, 8)
    made.whole(1)
    (begun,) = made.events(1, "begun")
    assert (begun["run_id"], begun["step"]) == (made.of(2).run_id, 11)
    for number in (1, 2):
        alike = wanted(number, "sgatlin", steps=steps, placement=OFTEN)
        assert made.ending(number) == alike


@pytest.mark.parametrize("when", ["first file", pytest.param("told", marks=SLOW)])
def test_killed_while_it_writes_a_fork(
    when: str, wanted: Callable[..., Ending], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = MadeTrunk(tmp_path, "moe", placement=OFTEN)
    left = made.of(LONG).forks / ".8.1-0123abcd.tmp"
    real = checkpoint.save_file

    def save_file(tensors: Any, path: Path) -> None:
        if "forks" in path.parts:
            # What a kill leaves, since nothing tidies up after it.
            left.mkdir()
            (left / path.name).write_bytes(b"half")
            raise Killed
        real(tensors, path)

    def on_event(self: Any, kind: str, values: Any) -> None:
        if kind == "fork":
            raise Killed

    with monkeypatch.context() as patch:
        if when == "first file":
            patch.setattr(checkpoint, "save_file", save_file)
        else:
            patch.setattr("isoflop.launch.forks.TrunkLog.event", on_event)
        with pytest.raises(Killed):
            made.go(LONG)
    made.bury(LONG)
    assert made.forks(LONG) == ([] if when == "first file" else [8])
    made.whole(LONG, SHORT)
    assert not left.exists()
    assert made.forks(LONG) == FORKS
    assert made.ending(LONG) == wanted(LONG, "moe", placement=OFTEN)
    assert made.ending(SHORT) == wanted(SHORT, "moe", placement=OFTEN)


def damage(made: MadeTrunk, number: int, step: int) -> None:
    (made.of(number).forks / str(step) / "weights.safetensors").write_bytes(b"short")


def test_a_damaged_fork_is_passed_over(wanted: Callable[..., Ending], tmp_path: Path) -> None:
    made = MadeTrunk(tmp_path, "sgatlin")
    made.whole(LONG)
    damage(made, LONG, 11)
    made.whole(MIDDLE)
    assert made.ending(MIDDLE) == wanted(MIDDLE, "sgatlin")
    (event,) = made.events(MIDDLE, "fork_damaged")
    assert (event["step"], event["run_id"]) == (11, made.of(LONG).run_id)
    assert event["reason"] == "weights.safetensors: missing or cut off"
    assert [row["step"] for row in made.events(MIDDLE, "begun")] == [8]
    damage(made, LONG, 8)
    made.whole(SHORT)
    assert made.ending(SHORT) == wanted(SHORT, "sgatlin")
    assert made.events(SHORT, "begun") == []
    result = made.of(SHORT).result()
    assert result is not None
    assert (result.trunk_steps, result.trunk_wall_s) == (0, 0.0)


@pytest.mark.slow
def test_a_trunk_writes_a_damaged_fork_again(tmp_path: Path) -> None:
    made = MadeTrunk(tmp_path, placement=OFTEN)
    made.kill(LONG, after=9)
    damage(made, LONG, 8)
    made.whole(LONG, SHORT)
    assert [row["step"] for row in made.events(SHORT, "begun")] == [8]


def test_a_fork_that_cannot_be_written_is_an_event(
    wanted: Callable[..., Ending], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = MadeTrunk(tmp_path)
    real = checkpoint.save_file

    def full(tensors: Any, path: Path) -> None:
        if "11" in path.parent.name.split(".") and "forks" in path.parts:
            raise OSError(28, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full)
    made.whole(LONG, MIDDLE)
    (event,) = made.events(LONG, "fork_failed")
    assert event["step"] == 11
    assert "No space left on device" in event["reason"]
    assert made.ending(LONG) == wanted(LONG)
    assert made.ending(MIDDLE) == wanted(MIDDLE)
    assert [row["step"] for row in made.events(MIDDLE, "begun")] == [8]


@pytest.mark.slow
def test_no_folder_for_forks_costs_no_run(wanted: Callable[..., Ending], tmp_path: Path) -> None:
    made = MadeTrunk(tmp_path, "peer")
    made.of(LONG).forks.write_text("no folder")
    made.whole(LONG)
    assert [row["step"] for row in made.events(LONG, "fork_failed")] == FORKS
    assert made.ending(LONG) == wanted(LONG, "peer")


def test_a_branch_whose_checkpoints_are_all_damaged_begins_at_its_fork_again(
    wanted: Callable[..., Ending], tmp_path: Path
) -> None:
    made = MadeTrunk(tmp_path, "sgatlin")
    made.whole(LONG)
    assert made.go(MIDDLE, stop_after=12).status == "interrupted"
    (made.of(MIDDLE).checkpoints / "12" / "weights.safetensors").write_bytes(b"short")
    made.whole(MIDDLE)
    assert [row["step"] for row in made.events(MIDDLE, "begun", "resumed")] == [11, 11]
    assert made.ending(MIDDLE) == wanted(MIDDLE, "sgatlin")
    # What was taken over is there once.
    rows = [(row.get("event"), row["step"]) for row in made.of(MIDDLE).metrics()]
    taken = [row for row in rows if row[0] in (None, "usage", "spike") and row[1] < 11]
    assert taken
    assert len(taken) == len(set(taken))
    result = made.of(MIDDLE).result()
    assert result is not None
    assert result.trunk_steps == 11


def test_a_branch_goes_on_from_its_own_checkpoint(
    wanted: Callable[..., Ending], tmp_path: Path
) -> None:
    made = MadeTrunk(tmp_path, "sgatlin")
    made.whole(LONG)
    # Before its first own step, too.
    for stop in (0, 12):
        assert made.go(MIDDLE, stop_after=stop).status == "interrupted"
    made.whole(MIDDLE)
    begun = made.events(MIDDLE, "begun", "resumed")
    assert [(row["event"], row["step"]) for row in begun] == [
        ("begun", 11),
        ("resumed", 11),
        ("resumed", 12),
    ]
    assert made.ending(MIDDLE) == wanted(MIDDLE, "sgatlin")
    result = made.of(MIDDLE).result()
    assert result is not None
    assert result.trunk_steps == 11
    spent_s = sum(attempt.wall_s or 0.0 for attempt in made.of(MIDDLE).attempts())
    assert result.wall_s == pytest.approx(result.trunk_wall_s + spent_s)


def test_a_run_whose_checkpoints_are_all_damaged_begins_at_a_fork_of_its_own(
    wanted: Callable[..., Ending], tmp_path: Path, executed: list[None]
) -> None:
    made = MadeTrunk(tmp_path, "sgatlin")
    assert made.go(LONG, stop_after=12).status == "interrupted"
    (made.of(LONG).checkpoints / "12" / "weights.safetensors").write_bytes(b"short")
    executed.clear()
    made.whole(LONG)
    assert len(executed) == 20 - 11
    assert made.ending(LONG) == wanted(LONG, "sgatlin")
    result = made.of(LONG).result()
    assert result is not None
    assert (result.trunk_steps, result.trunk_wall_s) == (0, 0.0)


@pytest.fixture
def no_decay(monkeypatch: pytest.MonkeyPatch) -> str:
    """A recipe whose runs are one training until the shorter one ends."""
    recipe = dataclasses.replace(RECIPE, name="made", schedule="constant")
    monkeypatch.setitem(RECIPES, "made", recipe)
    return "made"


def test_without_a_decay_only_the_evaluation_is_left(
    no_decay: str, wanted: Callable[..., Ending], tmp_path: Path, executed: list[None]
) -> None:
    # Both have a held-out loss on the way after the last step of the shorter one.
    others = {
        "recipe": no_decay,
        "steps": (10, 20),
        "placement": Placement(evaluate_every_steps=5),
    }
    made = MadeTrunk(tmp_path, "sgatlin", **others)
    made.whole(1)
    executed.clear()
    made.whole(0)
    assert executed == []
    assert made.ending(0) == wanted(0, "sgatlin", **others)
    assert made.ending(0).weights
    assert [row["step"] for row in made.ending(0).metrics][-1] == 9
    result = made.of(0).result()
    assert result is not None
    assert result.trunk_steps == result.num_steps == 10


def test_a_fork_keeps_no_state_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[weakref.ref[Any]] = []
    real = CheckpointStore.save

    def save(self: CheckpointStore, step: int, weights: Any, optimizer: Any, *rest: Any) -> bool:
        held.extend(weakref.ref(tensor) for tensor in [*weights.values(), *optimizer.values()])
        return real(self, step, weights, optimizer, *rest)

    monkeypatch.setattr(CheckpointStore, "save", save)
    made = MadeTrunk(tmp_path)

    def on_step(metrics: Any) -> None:
        assert all(ref() is None for ref in held)

    assert made.go(LONG, on_step=on_step).status == "done"
    assert made.forks(LONG) == FORKS
    assert held

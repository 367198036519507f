"""What of a curve, a divergence or an older version a run takes over from its trunk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from isoflop.launch import execute as executing
from isoflop.placement import Placement
from isoflop.train import checkpoint, loop
from made_trunks import Ending, MadeTrunk, alone

pytestmark = pytest.mark.usefixtures("cadences")

SHORT, MIDDLE, LONG = 0, 1, 2
SLOW = pytest.mark.slow


def diverge(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    real = loop.check
    monkeypatch.setattr(
        loop, "check", lambda at, *rest: f"made up at {at}" if at == step else real(at, *rest)
    )


def test_a_divergence_before_the_fork_is_inherited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executed: list[None]
) -> None:
    diverge(monkeypatch, 6)
    made = MadeTrunk(tmp_path / "shared", "sgatlin")
    assert made.go(LONG).status == "diverged"
    executed.clear()
    for number in (MIDDLE, SHORT):
        ending = made.go(number)
        assert (ending.status, ending.reason) == ("diverged", "made up at 6")
        assert executed == []
    result = made.of(SHORT).result()
    assert result is not None
    assert (result.num_steps, result.trunk_steps) == (6, 6)
    assert result.wall_s == result.trunk_wall_s > 0
    for number in (MIDDLE, SHORT):
        assert made.ending(number) == alone(tmp_path / "alone", number, "sgatlin")
    assert [a.exit_reason for a in made.of(SHORT).attempts()] == ["diverged"]


def test_a_divergence_after_the_fork_is_not(
    wanted: Callable[..., Ending], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = MadeTrunk(tmp_path)
    with monkeypatch.context() as patch:
        diverge(patch, 9)
        assert made.go(LONG).status == "diverged"
        assert made.forks(LONG) == [8]
        # Of both others it lies before the fork of one alone.
        assert made.go(MIDDLE).reason == "made up at 9"
    made.whole(SHORT)
    assert made.ending(SHORT) == wanted(SHORT)
    assert [row["step"] for row in made.events(SHORT, "begun")] == [8]


def test_a_run_that_came_further_than_a_divergence_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = MadeTrunk(tmp_path)
    assert made.go(SHORT, stop_after=7).status == "interrupted"
    with monkeypatch.context() as patch:
        diverge(patch, 6)
        assert made.go(LONG).status == "diverged"
    made.whole(SHORT)


def test_sinks_get_the_curve_of_a_branch_once_and_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, int]] = []

    class Sink:
        def step(self, step: int, values: Any) -> None:
            told.append(("step", step))

        def event(self, kind: str, values: Any) -> None:
            if kind in ("usage", "spike", "evaluation"):
                told.append((kind, values["step"]))

        def close(self) -> None:
            pass

    monkeypatch.setattr(executing, "open_sinks", lambda names, about: [Sink()])
    placement = Placement(evaluate_every_steps=3)
    alone(tmp_path / "alone", SHORT, "sgatlin", placement=placement)
    alike = told[:]
    made = MadeTrunk(tmp_path / "shared", "sgatlin", placement=placement)
    made.whole(LONG)
    told.clear()
    # Begun twice at the fork, since it was killed before its first checkpoint.
    made.kill(SHORT, after=9)
    made.whole(SHORT)
    before = [row for row in told if row[1] < 8]
    assert before == [row for row in alike if row[1] < 8]
    assert {kind for kind, _ in before} == {"step", "usage", "spike", "evaluation"}


UGLY = [
    b'{"attempt": 1, "step": 3, "lo',
    b'{"attempt": 1, "event": "usage", "steps": 10}',
    b'{"attempt": 1, "loss": 1.0}',
    b'{"attempt": 1, "event": "spike"}',
    b"\xff\xfe",
    b"[1]",
]


@pytest.mark.parametrize("file", ["forks/shared.jsonl", pytest.param("metrics.jsonl", marks=SLOW)])
def test_lines_that_nothing_wrote_cost_no_branch_and_no_rows(
    file: str, wanted: Callable[..., Ending], tmp_path: Path
) -> None:
    made = MadeTrunk(tmp_path, "sgatlin")
    made.kill(LONG, after=6)
    path = made.of(LONG).path / file
    path.write_bytes(path.read_bytes() + b"\n".join(UGLY))
    made.whole(LONG, SHORT)
    assert made.ending(SHORT) == wanted(SHORT, "sgatlin")


def test_without_shared_rows_a_branch_has_the_trunks_own(
    wanted: Callable[..., Ending], tmp_path: Path
) -> None:
    made = MadeTrunk(tmp_path, "sgatlin")
    made.whole(LONG)
    (made.of(LONG).forks / "shared.jsonl").unlink()
    made.whole(SHORT)
    found, alike = made.ending(SHORT), wanted(SHORT, "sgatlin")
    assert (found.result, found.weights) == (alike.result, alike.weights)
    assert {row["step"] for row in found.metrics if row["step"] < 8} == {0}
    assert {row["step"] for row in found.usage if row["step"] < 8} == {0, 5}


def test_a_run_that_is_planned_later_begins_where_the_longest_one_decays(
    wanted: Callable[..., Ending], tmp_path: Path, executed: list[None]
) -> None:
    MadeTrunk(tmp_path, "sgatlin", steps=(10, 20), keeps=True).whole(1, 0)
    later = MadeTrunk(tmp_path, "sgatlin", steps=(10, 20, 30))
    assert later.forks(1) == [8, 16]
    executed.clear()
    later.whole(2)
    assert len(executed) == 30 - 16
    found, alike = later.ending(2), wanted(2, "sgatlin", steps=(10, 20, 30))
    assert (found.result, found.weights, found.metrics) == (
        alike.result,
        alike.weights,
        alike.metrics,
    )
    # Which steps it logs was not known: of those before the fork there are the trunk's.
    assert {row["step"] for row in found.usage if row["step"] < 16} == {0, 5, 10, 15}
    assert [u for u in found.usage if u["step"] >= 16 and u["split"] == "heldout"]


def edit_state(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Changes a checkpoint's meta, and seals it again."""
    state = json.loads((path / "state.json").read_text())
    del state["seal"]
    edit(state["meta"])
    (path / "state.json").write_text(json.dumps(state | {"seal": checkpoint._seal(state)}))


def test_a_checkpoint_of_version_0_1_0_goes_on(
    wanted: Callable[..., Ending], tmp_path: Path
) -> None:
    made = MadeTrunk(tmp_path, "sgatlin")
    assert made.go(LONG, stop_after=4, shares=False).status == "interrupted"

    def as_before(meta: dict[str, Any]) -> None:
        del meta["trunk_steps"], meta["trunk_wall_s"]
        del meta["accumulators"]["health"]["steps"], meta["accumulators"]["health"]["ever_used_of"]

    edit_state(made.of(LONG).checkpoints / "4", as_before)
    made.whole(LONG, SHORT)
    assert made.ending(LONG) == wanted(LONG, "sgatlin")
    found, alike = made.ending(SHORT), wanted(SHORT, "sgatlin")
    assert (found.result, found.weights) == (alike.result, alike.weights)
    # Of the steps before, the trunk logged what it needs itself.
    steps = [row["step"] for row in found.metrics]
    assert steps == [0, *(row["step"] for row in alike.metrics if row["step"] >= 4)]
    assert sorted({row["step"] for row in found.usage}) == [0, 4, 6, 8, 9]

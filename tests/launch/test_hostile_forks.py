"""What may lie in the place of a fork holds nobody up, leads nowhere and costs no result."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from isoflop.launch import trunks
from isoflop.launch.clean import leftovers
from isoflop.launch.trunks import forks_in, prune_forks, usable_forks, waits_for
from made_siblings import Made
from made_trunks import Ending, MadeTrunk

SHORT, MIDDLE, LONG = 0, 1, 2

cadences = pytest.mark.usefixtures("cadences")


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


@cadences
def test_a_pipe_in_a_fork_holds_nobody_up(wanted: Callable[..., Ending], tmp_path: Path) -> None:
    made = MadeTrunk(tmp_path, "sgatlin")
    made.whole(LONG)
    state = made.of(LONG).forks / "11" / "state.json"
    state.unlink()
    os.mkfifo(state)
    (made.of(LONG).forks / "shared.jsonl").unlink()
    os.mkfifo(made.of(LONG).forks / "shared.jsonl")
    made.whole(MIDDLE)
    assert [row["step"] for row in made.events(MIDDLE, "fork_damaged")] == [11]
    assert made.ending(MIDDLE).weights == wanted(MIDDLE, "sgatlin").weights


@cadences
def test_a_pipe_for_shared_rows_costs_no_run(wanted: Callable[..., Ending], tmp_path: Path) -> None:
    made = MadeTrunk(tmp_path)
    made.of(LONG).forks.mkdir()
    os.mkfifo(made.of(LONG).forks / "shared.jsonl")
    made.whole(LONG)
    assert made.ending(LONG) == wanted(LONG)


def test_only_folders_named_as_we_name_them_are_forks(made: Made) -> None:
    short, _, longest = made.runs
    forks = made.of(longest).forks
    for name in ("007", "٣", "-1", "1e3", " 2", "9" * 250, "0"):
        (forks / name).mkdir(parents=True)
    (forks / "5").write_text("no folder")
    (forks / "6").symlink_to(made.folder, target_is_directory=True)
    assert [fork.step for fork in forks_in(made.of(longest))] == [0, int("9" * 250)]
    (forks / "6").unlink()
    assert [fork.step for fork in usable_forks(made.folder, made.job(short))] == [0]
    assert {left.path.name for left in leftovers(made.folder, made.plan)} == {"0", "9" * 250}


@pytest.mark.parametrize("where", ["forks", "forks/100", "forks/100/state.json"])
def test_nobody_begins_at_what_a_link_leads_to(made: Made, tmp_path: Path, where: str) -> None:
    short, _, longest = made.runs
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "100").mkdir(parents=True)
    link = made.of(longest).path / where
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(elsewhere)
    assert usable_forks(made.folder, made.job(short)) == []
    assert list(elsewhere.iterdir()) == [elsewhere / "100"]


def test_folders_that_another_process_removes_between_two_looks(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    short, middle, longest = made.runs
    made.fork(longest, made.job(short).fork)
    made.of(longest).checkpoints.mkdir()
    real = os.scandir

    def scandir(path: object) -> object:
        if isinstance(path, Path) and path.name in ("forks", "ckpt"):
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return real(path)  # type: ignore[call-overload]

    monkeypatch.setattr(trunks.os, "scandir", scandir)
    job = made.job(middle)
    assert forks_in(made.of(longest)) == []
    found = waits_for(made.folder, middle.run_id, job, {longest.run_id}.__contains__)
    assert found is not None
    made.finish(middle)
    prune_forks(made.folder, middle.run_id, job)

"""Runs of a project on a server, which is one of the tests on the loopback."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from isoflop.ingest import wandb_online
from isoflop.ingest.wandb import read_wandb
from made_wandb_server import KEY, Project, wandb_server

wandb = pytest.importorskip("wandb")
pytestmark = pytest.mark.slow


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(wandb_online, "_PAUSE_S", 0.0)
    with wandb_server() as made:
        monkeypatch.setenv("WANDB_BASE_URL", made.url)
        yield made
        wandb.teardown()


def losses(*, refresh: bool = False) -> dict[str, float]:
    frame = read_wandb("me/laws", refresh=refresh).frame
    return dict(zip(frame["id"], frame["loss"], strict=True))


def test_runs_come_by_pages_and_those_that_ended_only_once(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb_online, "_NUM_LISTED", 40)
    for number in range(120):
        state = "running" if number == 5 else "finished"
        project.add(f"r{number}", state=state, loss=2.5, config={"model": {"n": number}})
    told: list[tuple[int, int]] = []
    frame = read_wandb("me/laws", note=lambda *counts: told.append(counts)).frame
    assert told == [(50, 120), (100, 120), (120, 120)]
    assert frame["model.n"].tolist() == list(range(120))
    assert frame.loc[3, ["id", "name", "state", "tags", "lr"]].tolist() == [
        *["r3", "run r3", "finished", "t", 1e-3]
    ]
    assert project.asked == [("list", 40)] * 3 + [("fetch", 50), ("fetch", 50), ("fetch", 20)]
    # Nothing was written where the user is.
    assert {path.name for path in tmp_path.iterdir()} <= {"cache", "home", "tmp"}

    project.asked.clear()
    project.add("r5", state="finished", beat=9, loss=2.25)
    project.add("r7", beat=9, loss=2.0)
    # Renamed and marked since: the list says so.
    project.runs["r8"] |= {"displayName": "best", "tags": ["a", "b"]}
    del project.runs["r9"]
    frame = read_wandb("me/laws").frame.set_index("id")
    assert project.asked == [("list", 40), ("list", 40), ("list", 39), ("fetch", 2)]
    assert frame.loc[["r4", "r5", "r7"], "loss"].tolist() == [2.5, 2.25, 2.0]
    assert frame.loc["r8", ["name", "tags"]].tolist() == ["best", "a, b"]
    assert len(frame) == 119

    project.asked.clear()
    # What is edited without a heartbeat is seen when it is asked for.
    project.add("r7", beat=9, loss=1.5)
    assert losses()["r7"] == 2.0
    assert losses(refresh=True)["r7"] == 1.5


def test_a_failure_is_tried_again_and_a_break_goes_on_where_it_was(project: Project) -> None:
    for number in range(120):
        project.add(f"r{number}", loss=number)
    project.failures = ["", "500", "break"]
    assert len(losses()) == 120
    project.asked.clear()
    project.failures = ["", *["break"] * 3]
    with pytest.raises(ValueError, match="goes on where it was") as caught:
        losses(refresh=True)
    assert "\n" not in str(caught.value)
    for run in project.runs.values():
        run["heartbeatAt"] = "2026-01-03T00:00:00Z"
    project.asked.clear()
    project.failures = ["", *["break"] * 3]
    with pytest.raises(ValueError, match="goes on where it was"):
        losses()
    assert losses() == {f"r{number}": number for number in range(120)}
    fetched = [num for kind, num in project.asked if kind == "fetch"]
    assert fetched == [50, 50, 20]


def test_what_a_run_holds_may_be_anything(project: Project) -> None:
    project.add("a", loss=2.5)
    project.add("b", loss="NaN", deep={"x": {"y": 1}}, image={"_type": "image-file"})
    project.add("c", loss=2.0)
    project.runs["c"]["summaryMetrics"] = '{"x":' * 30 + "1" + "}" * 30
    project.add("d", loss=None)
    project.runs["d"] |= {"config": None, "summaryMetrics": None, "tags": None}
    frame = read_wandb("me/laws").frame.set_index("id")
    assert frame.loc["a", "loss"] == 2.5
    assert frame.loc["b", "loss"] != frame.loc["b", "loss"]
    assert frame.loc["b", "deep.x.y"] == 1
    assert "deeper" in frame.loc["c", "excluded_reason"]
    assert frame.loc["d", "loss"] is None


@pytest.mark.parametrize(
    ("source", "said"),
    [("me/other", "Could not find project other"), ("me/laws", "a project with runs")],
)
def test_no_such_project_or_no_runs(project: Project, source: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        read_wandb(source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("WANDB_API_KEY", "short", "wandb login"),
        ("WANDB_BASE_URL", "http://127.0.0.1:9", "does not"),
    ],
)
def test_a_wrong_key_and_no_network_are_one_line(
    project: Project, name: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=said) as caught:
        read_wandb("me/laws")
    assert "\n" not in str(caught.value)


def test_without_a_key_nothing_is_asked(project: Project) -> None:
    script = (
        "from isoflop.ingest.wandb import read_wandb\n"
        "try: read_wandb('me/laws')\n"
        "except ValueError as error: print(type(error).__name__, error)\n"
    )
    environment = {name: text for name, text in os.environ.items() if name != "WANDB_API_KEY"}
    # Another process: the library keeps a key that it has seen.
    ended = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout.startswith("UserError wandb project = 'me/laws'")
    assert "wandb login" in ended.stdout
    assert ended.stdout.count("\n") == 1
    assert ended.stderr == ""

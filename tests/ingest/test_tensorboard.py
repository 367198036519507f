"""Runs that TensorBoard's event files hold."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from isoflop.ingest import tensorboard as module
from isoflop.ingest.files import RawTable
from isoflop.ingest.tensorboard import read_tensorboard
from made_events import write_events, write_hparams, write_text


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def rows(table: RawTable) -> list[dict[str, Any]]:
    """The rows without what is missing."""
    return [
        {name: value for name, value in row.items() if value is not None}
        for row in table.frame.to_dict("records")
    ]


def test_a_folder_is_a_run_with_its_last_values(folder: Path) -> None:
    run = folder / "small" / "seed0"
    # Two files of one run: the later goes back to step 1, and its values count.
    write_events(run, ("loss", 3.0, 0), ("loss", 2.5, 9), ("eval/loss", 2.75, 9), begin_s=1e9)
    write_events(run, ("loss", 2.25, 1), begin_s=1e9 + 100)
    write_events(run, ("acc", 0.5, 4), as_tensors=True, begin_s=1e9 + 101)
    write_events(folder / "large", ("loss", 2.0, 7), begin_s=1e9)
    table = read_tensorboard(str(folder))
    assert rows(table) == [
        {
            **{"id": "large", "name": "large", "created_at": "2001-09-09T01:46:40Z"},
            **{"loss": 2.0, "_step": 7, "_timestamp": 1e9, "_runtime": 0.0},
        },
        {
            **{"id": "small/seed0", "name": "seed0", "created_at": "2001-09-09T01:46:40Z"},
            **{"acc": 0.5, "eval/loss": 2.75, "loss": 2.25, "_step": 9},
            **{"_timestamp": 1e9 + 101, "_runtime": 101.0},
        },
    ]
    assert [(file.name, file.num_rows) for file in table.files] == [
        *[(str(folder / "large"), 1), (str(run), 1)]
    ]


def test_hyperparameters_and_arguments_are_settings(folder: Path) -> None:
    write_events(folder / "a", ("loss", 2.5, 1))
    # As torch writes them: in a folder below, named by the time.
    write_hparams(folder / "a" / "1700000000.1", {"lr": 0.5, "name": "x", "tied": True})
    write_events(folder / "b", ("loss", 2.0, 1))
    write_hparams(folder / "b", {"lr": 0.25}, status=2)
    write_events(folder / "c", ("loss", 1.5, 1))
    write_text(folder / "c", "args/text_summary", '{"learning_rate": 1e-3, "fsdp": {"min": 0}}')
    write_text(folder / "c", "note", "no JSON")
    # Two sets below one run cannot both be its own.
    write_events(folder / "d", ("loss", 1.0, 1))
    for name in ("first", "second"):
        write_hparams(folder / "d" / name, {"lr": 1.0})
    found = {row["id"]: row for row in rows(read_tensorboard(str(folder)))}
    names = ("lr", "name", "tied", "state", "loss", "learning_rate", "fsdp.min")
    picked = {key: {n: row[n] for n in names if n in row} for key, row in found.items()}
    assert picked == {
        "a": {"lr": 0.5, "name": "a", "tied": True, "loss": 2.5, "state": "finished"},
        "b": {"lr": 0.25, "name": "b", "state": "failed", "loss": 2.0},
        "c": {"name": "c", "learning_rate": 1e-3, "fsdp.min": 0, "loss": 1.5},
        "d": {"name": "d", "loss": 1.0},
        "d/first": {"name": "first", "lr": 1.0, "state": "finished"},
        "d/second": {"name": "second", "lr": 1.0, "state": "finished"},
    }
    assert found["a"]["config.name"] == "x"


def test_the_second_time_only_what_changed_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        write_events(folder / name, ("loss", 2.5, 1))
    first = read_tensorboard(str(folder))
    read: list[Path] = []
    real = module.open_events
    monkeypatch.setattr(module, "open_events", lambda path: read.append(path) or real(path))
    assert rows(read_tensorboard(str(folder))) == rows(first)
    assert read == []
    write_events(folder / "b", ("loss", 2.0, 2))
    assert rows(read_tensorboard(str(folder)))[1]["loss"] == 2.0
    assert read == [folder / "b"]


def test_a_break_keeps_what_was_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        write_events(folder / name, ("loss", 2.5, 1))

    def stop(num_read: int, num_runs: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read_tensorboard(str(folder), note=stop)
    read: list[Path] = []
    real = module.open_events
    monkeypatch.setattr(module, "open_events", lambda path: read.append(path) or real(path))
    assert len(rows(read_tensorboard(str(folder)))) == 2
    assert read == [folder / "b"]


def test_damaged_files_never_hide_the_others(folder: Path) -> None:
    write_events(folder / "good", ("loss", 2.5, 1))
    write_events(folder / "bad", *[("loss", 2.5, step) for step in range(9)])
    (path,) = (folder / "bad").iterdir()
    data = path.read_bytes()
    chooser = random.Random(0)
    for _ in range(40):
        damaged = bytearray(data)
        damaged[chooser.randrange(len(data))] = chooser.randrange(256)
        path.write_bytes(damaged[: chooser.choice((len(data), chooser.randrange(len(data))))])
        bad, good = rows(read_tensorboard(str(folder), refresh=True))
        assert (good["id"], good["loss"]) == ("good", 2.5)
        assert bad.get("loss") == 2.5 or "loss" not in bad


def test_an_empty_event_file_and_none(folder: Path) -> None:
    folder.mkdir()
    with pytest.raises(ValueError, match="a folder with event files"):
        read_tensorboard(str(folder))
    (folder / "events.out.tfevents.1").write_bytes(b"")
    (row,) = rows(read_tensorboard(str(folder)))
    assert row == {"id": "runs", "name": "runs"}
    with pytest.raises(ValueError, match="name the folder"):
        read_tensorboard(str(folder / "events.out.tfevents.1"))

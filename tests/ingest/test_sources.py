from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from isoflop.ingest.sources import read_source
from made_wandb import write_wandb


@pytest.mark.parametrize("prefix", ["", "csv:", "json:", "CSV:"])
def test_a_file_is_read_with_and_without_its_kind(tmp_path: Path, prefix: str) -> None:
    path = tmp_path / "runs:1.csv"
    path.write_text("loss,size\n2.5,17M\n")
    table = read_source(f"{prefix}{path}")
    assert table.frame.to_dict("records") == [{"loss": "2.5", "size": "17M"}]
    assert [(file.name, file.num_rows) for file in table.files] == [(str(path), 1)]


def test_an_existing_file_whose_name_begins_like_a_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("wandb:runs").write_text("loss\n2.5\n")
    assert read_source("wandb:runs").frame["loss"].tolist() == ["2.5"]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("wandv:me/project", "write wandb:me/project"),
        ("c:runs.csv", "csv, tsv"),
        ("https://wandb.ai/me/project", "on this machine"),
        ("wandb:", "name what to read"),
        ("tensorboard:", "name what to read"),
        ("wandb:/no/such", "ENTITY/PROJECT"),
        ("tensorboard:/no/such", "event files"),
        ("hf:a:b:c:d", "NAME:CONFIG:SPLIT"),
        ("hf:a::b", "NAME:CONFIG:SPLIT"),
        ("/no/such.csv", "existing file"),
    ],
)
def test_refusals_are_one_line(source: str, said: str) -> None:
    with pytest.raises(ValueError, match="must be") as caught:
        read_source(source)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("wandb", lambda folder: write_wandb(folder / "wandb/offline-run-1-a/run-a.wandb", [])),
        ("tensorboard", lambda folder: (folder / "events.out.tfevents.1").write_bytes(b"")),
    ],
)
def test_a_folder_says_how_it_is_read(
    tmp_path: Path, kind: str, make: Callable[[Path], object]
) -> None:
    make(tmp_path)
    with pytest.raises(ValueError, match=f"write {kind}:{tmp_path}"):
        read_source(str(tmp_path))


@pytest.mark.parametrize(
    ("source", "package"),
    [("hf:some/runs", "datasets"), ("tensorboard:.", "tensorboard"), ("wandb:me/laws", "wandb")],
)
def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, package: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    Path("events.out.tfevents.1").write_bytes(b"")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match="pip install 'isoflop"):
        read_source(source)

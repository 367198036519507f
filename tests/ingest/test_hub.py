"""Tables of runs that are Hugging Face data sets; `datasets` is used for real, without internet."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from isoflop.ingest.hub import read_hub

# The package takes seconds to import.
pytestmark = pytest.mark.slow

# Read when `datasets` is imported.
os.environ["HF_HUB_OFFLINE"] = "1"

ROWS = [
    {"loss": 2.5, "size": "17M", "model": {"n": 3}},
    {"loss": 2.25, "size": "30M", "model": {"n": None}},
]
FLAT = [{"loss": 2.5, "size": "17M", "model.n": 3}, {"loss": 2.25, "size": "30M", "model.n": None}]


@pytest.fixture(autouse=True)
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import datasets

    assert datasets.config.HF_HUB_OFFLINE
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub-cache")
    return tmp_path / "hub-cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "set").mkdir()
    return tmp_path / "set"


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif name.endswith(".jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
        path.write_text("\n".join(lines) + "\n")


def write_card(folder: Path, **configs: str) -> None:
    parts = [f"- config_name: {name}\n  data_files: {files}" for name, files in configs.items()]
    (folder / "README.md").write_text("---\nconfigs:\n" + "\n".join(parts) + "\n---\n# Runs\n")


def records(source: str) -> list[dict[str, Any]]:
    frame = read_hub(source).frame
    return frame.astype(object).where(frame.notna(), None).to_dict("records")


@pytest.mark.parametrize("name", ["data/train-0.parquet", "runs.jsonl"])
def test_a_folder_in_the_hubs_form(folder: Path, hub_cache: Path, name: str) -> None:
    write(folder, name, ROWS)
    assert records(str(folder)) == FLAT
    table = read_hub(f"{folder}:default:train")
    (file,) = table.files
    assert (file.name, file.num_rows) == (f"hf:{folder}:default:train", 2)
    assert read_hub(str(folder)).files[0].sha256 == file.sha256
    # Nothing was copied.
    assert list(hub_cache.rglob("*.arrow")) == []


def test_of_several_configurations_the_runs_are_read(folder: Path) -> None:
    write(folder, "data/runs.jsonl", ROWS)
    write(folder, "data/optima.jsonl", [{"budget": 1e18, "optimum": 3}])
    write_card(folder, optima="data/optima.jsonl", runs="data/runs.jsonl")
    assert records(str(folder)) == FLAT
    assert records(f"{folder}:optima") == [{"budget": 1e18, "optimum": 3}]
    with pytest.raises(
        ValueError, match=r"configuration of .* = 'law': must be one of optima, runs"
    ):
        read_hub(f"{folder}:law")
    write_card(folder, a="data/optima.jsonl", b="data/runs.jsonl")
    with pytest.raises(ValueError, match="several: must be one of a, b"):
        read_hub(str(folder))


def test_of_several_splits_one_is_named(folder: Path) -> None:
    write(folder, "train.csv", [{"loss": 3}])
    write(folder, "test.csv", [{"loss": 2}])
    with pytest.raises(ValueError, match=r"several: must be one of train, test; choose one in hf:"):
        read_hub(str(folder))
    assert records(f"{folder}:default:test") == [{"loss": 2}]
    with pytest.raises(ValueError, match="split of"):
        read_hub(f"{folder}:default:valid")


def test_nothing_of_a_folder_is_run(folder: Path, tmp_path: Path) -> None:
    (folder / "set.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ValueError, match="must be"):
        read_hub(str(folder))
    write(folder, "runs.csv", [{"loss": 2}])
    with contextlib.suppress(ValueError):
        read_hub(str(folder))
    assert not (tmp_path / "ran").exists()


def test_files_elsewhere_are_not_read(folder: Path, tmp_path: Path) -> None:
    write(tmp_path, "secret.csv", [{"loss": 1}])
    write(folder, "runs.csv", [{"loss": 2}])
    for files in (str(tmp_path / "secret.csv"), "../secret.csv"):
        write_card(folder, runs=files)
        with pytest.raises(ValueError, match="must be"):
            read_hub(str(folder))
    (folder / "README.md").unlink()
    (folder / "runs.csv").unlink()
    (folder / "runs.csv").symlink_to(tmp_path / "secret.csv")
    with pytest.raises(ValueError, match="in the folder"):
        read_hub(str(folder))


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.png", b"\x89PNG"), ("runs.txt", b"text"), ("runs.parquet", b"damaged"), ("a.pkl", b"x")],
)
def test_what_is_no_table_is_refused_in_one_line(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match="must be") as caught:
        read_hub(str(folder))
    assert "\n" not in str(caught.value)


def test_a_data_set_of_the_hub_from_its_cache(folder: Path, hub_cache: Path) -> None:
    import datasets

    with pytest.raises(ValueError, match="must be"):
        read_hub("team/laws-of-set")
    datasets.disable_progress_bars()
    write(folder, "data/train-0.parquet", ROWS)
    datasets.load_dataset(str(folder))
    # Filed under the name that the hub has for it.
    (made,) = (path for path in hub_cache.iterdir() if path.is_dir())
    shutil.move(made, hub_cache / "team___laws-of-set")
    for path in (hub_cache / "team___laws-of-set").rglob("set-*.arrow"):
        path.rename(path.with_name(path.name.replace("set-", "laws-of-set-", 1)))
    assert records("team/laws-of-set") == FLAT

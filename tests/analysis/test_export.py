"""Exports: every column described, every digit kept, nothing of anybody's lost."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.made_runs import row
from isoflop.analysis.export import FORMATS, Format, export, results_folder
from isoflop.analysis.load import load_rows
from isoflop.errors import UserError
from isoflop.ingest.files import RawTable, SourceFile
from isoflop.ingest.mapping import ColumnMap
from isoflop.ingest.store import without_folders, write_import
from isoflop.ingest.table import import_table
from isoflop.tables import RUNS, column_of, runs_schema, write_table

RESULTS = Path(__file__).resolve().parents[2] / "results"


def made_results(folder: Path, unit: str = "nats_per_token", **values: object) -> Path:
    """A folder with a table of two runs."""
    folder.mkdir(parents=True)
    counts = {
        "n_active": 10**6,
        "n_params": 10**7,
        "n_tokens": 10**9,
        "warnings": ["a, b", 'say "x"'],
    }
    rows = [RUNS.row(**(row(loss=loss) | counts | values)) for loss in (3.0, 0.1 + 0.2)]
    write_table(folder / "runs.parquet", rows, runs_schema(rows, unit))
    return folder


def test_every_column_of_every_committed_table_is_described() -> None:
    for path in RESULTS.glob("*/*.parquet"):
        if path.stem == "claims":
            continue
        for name in pq.read_schema(path).names:
            described = column_of(path.stem, name)
            assert described is not None, (path, name)
            assert described.kind


@pytest.mark.parametrize("to", FORMATS)
def test_what_is_exported_is_read_back_to_the_last_digit(to: Format, tmp_path: Path) -> None:
    paths = export(RESULTS / "quickstart", to, tmp_path / "out")
    assert all(path.is_file() for path in paths)
    (runs,) = (path for path in paths if path.stem == "runs")
    names = ("arch", "budget_flops", "n_params", "n_tokens", "flops", "loss", "seed", "status")
    kept, original = load_rows(runs), load_rows(RESULTS / "quickstart")
    assert [[r[n] for n in names] for r in kept] == [[r[n] for n in names] for r in original]
    card = (tmp_path / "out" / "README.md").read_text()
    for one in (
        "sgatlin",
        "nats per token",
        "peak\\_mem\\_bytes",
        "multiplier",
        "sha256 of plan.json",
    ):
        assert one in card
    assert card.startswith("---\n") == (to == "hub-folder")


@pytest.mark.slow
def test_a_data_set_folder_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    export(RESULTS / "quickstart", "hub-folder", tmp_path / "out", license_name="mit")
    found = datasets.get_dataset_config_names(str(tmp_path / "out"))
    assert {"runs", "optima", "compare"} <= set(found)
    runs = datasets.load_dataset(str(tmp_path / "out"), "runs", cache_dir=str(tmp_path / "cache"))
    assert runs["train"].num_rows == len(load_rows(RESULTS / "quickstart"))


def test_names_of_anybody_stay_inside_their_cells(tmp_path: Path) -> None:
    hostile = "a|b\n---\n# c <script> `d` \x1b[31m"
    source = made_results(tmp_path / "s", arch="x | y")
    plan = {"study": {"name": hostile, "archs": [hostile], "trainer": {"data": hostile}}}
    (source / "plan.json").write_text(json.dumps(plan))
    export(source, "hub-folder", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "\x1b" not in card
    assert "<script>" not in card.partition("\n---\n")[2].replace("\\<script\\>", "")
    assert sum(line.startswith("# ") for line in card.splitlines()) == 1
    assert card.splitlines().count("---") == 2


def test_the_unit_of_the_losses_goes_along(tmp_path: Path) -> None:
    source = made_results(tmp_path / "s", unit="bits_per_byte")
    export(source, "csv", tmp_path / "csv")
    card = (tmp_path / "csv" / "README.md").read_text()
    assert "bits per byte" in card
    assert "nats per token" not in card
    assert "--loss-unit bits_per_byte" in card
    export(source, "parquet", tmp_path / "parquet")
    assert (tmp_path / "parquet" / "runs.parquet").read_bytes() == (
        source / "runs.parquet"
    ).read_bytes()


def test_csv_keeps_lists_and_missing_values_apart(tmp_path: Path) -> None:
    export(made_results(tmp_path / "s", wall_s=None), "csv", tmp_path / "out")
    import csv

    with (tmp_path / "out" / "runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert json.loads(rows[0]["warnings"]) == ["a, b", 'say "x"']
    assert rows[0]["wall_s"] == ""
    assert float(rows[1]["loss"]) == 0.1 + 0.2


def test_nothing_that_is_in_the_way_is_lost(tmp_path: Path) -> None:
    source, out = made_results(tmp_path / "s"), tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    for replace in (False, True):
        with pytest.raises(UserError, match="--out"):
            export(source, "csv", out, replace=replace)
    shutil.rmtree(out)
    export(source, "csv", out)
    with pytest.raises(UserError, match="--replace"):
        export(source, "csv", out)
    (out / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="not mine.txt"):
        export(source, "parquet", out, replace=True)
    (out / "mine.txt").unlink()
    export(source, "parquet", out, replace=True)
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "export.json",
        "runs.parquet",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "s"]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from isoflop.analysis import export as module

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_json_atomic", full)
    with pytest.raises(OSError, match="No space"):
        export(made_results(tmp_path / "s"), "csv", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s"]


def test_what_is_no_folder_of_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="NAME"):
        results_folder(str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"runs\.parquet.*isoflop fit"):
        export(tmp_path, "csv", tmp_path / "out")
    source = made_results(tmp_path / "s")
    (source / "optima.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match="optima table"):
        export(source, "csv", tmp_path / "out")
    (source / "optima.parquet").unlink()
    (source / "optima.parquet").symlink_to("/etc/hostname")
    with pytest.raises(UserError, match="link"):
        export(source, "csv", tmp_path / "out")


def test_further_columns_of_a_table_are_described(tmp_path: Path) -> None:
    source = made_results(tmp_path / "s")
    table = pq.read_table(source / "runs.parquet")
    for name in ("metric_acc", "n_unembed"):
        table = table.append_column(name, pa.array([1.0, 2.0]))
    pq.write_table(table, source / "runs.parquet")
    export(source, "csv", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "metric\\_acc | float64 | its own | acc, as the runs reported it" in card
    assert "n\\_unembed | double |  | a further column" in card
    assert dataclasses.is_dataclass(column_of("runs", "metric_acc"))


def imported_results(folder: Path) -> Path:
    """Return a folder of an import whose source lies in somebody's home."""
    table = pd.DataFrame({"N": [1e7], "D": [1e9], "loss": [3.0]})
    columns = {"n_params": "N", "n_tokens": "D", "loss": "loss"}
    name = "/home/alice/secret/x.csv"
    file = SourceFile(name=name, sha256="0" * 64, num_rows=1)
    raw = RawTable(frame=table, files=(file,))
    imported = import_table(raw, ColumnMap(columns=columns, arch_name="a"))
    write_import(imported, raw, f"csv:{name}", folder)
    return folder


def test_the_card_of_an_import_says_its_source_and_not_whose_home_it_lay_in(
    tmp_path: Path,
) -> None:
    export(imported_results(tmp_path / "made"), "csv", tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    assert "csv:x.csv" in card
    assert "alice" not in card
    names = ["~/a/x.csv", "wandb:team/project", "runs/*.csv", "/home/alice/runs/*.csv", "/a/b/"]
    given = ["x.csv", "wandb:team/project", "runs/*.csv", "*.csv", "b/"]
    assert list(map(without_folders, names)) == given


@pytest.mark.parametrize("name", ["import.json", "plan.json"])
def test_a_received_folder_puts_no_other_file_into_the_card(name: str, tmp_path: Path) -> None:
    results = imported_results(tmp_path / "made")
    secret = tmp_path / "secret.json"
    secret.write_text('{"token": "hunter2", "study": {"recipe": "hunter2"}}')
    (results / name).unlink(missing_ok=True)
    (results / name).symlink_to(secret)
    with pytest.raises(UserError, match="symbolic link"):
        export(results, "csv", tmp_path / "out")
    (results / name).unlink()
    # What is no record is not shown as one.
    (results / "import.json").write_bytes(secret.read_bytes())
    with pytest.raises(UserError, match=r"import\.json"):
        export(results, "csv", tmp_path / "out")
    assert not (tmp_path / "out").exists()

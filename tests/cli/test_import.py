"""`isoflop import`: shown before it is written, repeated to the byte, over nothing of others."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from isoflop.analysis.fit import FitOptions, fit_optima
from isoflop.analysis.load import load_rows
from isoflop.analysis.points import select_points
from isoflop.analysis.report.source import checklist_section, source_of, source_section
from isoflop.cli import main
from isoflop.cli.import_ import mapping_table
from isoflop.ingest.files import RawTable
from isoflop.ingest.mapping import ColumnMap
from isoflop.ingest.suggest import suggest
from isoflop.ingest.table import import_table
from isoflop.tables import loss_unit
from made_public_tables import TABLES


def run(*arguments: str | Path, given: str | None = None) -> Result:
    return CliRunner().invoke(main, ["import", *map(str, arguments)], input=given)


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    TABLES["index_columns"](tmp_path)
    return Path("index.csv")


def refused(result: Result, message: str) -> None:
    assert result.exit_code == 2, result.output
    lines = [line for line in result.output.splitlines() if line.startswith("isoflop: ")]
    assert len(lines) == 1, result.output
    assert message in lines[0]


def test_without_out_it_only_shows(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["isoflop", "import", "index.csv"])
    before = sorted(Path().iterdir())
    shown = run(table)
    assert shown.exit_code == 0, shown.output
    for text in ("val_loss, nats per token", "computed: 6 · n_params · n_tokens", "21 runs"):
        assert text in shown.output
    assert "isoflop import index.csv --out results/NAME" in shown.output
    assert sorted(Path().iterdir()) == before


def test_in_a_narrow_terminal_names_of_columns_stay_whole() -> None:
    long = "eval/paloma/c4_en-validation/of-many-parts/CrossEntropyLoss"
    frame = pd.DataFrame({long: [3.0], "params": [1e8], "tokens": [1e9], "run": ["r" * 90]})
    raw = RawTable(frame=frame, files=())
    imported = import_table(raw, suggest(raw, ColumnMap(columns={"run_id": "run"})).mapping)
    text = io.StringIO()
    Console(file=text, width=80).print(mapping_table(imported, raw))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert " ours " in lines[1]
    assert lines[1].rstrip().endswith("missing")
    cells = [line[:14].strip() for line in lines]
    assert {"budget_flops", "n_params", "run_id"} <= set(cells)
    start = lines[1].index("theirs")
    theirs = "".join(line[start : lines[1].index("example") - 17].strip() for line in lines)
    assert f"{long}," in theirs


def test_an_import_is_repeated_to_the_byte(table: Path) -> None:
    assert run(table, "--where", "budget > 2e17", "--out", "one").exit_code == 0
    again = run("--mapping", "one/import.json", "--out", "two")
    assert again.exit_code == 0, again.output
    for name in ("runs.parquet", "dropped.parquet", "import.json"):
        assert Path("one", name).read_bytes() == Path("two", name).read_bytes()
    assert "unchanged" in run("csv", table, "--where", "budget > 2e17", "--out", "one").output
    record = json.loads(Path("one/import.json").read_text())
    assert (record["num_rows"], record["dropped"]) == (14, {"not budget > 2e17": 7})
    assert record["files"][0]["name"] == "index.csv"


def test_an_interrupted_import_is_ended_by_the_same_command(table: Path) -> None:
    assert run(table, "--out", "one").exit_code == 0
    whole = Path("one/runs.parquet").read_bytes()
    Path("one/runs.parquet").unlink()
    assert "written to" in run(table, "--out", "one").output
    assert Path("one/runs.parquet").read_bytes() == whole


def test_what_others_made_is_not_replaced(table: Path) -> None:
    assert run(table, "--out", "one").exit_code == 0
    refused(run(table, "--loss-unit", "bpb", "--out", "one"), "not the same: mapping")
    refused(run(table, "--loss-unit", "bits_per_bytes"), "say bits_per_byte if that is meant")
    assert "bits per token" in run(table, "--loss-unit", "bits").output
    assert "logarithm of perplexity" in run(table, "--loss-unit", "ppl").output
    before = Path("one/runs.parquet").read_bytes()
    table.write_text(table.read_text() + table.read_text().splitlines()[-1] + "\n")
    refused(run(table, "--out", "one"), "not the same: files")
    assert Path("one/runs.parquet").read_bytes() == before
    assert run(table, "--out", "one", "--replace").exit_code == 0
    assert Path("one/runs.parquet").read_bytes() != before
    Path("plan").mkdir()
    Path("plan/plan.json").write_text("{}")
    refused(run(table, "--out", "plan", "--replace"), "without a plan")
    Path("other").mkdir()
    Path("other/runs.parquet").write_bytes(b"PAR1")
    refused(run(table, "--out", "other", "--replace"), "no import made")
    Path("linked").mkdir()
    Path("linked/runs.parquet").symlink_to("../one/runs.parquet")
    refused(run(table, "--out", "linked"), "symbolic link")


def test_runs_that_were_changed_since_the_import_are_not_lost(table: Path) -> None:
    assert run(table, "--out", "one").exit_code == 0
    runs, record = Path("one/runs.parquet"), Path("one/import.json")
    imported = runs.read_bytes()
    runs.write_bytes(b"corrected by hand")
    refused(run(table, "--out", "one"), "changed since")
    assert runs.read_bytes() == b"corrected by hand"
    # A folder that no import made, with a file of that name.
    record.write_text('{"my": "own"}')
    for more in ((), ("--replace",)):
        refused(run(table, "--out", "one", *more), "import.json there is damaged")
    assert record.read_text() == '{"my": "own"}'
    # Damaged beside the very runs, it is made again.
    runs.write_bytes(imported)
    refused(run(table, "--out", "one"), "import.json there is damaged")
    assert "written to" in run(table, "--out", "one", "--replace").output
    assert json.loads(record.read_text())["num_rows"] == 21


def test_at_a_terminal_it_asks(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "click.testing._NamedTextIOWrapper.isatty", lambda self: True, raising=False
    )
    no = run(table, "--out", "one", given="n\n")
    assert "nothing written" in no.output
    assert not Path("one").exists()
    assert run(table, "--out", "one", given="y\n").exit_code == 0
    assert Path("one/runs.parquet").is_file()
    assert run(table, "--out", "two", "--yes").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "isoflop import --help"),
        (("index.csv", "b.csv"), "a pattern in quotes"),
        (("index.csv", "--map", "loss"), "NAME=VALUE"),
        (("index.csv", "--map", "loss=val_los"), "write val_loss"),
        (("index.csv", "--map", "loss=a", "--map", "loss=b"), "one value for loss"),
        (("index.csv", "--map", "arch=a", "--arch", "b"), "one value for arch"),
        (("index.csv", "--arch", "arch", "--arch-name", "b"), "no column has it"),
        (("index.csv", "--arch", "arhc"), "write arch"),
        (("index.csv", "--run", "file"), "only one file"),
        (("index.csv", "--run", "rnu"), "column of the table"),
        (("index.csv", "--budget-from", "bugdet"), "write budget"),
        (("index.csv", "--parse", "nam={arch}"), "column of the table"),
        (("index.csv", "--where", "arch < 3"), "'dense'"),
        (("index.csv", "--where", "arch = moe"), "change the condition"),
        (("index.csv", "--flops-unit", "gflops"), "gflop"),
        (("missing.csv",), "existing file"),
    ],
)
def test_mistakes_are_one_line(table: Path, arguments: tuple[str, ...], message: str) -> None:
    refused(run(*arguments, "--out", "one"), message)
    assert not Path("one").exists()


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("mapping",), [], "a table"),
        (("mapping", "columns"), {"loss": 1}, "text"),
        (
            ("mapping", "columns"),
            {"loss": "val_loss", "n_params": "__import__('os') * 2"},
            "column",
        ),
        (("mapping", "arch_name"), "\x1b[31m", "control"),
        (("mapping", "run"), "file", "only one file"),
        (("mapping", "parse"), {"arch": "(a+)+{n_active}$"}, "some name fits"),
        (("mapping", "surprise"), 1, "known key"),
        (("source",), "/etc/passwd", "typed"),
        (("source",), "../index.csv", "typed"),
        (("source",), "a/../../index.csv", "typed"),
        (("source",), "~/index.csv", "typed"),
        (("source",), "csv:/etc/passwd", "typed"),
        (("source",), "wandb:somebody/else", "typed"),
        (("source",), "hf:somebody/else", "typed"),
        (("files", 0, "sha256"), "x", "sha256"),
        (("num_rows",), -1, "num_rows"),
    ],
)
def test_an_import_that_was_received_is_refused_in_one_line(
    table: Path, place: tuple[Any, ...], value: Any, message: str
) -> None:
    assert run(table, "--out", "one").exit_code == 0
    path = Path("one/import.json")
    record = json.loads(path.read_text())
    inner = record
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    if place == ("mapping", "columns"):
        record["mapping"]["arch_name"] = "a"
    path.write_text(json.dumps(record))
    refused(run("--mapping", path, "--out", "two"), message)
    assert not Path("two").exists()


def test_a_stored_mapping_takes_no_other_options(table: Path) -> None:
    assert run(table, "--out", "one").exit_code == 0
    refused(run("--mapping", "one/import.json", "--map", "loss=x"), "left to the file")
    other = Path("other.csv")
    other.write_text(table.read_text())
    assert run(other, "--mapping", "one/import.json", "--out", "two").exit_code == 0


def test_a_report_says_where_its_table_came_from(table: Path) -> None:
    assert run(table, "--where", "budget > 2e17", "--out", "one").exit_code == 0
    path = Path("one/runs.parquet")
    rows = load_rows(path)
    fits = fit_optima(select_points(rows), FitOptions(n_boot=0), methods=(), axes=())
    source = source_of(path, rows, Path("one"))
    told = str(checklist_section(fits, source)) + str(source_section(source, fits))
    for text in (
        "14 runs of index.csv (1 file)",
        "7 not budget > 2e17",
        "loss = val_loss",
        "flops computed: 6 · n_params · n_tokens",
        "index.csv (sha256 ",
    ):
        assert text in told
    assert "was changed" not in told
    path.write_bytes(path.read_bytes() + b" ")
    changed = source_section(source_of(path, rows, Path("one")), fits)
    assert "runs.parquet was changed" in str(changed)


def test_further_columns_reach_a_fit(table: Path) -> None:
    options = ("--map", "n_experts=level_0 * 8", "--map", "width=params / 1e6")
    assert run(table, *options, "--where", "level_0 > 0", "--out", "one").exit_code == 0
    rows = load_rows(Path("one/runs.parquet"), more=("width",))
    assert [row["n_experts"] for row in rows[:2]] == [8.0, 16.0]
    (group, *_) = select_points(rows, axis="width").groups.values()
    assert group[0].n_experts == 8.0
    assert group[0].on("width") == pytest.approx(group[0].n_params / 1e6)


def test_a_table_of_isoflop_itself_comes_back_as_it_was(table: Path) -> None:
    assert run(table, "--loss-unit", "bpb", "--out", "one").exit_code == 0
    again = run("one/runs.parquet", "--out", "two")
    assert again.exit_code == 0, again.output
    assert "loss, bits per byte" in again.output
    one, two = Path("one/runs.parquet"), Path("two/runs.parquet")
    assert select_points(load_rows(one)) == select_points(load_rows(two))
    assert loss_unit(two) == "bits_per_byte"
    assert run(table, "--out", "nats").exit_code == 0
    refused(run("*/runs.parquet", "--out", "three"), "bits_per_byte and nats_per_token")

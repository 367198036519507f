"""Runs of Weights & Biases that lie in folders: logs, the files of online runs, damaged ones."""

from __future__ import annotations

import errno
import json
import math
import os
import random
from pathlib import Path
from typing import Any

import pytest

from isoflop.ingest import run_cache, tracked, wandb_files
from isoflop.ingest import wandb as module
from isoflop.ingest.files import RawTable
from isoflop.ingest.mapping import ColumnMap
from isoflop.ingest.run_cache import stamp_of
from isoflop.ingest.sources import read_source
from isoflop.ingest.store import read_import, write_import
from isoflop.ingest.suggest import suggest
from isoflop.ingest.table import import_table
from isoflop.ingest.wandb import read_wandb
from isoflop.ingest.wandb_files import read_log
from made_wandb import config, exit_record, history, metric, run_record, summary, write_wandb


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "isoflop" / "runs"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def log_of(folder: Path, run_id: str, second: int = 0) -> Path:
    return folder / f"wandb/offline-run-20260101_0000{second:02}-{run_id}/run-{run_id}.wandb"


def rows(table: RawTable) -> list[dict[str, Any]]:
    """The rows without what is missing."""
    return [
        {name: value for name, value in row.items() if value is not None}
        for row in table.frame.to_dict("records")
    ]


BEGIN = run_record(
    "abc",
    {"model": {"n_layer": 4, "sizes": [1, 2]}, "lr": 0.001, "loss": "mse", "_wandb": {"t": 1}},
    tags=["small", "pilot"],
    entity="team",
    project="laws",
    run_group="g",
    display_name="swift-1",
)


def test_a_run_has_its_name_settings_and_last_values(folder: Path) -> None:
    records = [BEGIN, summary({"loss": 3.0, "_step": 0, "gone": 1}), history({"loss": 3.0}, 0)]
    records += [config({"late": 7, "model": {"n_layer": 5}}), summary({"loss": 2.5, "_step": 1})]
    records += [history({"loss": 2.5, "eval|acc": 0.5}, 1), summary({"_wandb|runtime": 3})]
    write_wandb(log_of(folder, "abc"), [*records, exit_record(0)])
    table = read_wandb(str(folder))
    assert rows(table) == [
        {
            **{"id": "abc", "name": "swift-1", "state": "finished", "tags": "small, pilot"},
            **{"group": "g", "entity": "team", "project": "laws"},
            "created_at": "2004-01-10T13:37:04Z",
            "source_file": str(log_of(folder, "abc").relative_to(folder)),
            **{"model.n_layer": 5, "lr": 0.001, "late": 7, "gone": 1},
            # Both a setting and a metric have that name.
            **{"config.loss": "mse", "summary.loss": 2.5},
            **{"_step": 1, "_timestamp": 1.7e9 + 1, "eval.acc": 0.5},
        }
    ]
    assert [(file.name, file.num_rows) for file in table.files] == [(str(log_of(folder, "abc")), 1)]


def test_a_summary_of_another_kind_stands_beside_the_last_value(folder: Path) -> None:
    records = [BEGIN, metric("val"), history({"val": 2.5}, 0), summary({"val": {"min": 2.5}})]
    write_wandb(log_of(folder, "abc"), [*records, history({"val": 2.75}, 1), exit_record(3)])
    (row,) = rows(read_wandb(str(folder)))
    assert (row["val"], row["val.min"], row["state"]) == (2.75, 2.5, "failed")


def test_without_a_summary_history_counts_and_without_an_end_the_run_crashed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb_files, "_MAX_PENDING", 8)
    values = [
        history({"loss": 4 - step / 4000, "only": step} | ({"eval": 2} if step == 7 else {}), step)
        for step in range(50)
    ]
    write_wandb(log_of(folder, "abc"), [BEGIN, summary({"loss": 9.0}), *values])
    (row,) = rows(read_wandb(str(folder)))
    assert row["summary.loss"] == 4 - 49 / 4000
    assert (row["eval"], row["only"], row["state"]) == (2, 49, "crashed")


def test_what_a_run_took_back_is_not_there(folder: Path) -> None:
    write_wandb(log_of(folder, "abc"), [BEGIN, config({"keep": 1}, removed=["model", "lr"])])
    (row,) = rows(read_wandb(str(folder)))
    assert "lr" not in row
    assert not any(name.startswith("model") for name in row)
    assert row["keep"] == 1


def test_infinities_media_and_long_values(folder: Path) -> None:
    values = {"loss": "NaN", "up": "Infinity", "image": {"_type": "image-file", "path": "x"}}
    write_wandb(log_of(folder, "abc"), [BEGIN, summary({**values, "text": "y" * 70_000})])
    (row,) = rows(read_wandb(str(folder)))
    assert math.isnan(row["summary.loss"])
    assert row["up"] == math.inf
    assert len(row["text"]) == 70_000
    assert not any(name.startswith("image") for name in row)


def test_attempts_of_a_run_are_one_row_and_other_runs_rows_of_their_own(folder: Path) -> None:
    first, second, other = log_of(folder, "abc"), log_of(folder, "abc", 30), log_of(folder, "b", 9)
    write_wandb(first, [BEGIN, summary({"loss": 3.0, "early": 1}), exit_record(1)])
    write_wandb(second, [BEGIN, config({"lr": 0.5}), summary({"loss": 2.0}), exit_record(0)])
    write_wandb(other, [run_record("b", {"lr": 1}), summary({"loss": 4.0})])
    (folder / "wandb" / "latest-run").symlink_to(second.parent)
    # The same name in another project.
    write_wandb(
        folder / "elsewhere/run-abc.wandb", [run_record("abc", {}, entity="team", project="p2")]
    )
    told: list[tuple[int, int]] = []
    table = read_wandb(str(folder), note=lambda *counts: told.append(counts))
    assert told == [(number, 4) for number in (1, 2, 3, 4)]
    found = [
        (row["id"], row["state"], row.get("loss"), row.get("summary.loss"), row.get("early"))
        for row in rows(table)
    ]
    assert found == [
        ("abc", "crashed", None, None, None),
        ("abc", "finished", None, 2.0, 1),
        ("b", "crashed", None, 4.0, None),
    ]
    assert rows(table)[1]["lr"] == 0.5
    assert [file.num_rows for file in table.files] == [1, 0, 1, 1]


def test_the_files_of_an_online_run_are_read_where_its_log_is_not_there(folder: Path) -> None:
    files = folder / "wandb" / "run-20260101_000000-xyz" / "files"
    files.mkdir(parents=True)
    text = "wandb_version: 1\n_wandb:\n  value: {t: 1}\nlr:\n  desc: null\n  value: 1e-3\n"
    (files / "config.yaml").write_text(text + "model:\n  value:\n    width: 64\n")
    (files / "wandb-summary.json").write_text('{"loss": 2.5, "_wandb": {"runtime": 3}}')
    (row,) = rows(read_wandb(str(folder)))
    # YAML of W&B has texts where its dots are missing; they are read as numbers are written.
    assert row == {"id": "xyz", "source_file": "wandb/run-20260101_000000-xyz"} | {
        **{"lr": "1e-3", "model.width": 64, "loss": 2.5}
    }


BOMB = "a: &a [1,1]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefghijk", "bcdefghijkl", strict=True)
)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.yaml", "a: [1", "config.yaml"),
        ("config.yaml", "- 1", "no keys"),
        ("config.yaml", "a: !!python/object/apply:os.system ['touch /tmp/w']", "config.yaml"),
        ("config.yaml", "\n".join(f"k{i}: 1" for i in range(101)), "more than"),
        ("wandb-summary.json", '{"a":' * 30 + "1" + "}" * 30, "deeper"),
        ("wandb-summary.json", "[" * 100_000, "recursion"),
        ("wandb-summary.json", "[1]", "no keys"),
        ("wandb-summary.json", '{"loss": 2.', ""),
        ("wandb-summary.json", "\xff\xfe", ""),
    ],
)
def test_a_damaged_run_is_a_row_with_its_reason(
    folder: Path, name: str, content: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracked, "MAX_KEYS", 100)
    write_wandb(log_of(folder, "abc"), [BEGIN, summary({"loss": 2.5})])
    files = folder / "wandb" / "run-20260102_000000-xyz" / "files"
    files.mkdir(parents=True)
    (files / name).write_bytes(content.encode("latin-1"))
    good, bad = rows(read_wandb(str(folder)))
    assert good["summary.loss"] == 2.5
    assert bad["id"] == "xyz"
    assert said in bad["excluded_reason"]
    assert "\n" not in bad["excluded_reason"]


def test_aliases_of_yaml_do_not_fill_the_memory(folder: Path) -> None:
    files = folder / "run-20260102_000000-xyz" / "files"
    files.mkdir(parents=True)
    (files / "config.yaml").write_text(BOMB)
    (row,) = rows(read_wandb(str(folder)))
    assert len(row["l"]) < 10_000


def test_any_bytes_may_be_wrong(tmp_path: Path) -> None:
    path = tmp_path / "run-abc.wandb"
    write_wandb(path, [BEGIN, summary({"loss": 2.5}), history({"loss": 2.5}, 1), exit_record(0)])
    data = path.read_bytes()
    chooser = random.Random(0)
    seen = set()
    for _ in range(150):
        damaged = bytearray(data)
        for place in chooser.sample(range(len(data)), chooser.choice((1, 1, 3))):
            damaged[place] = chooser.randrange(256)
        if chooser.random() < 0.3:
            del damaged[chooser.randrange(len(data)) :]
        path.write_bytes(damaged)
        try:
            run = read_log(path)
        except ValueError as error:
            seen.add(str(error).partition(" ")[2][:20])
        else:
            seen.add((run.about["id"], run.about["state"], run.summary.get("loss")))
    # Checksums leave out what is damaged and all that follows.
    assert seen == {
        *["run is recorded in i", "is no file that W&B "],
        *[("abc", "crashed", None), ("abc", "crashed", 2.5), ("abc", "finished", 2.5)],
    }


def test_records_that_are_whole_and_yet_none_of_the_library(tmp_path: Path) -> None:
    path = tmp_path / "run-abc.wandb"
    parts = [BEGIN, summary({"loss": 2.5}), config({"a": 1}), history({"loss": 2.5}, 1)]
    chooser = random.Random(1)
    for _ in range(150):
        records = []
        for part in parts:
            damaged = bytearray(part)
            damaged[chooser.randrange(len(part))] = chooser.randrange(256)
            records.append(bytes(damaged))
        write_wandb(path, [BEGIN, *records])
        assert read_log(path).config.keys() & {"lr", "loss"}


def test_the_second_time_only_what_changed_is_read(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, name in enumerate(("a", "b", "c")):
        write_wandb(log_of(folder, name, number), [run_record(name, {}), summary({"loss": 2.5})])
    log_of(folder, "c", 2).write_bytes(b"no log")
    first = read_wandb(str(folder))
    read: list[str] = []
    real = module.read_log

    def noting(path: Path) -> Any:
        read.append(path.name)
        return real(path)

    monkeypatch.setattr(module, "read_log", noting)
    again = read_wandb(str(folder))
    assert rows(again) == rows(first)
    assert again.files == first.files
    assert read == []
    write_wandb(log_of(folder, "b", 1), [run_record("b", {}), summary({"loss": 2.25, "more": 1})])
    assert rows(read_wandb(str(folder)))[1]["loss"] == 2.25
    assert read == ["run-b.wandb"]
    read.clear()
    (kept,) = cache.glob("wandb/*.jsonl")
    # A break while a line was written; lines of others.
    kept.write_bytes(kept.read_bytes()[:-20] + b'\n{"key": 3}\n[]\n\xff\n' + b"[" * 100_000)
    assert len(rows(read_wandb(str(folder)))) == 3
    assert read == ["run-b.wandb"]
    assert rows(read_wandb(str(folder), refresh=True))[1]["loss"] == 2.25
    assert len(read) == 4


def test_a_cache_that_cannot_be_written_is_no_reason_to_fail(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wandb(log_of(folder, "abc"), [BEGIN])
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert rows(read_wandb(str(folder)))[0]["id"] == "abc"


def test_what_cannot_be_looked_at_is_a_row(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for second, name in enumerate(("a", "b", "c")):
        write_wandb(log_of(folder, name, second), [run_record(name, {}), summary({"loss": 2.5})])
    real, closed, gone = os.scandir, log_of(folder, "a").parent, log_of(folder, "b", 1)

    def scandir(path: Any) -> Any:
        if os.fspath(path) == str(closed):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    def vanish(files: Any) -> str:
        if list(files) == [gone]:
            gone.unlink()
        return stamp_of(files)

    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr(run_cache, "stamp_of", vanish)
    raw = read_wandb(str(folder))
    found = rows(raw)
    assert [(row["id"], row.get("loss")) for row in found] == [("c", 2.5), ("a", None), ("b", None)]
    assert "Permission denied" in found[1]["excluded_reason"]
    assert "No such file" in found[2]["excluded_reason"]
    # What is stored of the import can be read again.
    counts = {"n_params": "_step", "n_tokens": "_step"}
    mapping = ColumnMap(columns={"loss": "loss"} | counts, arch_name="a")
    raw.frame["_step"] = 1e6
    assert write_import(import_table(raw, mapping), raw, "wandb:runs", tmp_path / "out")
    digests = [file.sha256 for file in read_import(tmp_path / "out").files]
    assert [digest is None for digest in digests] == [False, True, True]


def test_what_could_not_be_read_is_read_the_next_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, pipe = log_of(folder, "a"), log_of(folder, "b", 1)
    write_wandb(log, [run_record("a", {}), summary({"loss": 2.5})])
    pipe.parent.mkdir()
    # Whoever opens it waits for its writer.
    os.mkfifo(pipe)
    real = run_cache.digest_of

    def refuse(files: Any) -> str:
        if list(files) == [log]:
            raise PermissionError(errno.EACCES, "Permission denied", str(log))
        return real(files)

    with monkeypatch.context() as closed:
        closed.setattr(run_cache, "digest_of", refuse)
        a, b = rows(read_wandb(str(folder)))
    assert (a["id"], b["id"]) == ("a", "b")
    assert "Permission denied" in a["excluded_reason"]
    assert "Not a regular file" in b["excluded_reason"]
    a, b = rows(read_wandb(str(folder)))
    assert (a["loss"], b["id"]) == (2.5, "b")


def test_the_runs_of_a_folder_are_suggested_and_imported(folder: Path) -> None:
    for number, (budget, loss) in enumerate(((1e18, 3.0), (1e18, 2.75), (1e19, 2.5))):
        settings = {"model": {"arch": "dense", "num_params": 10**8}, "budget": budget}
        values = {"val/loss": loss, "train/loss": 1.0, "total_tokens": budget / 6e8}
        write_wandb(
            log_of(folder, f"r{number}", number),
            [run_record(f"r{number}", settings), summary(values), exit_record(number % 2)],
        )
    raw = read_source(f"wandb:{folder}")
    asked = ColumnMap(columns={"arch": "model.arch", "budget_flops": "budget"})
    imported = import_table(raw, suggest(raw, asked).mapping)
    names = ["run_id", "arch", "budget_flops", "n_params", "n_tokens", "loss", "status"]
    assert imported.frame[names].values.tolist() == [
        ["r0", "dense", 1e18, 1e8, 1e18 / 6e8, 3.0, "done"],
        ["r1", "dense", 1e18, 1e8, 1e18 / 6e8, 2.75, "failed"],
        ["r2", "dense", 1e19, 1e8, 1e19 / 6e8, 2.5, "done"],
    ]


def test_no_column_hides_another() -> None:
    about = {"id": "a", "name": "n"}
    settings = {"x": 1, "config.x": 2, "name": 3, "excluded_reason": 4}
    run = tracked.TrackedRun(about=about, config=settings, summary={"x": 5, "summary.x": 6})
    assert tracked.frame_of_runs([run]).iloc[0].to_dict() == {
        **{"id": "a", "name": "n", "config.x": 1, "config.config.x": 2, "config.name": 3},
        **{"config.excluded_reason": 4, "summary.x": 5, "summary.summary.x": 6},
    }


def test_exported_files_are_read_as_files(tmp_path: Path) -> None:
    (tmp_path / "runs.json").write_text(json.dumps([{"name": "a", "summary": {"loss": 2.5}}]))
    for source in ("runs.json", "run*.json"):
        (row,) = rows(read_wandb(str(tmp_path / source)))
        assert row["summary.loss"] == 2.5


@pytest.mark.slow
def test_a_run_that_the_library_wrote(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(folder))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(folder / "cache"))
    folder.mkdir()
    given = {"model": {"n_layer": 4, "params": 10**6}, "lr": 1e-3, "loss": "mse"}
    with wandb.init(project="laws", entity="team", name="n", tags=["x"], config=given) as run:
        run.define_metric("val", summary="min")
        for step in range(20):
            run.log({"train/loss": 3 - step / 20, "val": abs(step - 10) / 4, "deep": {"a": step}})
        run.summary["final"] = 1.25
        run.config.update({"late": 7})
        run_id = run.id
    wandb.teardown()
    (row,) = rows(read_wandb(str(folder)))
    expected = {
        **{"id": run_id, "name": "n", "state": "finished", "tags": "x", "project": "laws"},
        **{"model.n_layer": 4, "model.params": 10**6, "lr": 1e-3, "late": 7, "loss": "mse"},
        **{"train/loss": 3 - 19 / 20, "val": 2.25, "val.min": 0, "deep.a": 19, "final": 1.25},
        "_step": 19,
    }
    assert {name: row.get(name) for name in expected} == expected

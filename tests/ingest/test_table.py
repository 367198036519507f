"""A table and a mapping to runs: units, derived values, steps of runs, rows that are of no use."""

from __future__ import annotations

import hashlib
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from isoflop.errors import UserError
from isoflop.ingest import store
from isoflop.ingest.files import RawTable, SourceFile
from isoflop.ingest.mapping import FLOPS_UNITS, ColumnMap
from isoflop.ingest.store import Imported, read_import, write_import
from isoflop.ingest.suggest import suggest
from isoflop.ingest.table import import_table

SIZES = {"n_params": "N", "n_tokens": "D", "loss": "loss"}


def raw(frame: pd.DataFrame, *num_rows: int) -> RawTable:
    counts = num_rows or (len(frame),)
    files = tuple(
        SourceFile(name=f"f{i}.csv", sha256="0" * 64, num_rows=count)
        for i, count in enumerate(counts)
    )
    return RawTable(frame=frame, files=files)


def made(table: dict[str, Any], **mapping: Any) -> Imported:
    given = {"columns": SIZES, "arch_name": "a", **mapping}
    return import_table(raw(pd.DataFrame(table)), ColumnMap(**given))


def base(num: int = 2) -> dict[str, Any]:
    return {"N": [1e7] * num, "D": [1e9] * num, "loss": [3.0 - 0.1 * i for i in range(num)]}


@pytest.mark.parametrize("unit", sorted(FLOPS_UNITS))
def test_flops_are_in_flops(unit: str) -> None:
    columns = {**base(1), "C": [6e16 / FLOPS_UNITS[unit]]}
    found = made(columns, columns={**SIZES, "flops": "C"}, flops_unit=unit)
    assert found.frame["flops"].item() == pytest.approx(6e16, rel=1e-12)


def test_perplexity_becomes_nats_and_other_units_stay() -> None:
    found = made({**base(1), "loss": [math.e**3]}, loss_unit="perplexity")
    assert (found.frame["loss"].item(), found.unit) == (pytest.approx(3.0), "nats_per_token")
    for unit in ("bits_per_byte", "bits_per_token", "1 - accuracy"):
        found = made({**base(1), "loss": [0.9]}, loss_unit=unit)
        assert (found.frame["loss"].item(), found.unit) == (0.9, unit)
        assert (found.arrow().schema.metadata or {})[b"isoflop_loss_unit"].decode() == unit


@pytest.mark.parametrize(
    ("columns", "derived"),
    [
        ({"n_params": "N", "n_tokens": "D"}, {"flops"}),
        ({"n_params": "N", "flops": "C"}, {"n_tokens"}),
        ({"n_tokens": "D", "flops": "C"}, {"n_params"}),
        ({"n_tokens": "D", "budget_flops": "C"}, {"n_params", "flops"}),
        ({"n_params": "N", "budget_flops": "C"}, {"n_tokens", "flops"}),
        ({"n_params": "N", "steps": "S", "batch_size": "B", "seq_len": "T"}, {"n_tokens", "flops"}),
        ({"n_params": "N", "n_tokens": "S * B * T"}, {"flops"}),
    ],
)
def test_what_no_column_has_is_computed_and_named(
    columns: dict[str, str], derived: set[str]
) -> None:
    table = {**base(1), "C": [6e16], "S": [1000], "B": [1000], "T": [1000]}
    found = made(table, columns={**columns, "loss": "loss"})
    assert set(found.derived) == derived
    row = found.frame.iloc[0]
    assert (row["n_params"], row["n_tokens"], row["flops"]) == pytest.approx((1e7, 1e9, 6e16))


def test_a_count_that_is_not_known_is_not_guessed() -> None:
    with pytest.raises(UserError, match="none for n_tokens"):
        made(base(), columns={"n_params": "N", "loss": "loss"})
    with pytest.raises(UserError, match=r"none for loss"):
        made(base(), columns={"n_params": "N", "n_tokens": "D"})


def test_a_row_that_cannot_be_read_stays_with_its_reason() -> None:
    columns = {
        **base(7),
        "loss": [3.0, "crashed", "", "nan", 2.5, 2.4, -1],
        "N": ["10M", "10M", "10M", "10M", "tiny", "10M", "10M"],
        "State": ["finished", "finished", "running", "crashed", "finished", "", "finished"],
        "hide": ["", "", "", "", "", "1", ""],
        "seed": [0, 1, "1.5", 2, 3, 4, 5],
        "wall": [1, 2, 3, 4, 5, 6, "1 h"],
    }
    more = {"status": "State", "excluded_reason": "hide", "seed": "seed", "wall_s": "wall"}
    found = made(columns, columns={**SIZES, **more})
    reasons = [None if pd.isna(reason) else reason for reason in found.frame["excluded_reason"]]
    assert reasons == [
        *(None, "loss is 'crashed', which is no number", None, None),
        *("n_params is 'tiny', which is no number", "marked as excluded", None),
    ]
    assert list(found.frame["status"]) == ["done", "done", "missing", "failed", *["done"] * 3]
    assert [note.split(":")[0] for note in found.notes] == ["seed", "wall_s"]
    rows = found.rows
    assert (rows[2]["seed"], rows[6]["wall_s"], rows[3]["loss"]) == (None, None, None)
    assert rows[0]["n_params"] == 10_000_000


def test_a_needed_column_of_which_nothing_can_be_read_is_refused() -> None:
    with pytest.raises(UserError, match=r"loss \(loss\) = 'bad'"):
        made({**base(), "loss": ["bad", ""]})
    with pytest.raises(UserError, match="numbers above 0"):
        suggest(raw(pd.DataFrame({**base(), "loss": ["bad", ""]})))


def test_steps_of_a_run_become_one_row() -> None:
    steps = pd.DataFrame(
        {
            "run": ["a", "a", "a", "b", "b", "b", None],
            "step": [2, 1, 3, 1, 2, 3, 1],
            # What a tracker logs now and then; the last row of b has no loss.
            "N": [None, 1e7, None, 2e7, None, None, 3e7],
            "D": [2e9, 1e9, None, 1e9, 2e9, 3e9, 1e9],
            "loss": [2.8, 3.0, 2.9, 2.7, 2.6, None, 2.5],
        }
    )
    mapping = ColumnMap(columns={**SIZES, "steps": "step"}, arch_name="a", run="run")
    last = import_table(raw(steps), mapping)
    assert last.frame[["n_params", "n_tokens", "loss"]].to_numpy().tolist() == [
        [1e7, 2e9, 2.9],
        [2e7, 2e9, 2.6],
        [3e7, 1e9, 2.5],
    ]
    assert "run is missing" in last.frame["excluded_reason"].iloc[2]
    assert last.dropped.to_numpy().tolist() == [
        ["f0.csv", row, f"a step of '{run}'; its last one counts"]
        for row, run in ((1, "a"), (2, "a"), (4, "b"), (6, "b"))
    ]
    best = import_table(raw(steps), ColumnMap(**{**fields(mapping), "take": "best"}))
    assert best.frame["loss"].tolist() == [2.8, 2.6, 2.5]
    every = import_table(raw(steps), ColumnMap(**{**fields(mapping), "take": "every"}))
    assert (len(every.frame), len(every.dropped)) == (7, 0)


def fields(mapping: ColumnMap) -> dict[str, Any]:
    return {name: getattr(mapping, name) for name in ("columns", "arch_name", "run")}


def test_every_row_of_every_file_is_accounted_for() -> None:
    frame = pd.DataFrame(
        {**base(5), "keep": ["y", "n", "y", "n", "n"], "source_file": list("aabbb")}
    )
    mapping = ColumnMap(columns=SIZES, arch_name="a", where=("keep = y",))
    found = import_table(raw(frame, 2, 3), mapping)
    assert found.dropped.to_numpy().tolist() == [
        ["f0.csv", 2, "not keep = y"],
        ["f1.csv", 2, "not keep = y"],
        ["f1.csv", 3, "not keep = y"],
    ]
    assert len(found.frame) + len(found.dropped) == 5
    with pytest.raises(UserError, match="change the condition"):
        import_table(raw(frame), ColumnMap(columns=SIZES, arch_name="a", where=("keep = z",)))


def test_further_columns_and_metrics_are_numbers() -> None:
    columns = {**base(), "width": ["64", "128"], "acc": ["12 %", "13 %"], "E": [8, 16]}
    more = {"my_width": "width", "metric_acc": "acc", "n_experts": "E"}
    found = made(columns, columns={**SIZES, **more})
    schema = found.arrow().schema
    assert [str(schema.field(name).type) for name in more] == ["double"] * 3
    assert found.rows[0]["metric_acc"] == 0.12
    assert "warnings" in schema.names


def test_counts_of_any_size_fit() -> None:
    found = made({**base(), "N": [1e30, 10.4], "D": [math.inf, 1e9]})
    assert [row["n_params"] for row in found.rows] == [None, 10]
    assert [row["n_tokens"] for row in found.rows] == [None, 1_000_000_000]
    assert [row["flops"] for row in found.rows] == [None, pytest.approx(6.24e10)]


def test_names_that_no_terminal_shows_are_escaped() -> None:
    columns = {**base(), "arch": ["a\x1b[2J", "b"], "name": ["\u202eevil", "ok"]}
    found = made(columns, arch_name=None, columns={**SIZES, "arch": "arch", "run_id": "name"})
    assert list(found.frame["arch"]) == ["a\\x1b[2J", "b"]
    assert found.frame["run_id"].iloc[0].isprintable()


@pytest.mark.parametrize("budget_from", ["flops", "auto"])
def test_budgets_from_flops(budget_from: Any) -> None:
    spent = np.array([1e17, 0.98e17, 0.99e17, 4e17, 3.9e17, 3.95e17])
    sizes = np.array([1e7, 2e7, 4e7] * 2)
    columns = {"N": sizes, "C": spent, "loss": np.linspace(3, 2, 6)}
    mapping = {"n_params": "N", "flops": "C", "loss": "loss"}
    found = made(columns, columns=mapping, budget_from=budget_from)
    budgets = found.frame["budget_flops"]
    assert budgets.nunique() == (6 if budget_from == "flops" else 2)
    assert np.allclose(budgets, spent, rtol=0.03)


def test_an_exported_chart_has_a_row_a_run() -> None:
    chart = pd.DataFrame(
        {
            "Step": [0, 10, 20],
            "a - b - eval/loss": ["3.0", "2.5", ""],
            "a - b - eval/loss__MIN": ["1", "1", ""],
            "c - eval/loss": ["3.1", "", "2.4"],
            "d - eval/loss": ["", "", ""],
        }
    )
    asked = ColumnMap(parse={"run": "{arch}"}, columns={"n_params": "step", "n_tokens": "step"})
    mapping = suggest(raw(chart), asked).mapping
    found = import_table(raw(chart), mapping)
    assert found.frame[["arch", "loss", "steps"]].fillna(-1).to_numpy().tolist() == [
        ["a - b", 2.5, 10],
        ["c", 2.4, 20],
        ["d", -1, -1],
    ]


def test_a_column_that_stands_twice_can_be_told_apart() -> None:
    frame = pd.DataFrame([[1e7, 1e9, 3.0, 4.0]], columns=["N", "D", "loss", "loss"])
    found = import_table(raw(frame), suggest(raw(frame)).mapping)
    assert found.frame["loss"].item() == 3.0
    second = ColumnMap(columns={**SIZES, "loss": "loss (2)"}, arch_name="a")
    assert import_table(raw(frame), second).frame["loss"].item() == 4.0


def test_a_pattern_that_some_names_do_not_fit() -> None:
    columns = {"Name": ["x-C1e17-N10M", "debug", None], "loss": [3.0, 2.9, 2.8], "D": [1e9] * 3}
    found = made(
        columns,
        columns={"loss": "loss", "n_tokens": "D"},
        parse={"Name": "{_}-C{budget_flops}-N{n_params}"},
    )
    assert found.frame["n_params"].tolist()[0] == 1e7
    assert ["fit the pattern" in str(r) for r in found.frame["excluded_reason"]] == [
        False,
        True,
        True,
    ]
    with pytest.raises(UserError, match=r"--parse Name = 'x-C1e17-N10M'.*some name fits"):
        made(columns, columns={"loss": "loss", "n_tokens": "D"}, parse={"Name": "M{n_params}"})


def test_flops_in_another_unit_or_convention_are_named() -> None:
    columns = {**base(), "C": [1.8e17] * 2, "budget": [6e16] * 2}
    mapping = {**SIZES, "flops": "C", "budget_flops": "budget"}
    (first, second) = made(columns, columns=mapping).notes
    assert "3 times 6 · n_params · n_tokens" in first
    assert "(--map 'flops=C / 3')" in first
    assert "3 times budget_flops" in second
    assert made(columns, columns={**mapping, "flops": "C / 3"}).notes == ()
    assert "3e-09 times" in made(columns, columns={**mapping, "flops": "C / 1e9"}).notes[0]


def test_two_imports_at_once_do_not_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one comes when the first has looked and begins to write."""
    one, two = (made({**base(1), "loss": [loss]}) for loss in (3.0, 2.0))
    refusals: list[str] = []

    def second() -> None:
        try:
            write_import(two, raw(two.frame), "b.csv", tmp_path, replace=False)
        except UserError as error:
            refusals.append(str(error))

    thread = threading.Thread(target=second)
    write = store.write_json_atomic

    def slow(path: Path, value: object) -> None:
        if threading.current_thread() is not thread:
            thread.start()
            thread.join(0.3)
        write(path, value)

    monkeypatch.setattr(store, "write_json_atomic", slow)
    assert write_import(one, RawTable(frame=one.frame, files=()), "a.csv", tmp_path)
    thread.join()
    assert len(refusals) == 1, refusals
    digest = hashlib.sha256((tmp_path / "runs.parquet").read_bytes()).hexdigest()
    assert read_import(tmp_path).runs_sha256 == digest
    assert read_import(tmp_path).source == "a.csv"


def test_of_two_columns_of_one_name_it_is_said_which_is_taken() -> None:
    frame = pd.DataFrame([[1e7, 1e9, 3.0, 2.0]], columns=["N", "D", "loss", "loss"])
    found = import_table(raw(frame), ColumnMap(columns=SIZES, arch_name="a"))
    assert found.frame["loss"].item() == 3.0
    assert any("2 columns are called loss" in note and "loss (2)" in note for note in found.notes)
    other = {**SIZES, "loss": "loss (2)"}
    found = import_table(raw(frame), ColumnMap(columns=other, arch_name="a"))
    assert found.frame["loss"].item() == 2.0
    assert not any("called loss" in note for note in found.notes)


def test_numbers_that_no_table_holds_are_said() -> None:
    seeds = [1, 2**53 - 1, 2**53, "9" * 30]
    table = {**base(4), "N": [1e7, "9" * 400, 1e30, 1e8], "D": 1e9, "C": [6e20, 1, 1, "inf"]}
    columns = {**SIZES, "seed": "seed", "flops": "C"}
    found = made({**table, "seed": seeds}, columns=columns)
    assert found.frame["seed"].tolist()[:2] == [1, 2**53 - 1]
    assert found.frame["seed"].isna().tolist() == [False, False, True, True]
    assert any("2 cells left empty" in note for note in found.notes)
    reasons = [row["excluded_reason"] for row in found.rows]
    assert reasons[0] is None
    assert [str(reason).split(",")[0] for reason in reasons[1:]] == [
        "n_params is inf",
        "n_params is 1e+30",
        "flops is inf",
    ]


def test_a_product_of_very_many_factors_is_refused() -> None:
    columns = {**SIZES, "flops": " * ".join(["N"] * 100_000)}
    with pytest.raises(UserError, match="at most 20 factors") as error:
        made(base(), columns=columns)
    assert len(str(error.value)) < 300


def test_sizes_by_which_runs_spend_other_than_their_budget_are_noted() -> None:
    """As nanochat's, which counts its embeddings and spends nothing on them."""
    columns = {**base(), "scaling params": ["5M", "5M"], "params_head": [1e6, 1e6]}
    mapping = {**SIZES, "budget_flops": "C"}
    (note,) = made({**columns, "C": [3e16, 3e16]}, columns=mapping).notes
    assert note == (
        "6 · n_params · n_tokens is 2 times budget_flops (median): --map 'n_params=scaling params',"
        " by which it is; or --map flops=C, where budgets were kept?"
    )
    assert made({**columns, "C": [6.1e16, 5.9e16]}, columns=mapping).notes == ()

"""Frames of any kind as rows of runs."""

from __future__ import annotations

import datetime
import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from analysis.made_runs import study
from isoflop.analysis import FitOptions, fit_rows, load_rows, select_points
from isoflop.analysis.load import typed_rows
from isoflop.api.frames import runs_frame
from isoflop.errors import UserError
from isoflop.ingest.frames import as_frame, read_numbers, read_status

RUN: dict[str, Any] = {
    "arch": "dense",
    "budget_flops": 1e17,
    "n_params": 1e6,
    "n_tokens": 1e7,
    "flops": 1e17,
    "loss": 3.0,
}
DASH = "-"
TYPED = RUN | {"loss": 2.5}


def frame(**columns: Any) -> pd.DataFrame:
    return pd.DataFrame({name: [cell, cell] for name, cell in RUN.items()} | columns)


def cells(name: str, column: Any) -> list[Any]:
    return [row[name] for row in load_rows(frame(**{name: column}))]


def refusal(table: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_rows(table)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "column",
    [
        ["125M", "1.5 B"],
        ["125,000,000", 1.5e9],
        [125_000_000, 1_500_000_000],
        pd.array([125_000_000, 1_500_000_000], dtype="Int64"),
        pd.array([125e6, 1.5e9], dtype="Float32"),
        pd.Categorical(["125M", "1.5B"]),
        pd.Categorical([1.25e8, 1.5e9]),
        [Decimal("1.25e8"), Decimal("1.5e9")],
        [np.int64(125_000_000), np.float32(1.5e9)],
        pd.array(["125M", "1.5B"], dtype=pd.ArrowDtype(pa.string())),
        pd.array([Decimal("125e6"), Decimal("15e8")], dtype=pd.ArrowDtype(pa.decimal128(20, 2))),
        np.array(["125e6", "1.5e9"], dtype=object),
    ],
    ids=lambda column: str(getattr(column, "dtype", "list"))[:12],
)
def test_numbers_of_every_type(column: Any) -> None:
    found = cells("n_params", column)
    assert found == [125e6, 1.5e9]
    assert {type(value) for value in found} == {float}


@pytest.mark.parametrize(
    "gone", [None, math.nan, pd.NA, pd.NaT, "", " NA ", "None", DASH, "n/a", "<NA>", np.nan]
)
def test_what_is_missing_is_none_and_no_zero(gone: Any) -> None:
    assert cells("loss", pd.Series([3.5, gone], dtype=object)) == [3.5, None]
    # A name may be a dash.
    assert cells("arch", pd.Series(["a", gone], dtype=object))[1] == ("-" if gone is DASH else None)


@pytest.mark.parametrize("kind", ["Int64", "category", "float64", "string"])
def test_missing_cells_of_other_types(kind: str) -> None:
    assert cells("n_active", pd.Series([5, None], dtype=object).astype(kind)) == [5.0, None]


@pytest.mark.parametrize(
    "bad",
    [True, np.True_, "crashed", datetime.date(2026, 1, 1), [3.0], {"x": 1}, 3 + 1j, 10**400, b"3"],
    ids=repr,
)
def test_a_cell_that_is_no_number_costs_its_row_alone(bad: Any) -> None:
    first, second = load_rows(frame(loss=pd.Series([2.5, bad], dtype=object)))
    assert first == TYPED | {"excluded_reason": None}
    assert second["loss"] is None
    assert second["excluded_reason"].startswith("loss is ")
    assert second["excluded_reason"].endswith(", which is no number")


@pytest.mark.parametrize(
    "column",
    [
        [True, False],
        pd.to_datetime(["2026-01-01", "2026-01-02"]),
        pd.to_timedelta([1, 2], unit="s"),
        [1j, 2j],
        [[1.0], [2.0]],
    ],
    ids=["truth", "datetime", "timedelta", "complex", "lists"],
)
def test_a_column_without_any_number_is_refused(column: Any) -> None:
    assert refusal(frame(loss=column)).startswith("loss in data row 1 of the frame = ")


def test_decimal_commas_are_named() -> None:
    assert "write a point before decimals" in refusal(frame(loss=["2,5", "3,25"]))


def test_a_reason_that_is_given_stays_and_no_other_is_lost() -> None:
    table = frame(loss=[2.5, "?"], n_tokens=[1e7, "?"], excluded_reason=[math.nan, "spike"])
    assert [row["excluded_reason"] for row in load_rows(table)] == [None, "spike"]
    table = frame(loss=["?", 2.5], wall_s=["1 h", 3], excluded_reason=[np.False_, np.True_])
    first, second = (row["excluded_reason"] for row in load_rows(table))
    assert first == "loss is '?', which is no number"
    assert second == "marked as excluded"


def test_what_a_fit_can_do_without_costs_no_run() -> None:
    rows = load_rows(frame(wall_s=["2:13:05", "1 h"], n_active=["1M", "½"], seed=[0, 1]))
    assert [row["wall_s"] for row in rows] == [None, None]
    assert not any(row.get("excluded_reason") for row in rows)
    selection = select_points(rows)
    assert sum(map(len, selection.groups.values())) == 2
    assert selection.notes == (
        "wall_s is no number in 2 runs, as in '2:13:05', and is taken to be missing there.",
        "n_active is no number in 1 run, as in '½', and is taken to be missing there.",
    )
    assert "unread" not in runs_frame(rows, "nats_per_token")


def test_columns_that_no_fit_uses_refuse_nothing() -> None:
    table = frame(size=["17M", "small"], steps=["10k", "1 epoch"], epochs=["1 epoch", "2 epochs"])
    table["note"] = [object(), pd.NaT]
    table["when"] = pd.to_datetime(["2026-01-01", None])
    rows = load_rows(table)
    assert [row["size"] for row in rows] == [17e6, None]
    assert [row["epochs"] for row in rows] == [None, None]
    assert "note" not in rows[0]
    assert "excluded_reason" not in rows[0]
    assert len(select_points(rows).excluded) == 1
    assert select_points(rows).excluded[0].reason == "exact_dup"


@pytest.mark.parametrize(
    ("given", "status", "reason"),
    [
        ("finished", "done", None),
        ("COMPLETED", "done", None),
        (" Success ", "done", None),
        ("", "done", None),
        (None, "done", None),
        ("crashed", "failed", "status is 'crashed'"),
        ("CANCELLED", "failed", "status is 'CANCELLED'"),
        ("NaN", "diverged", "status is 'NaN'"),
        ("running", "missing", "status is 'running'"),
        ("Failed", "failed", "status is 'Failed'"),
        ("diverged", "diverged", None),
        ("paused", "paused", None),
    ],
)
def test_statuses_as_others_write_them(given: Any, status: str, reason: str | None) -> None:
    first, second = load_rows(frame(loss=[3.0, 2.0], status=["done", given]))
    assert (first["status"], first["status_reason"]) == ("done", None)
    assert (second["status"], second["status_reason"]) == (status, reason)
    excluded = select_points([second]).excluded
    assert [row.reason for row in excluded] == (
        [] if status == "done" else ["unknown_status" if status == "paused" else status]
    )


def test_a_blank_status_without_a_loss_is_no_run_that_is_done() -> None:
    rows = load_rows(frame(loss=[3.0, None], status=["", ""]))
    assert [row.reason for row in select_points(rows).excluded] == ["no_loss"]
    assert read_status("Out_Of_Memory") == "failed"


def test_indices_and_levels_of_names_become_columns() -> None:
    table = frame(arch=["a", "b"])
    for indexed in (
        table.set_index("arch"),
        table.set_index(["arch", "budget_flops"]),
        table.set_index("arch", drop=False),
        table.set_index("arch").set_axis(
            pd.MultiIndex.from_product([list(table)[1:], [""]]), axis=1
        ),
        table.set_axis([7, 3]),
    ):
        assert [row["arch"] for row in load_rows(indexed)] == ["a", "b"]
    levels = pd.DataFrame(
        [[1, 2]], columns=pd.MultiIndex.from_tuples([("eval", "loss"), ("n", "")])
    )
    assert list(as_frame(levels)) == ["eval.loss", "n"]
    assert list(as_frame(pd.DataFrame([[1]], columns=[3]))) == ["3"]


def test_the_frame_given_is_not_changed() -> None:
    table = frame(loss=["2.5", "?"], status=["finished", "crashed"]).set_index("arch")
    before = table.copy(deep=True)
    load_rows(table)
    pd.testing.assert_frame_equal(table, before)


def test_columns_twice_are_refused_where_they_are_used() -> None:
    table = frame()
    twice = pd.concat([table, table[["loss"]]], axis=1)
    assert "column loss of the frame = twice" in refusal(twice)
    other = table.assign(x=1)
    assert len(load_rows(pd.concat([other, other[["x"]]], axis=1))) == 2


class OnlyInterchange:
    """A frame of a library that only has the older protocol."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __dataframe__(self, *args: Any, **chosen: Any) -> Any:
        return self._table.__dataframe__(*args, **chosen)


def test_frames_of_other_libraries_by_their_protocols() -> None:
    table = pa.table(
        {name: [cell, cell] for name, cell in RUN.items()}
        | {"loss": ["2.5", None], "seed": pa.array([1, None], pa.int32())}
    )
    for other in (table, OnlyInterchange(table), table.to_reader(), table.to_batches()[0]):
        first, second = load_rows(other)
        assert first == TYPED | {"seed": 1}
        assert (second["loss"], second["seed"]) == (None, None)


def test_views_on_text_as_polars_has_them() -> None:
    views = pa.array(["2.5", None], pa.string_view())
    notes = pa.array([["a note"], None], pa.large_list(pa.string_view()))
    columns = {name: [cell, cell] for name, cell in RUN.items()} | {"loss": views, "notes": notes}
    assert as_frame(pa.table(columns)).notes[0].tolist() == ["a note"]
    assert [row["loss"] for row in load_rows(pa.table(columns))] == [2.5, None]


def test_polars_frames() -> None:
    polars = pytest.importorskip("polars")
    table = polars.DataFrame(
        {name: [cell, cell] for name, cell in RUN.items()} | {"loss": ["2.5", None]},
        schema_overrides={"arch": polars.Categorical},
    )
    first, second = load_rows(table)
    assert first == TYPED
    assert second["loss"] is None


def test_records_and_columns() -> None:
    assert load_rows(
        [RUN, {**RUN, "arch": math.nan, "n_params": "125M", "declared": np.False_}]
    ) == [
        RUN | {"declared": None},
        RUN | {"arch": None, "n_params": 125e6, "declared": False},
    ]
    assert load_rows({name: [cell] for name, cell in RUN.items()}) == [RUN]
    assert load_rows([{"flops": 1.0, "loss": 2, "config": {"arch": "x"}}], ("loss",)) == [
        {"flops": 1.0, "loss": 2.0}
    ]


@pytest.mark.parametrize(
    "table",
    [
        3,
        [3],
        [[1, 2]],
        [],
        {},
        {"a": 1},
        {"a": [1], "b": [1, 2]},
        pd.Series([1]),
        frame()[:0],
        b"x",
    ],
    ids=lambda table: type(table).__name__,
)
def test_what_is_no_table_is_one_line(table: Any) -> None:
    refusal(table)


def test_missing_columns_name_the_nearest_ones_and_import() -> None:
    table = pd.DataFrame([{f"c{i}": 0 for i in range(300)}])
    table = table.assign(budget=1e17, **{"N params": 1e6, "eval/loss": 3.0, "arch": "a"})
    message = refusal(table)
    assert "c11 and 292 more" in message
    assert "add budget_flops, n_params, n_tokens, flops, loss, or rename" in message
    assert "N params for n_params" in message
    assert "eval/loss for loss" in message
    assert "isoflop import" in message


def test_a_row_of_several_files_is_named_in_its_own(tmp_path: Path) -> None:
    header = ",".join([*RUN, "seed"])
    line = ",".join(str(cell) for cell in RUN.values())
    (tmp_path / "a.csv").write_text(f"{header}\n{line},\n{line},\n")
    (tmp_path / "b.csv").write_text(f"{header}\n{line},\n{line},one\n")
    assert refusal(tmp_path / "*.csv").startswith("seed in data row 2 of b = 'one'")


def test_more_columns_of_numbers() -> None:
    (row, _) = load_rows(frame(depth=["12", "24"]), more=("depth",))
    assert row["depth"] == 12.0
    with pytest.raises(UserError, match="add width"):
        load_rows(frame(), more=("width",))


def test_metrics_of_any_table_are_read_and_refuse_nothing() -> None:
    (first, second) = load_rows(frame(metric_acc=["12 %", "bad"]))
    assert first["metric_acc"] == 0.12
    assert second["metric_acc"] is None


def test_a_column_without_categories_or_rows_is_read() -> None:
    empty = read_numbers(pd.Series(pd.Categorical([None, None])))
    assert empty.missing.all()
    assert not empty.unread.any()
    assert len(read_numbers(pd.Series([], dtype=object)).values) == 0


def test_a_fit_takes_frames_and_records_of_any_types() -> None:
    rows = [{**row, "flops": row["budget_flops"]} for row in study(["swiglu"], [1e17])]
    odd: list[dict[str, Any]] = [{**row, "excluded_reason": np.False_} for row in rows]
    odd[0]["n_params"] = f"{odd[0]['n_params']:,.9f}"
    odd.append({**odd[0], "arch": math.nan, "n_params": "125M"})
    expected = select_points(rows)
    for table in (odd, pd.DataFrame(odd), pd.DataFrame(odd).set_index("arch"), iter(odd)):
        selection = select_points(typed_rows(table))
        assert selection.groups == expected.groups
        (entry,) = selection.excluded
        assert (entry.arch, entry.n_params, entry.reason) == (None, 125e6, "no_arch")
    fits = fit_rows(pd.DataFrame(odd), FitOptions(n_boot=0))
    assert fits.groups == expected.groups
    without = [{name: cell for name, cell in row.items() if name != "flops"} for row in odd]
    assert len(select_points(typed_rows(without)).groups) == 1


def test_rows_that_are_typed_stay_as_they_are() -> None:
    rows = load_rows(frame(status=["finished", "crashed"]))
    assert all(same is row for same, row in zip(typed_rows(rows), rows, strict=True))
    assert typed_rows([]) == []


def test_no_name_of_a_column_reaches_a_terminal_as_it_stands() -> None:
    table = pd.DataFrame([[1.0, 2.0]], columns=["eval/loss\x1b[2J", "metric_\x1b[2J"])
    assert "\x1b" not in refusal(table)
    assert "\x1b" not in refusal(pd.concat([frame(), table, table], axis=1))

"""Tables from outside: what is read, and the one line for what is not."""

from __future__ import annotations

import decimal
import gzip
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from isoflop.analysis import fit_optima, load_rows, select_points
from isoflop.analysis.load import REQUIRED, digest_of, table_unit
from isoflop.errors import UserError
from isoflop.tables import RUNS, write_table

HEADER = ",".join(REQUIRED)
LINE = "dense,1e17,1234567.25,13500000.5,9.9e16,3.25"


def csv_of(folder: Path, *lines: str, header: str = HEADER, encoding: str = "utf-8") -> Path:
    path = folder / "runs.csv"
    path.write_bytes("\n".join([header, *lines, ""]).encode(encoding))
    return path


def parquet_of(folder: Path, **columns: pa.Array) -> Path:
    sound: dict[str, Any] = {
        "arch": ["dense"],
        "budget_flops": [1e17],
        "n_params": [1e6],
        "n_tokens": [1e7],
        "flops": [1e17],
        "loss": [3.0],
    }
    path = folder / "runs.parquet"
    pq.write_table(pa.table({**sound, **columns}), path)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_rows(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


def refusal_if_any(path: Path) -> str:
    """What is said against a table; nothing against one whose rows can be selected from."""
    try:
        select_points(load_rows(path))
    except UserError as error:
        return str(error)
    return ""


def test_a_csv_with_the_needed_columns_is_enough(tmp_path: Path) -> None:
    (row,) = load_rows(csv_of(tmp_path, LINE))
    assert row == {
        "arch": "dense",
        "budget_flops": 1e17,
        "n_params": 1234567.25,
        "n_tokens": 13500000.5,
        "flops": 9.9e16,
        "loss": 3.25,
    }
    (point,) = select_points([row]).groups["dense", 1e17]
    assert (point.n_params, point.flops, point.seed) == (1234567.25, 9.9e16, None)


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_optional_columns_order_mark_and_blank_lines(tmp_path: Path, line_end: str) -> None:
    header = f"seed,wall_s,{HEADER},excluded_reason,unknown"
    lines = [header, f'3,1.5,{LINE},"a, b",x', "", f",,{LINE},,"]
    path = tmp_path / "runs.txt"
    path.write_bytes(line_end.join(lines).encode("utf-8-sig"))
    first, second = load_rows(path)
    assert (first["seed"], first["wall_s"], first["excluded_reason"]) == (3, 1.5, "a, b")
    assert (second["seed"], second["wall_s"], second["excluded_reason"]) == (None, None, None)
    assert "unknown" not in first


YES = ("True", "true", "1", "spike")
NO = ("False", "0", "", "nan", "None")


@pytest.mark.parametrize(("cell", "is_excluded"), [(c, c in YES) for c in (*YES, *NO)])
def test_excluded_reason_may_be_a_yes_or_no(tmp_path: Path, cell: str, is_excluded: bool) -> None:
    rows = load_rows(csv_of(tmp_path, f"{LINE},{cell}", header=f"{HEADER},excluded_reason"))
    assert (len(select_points(rows).excluded) == 1) is is_excluded


def test_excluded_reason_as_a_boolean_column(tmp_path: Path) -> None:
    for value in (True, False, None):
        column = pa.array([value], pa.bool_())
        (row,) = load_rows(parquet_of(tmp_path, excluded_reason=column))
        assert (row["excluded_reason"] is not None) is bool(value)


@pytest.mark.parametrize("missing", REQUIRED)
def test_a_missing_column_is_named_with_those_needed(tmp_path: Path, missing: str) -> None:
    kept = [name for name in REQUIRED if name != missing]
    cells = dict(zip(REQUIRED, LINE.split(","), strict=True))
    message = refusal(csv_of(tmp_path, ",".join(cells[k] for k in kept), header=",".join(kept)))
    assert f"add {missing}, or rename" in message
    assert ", ".join(REQUIRED) in message


def test_text_in_a_number_costs_its_row_and_a_column_of_it_the_table(tmp_path: Path) -> None:
    bad = LINE.replace("3.25", "three")
    first, second = load_rows(csv_of(tmp_path, LINE, bad))
    assert (first["loss"], first["excluded_reason"]) == (3.25, None)
    assert (second["loss"], second["n_params"]) == (None, 1234567.25)
    (excluded,) = select_points([first, second]).excluded
    assert excluded.reason == "excluded_in_table"
    assert excluded.detail == "loss is 'three', which is no number"
    message = refusal(csv_of(tmp_path, LINE.replace("3.25", ""), bad))
    assert message.startswith("loss in data row 2 of")
    assert "'three': must be a number" in message
    message = refusal(parquet_of(tmp_path, n_params=pa.array(["big"])))
    assert message.startswith("n_params in data row 1 of")


@pytest.mark.parametrize("arch", ["a\x1b]0;x\x07", "a\u202eb", "swiglu\u200b"])
def test_an_arch_with_characters_that_nobody_sees_is_refused(tmp_path: Path, arch: str) -> None:
    told = refusal(csv_of(tmp_path, LINE.replace("dense", arch)))
    assert told.startswith("arch in data row 1 of ")
    assert "without control characters; rename it" in told
    (row,) = load_rows(csv_of(tmp_path, LINE.replace("dense", "très\xa0dense")))
    assert row["arch"] == "très\xa0dense"


def test_a_fractional_seed_is_refused(tmp_path: Path) -> None:
    message = refusal(csv_of(tmp_path, f"{LINE},0.5", header=f"{HEADER},seed"))
    assert "must be a whole number" in message


@pytest.mark.parametrize(
    "column",
    [
        pa.array([2**64 - 1], pa.uint64()),
        pa.array([decimal.Decimal(2**64 - 1)], pa.decimal128(38)),
        pa.array([str(2**64 - 1)], pa.string()),
        pa.array([float(2**64 - 1)], pa.float64()),
    ],
    ids=["uint64", "decimal", "string", "float"],
)
def test_integers_beyond_int64_in_parquet(tmp_path: Path, column: pa.Array) -> None:
    (row,) = load_rows(parquet_of(tmp_path, n_tokens=column, flops=column))
    assert row["n_tokens"] == row["flops"] == float(2**64 - 1)
    assert isinstance(row["flops"], float)


def test_integers_beyond_int64_in_csv(tmp_path: Path) -> None:
    big = str(10**30 + 1)
    (row,) = load_rows(csv_of(tmp_path, LINE.replace("9.9e16", big)))
    assert row["flops"] == 1e30


@pytest.mark.parametrize(
    ("cell", "reason"),
    [("nan", "bad_loss"), ("inf", "bad_loss"), ("-inf", "bad_loss"), ("", "no_loss")],
)
def test_a_useless_loss_stays_for_the_fit_to_exclude(
    tmp_path: Path, cell: str, reason: str
) -> None:
    rows = load_rows(csv_of(tmp_path, LINE.replace("3.25", cell)))
    assert [e.reason for e in select_points(rows).excluded] == [reason]


def test_no_flops_are_excluded_with_their_reason(tmp_path: Path) -> None:
    rows = load_rows(csv_of(tmp_path, LINE.replace("9.9e16", "0"), LINE.replace("1e17", "0")))
    excluded = select_points(rows).excluded
    assert sorted(e.reason for e in excluded) == ["no_budget", "no_flops"]


def test_a_truncated_parquet_is_one_line(tmp_path: Path) -> None:
    path = parquet_of(tmp_path)
    whole = path.read_bytes()
    for size in (0, 3, 4, 50, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert "whole parquet file" in refusal(path)


def test_our_own_table_is_read_with_its_version(tmp_path: Path) -> None:
    path = tmp_path / "copy.parquet"
    run = {**dict.fromkeys(RUNS.names), "arch": "mlp", "status": "failed"}
    write_table(path, [run], RUNS)
    (row,) = load_rows(path)
    assert (row["arch"], row["status"]) == ("mlp", "failed")
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({b"isoflop_schema_version": b"1"}), path)
    assert "schema version" in refusal(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "a table with a header"),
        (HEADER, "at least one row"),
        (f"{HEADER},loss\n{LINE},3.0", "must be there once"),
        (f"{HEADER}\n{LINE},4", "7 cells"),
        (f'{HEADER}\n"{LINE}', "csv file in UTF-8"),
    ],
)
def test_what_is_no_table_is_one_clear_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "runs.csv"
    path.write_text(text)
    assert words in refusal(path)


def test_other_encodings_and_missing_files_are_one_clear_line(tmp_path: Path) -> None:
    assert "UTF-8" in refusal(csv_of(tmp_path, LINE, encoding="utf-16"))
    assert "existing study folder" in refusal(tmp_path / "none.csv")
    assert "plan.json or runs.parquet" in refusal(tmp_path)


def test_one_table_in_every_form_gives_the_same_rows(tmp_path: Path) -> None:
    table = pd.DataFrame(
        [
            {"arch": "a", "budget_flops": 1e17, "n_params": 1234567.25 * i, "n_tokens": 1e10 / 3}
            | {
                "flops": 1e17 + i,
                "loss": 3 + i / 7 if i % 3 else None,
                "seed": i,
                "wall_s": 0.1 * i,
            }
            for i in range(7)
        ]
    )
    (tmp_path / "whole.csv").write_text(table.to_csv(index=False))
    rows = load_rows(tmp_path / "whole.csv")
    assert [row["flops"] for row in rows] == list(table["flops"])
    (tmp_path / "semicolons.txt").write_text(table.to_csv(sep=";"))
    (tmp_path / "runs.tsv.gz").write_bytes(gzip.compress(table.to_csv(sep="\t").encode()))
    lines = [json.dumps(one) for one in table.to_dict("records")]
    (tmp_path / "runs.jsonl").write_text("\n".join(lines))
    (tmp_path / "runs.json").write_text(f"[{','.join(lines)}]")
    table.to_parquet(tmp_path / "runs.parquet")
    table[:3].to_parquet(tmp_path / "part-0.parquet")
    (tmp_path / "part-1.json").write_text("\n".join(lines[3:]))
    names = ("semicolons.txt", "runs.tsv.gz", "runs.jsonl", "runs.json", "runs.parquet", "part-*")
    for source in (*(tmp_path / name for name in names), table, pa.table(table)):
        assert load_rows(source) == rows


def test_the_table_unit_several_files_is_one(tmp_path: Path) -> None:
    for name, unit in (("a", "bits_per_byte"), ("b", "nats_per_token")):
        run = {**dict.fromkeys(RUNS.names), "arch": "mlp", "status": "failed"}
        write_table(tmp_path / f"{name}.parquet", [run], replace(RUNS, unit=unit))
    assert table_unit(tmp_path / "a*.parquet") == "bits_per_byte"
    with pytest.raises(UserError, match=r"nats_per_token \(b.parquet\): must be of one unit"):
        table_unit(tmp_path / "*.parquet")
    assert digest_of(tmp_path / "*.parquet") != digest_of(tmp_path / "a*.parquet")


cell = st.one_of(
    st.sampled_from(["", "1e17", "0", "-1", "nan", "inf", "NA", "three", "1e400", str(10**30)]),
    st.text(max_size=4),
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.lists(cell, min_size=5, max_size=9), max_size=4), st.binary(max_size=20))
def test_no_text_gives_more_than_one_clear_line(
    tmp_path: Path, cells: list[list[str]], garbage: bytes
) -> None:
    text = "\n".join([f"{HEADER},seed", *map(",".join, cells)])
    path = tmp_path / "runs.csv"
    for content in (text.encode("utf-8", "surrogatepass"), garbage, text.encode() + garbage):
        path.write_bytes(content)
        assert "\n" not in refusal_if_any(path)


@pytest.mark.parametrize(
    "change", [{"n_params": 1e6}, {"loss": math.nan}], ids=["one size", "all diverged"]
)
def test_thin_tables_give_verdicts(tmp_path: Path, change: dict[str, float]) -> None:
    lines = []
    for size in (1e6, 2e6, 4e6):
        cells = {"n_params": size, "loss": 3 + size / 1e8, **change}
        lines.append(f"dense,1e17,{cells['n_params']},{1e17 / 6 / size},1e17,{cells['loss']}")
    fits = fit_optima(select_points(load_rows(csv_of(tmp_path, *lines))))
    assert {o.status for o in fits.optima if o.axis == "n_params"} == {"too_few"}
    assert all(law.exponent is None and law.exponent_ci is None for law in fits.laws)

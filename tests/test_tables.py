from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from isoflop.errors import UserError
from isoflop.tables import FITS, OPTIMA, PLAN, RUNS, SCHEMA_VERSION, read_table, write_table

ROW: dict[str, Any] = dict.fromkeys(OPTIMA.names)


def test_missing_is_null_never_zero(tmp_path: Path) -> None:
    path = tmp_path / "optima.parquet"
    write_table(path, [ROW | {"x_opt": math.nan, "loss_opt": math.inf, "arch": "mlp"}], OPTIMA)
    assert read_table(path, OPTIMA) == [ROW | {"arch": "mlp"}]


def test_flops_are_float64_and_hold_any_budget(tmp_path: Path) -> None:
    for schema in (PLAN, RUNS, OPTIMA, FITS):
        for name, kind in schema.columns:
            if "flops" in name or name == "flops":
                assert kind == "float64", (schema.table, name)
    path = tmp_path / "optima.parquet"
    write_table(path, [ROW | {"budget_flops": 1e26}], OPTIMA)
    assert read_table(path, OPTIMA)[0]["budget_flops"] == 1e26


def test_runs_are_the_plan_and_what_was_measured() -> None:
    assert RUNS.columns[: len(PLAN.columns)] == PLAN.columns


def test_an_empty_table_keeps_its_columns(tmp_path: Path) -> None:
    write_table(tmp_path / "a.parquet", [], FITS)
    assert read_table(tmp_path / "a.parquet", FITS) == []
    assert pq.read_schema(tmp_path / "a.parquet").names == list(FITS.names)


def test_a_row_with_other_columns_is_our_own_mistake(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        write_table(tmp_path / "a.parquet", [{"arch": "mlp"}], OPTIMA)


def test_damaged_tables_are_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    with pytest.raises(UserError, match="an existing file"):
        read_table(path, OPTIMA)
    write_table(path, [ROW], OPTIMA)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"not parquet"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="a whole parquet file") as caught:
            read_table(path, OPTIMA)
        assert "\n" not in str(caught.value)
    pq.write_table(pa.table({"arch": ["mlp"]}), path)
    with pytest.raises(UserError, match=f"schema version {SCHEMA_VERSION} \\(it is none\\)"):
        read_table(path, OPTIMA)
    version = {"isoflop_schema_version": str(SCHEMA_VERSION)}
    table = pa.table({"arch": ["mlp"]}).replace_schema_metadata(version)
    pq.write_table(table, path)
    with pytest.raises(UserError, match="with column budget_flops"):
        read_table(path, OPTIMA)

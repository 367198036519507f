from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from isoflop.analysis.compare.differences import EXPONENTS
from isoflop.analysis.compare.multipliers import COMPARE
from isoflop.analysis.compare.one_size import SEED_MEANS
from isoflop.analysis.hypotheses import HYPOTHESES
from isoflop.analysis.laws import FITS
from isoflop.analysis.optima import OPTIMA
from isoflop.analysis.validity import VALIDITY
from isoflop.errors import UserError
from isoflop.tables import (
    NOT_A_COLUMN,
    PLAN,
    RUNS,
    Schema,
    read_table,
    schema_of,
    write_table,
)

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


RESULTS = Path(__file__).resolve().parents[1] / "results"


@pytest.mark.parametrize(
    ("schema", "study"),
    [
        (PLAN, "quickstart"),
        (RUNS, "cpu_reference"),
        (OPTIMA, "quickstart"),
        (FITS, "quickstart"),
        (COMPARE, "quickstart"),
        (EXPONENTS, "quickstart"),
        (VALIDITY, "quickstart"),
        (HYPOTHESES, "cpu_reference"),
        (SEED_MEANS, "cpu_experts"),
    ],
    ids=lambda value: getattr(value, "table", value),
)
def test_committed_tables_have_the_columns_of_their_row(
    schema: Schema, study: str, tmp_path: Path
) -> None:
    committed = pq.read_schema(RESULTS / study / f"{schema.table}.parquet")
    write_table(tmp_path / "t.parquet", [], schema)
    assert committed.equals(pq.read_schema(tmp_path / "t.parquet"), check_metadata=True)


@dataclass
class _Row:
    name: str | None
    kind: Literal["a", "b"]
    loss: float | None
    count: int
    is_done: bool
    notes: tuple[str, ...]
    strict: tuple[float, float] = field(metadata=NOT_A_COLUMN)


def test_a_schema_is_the_fields_of_its_row(tmp_path: Path) -> None:
    schema = schema_of("rows", _Row)
    assert dict(schema.columns) == {
        "name": "string",
        "kind": "string",
        "loss": "float64",
        "count": "int64",
        "is_done": "bool",
        "notes": "list<string>",
    }
    row = _Row(None, "a", math.nan, 3, True, ("x",), (0.0, 1.0))
    write_table(tmp_path / "rows.parquet", [row], schema)
    assert read_table(tmp_path / "rows.parquet", schema) == [
        {"name": None, "kind": "a", "loss": None, "count": 3, "is_done": True, "notes": ["x"]}
    ]


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
    with pytest.raises(UserError, match=f"schema version {OPTIMA.version} \\(it is none\\)"):
        read_table(path, OPTIMA)
    version = {"isoflop_schema_version": str(OPTIMA.version)}
    table = pa.table({"arch": ["mlp"]}).replace_schema_metadata(version)
    pq.write_table(table, path)
    with pytest.raises(UserError, match="with column budget_flops"):
        read_table(path, OPTIMA)
    columns = {name: ["x"] for name in OPTIMA.names}
    pq.write_table(pa.table(columns).replace_schema_metadata(version), path)
    with pytest.raises(UserError, match="with the types of its columns"):
        read_table(path, OPTIMA)

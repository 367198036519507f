"""Laws through optima that a table supplies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from scipy.stats import linregress, norm, t

from isoflop.analysis.laws import FITS, LawRow
from isoflop.analysis.supplied import fit_supplied_optima, read_optima
from isoflop.cli import main
from isoflop.tables import read_table

RESULTS = Path(__file__).resolve().parents[2] / "results"
BUDGETS = (1e18, 1e19, 1e20, 1e21)
SCATTER = (1.02, 0.97, 1.01, 1.0)


def _rows(**others: float) -> list[dict[str, Any]]:
    return [
        {"arch": "dense", "budget_flops": c, "n_params_opt": 0.3 * c**0.5 * s, **others}
        for c, s in zip(BUDGETS, SCATTER, strict=True)
    ]


def _law(laws: tuple[LawRow, ...], axis: str = "n_params") -> tuple[LawRow, LawRow]:
    exponent, coefficient = (row for row in laws if (row.form, row.axis) == ("power_law", axis))
    return exponent, coefficient


def test_without_errors_the_interval_is_students() -> None:
    exponent, coefficient = _law(fit_supplied_optima(_rows()))
    found = linregress(np.log(BUDGETS), np.log([row["n_params_opt"] for row in _rows()]))
    wide = t.ppf(0.975, 2)
    assert exponent.value == pytest.approx(found.slope, rel=1e-12)
    assert coefficient.value == pytest.approx(np.exp(found.intercept), rel=1e-12)
    assert exponent.ci_lo == pytest.approx(found.slope - wide * found.stderr, rel=1e-9)
    assert coefficient.ci_hi == pytest.approx(
        np.exp(found.intercept + wide * found.intercept_stderr), rel=1e-9
    )
    assert (exponent.method, exponent.n_points, exponent.confidence) == ("supplied", 4, 0.95)
    assert (
        exponent.settings == "least squares of ln y on ln C; interval Student's, by the residuals"
    )


@pytest.mark.parametrize("given", ["se", "ends"])
def test_errors_supplied_give_the_interval(given: str) -> None:
    rows = _rows()
    for row in rows:
        x, sd = row["n_params_opt"], 0.05
        ends = np.exp(norm.ppf(0.975) * sd * np.array([-1, 1]))
        more = {"n_params_opt_lo": x * ends[0], "n_params_opt_hi": x * ends[1]}
        row.update(more if given == "ends" else {"n_params_opt_se": sd * x})
    exponent, _ = _law(fit_supplied_optima(rows))
    off = np.log(BUDGETS) - np.log(BUDGETS).mean()
    half = norm.ppf(0.975) * 0.05 / np.sqrt(off @ off)
    assert exponent.ci_hi is not None
    assert exponent.ci_lo is not None
    assert (exponent.ci_hi - exponent.ci_lo) / 2 == pytest.approx(half, rel=1e-6)
    assert exponent.settings is not None
    assert exponent.settings.endswith("by the errors supplied")
    del rows[0]["n_params_opt_se" if given == "se" else "n_params_opt_lo"]
    exponent, _ = _law(fit_supplied_optima(rows))
    assert exponent.settings is not None
    assert exponent.settings.endswith("by the residuals")


def test_losses_have_a_frontier_too() -> None:
    rows = [{**row, "loss_opt": 1.7 + 150 * row["budget_flops"] ** -0.12} for row in _rows()]
    frontier = {
        row.parameter: row.value for row in fit_supplied_optima(rows) if row.form == "frontier"
    }
    assert frontier == pytest.approx({"L_inf": 1.7, "A": 150, "alpha": 0.12}, rel=1e-4)


def test_laws_of_an_optima_table_are_those_through_its_interior_optima() -> None:
    path = RESULTS / "cpu_reference" / "optima.parquet"
    rows = read_optima(path)
    assert rows is not None
    found = {
        (law.arch, law.axis): law.value
        for law in fit_supplied_optima(rows)
        if law.parameter == "exponent"
    }
    assert len(found) >= 15
    assert found["mlp", "n_params"] + found["mlp", "n_tokens"] == pytest.approx(1, abs=0.1)
    assert read_optima(RESULTS / "cpu_reference" / "runs.parquet") is None


@pytest.mark.parametrize("name", ["optima.csv.gz", "optima.json", "optima.txt"])
def test_optima_are_read_from_files_of_any_kind(tmp_path: Path, name: str) -> None:
    table = pd.DataFrame(_rows()).assign(n_params_opt=[f"{r['n_params_opt']:,}" for r in _rows()])
    path = tmp_path / name
    if name.endswith("json"):
        path.write_text(json.dumps(table.to_dict("records")))
    else:
        table.to_csv(path, sep=";" if name.endswith("txt") else ",")
    rows = read_optima(path)
    assert rows is not None
    assert fit_supplied_optima(rows) == fit_supplied_optima(_rows())


@pytest.mark.parametrize(
    "text",
    [
        "a,1e18,x,",
        "a,nan,1e8,3\nb,1e18,inf,-2",
        "a,1e18,1e8,3",
        "a,1e18,1e8,3\na,1e18,2e8,3",
        ",1e18,1e8,3",
        "",
        "a,1e18\na,1e19,2e8,3,4,5",
    ],
)
def test_hostile_tables_of_optima_give_verdicts_and_no_claim(tmp_path: Path, text: str) -> None:
    table, out = tmp_path / "optima.csv", tmp_path / "out"
    table.write_text("arch,budget_flops,n_params_opt,loss_opt\n" + text)
    done = CliRunner().invoke(main, ["fit", str(table), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "The table holds optima, not runs" in done.output
    rows = read_table(out / "fits.parquet", FITS)
    assert all(row["ci_lo"] is None and row["value"] is None for row in rows)
    assert {row["status"] for row in rows} <= {"too_few"}


def test_bytes_of_anything_are_no_table_of_optima(tmp_path: Path) -> None:
    path = tmp_path / "junk.csv"
    path.write_bytes(b"\xff" * 200_000)
    assert read_optima(path) is None


def test_a_table_of_optima_needs_a_folder_for_the_results(tmp_path: Path) -> None:
    table = tmp_path / "optima.csv"
    table.write_text("arch,budget_flops,loss_opt\na,1e18,3\n")
    done = CliRunner().invoke(main, ["fit", str(table)])
    assert done.exit_code != 0
    assert not list(tmp_path.glob("fits*"))


def test_rows_that_hold_no_optimum_are_said_and_missing_cells_are_not(tmp_path: Path) -> None:
    table, out = tmp_path / "optima.csv", tmp_path / "out"
    rows = "a,1e17,1e7,\na,1e18,3e7,NA\na,1e19,-9e7,3\na,x,1e8,\n,1e20,2e8,\n"
    table.write_text("arch,budget_flops,n_params_opt,loss_opt\n" + rows)
    said = CliRunner().invoke(main, ["fit", str(table), "--out", str(out)]).output
    assert "3 of 5 rows hold what is no optimum, which enters no law (data row 3, 4, 5)" in said
    table.write_text("arch,budget_flops,n_params_opt,loss_opt\n" + rows[:23])
    assert (
        "no optimum" not in CliRunner().invoke(main, ["fit", str(table), "--out", str(out)]).output
    )

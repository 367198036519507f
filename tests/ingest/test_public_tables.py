"""Ten kinds of published tables, and two: from a file to an answer in at most two commands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from isoflop.analysis.fit import FitOptions, fit_optima
from isoflop.analysis.laws import FITS
from isoflop.analysis.load import load_rows
from isoflop.analysis.optima import OPTIMA
from isoflop.analysis.parametric import fit_parametric
from isoflop.analysis.points import Selection, select_points
from isoflop.cli import main
from isoflop.cli.import_ import asked_mapping, import_
from isoflop.ingest.sources import read_source
from isoflop.ingest.store import Imported
from isoflop.ingest.suggest import suggest
from isoflop.ingest.table import import_table
from isoflop.tables import loss_unit, read_table
from made_public_tables import (
    ALPHA,
    BETA,
    BUDGETS,
    EXPONENT,
    SIZES,
    TABLES,
    Published,
    best_size,
    loss_of,
)


def imported(published: Published) -> Imported:
    raw = read_source(published.source)
    given = import_.make_context("import", ["SOURCE", *published.options]).params
    return import_table(raw, suggest(raw, asked_mapping(given)).mapping)


def selected(published: Published) -> Selection:
    made = imported(published)
    repeats = "best" if published.fit_options else None
    return select_points(made.rows, repeats, unit=made.unit)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", sorted(TABLES))
def test_a_published_table_is_imported(name: str, tmp_path: Path) -> None:
    published = TABLES[name](tmp_path)
    made = imported(published)
    assert (len(made.frame), made.unit) == (published.num_runs, published.unit)
    finished = made.frame[made.frame["excluded_reason"].isna() & (made.frame["status"] == "done")]
    expected = [
        loss_of(n, d) for n, d in zip(finished["n_params"], finished["n_tokens"], strict=True)
    ]
    within = 0.05 if name == "sweep_of_rates" else 1e-3
    losses = finished["loss"] / published.scale_of_loss
    assert np.allclose(losses, expected, rtol=within)
    spent = 6 * finished["n_params"] * finished["n_tokens"]
    assert np.allclose(finished["flops"], spent, rtol=1e-6)
    if published.has_budgets:
        assert np.allclose(finished["flops"] / finished["budget_flops"], 1.0, atol=0.04)
        assert finished["budget_flops"].nunique() == len(BUDGETS)


@pytest.mark.parametrize("name", sorted(TABLES))
def test_the_answer_is_that_of_the_surface(name: str, tmp_path: Path) -> None:
    published = TABLES[name](tmp_path)
    selection = selected(published)
    if not published.has_budgets:
        assert len(selection.loose) == published.num_runs
        law = next(
            fit for fit in fit_parametric(selection, n_boot=0, seed=0) if fit.form == "chinchilla"
        )
        values = {row.parameter: row.value for row in law.rows()}
        assert values["alpha"] == pytest.approx(ALPHA, abs=0.01)
        assert values["beta"] == pytest.approx(BETA, abs=0.01)
        return
    fits = fit_optima(selection, FitOptions(n_boot=0), axes=("n_params",), methods=("two_powers",))
    assert [optimum.status for optimum in fits.optima] == ["interior"] * len(BUDGETS)
    for optimum in fits.optima:
        assert optimum.n_points == SIZES
        assert optimum.x_opt == pytest.approx(best_size(optimum.budget_flops), rel=0.06)
    (law,) = (law for law in fits.laws if law.axis == "n_params" and law.budget == "nominal")
    assert law.exponent == pytest.approx(EXPONENT, abs=0.02)


@pytest.mark.parametrize("name", sorted(TABLES))
def test_the_command_writes_what_a_fit_reads(name: str, tmp_path: Path) -> None:
    published = TABLES[name](tmp_path)
    command = ["import", published.source, *published.options, "--out", str(tmp_path / "out")]
    first = CliRunner().invoke(main, command)
    assert first.exit_code == 0, first.output
    assert "unchanged" in CliRunner().invoke(main, command).output
    table = tmp_path / "out" / "runs.parquet"
    assert loss_unit(table) == published.unit
    assert select_points(load_rows(table), unit=published.unit) == select_points(
        imported(published).rows, unit=published.unit
    )


# What the others would try again, the tests above have tried.
READ_ALIKE = {"index_columns", "strings_with_units", "budgets_in_names", "gflops_thrice"}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TABLES.keys() - READ_ALIKE))
def test_from_the_file_to_the_answer_in_two_commands(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Figures have tests of their own, and take half of the time.
    monkeypatch.setattr("isoflop.analysis.fit.write_plots", lambda *_: ())
    published = TABLES[name](tmp_path)
    out = str(tmp_path / "out")
    commands = [
        ["import", published.source, *published.options, "--out", out],
        ["fit", out, "--n-boot", "20", *published.fit_options],
    ]
    for command in commands:
        ended = CliRunner().invoke(main, command)
        assert ended.exit_code == 0, ended.output
    if published.has_budgets:
        rows = read_table(tmp_path / "out" / "optima.parquet", OPTIMA)
        optima = [
            row for row in rows if row["axis"] == "n_params" and row["method"] == "two_powers"
        ]
        assert len(optima) == len(BUDGETS)
        for row in optima:
            assert row["x_opt"] == pytest.approx(best_size(row["budget_flops"]), rel=0.06)
            assert row["ci_lo"] <= row["x_opt"] <= row["ci_hi"]
    else:
        rows = read_table(tmp_path / "out" / "fits.parquet", FITS)
        found = [
            row["value"]
            for row in rows
            if (row["form"], row["parameter"]) == ("chinchilla", "alpha")
        ]
        assert found == pytest.approx([ALPHA] * len(found), abs=0.01)
        assert found


@pytest.mark.slow
def test_from_the_file_to_the_report_in_two_commands(tmp_path: Path) -> None:
    published = TABLES["steps_of_runs"](tmp_path)
    out = str(tmp_path / "out")
    commands = [
        ["import", published.source, *published.options, "--out", out],
        ["report", out, "--n-boot", "20"],
    ]
    for command in commands:
        ended = CliRunner().invoke(main, command)
        assert ended.exit_code == 0, ended.output
    told = (tmp_path / "out" / "report.md").read_text()
    assert "189 a step of a run" in told
    assert "runs told apart by file, of each the last step" in told

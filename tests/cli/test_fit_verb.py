"""`isoflop fit` on a table that belongs to no study."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from analysis.made_runs import curve, parabola, spaced
from isoflop.analysis.optima import OPTIMA
from isoflop.cli import main
from isoflop.tables import read_table

COLUMNS = ("arch", "budget_flops", "n_params", "n_tokens", "flops", "loss")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Two families at two budgets, sizes and tokens with fractions, one spoilt loss."""
    lines = [",".join(COLUMNS)]
    for arch, floor in (("dense", 3.0), ("sparse", 2.9)):
        for budget in (1e17, 1e18):
            best = 1e7 * (budget / 1e17) ** 0.5
            for index, row in enumerate(
                curve(parabola(best, floor=floor), spaced(best), arch, budget)
            ):
                row["flops"] = budget
                row["loss"] += 0.001 * (-1) ** index
                lines.append(",".join(str(row[name]) for name in COLUMNS))
    lines.append("dense,1e17,1e7,1e9,1e17,inf")
    path = tmp_path / "runs.csv"
    path.write_text("\n".join(lines))
    return path


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["fit", *map(str, arguments)])


def test_a_table_alone_is_fitted_without_torch(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "fit"
    script = (
        "import sys; sys.modules['torch'] = None\nfrom isoflop.cli import main; main(sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "fit", str(table), "--out", str(out), "--n-boot", "50"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "Intervals: 95%, parametric bootstrap, 50 draws" in done.stdout
    assert "1 run excluded: 1 bad loss." in done.stdout
    assert not (out / "runs.parquet").exists()
    optima = read_table(out / "optima.parquet", OPTIMA)
    assert {row["status"] for row in optima if row["axis"] != "n_active"} == {"interior"}
    for name in ("optima", "fits", "compare", "exponents", "validity"):
        assert f"{name}.parquet" in done.stdout


def test_a_table_needs_a_folder_for_its_results(table: Path) -> None:
    result = invoke(table)
    assert result.exit_code == 2
    assert "--out DIR" in result.stderr


def test_an_unknown_reference_is_refused_before_any_fit(table: Path, tmp_path: Path) -> None:
    result = invoke(table, "--out", tmp_path / "fit", "--reference", "moe")
    assert result.exit_code == 2
    assert "moe" in result.stderr
    assert "dense, sparse" in result.stderr
    assert not (tmp_path / "fit").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [("arch,loss\nmlp,3\n", "add budget_flops"), ("", "header"), ("PAR1 and no more", "parquet")],
)
def test_a_bad_table_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "runs.csv"
    path.write_text(text)
    result = invoke(path, "--out", tmp_path / "fit")
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stderr.count("\n") == 1


def test_surfaces_under_constraints_are_shown_and_tested_against_given_ones(
    table: Path, tmp_path: Path
) -> None:
    given = ("--against", "E=1.69,A=406.4,B=410.7,alpha=.34,beta=.28")
    done = invoke(table, "--out", tmp_path / "out", "--n-boot", "0", "--tied", "--fix", "E=0.5")
    assert done.exit_code == 0, done.output
    assert "Surface: L = E + A/N^alpha + B/D^beta" in done.output
    done = invoke(table, "--out", tmp_path / "out", "--n-boot", "0", *given)
    assert done.exit_code == 0, done.output
    assert done.output.count(" against the given surface: ") == 2
    out = tmp_path / "none"
    done = invoke(table, "--out", out, "--n-boot", "0", "--tied", *given)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert "beta = 0.28: must be alpha (0.34), as the fit ties them" in done.stderr
    assert not out.exists()


@pytest.mark.parametrize(
    "wrong",
    [
        ("--fix", "A=3"),
        ("--fix", "E=-1"),
        ("--fix", "E=nan"),
        ("--fix", "1.7"),
        ("--against", "E=1"),
        ("--against", "E=1,E=1,A=1,B=1,alpha=1,beta=1"),
    ],
)
def test_parameters_that_read_otherwise_are_one_line(
    table: Path, tmp_path: Path, wrong: tuple[str, str]
) -> None:
    done = invoke(table, "--out", tmp_path / "out", *wrong)
    assert done.exit_code == 2
    assert done.output.count("\n") == 1
    assert not (tmp_path / "out").exists()

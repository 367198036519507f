"""`isoflop gate`: what it prints, how it ends, and that looking writes nothing."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from analysis.made_runs import parabola, spaced
from isoflop.analysis.gate import GATE
from isoflop.cli import main
from isoflop.tables import read_table

COLUMNS = "arch,budget_flops,n_params,n_tokens,flops,loss,wall_s"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Two families at three budgets; losses fall from 3.2 to 2.4."""
    lines = [COLUMNS]
    for arch, gain in (("dense", 0.0), ("sparse", 0.1)):
        for step, budget in enumerate((1e17, 3e17, 1e18)):
            for index, size in enumerate(spaced(1e7, 7)):
                loss = parabola(1e7, floor=3.2 - 0.4 * step - gain)(size)
                loss *= math.exp(0.001 * (-1) ** index)
                tokens = budget / 6 / size
                lines.append(f"{arch},{budget},{size},{tokens},{budget},{loss},{budget / 1e15}")
    path = tmp_path / "study.csv"
    path.write_text("\n".join(lines))
    return path


def runs(tmp_path: Path, *lines: str, header: str = "run_id,flops,loss,wall_s") -> Path:
    path = tmp_path / "runs.csv"
    path.write_text("\n".join([header, *lines]))
    return path


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["gate", *map(str, arguments)])


@pytest.mark.parametrize(
    ("loss", "verdict", "code"), [(2.6, "pass", 0), (3.0, "fail", 1), (2.8, "undecided", 1)]
)
def test_the_exit_code_is_the_verdict(
    table: Path, tmp_path: Path, loss: float, verdict: str, code: int
) -> None:
    before = sorted(tmp_path.iterdir())
    candidate = runs(tmp_path, f"mine,3e17,{loss},300")
    done = invoke(table, candidate)
    assert (done.exit_code, done.stderr) == (code, "")
    assert f"Verdict: {verdict}." in done.stdout.splitlines()
    assert "compute that dense needs for the run's loss" in done.stdout
    assert "optima at 1e17, 3e17, 1e18" in done.stdout
    assert "Rule by default (sha256 " in done.stdout
    assert sorted(tmp_path.iterdir()) == sorted([*before, candidate])
    assert "Reference: " not in done.stdout
    lenient = invoke(table, candidate, "--undecided-is", "pass")
    assert lenient.exit_code == (0 if verdict == "undecided" else code)
    assert invoke(table, candidate, "--reference", "sparse").stdout != done.stdout


def test_several_runs_say_each_why_and_the_table_has_all(table: Path, tmp_path: Path) -> None:
    rule = tmp_path / "rule.toml"
    rule.write_text('[gate]\nruns = "any"\n')
    lines = ("good,3e17,2.6,", "bad,3e17,nan,300", "free,,2.6,300", "far,1e19,2.2,1")
    out = tmp_path / "out"
    done = invoke(table, runs(tmp_path, *lines), "--rule", rule, "--out", out)
    assert done.exit_code == 0
    shown = done.stdout.splitlines()
    assert "bad: undecided, bad loss (loss is nan)" in shown
    assert "free: undecided, flops of the run is missing or not above 0" in shown
    assert any(line.startswith("far: undecided, fail only by where") for line in shown)
    assert "Verdict, any of 4 to pass: pass (each alone: 1 pass, 3 undecided)." in shown
    assert any(line.startswith(f"Rule {rule} (sha256 ") for line in shown)
    rows = read_table(out / "gate.parquet", GATE)
    assert [(row["run_id"], row["resource"]) for row in rows[:2]] == [
        ("good", "flops"),
        ("good", "wall_s"),
    ]
    assert len(rows) == 8
    assert rows[1]["reason"] == "wall_s of the run is missing or not above 0"
    assert {row["reference"] for row in rows} == {"dense"}


def test_a_study_is_held_against_itself(table: Path) -> None:
    done = invoke(table, table)
    assert done.exit_code == 1
    assert "dense 1 " in done.stdout
    assert "Verdict, all of 42 to pass: fail" in done.stdout


@pytest.mark.parametrize(
    ("lines", "header", "extra", "message"),
    [
        (["1e17,x"], "flops,loss", [], "loss in data row 1"),
        (["1e17"], "flops", [], "add loss"),
        (["1e17,3"], "flops,loss", ["--reference", "none"], "--reference = 'none'"),
        (["1e17,3"], "flops,loss", ["--rule", "missing.toml"], "--rule = 'missing.toml'"),
        ([], "flops,loss", [], "a table with at least one row"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    table: Path, tmp_path: Path, lines: list[str], header: str, extra: list[str], message: str
) -> None:
    out = tmp_path / "out"
    done = invoke(table, runs(tmp_path, *lines, header=header), "--out", out, *extra)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert message in done.stderr
    assert not out.exists()


def test_studies_of_other_data_are_not_compared() -> None:
    results = Path(__file__).resolve().parents[2] / "results"
    done = invoke(results / "cpu_reference", results / "quickstart")
    assert done.exit_code == 2
    assert "must be as REFERENCE: FLOPs by paper, data 4abe92e86592c9b2" in done.stderr


def test_what_the_reference_leaves_out_is_said(table: Path, tmp_path: Path) -> None:
    lines = table.read_text().splitlines()
    arch, budget, size, tokens, flops, loss, wall = lines[4].split(",")
    odd = ",".join((arch, budget, size, tokens, flops, str(1.5 * float(loss)), wall))
    table.write_text("\n".join([*lines[:4], odd, *lines[5:]]))
    candidate = runs(tmp_path, "mine,3e17,2.6,300")
    assert "Reference: 1 run excluded: 1 outlier." in invoke(table, candidate).stdout
    assert "Reference: " not in invoke(table, candidate, "--no-screen").stdout

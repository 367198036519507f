"""Estimates through the command line: made, stored, capped, and made again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from isoflop.cli import main
from isoflop.plan import artefact
from isoflop.plan.artefact import read_plan
from isoflop.plan.estimate import load_estimates
from isoflop.tables import PLAN, RUNS, read_table


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    result = invoke("plan", "--budgets", "1e17", "--out", tmp_path / "p", "--price", "2")
    assert result.exit_code == 0, result.output
    assert "est. GPU-h" in result.output
    assert "estimate on h100: " in result.output
    return tmp_path / "p"


def test_a_plan_comes_with_estimates_for_every_run(folder: Path) -> None:
    rows = read_table(folder / "plan.parquet", PLAN)
    stored = load_estimates(folder)
    assert stored is not None
    for row in rows:
        columns = stored.columns[row["run_id"]]
        assert {name: row[name] for name in columns} == columns
        assert row["est_step_s"] > 0
        assert row["est_peak_mem_bytes"] > 1e6
    total = sum(row["est_gpu_hours"] for row in rows)
    assert stored.gpu_hours == pytest.approx(total)
    values = json.loads((folder / "estimates.json").read_text())
    assert values["cost"] == pytest.approx(2 * total)
    assert values["assumptions"]


def test_the_table_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    write = artefact.write_table
    monkeypatch.setattr(
        artefact, "write_table", lambda path, *rest: (written.append(path.name), write(path, *rest))
    )
    assert invoke("plan", "--budgets", "1e17", "--out", tmp_path / "p").exit_code == 0
    assert written == ["plan.parquet"]


def test_one_run_whole_shows_memory_and_time_by_part(folder: Path) -> None:
    run = next(r for r in read_plan(folder).runs if r.arch == "sgatlin" and r.size == 6)
    text = invoke("show", folder, run.run_id[:12]).output
    for part in ("parameters", "gradients", "optimizer", "activations", "logits", "experts"):
        assert f"    {part}" in text
    assert "with checkpointing)" in text
    assert "micro-batch" in text


def test_estimates_are_not_the_plan_and_may_be_made_again(folder: Path) -> None:
    plan = (folder / "plan.json").read_bytes()
    assert b"est_" not in plan
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir()}
    same = invoke("plan", "--budgets", "1e17", "--out", folder, "--price", "2")
    assert "unchanged" in same.output
    assert {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir()} == before
    other = invoke("plan", "--budgets", "1e17", "--out", folder, "--hardware", "a100")
    assert other.exit_code == 0
    assert (folder / "plan.json").read_bytes() == plan
    stored = load_estimates(folder)
    assert stored is not None
    assert stored.hardware == "a100"
    assert "estimate on a100: " in invoke("show", folder).output
    assert "estimate on h200: " in invoke("show", folder, "--hardware", "h200").output


def test_a_plan_over_the_cap_leaves_nothing_behind(tmp_path: Path) -> None:
    out = tmp_path / "p"
    result = invoke("plan", "--budgets", "1e17,1e18", "--out", out, "--max-gpu-hours", "1")
    assert result.exit_code == 2
    assert "--max-gpu-hours = 1" in result.stderr
    assert not out.exists()
    cap = invoke("plan", "--budgets", "1e17,1e18", "--out", out, "--max-gpu-hours", "50")
    assert "drop budget 1e18" in cap.stderr
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--hardware", "abacus"], "hardware = 'abacus'"),
        (["--price", "-1"], "--price = -1.0"),
        (["--calibration", "none.json"], "none.json"),
        (["--power", "--noise", "-1"], "noise"),
    ],
)
def test_a_wrong_option_is_one_line(
    options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke("plan", "--budgets", "1e17", "--out", tmp_path / "p", *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "p").exists()


def test_damaged_estimates_are_named(folder: Path) -> None:
    whole = (folder / "estimates.json").read_text()
    wrong = whole.replace('"est_step_s": ', '"est_step_s": "x", "before": ', 1)
    for text in ("{", "[]", '{"schema_version": 9}', wrong):
        (folder / "estimates.json").write_text(text)
        result = invoke("show", folder)
        assert result.exit_code == 2
        assert "estimates.json" in result.stderr


def test_extending_estimates_the_new_runs_too(folder: Path) -> None:
    result = invoke("extend", folder, "--seeds", "2")
    assert result.exit_code == 0, result.output
    rows = read_table(folder / "plan.parquet", PLAN)
    assert len(rows) == len(read_plan(folder).runs) == 50
    assert all(row["est_step_s"] is not None for row in rows)


def test_a_difference_shows_hours_on_the_same_hardware_only(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "q"
    invoke("plan", "--budgets", "1e17,6e17", "--out", other)
    assert "device-hours (estimates): " in invoke("diff", folder, other).output
    invoke("plan", "--budgets", "1e17,6e17", "--out", other, "--hardware", "h200")
    assert "device-hours" not in invoke("diff", folder, other).output


def test_power_prints_the_intervals_to_expect(tmp_path: Path) -> None:
    result = invoke("plan", "--budgets", "1e17,1e18", "--out", tmp_path / "p", "--power")
    assert result.exit_code == 0, result.output
    assert "exponent a ±" in result.output
    assert "one seed more" in result.output
    assert "assumes: " in result.output


def test_fitting_keeps_the_estimates_beside_the_measurements(folder: Path) -> None:
    assert invoke("fit", folder).exit_code == 0
    rows = read_table(folder / "runs.parquet", RUNS)
    assert all(row["est_step_s"] is not None and row["loss"] is None for row in rows)

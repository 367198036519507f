"""`isoflop interpret` from end to end, and what it says when it cannot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from interpret.test_load import id_of
from isoflop.cli import main
from isoflop.interpret.attribution import ATTRIBUTION
from isoflop.interpret.linear import LINEARITY
from isoflop.interpret.recording import read_recording
from isoflop.launch.run_folder import RunFolder
from isoflop.tables import read_table

VERBS = ("record", "linear", "geometry", "intervene", "usage", "page")

pytestmark = pytest.mark.usefixtures("study_data")


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["interpret", *map(str, arguments)])


def test_record_says_what_the_run_had_as_its_loss(study: Path, tmp_path: Path) -> None:
    run = id_of(study, "sgatlin")
    result = invoke("record", study, run[:8], "--out", tmp_path)
    assert result.exit_code == 0, result.output
    meta = read_recording(tmp_path)
    assert (meta.run_id, meta.complete) == (run, True)
    loss = RunFolder(study, run).result().loss
    assert f"recorded {meta.num_tokens:,} tokens, loss {loss:.4f}" in result.output


def test_without_out_the_recording_is_in_the_runs_folder(study: Path) -> None:
    run = id_of(study, "peer")
    assert invoke("record", study, run, "--max-tokens", 20, "--layers", "0").exit_code == 0
    meta = read_recording(study / "runs" / run[:12] / "interpret")
    assert (meta.num_tokens, meta.complete, meta.layers) == (20, False, (0,))


def test_linear_writes_checks_and_parts_that_add_up(study: Path, tmp_path: Path) -> None:
    result = invoke("linear", study, id_of(study, "sgatlin"), "--out", tmp_path, "--position", 2)
    assert result.exit_code == 0, result.output
    for row in read_table(tmp_path / "linearity.parquet", LINEARITY):
        assert row["matrix_error"] < 1e-5
        assert row["sum_error"] < 1e-5
    rows = read_table(tmp_path / "attribution.parquet", ATTRIBUTION)
    total = sum(row["direct"] for row in rows)
    assert "position 2:" in result.output
    assert f"logit {total:.4f} of token" in result.output
    assert {row["part"] for row in rows} == {"embedding", "attention", "expert"}


def test_peer_is_said_not_to_be_linear(study: Path, tmp_path: Path) -> None:
    result = invoke("linear", study, id_of(study, "peer"), "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert "not linear" in result.output


def test_usage_and_page_read_what_was_recorded(study: Path, tmp_path: Path) -> None:
    run = id_of(study, "sgatlin")
    assert invoke("record", study, run, "--out", tmp_path).exit_code == 0
    for verb in ("usage", "page"):
        result = invoke(verb, study, run, "--out", tmp_path, "--recording", tmp_path)
        assert result.exit_code == 0, result.output
        for path in result.output.splitlines():
            if path.startswith(str(tmp_path)):
                assert Path(path).stat().st_size > 0
    assert (tmp_path / "page.html").is_file()
    assert pq.read_metadata(tmp_path / "expert_usage.parquet").num_rows > 0


@pytest.mark.parametrize(
    ("family", "arguments", "message"),
    [
        ("mlp", ["record"], "a dense run has no gates"),
        ("mlp", ["page"], "a dense run has no gates"),
        ("moe", ["linear"], "sgatlin or peer"),
        ("sgatlin", ["record", "--layers", "0,x"], "whole numbers such as 0,1"),
        ("sgatlin", ["record", "--layers", "99"], "--layers"),
        ("sgatlin", ["linear", "--window", "-1"], "--window"),
        ("sgatlin", ["linear", "--position", "24"], "--position"),
        ("sgatlin", ["linear", "--token", "256"], "--token"),
        ("sgatlin", ["usage", "--recording", "nowhere"], "isoflop interpret record"),
        ("sgatlin", ["geometry", "--recording", "nowhere"], "isoflop interpret record"),
        ("sgatlin", ["intervene"], "planted facts"),
        ("sgatlin", ["intervene", "--facts", "all"], "one of planted, mined, paper"),
        ("sgatlin", ["geometry", "--embedding", "tsne"], "--embedding = 'tsne'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes_are_one_line(
    study: Path, tmp_path: Path, family: str, arguments: list[str], message: str
) -> None:
    verb, *options = arguments
    result = invoke(verb, study, id_of(study, family), "--out", tmp_path, *options)
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert result.output.count("\n") == 1
    assert not list(tmp_path.glob("*.parquet"))


@pytest.mark.parametrize(
    ("verb", "option", "value"),
    [
        ("page", "--documents", "0"),
        ("geometry", "--sample", "0"),
        ("geometry", "--seed", "-1"),
        ("intervene", "--seed", "-1"),
        ("intervene", "--min-count", "0"),
        ("linear", "--top", "0"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(
    study: Path, tmp_path: Path, verb: str, option: str, value: str
) -> None:
    result = invoke(verb, study, id_of(study, "sgatlin"), "--out", tmp_path, option, value)
    assert result.exit_code == 2, result.output
    assert f"'{option}': {value} is not in the range" in result.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("verb", VERBS)
def test_help_needs_nothing_heavy(verb: str) -> None:
    code = (
        "import sys; from isoflop.cli.interpret import interpret\n"
        f"interpret(['{verb}', '--help'], standalone_mode=False)\n"
        "heavy = {'torch', 'pandas', 'scipy', 'matplotlib', 'pyarrow', 'numpy'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "FOLDER RUN" in found.stdout

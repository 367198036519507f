"""The examples of trainers of one's own, each from its folder to a report, as a reader has it."""

from __future__ import annotations

import importlib.util
import itertools
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from command import isoflop
from isoflop import trainer
from isoflop.cli import main
from isoflop.spec import shown_id
from isoflop.study.file import load_study
from isoflop.tables import RUNS, read_table

OWN_CODE = Path(__file__).resolve().parents[2] / "experiments" / "own_code"
PATCH = OWN_CODE / "nanogpt_like" / "isoflop.patch"


def test_every_example_is_a_study_of_its_own() -> None:
    studies = [load_study(path) for path in sorted(OWN_CODE.glob("*/study*.toml"))]
    assert len({study.name for study in studies}) == len(studies) == 6
    assert all(study.trainer is not None for study in studies)


def test_the_patch_of_a_trainer_is_fifteen_lines_and_fits(tmp_path: Path) -> None:
    shutil.copy(PATCH.with_name("train.py"), tmp_path)
    subprocess.run(["patch", "-p1", "-i", PATCH], cwd=tmp_path, check=True)
    changed = re.findall(r"^[-+](?![-+]).*\S", PATCH.read_text(), flags=re.MULTILINE)
    assert len(changed) <= 15
    compile((tmp_path / "train.py").read_text(), "train.py", "exec")


def _take(example: str, folder: Path, study: str = "study.toml") -> Path:
    """Copies an example as a reader does, plans it beside, and returns the study's folder."""
    left_out = shutil.ignore_patterns("__pycache__", "*.bin", "out")
    code = shutil.copytree(OWN_CODE / example, folder / example, ignore=left_out)
    done = isoflop("plan", code / study, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "results" / load_study(code / study).name


def _runs_of(study: Path, verb: str = "fit") -> list[dict[str, Any]]:
    """Fits or reports a study, and returns its runs."""
    done = CliRunner().invoke(main, [verb, str(study), "--n-boot", "20"])
    assert done.exit_code == 0, done.output
    return read_table(study / "runs.parquet", RUNS)


def _outcomes(rows: Sequence[dict[str, Any]]) -> Counter[tuple[str, str]]:
    return Counter((row["arch"], row["status"]) for row in rows)


@pytest.mark.slow
def test_a_shell_script_fails_is_preempted_and_diverges_on_purpose(tmp_path: Path) -> None:
    study = _take("shell", tmp_path)
    done = isoflop("run", study, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "exit code 3; its log ends: 200000000 parameters" in done.stdout + done.stderr
    rows = _runs_of(study)
    assert _outcomes(rows) == {
        ("calm", "done"): 8,
        ("fails", "done"): 6,
        ("fails", "failed"): 2,
        ("stops", "done"): 8,
        ("diverges", "done"): 6,
        ("diverges", "diverged"): 2,
    }
    losses = {(row["arch"], row["budget_flops"], row["size"]): row["loss"] for row in rows}
    for (arch, budget, size), loss in losses.items():
        assert loss in (None, losses["calm", budget, size]), arch
    stopped = [row for row in rows if row["arch"] == "stops" and row["size"] == 3]
    assert [row["n_attempts"] for row in stopped] == [2, 2]


@pytest.mark.slow
def test_a_jax_script_declares_its_flops_and_has_a_loss_of_its_own(tmp_path: Path) -> None:
    pytest.importorskip("jax")
    study = _take("jax_mlp", tmp_path)
    done = isoflop("run", study, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = _runs_of(study, "report")
    assert _outcomes(rows) == {("relu", "done"): 6, ("tanh", "done"): 6}
    for row in rows:
        assert row["flops"] == row["n_tokens"] * 5.4 * row["n_params"]
        assert row["perplexity"] is None
    report = (study / "report.md").read_text().replace("\\", "")
    assert "mean_squared_error" in report
    assert "declared" in report
    assert "erplexity" not in report


@pytest.mark.slow
def test_a_pytorch_script_is_counted_and_trained(tmp_path: Path) -> None:
    study = _take("plain_pytorch", tmp_path)
    done = isoflop("run", study, "--budgets", "1e9", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [row for row in _runs_of(study) if row["budget_flops"] == 1e9]
    assert _outcomes(rows) == {("plain", "done"): 3, ("gated", "done"): 3}
    # Tokens and parameters are what the plan has, or the runs would have failed; a gate costs.
    params = {(row["arch"], row["size"]): row["n_params"] for row in rows}
    assert all(
        params["gated", size] - params["plain", size] == 2 * width**2
        for size, width in ((1, 8), (2, 16), (3, 24))
    )


@pytest.mark.slow
def test_a_pytorch_script_goes_on_to_the_same_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("train", OWN_CODE / "plain_pytorch" / "train.py")
    assert spec is not None
    assert spec.loader is not None
    train = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(train)
    steps = iter([*[False] * 15, True])

    def run(out: str, stops: Iterator[bool], *more: str) -> str:
        options = ("--width=8", "--depth=1", "--steps=30", "--decay-start=24")
        monkeypatch.setattr("sys.argv", ["train.py", *options, f"--out={tmp_path / out}", *more])
        monkeypatch.setattr(trainer, "should_stop", lambda: next(stops))
        train.main()
        return capsys.readouterr().out

    with pytest.raises(SystemExit) as ended:
        run("stopped", steps)
    assert ended.value.code == trainer.CONTINUE
    never = itertools.repeat(False)
    whole = run("undisturbed", never)
    assert run("stopped", itertools.islice(never, 15)) == whole != ""
    # A longer run leaves its state for it.
    monkeypatch.setenv("ISOFLOP_BRANCH_DIR", str(tmp_path))
    monkeypatch.setenv("ISOFLOP_BRANCH_STEPS", "24")
    assert run("longer", never, "--steps=40", "--decay-start=32") != whole
    assert run("24", itertools.islice(never, 6)) == whole
    weights = [train.torch.load(tmp_path / out / "checkpoint.pt") for out in ("24", "undisturbed")]
    first, second = (dict(each["model"]) for each in weights)
    assert all(train.torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_hugging_faces_trainer_trains_configurations_that_are_counted(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    study = _take("hf_trainer", tmp_path)
    done = isoflop("run", study, "--archs", "gqa", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = _runs_of(study)
    assert _outcomes(rows) == {("mha", "missing"): 3, ("gqa", "done"): 3}
    # Key and value projections of three heads fewer, in two layers.
    widths = {1: 16, 2: 24, 3: 32}
    n_params = {(row["arch"], row["size"]): row["n_params"] for row in rows}
    for size, width in widths.items():
        fewer = n_params["mha", size] - n_params["gqa", size]
        assert fewer == 2 * 2 * width * (width // 4 * 3)


@pytest.mark.slow
def test_a_trainer_becomes_a_study_without_a_changed_line(tmp_path: Path) -> None:
    study = _take("nanogpt_like", tmp_path, "study_unchanged.toml")
    data = tmp_path / "nanogpt_like" / "data" / "speeches"
    texts = OWN_CODE.parents[1] / "isoflop" / "data" / "corpora" / "sotu_1981_2026"
    prepare = ["python", data / "prepare.py", *sorted(texts.glob("*.txt"))]
    subprocess.run(prepare, check=True, stdout=subprocess.DEVNULL)
    done = isoflop("run", study, "--archs", "parallel", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = _runs_of(study)
    assert _outcomes(rows) == {("parallel", "done"): 3, ("serial", "missing"): 3}
    for row in rows:
        if row["status"] == "done":
            log = study / "runs" / shown_id(row["run_id"]) / "reported" / "0001" / "log.txt"
            (last,) = re.findall(rf"step {row['steps']}: .*val loss (\S+)", log.read_text())
            assert row["loss"] == float(last)

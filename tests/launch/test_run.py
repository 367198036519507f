"""Whole runs through the command line: complete, interrupted, killed, diverged and failed ones."""

from __future__ import annotations

import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import command
from isoflop.analysis.laws import FITS
from isoflop.analysis.optima import OPTIMA
from isoflop.plan.artefact import read_plan, write_plan
from isoflop.plan.planner import make_plan
from isoflop.study import Study
from isoflop.tables import RUNS, read_table
from made_family import write_family
from made_studies import micro

# What must not depend on how a run was interrupted.
EXACT = ("loss", "loss_se", "perplexity", "bits_per_byte", "num_steps", "status", "run_id")

STUDY = micro(budgets=(2 * 10**8,), archs=("mlp", "sgatlin"), sizes=(1, 2))


def planned(folder: Path, study: Study = STUDY) -> Path:
    write_plan(make_plan(study), folder)
    return folder


def results(folder: Path) -> dict[str, dict[str, Any]]:
    return {
        path.parent.name: json.loads(path.read_text())
        for path in sorted(folder.glob("runs/*/result.json"))
    }


def exact(folder: Path) -> dict[str, tuple[Any, ...]]:
    return {key: tuple(r[name] for name in EXACT) for key, r in results(folder).items()}


@pytest.fixture(scope="module")
def undisturbed(shared_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study, run to its end once for all workers of pytest: a copy for each."""
    done = shared_folder / "undisturbed"
    with (shared_folder / "undisturbed.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            made = planned(shared_folder / "undisturbed.run")
            process = command.isoflop("run", made)
            assert process.returncode == 0, process.stderr + process.stdout
            assert len(results(made)) == 4
            made.rename(done)
        folder = tmp_path_factory.mktemp("undisturbed") / "study"
        return shutil.copytree(done, folder)


def test_only_the_runs_that_were_named_are_trained(undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    shutil.copytree(undisturbed, folder)
    plan = read_plan(folder)
    (other, *_) = [run for run in plan.unique_runs if run.arch == "sgatlin"]
    result = folder / "runs" / other.run_id[:12] / "result.json"
    result.unlink()
    done = command.isoflop("run", folder, "--archs", "mlp")
    assert "0 runs to train, 2 complete already" in done.stdout
    assert "these runs are complete" in done.stdout
    assert not result.exists()


def test_a_run_folder_holds_what_the_contract_names(undisturbed: Path) -> None:
    for folder in (undisturbed / "runs").iterdir():
        names = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
        routed = json.loads((folder / "spec.json").read_text())["family"] != "mlp"
        assert names == {
            "spec.json",
            "attempts/0001.json",
            "lease.json",
            "metrics.jsonl",
            "metrics.parquet",
            "result.json",
            *(["usage.parquet"] if routed else []),
        }
        attempt = json.loads((folder / "attempts/0001.json").read_text())
        result = json.loads((folder / "result.json").read_text())
        assert attempt["exit_reason"] == "done"
        assert attempt["step_range"] == [0, result["num_steps"] - 1]
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        rows = [row for row in lines if "event" not in row]
        assert rows[-1]["step"] == result["num_steps"] - 1
        assert rows[-1]["wall_s"] <= result["wall_s"]
        assert rows[-1]["loss"] < rows[0]["loss"]
        assert result["peak_mem_bytes"] > 10**7


def test_a_finished_run_is_never_trained_twice_wherever_its_folder_moves(
    undisturbed: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "a folder with spaces & 'quotes'"
    shutil.copytree(undisturbed, moved)
    before = {p: p.stat().st_mtime_ns for p in moved.glob("runs/*/*")}
    process = command.isoflop("run", moved)
    assert process.returncode == 0
    assert "0 runs to train, 4 complete already" in process.stdout
    assert {p: p.stat().st_mtime_ns for p in moved.glob("runs/*/*")} == before


def test_fit_writes_the_tables_of_the_contract(undisturbed: Path, tmp_path: Path) -> None:
    process = command.isoflop("fit", undisturbed, "--out", tmp_path)
    assert process.returncode == 0, process.stderr
    rows = read_table(tmp_path / "runs.parquet", RUNS)
    assert {row["status"] for row in rows} == {"done"}
    assert [row["run_id"] for row in rows] == [r.run_id for r in read_plan(undisturbed).runs]
    by_id = results(undisturbed)
    for row in rows:
        result = by_id[row["run_id"][:12]]
        for name in ("loss", "perplexity", "bits_per_byte", "wall_s", "peak_mem_bytes"):
            assert row[name] == result[name]
        assert row["n_attempts"] == 1
    assert {row["status"] for row in read_table(tmp_path / "optima.parquet", OPTIMA)} == {"too_few"}
    assert read_table(tmp_path / "fits.parquet", FITS)
    for stem in ("isoflop_profiles", "frontier", "optimum_size"):
        for suffix in ("png", "svg"):
            assert (tmp_path / "plots" / f"{stem}.{suffix}").stat().st_size > 1000


@pytest.mark.slow
def test_killed_at_random_instants_it_ends_as_if_undisturbed(
    undisturbed: Path, tmp_path: Path
) -> None:
    folder = planned(tmp_path / "killed")
    dice = random.Random(12)
    started_s = time.monotonic()
    command.isoflop("run", folder / "nowhere")
    startup_s = time.monotonic() - started_s
    for _ in range(6):
        process = command.start("run", folder)
        # From before the workers are up to well into training.
        time.sleep(dice.uniform(0, 10 * startup_s + 6))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    process = command.isoflop("run", folder)
    assert process.returncode == 0, process.stdout + process.stderr
    assert exact(folder) == exact(undisturbed)


@pytest.mark.slow
def test_interrupted_it_says_how_to_go_on_and_goes_on(undisturbed: Path, tmp_path: Path) -> None:
    folder = planned(tmp_path / "interrupted")
    process = command.start("run", folder)
    while not list(folder.glob("runs/*/metrics.jsonl")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in out + err
    assert f"isoflop run {folder}" in out
    assert "stopping, saving" in out
    reasons = {
        json.loads(path.read_text())["exit_reason"] for path in folder.glob("runs/*/attempts/*")
    }
    assert reasons <= {"interrupted: SIGTERM", "done"}
    assert command.isoflop("run", folder).returncode == 0
    assert exact(folder) == exact(undisturbed)


@pytest.mark.slow
def test_two_at_the_same_time_train_every_run_once(undisturbed: Path, tmp_path: Path) -> None:
    folder = planned(tmp_path / "two")
    both = [command.start("run", folder, "--workers", "1") for _ in range(2)]
    outputs = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert exact(folder) == exact(undisturbed)
    done = [
        path
        for path in folder.glob("runs/*/attempts/*.json")
        if json.loads(path.read_text())["exit_reason"] == "done"
    ]
    assert len(done) == 4


SABOTAGE = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import isoflop.train.loop as loop
real = loop.train_run
def train_run(spec, data, **kwargs):
    if spec.family == "mlp":
        {action}
    return real(spec, data, **kwargs)
loop.train_run = train_run
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("action", "status", "reason"),
    [
        ("raise ValueError('no such luck')", "failed", "ValueError: no such luck"),
        (
            "os.kill(os.getpid(), signal.SIGKILL)",
            "failed",
            "the worker process died (exit code -9)",
        ),
    ],
)
def test_a_failed_run_does_not_stop_the_others_and_is_tried_again(
    action: str, status: str, reason: str, undisturbed: Path, tmp_path: Path
) -> None:
    folder = planned(tmp_path / "study")
    # Python runs sitecustomize in every process, workers included.
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(SABOTAGE.format(tests=str(site), action=action))
    environment = os.environ | {"PYTHONPATH": str(site)}
    process = subprocess.run(
        [sys.executable, "-m", "isoflop", "run", str(folder)],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert process.returncode == 1, process.stdout + process.stderr
    assert reason in process.stdout
    wanted = {k: v for k, v in exact(undisturbed).items() if k in exact(folder)}
    assert len(wanted) == 2
    assert exact(folder) == wanted
    said = command.isoflop("status", folder).stdout
    assert said.count(f"{status} ") >= 2
    assert reason in said
    assert command.isoflop("run", folder).returncode == 0
    assert exact(folder) == exact(undisturbed)
    rows = command.isoflop("fit", folder, "--out", tmp_path / "fit")
    assert rows.returncode == 0
    attempts = {
        row["family"]: row["n_attempts"]
        for row in read_table(tmp_path / "fit" / "runs.parquet", RUNS)
    }
    assert attempts == {"mlp": 2, "sgatlin": 1}


@pytest.mark.slow
def test_a_diverged_run_is_a_result_and_not_tried_again(tmp_path: Path) -> None:
    folder = planned(tmp_path / "study", micro(budgets=(5 * 10**8,), archs=("mlp",), sizes=(1,)))
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import isoflop.train.loop as loop\n"
        "real = loop.gradients_of_batch\n"
        "loop.gradients_of_batch = lambda *a, **k: real(*a, **k)._replace(loss=float('nan'))\n"
    )
    process = subprocess.run(
        [sys.executable, "-m", "isoflop", "run", str(folder)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(site)},
    )
    assert process.returncode == 1
    assert "diverged" in process.stdout
    assert "non-finite loss at step 0" in process.stdout
    again = command.isoflop("run", folder)
    assert "0 runs to train, 1 complete already" in again.stdout
    fitted = command.isoflop("fit", folder, "--out", tmp_path / "fit")
    assert "1 run excluded: 1 diverged" in fitted.stdout
    (row,) = read_table(tmp_path / "fit" / "runs.parquet", RUNS)
    assert row["loss"] is None
    assert (row["status"], row["status_reason"]) == ("diverged", "non-finite loss at step 0")


def test_a_flipped_byte_in_a_shard_stops_the_run_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISOFLOP_DATA_DIR", str(tmp_path / "data"))
    folder = planned(tmp_path / "study")
    from isoflop.data.prepare import prepare

    shard = next(prepare("sotu-embedded", "byte").glob("train-*.bin"))
    content = bytearray(shard.read_bytes())
    content[1000] ^= 1
    shard.write_bytes(content)
    process = command.isoflop("run", folder)
    assert process.returncode == 2
    assert len(process.stderr.strip().splitlines()) == 1
    assert shard.name in process.stderr
    assert not (folder / "runs").exists()


@pytest.mark.slow
def test_kept_weights_are_safetensors(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    study = micro(budgets=(5 * 10**8,), archs=("mlp",), sizes=(1,), keep_weights="all")
    folder = planned(tmp_path / "study", study)
    assert command.isoflop("run", folder).returncode == 0
    (path,) = folder.glob("runs/*/ckpt/*/weights.safetensors")
    total = sum(array.size for array in load_file(path).values())
    assert total == read_plan(folder).runs[0].n_params


@pytest.mark.slow
def test_results_without_run_folders_are_kept(undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    shutil.copy(undisturbed / "plan.json", folder)
    assert command.isoflop("fit", undisturbed, "--out", folder).returncode == 0
    before = read_table(folder / "runs.parquet", RUNS)
    said = command.isoflop("status", folder).stdout
    assert "results of 4 runs that have no folder here" in said
    fitted = command.isoflop("fit", folder)
    assert "No runs excluded." in fitted.stdout
    assert read_table(folder / "runs.parquet", RUNS) == before
    (folder / "runs.parquet").write_bytes(b"PAR1")
    damaged = command.isoflop("fit", folder)
    assert damaged.returncode == 2
    assert (folder / "runs.parquet").read_bytes() == b"PAR1"


@pytest.mark.slow
def test_a_family_from_a_folder_is_planned_trained_and_fitted(tmp_path: Path) -> None:
    family = write_family(tmp_path / "bilinear")
    study = tmp_path / "own.toml"
    study.write_text(
        '[study]\nname = "own"\nbudgets = [5e8]\narchs = ["mlp", "bilinear"]\nsizes = [1, 2]\n'
        'recipe = "micro-v1"\n[families]\npaths = ["bilinear"]\n'
        "[data]\nseq_len = 32\nbatch_size = 4\n"
    )
    assert command.isoflop("plan", study, cwd=tmp_path).returncode == 0
    folder = tmp_path / "results" / "own"
    process = command.isoflop("run", folder, cwd=tmp_path)
    assert process.returncode == 0, process.stdout + process.stderr
    assert command.isoflop("fit", folder, cwd=tmp_path).returncode == 0
    rows = read_table(folder / "runs.parquet", RUNS)
    assert {(row["family"], row["status"]) for row in rows} == {
        ("mlp", "done"),
        ("bilinear", "done"),
    }
    module = family / "module.py"
    module.write_text(module.read_text() + "\n# another source\n")
    changed = command.isoflop("run", folder, cwd=tmp_path)
    assert changed.returncode == 2
    assert "source of family bilinear" in changed.stderr

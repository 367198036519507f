"""Submission to a real cluster and to this machine: which code runs, and where failures end."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pytest

from isoflop.data.prepare import prepare as prepare_data
from isoflop.data.windows import open_data
from isoflop.families import PATHS_VARIABLE, add_family_folder
from isoflop.launch.run_folder import RunFolder
from isoflop.launch.slurm.profile import ClusterProfile
from isoflop.launch.slurm.records import read_submissions, write_options
from isoflop.launch.slurm.submit import prepare, submit
from isoflop.launch.status import study_status
from isoflop.plan.artefact import write_plan
from isoflop.plan.planner import Plan, make_plan
from isoflop.train.loop import Placement, train_run
from made_family import write_family
from made_studies import micro
from slurm.made_cluster import Cluster, wait_until

pytestmark = pytest.mark.slow

PROFILE = ClusterProfile(
    name="tests", hardware="cpu2", partition="main", memory_gb_per_device=0.9, max_failures=2
)
NUMBERS = ("loss", "loss_se", "bits_per_byte", "num_steps")


@pytest.fixture
def family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(PATHS_VARIABLE, "")
    folder = write_family(tmp_path / "families" / "bilinear")
    add_family_folder(folder)
    return folder


def planned(folder: Path, *archs: str) -> Plan:
    plan = make_plan(micro(budgets=(10**8,), archs=archs, sizes=(1,)))
    folder.mkdir()
    write_plan(plan, folder)
    prepare_data("sotu-embedded", "byte")
    return plan


def assert_as_undisturbed(folder: Path, plan: Plan) -> None:
    data = open_data(prepare_data("sotu-embedded", "byte"))
    for run in plan.unique_runs:
        found = RunFolder(folder, run.run_id).result()
        assert found is not None
        wanted = train_run(run.spec, data, placement=Placement())
        for name in NUMBERS:
            assert getattr(found, name) == getattr(wanted, name)


def have_results(folder: Path, plan: Plan) -> bool:
    return all(RunFolder(folder, run.run_id).result() for run in plan.unique_runs)


def test_a_pending_job_runs_the_code_that_was_submitted(
    slurm_cluster: Cluster, family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # From the checkout, whose code must not be found first.
    monkeypatch.chdir(Path(__file__).parents[2])
    folder = tmp_path / "study"
    plan = planned(folder, "bilinear")
    report = submit(folder, dataclasses.replace(PROFILE, sbatch={"hold": True}))
    (job,) = report.job_ids
    module = family / "module.py"
    whole = module.read_text()
    module.write_text("raise RuntimeError('edited while the job was pending')\n")
    slurm_cluster.run("scontrol", "release", job)
    wait_until(lambda: have_results(folder, plan), "the result", seconds=120)
    module.write_text(whole)
    assert_as_undisturbed(folder, plan)
    (attempt,) = RunFolder(folder, plan.unique_runs[0].run_id).attempts()
    assert attempt.exit_reason == "done"


def test_this_machine(tmp_path: Path) -> None:
    folder = tmp_path / "it's a study"
    plan = planned(folder, "mlp", "swiglu")
    local = ClusterProfile(name="local", hardware="cpu2")
    began = time.monotonic()
    report = submit(folder, local)
    # Their processes take seconds to start; nobody waited for them.
    assert not have_results(folder, plan)
    assert time.monotonic() - began < 20
    assert report.num_sent == 2
    again = submit(folder, local)
    assert (again.num_sent, again.num_live) == (0, 2)
    wait_until(lambda: have_results(folder, plan), "both results", seconds=120)
    assert_as_undisturbed(folder, plan)
    (record,) = read_submissions(folder)
    assert record.cluster == "local"
    assert [array.job_id for array in record.arrays] == report.job_ids
    assert submit(folder, local).num_done == 2


def test_a_job_whose_setup_fails_says_which_line_and_ends(
    slurm_cluster: Cluster, tmp_path: Path
) -> None:
    folder = tmp_path / "study"
    plan = planned(folder, "mlp")
    profile = dataclasses.replace(PROFILE, setup=("true", "cat /no/such/file"))
    report = submit(folder, profile)
    slurm_cluster.wait_for(report.job_ids[0], "FAILED")
    (state,) = study_status(folder, plan).states
    assert (state.state, state.kind) == ("failed", "code")
    assert "with exit code 78 (its modules or setup)" in str(state.reason)
    assert state.log_lines[-1] == "isoflop: setup failed (exit code 1): cat /no/such/file"
    # Nothing was begun, and nothing is parked: with a corrected profile it would be sent.
    assert RunFolder(folder, plan.unique_runs[0].run_id).attempts() == []
    assert len(prepare(folder, PROFILE).runs) == 1


def test_a_run_that_fails_is_tried_again_and_then_parked(
    slurm_cluster: Cluster, family: Path, tmp_path: Path
) -> None:
    module = family / "module.py"
    whole = module.read_text().replace("import torch\n", "import os\n\nimport torch\n", 1)
    broken = "        assert 'BREAK' not in os.environ, 'as asked for'\n        a, b ="
    module.write_text(whole.replace("        a, b =", broken))
    folder = tmp_path / "study"
    plan = planned(folder, "bilinear")
    (run,) = plan.unique_runs
    submit(folder, dataclasses.replace(PROFILE, setup=("export BREAK=1",)))
    run_folder = RunFolder(folder, run.run_id)
    wait_until(lambda: len(run_folder.attempts()) == PROFILE.max_failures, "all tries", seconds=120)
    wait_until(lambda: not slurm_cluster.run("squeue", "-h", "-n", "isoflop-micro"), "the end")
    reasons = [attempt.exit_reason for attempt in run_folder.attempts()]
    assert reasons == ["failed: AssertionError: as asked for"] * PROFILE.max_failures
    report = submit(folder, PROFILE)
    assert (report.num_sent, report.parked) == (0, (run.run_id,))
    write_options(folder, {run.run_id: {"attempts_forgiven": PROFILE.max_failures}})
    assert submit(folder, PROFILE).num_sent == 1
    wait_until(lambda: have_results(folder, plan), "the result", seconds=120)

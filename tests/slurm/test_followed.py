"""Following and ending runs on a real cluster: what the verbs say is what is so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from command import isoflop, start
from isoflop.cli.status import status_json
from isoflop.launch.run_folder import RunFolder
from isoflop.launch.status import study_status
from isoflop.plan.artefact import write_plan
from isoflop.plan.planner import make_plan
from made_studies import micro
from slurm.made_cluster import Cluster, wait_until
from slurm.made_slurm import LONG, SHORT, ClusterStudy, cluster_study


def states(study: ClusterStudy) -> dict[str, dict[str, Any]]:
    values = status_json(study_status(study.folder, study.plan))
    assert values["scheduler_calls"] <= 1
    return {run["run_id"]: run for run in values["runs"]}


def wait_for_ends(study: ClusterStudy) -> None:
    study.wait_for_results()
    # An attempt's own record is closed a moment after the result.
    folders = [study.run_folder(i) for i in range(len(study.runs))]
    wait_until(lambda: all(folder.attempts()[-1].ended for folder in folders), "records closed")


@pytest.mark.slow
def test_a_run_is_followed_cancelled_and_sent_again(slurm_cluster: Cluster, tmp_path: Path) -> None:
    study = cluster_study(slurm_cluster, tmp_path / "study", budgets=(SHORT, LONG))
    study.submit()
    other, run_id = (run.run_id for run in study.runs)
    study.wait_for_step(index=1)
    job = study.job(1)
    found = states(study)[run_id]
    assert (found["state"], found["job"], found["job_state"]) == ("running", job, "RUNNING")
    assert found["node"] in ("n1", "n2", "n3", "n4")
    assert found["attempts"] == 1

    ended = isoflop("cancel", study.folder, run_id[:12], "--yes")
    assert ended.returncode == 0, ended.stderr
    assert "1 run ends" in ended.stdout
    wait_until(lambda: states(study)[run_id]["state"] == "missing", "cancelled")
    assert states(study)[run_id]["reason"] == f"job {job} was cancelled"
    # It saved at its next step, and nothing else was ended.
    assert study.run_folder(1).attempts()[-1].exit_reason == "interrupted: SIGTERM"
    assert states(study)[other]["state"] in ("waiting", "running", "done")

    study.submit()
    wait_for_ends(study)
    assert {run["state"] for run in states(study).values()} == {"done"}
    study.assert_each_ended_once_as_undisturbed()
    told = isoflop("logs", study.folder, run_id[:12]).stdout
    assert f"job {job} on {found['node']}" in told
    assert "=> attempt 2: began " in told
    assert f"isoflop: run {run_id} done" in told


@pytest.mark.slow
def test_a_suspended_job_is_not_running(slurm_cluster: Cluster, tmp_path: Path) -> None:
    study = cluster_study(slurm_cluster, tmp_path / "study", budgets=(LONG,))
    study.submit()
    study.wait_for_step()
    job = study.job()
    slurm_cluster.run("scontrol", "suspend", job)
    found = study.state()
    assert (found.state, found.steps_per_s, found.eta_s) == ("waiting", None, None)
    assert found.reason is not None
    assert f"job {job} SUSPENDED on n" in found.reason
    assert found.reason.endswith(": it goes on when it is resumed")
    slurm_cluster.run("scontrol", "resume", job)
    wait_for_ends(study)
    study.assert_each_ended_once_as_undisturbed()


@pytest.mark.slow
def test_a_run_that_fails_is_parked_with_its_reason_and_retried(
    slurm_cluster: Cluster, tmp_path: Path
) -> None:
    study = cluster_study(slurm_cluster, tmp_path / "study")
    spec = study.run_folder(0)
    study.submit("--dry-run")
    # Something in the way of its metrics: every attempt fails at once.
    (spec.path / "metrics.jsonl").mkdir(parents=True)
    study.submit(max_failures=2)
    (run_id,) = (run.run_id for run in study.runs)
    wait_until(lambda: states(study)[run_id]["state"] == "failed", "parked", seconds=120)
    study.wait_for_empty_queue()
    found = states(study)[run_id]
    assert found["reason"].startswith("parked after 2 failures; failed: PermissionError: ")
    assert "Not a regular file" in found["reason"]
    assert found["kind"] == "code"
    assert any("Not a regular file" in line for line in found["log_lines"])
    assert "nothing to send" in study.submit(max_failures=2).stdout

    (spec.path / "metrics.jsonl").rmdir()
    assert "nothing to retry" in isoflop("retry", study.folder, "--failed", "oom", "--yes").stdout
    again = isoflop("retry", study.folder, "--failed", "code", "--yes")
    assert again.returncode == 0, again.stderr + again.stdout
    wait_for_ends(study)
    study.assert_each_ended_once_as_undisturbed()


@pytest.mark.slow
def test_all_runs_of_a_local_run_are_cancelled_and_no_other_begins(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    plan = make_plan(micro(budgets=(LONG, LONG + 10**7), archs=("mlp",), sizes=(1,)))
    write_plan(plan, folder)
    process = start("run", folder, "--workers", "1")
    wait_until(lambda: list(folder.glob("runs/*/metrics.jsonl")), "a run at work")
    done = isoflop("cancel", folder, "--yes")
    assert "1 run ends" in done.stdout, done.stderr
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130, out + err
    attempts = [a for run in plan.unique_runs for a in RunFolder(folder, run.run_id).attempts()]
    assert [attempt.exit_reason for attempt in attempts] == ["interrupted: SIGTERM"]


@pytest.mark.slow
def test_one_cancelled_run_leaves_the_others_alone(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    plan = make_plan(micro(budgets=(SHORT, SHORT + 10**6, LONG), archs=("mlp",), sizes=(1,)))
    write_plan(plan, folder)
    # The longest comes first.
    process = start("run", folder, "--workers", "1")
    (longest,) = (run.run_id for run in plan.unique_runs if run.budget_flops == LONG)
    wait_until(lambda: list(folder.glob("runs/*/metrics.jsonl")), "a run at work")
    assert isoflop("cancel", folder, longest[:12], "--yes").returncode == 0
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1, out + err
    others = [run.run_id for run in plan.unique_runs if run.run_id != longest]
    assert all(RunFolder(folder, run_id).result() for run_id in others), out + err
    assert RunFolder(folder, longest).attempts()[-1].exit_reason == "interrupted: SIGTERM"

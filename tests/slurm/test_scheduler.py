"""SLURM's commands, asked: what was recorded of real ones, and a real controller."""

from __future__ import annotations

import subprocess
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from isoflop.launch.slurm import scheduler
from isoflop.launch.slurm.scheduler import JobState, SchedulerError
from slurm.made_cluster import Cluster
from slurm.made_scheduler import ACCOUNTING, DOWN, Scheduler, accounted, line


def test_one_call_tells_all_jobs(told: Scheduler) -> None:
    told.queue(
        line("27_2", "CANCELLED", status=15, node="n3", comment="(null)"),
        line("27_1", "PENDING", restarts=1, reason="BeginTime", comment="isoflop:a:0"),
        line("28", "FAILED", status=1792, node="n4", reason="NonZeroExitCode", comment="x|y"),
    )
    answer = scheduler.query(["27_1", "27_2", "28", "29"])
    assert told.calls == [
        "squeue -h -r -t all -O JobArrayID:|,State:|,RestartCnt:|,exit_code:|,NodeList:|,Reason:|,"
        "Comment:| -j 27,28,29"
    ]
    assert answer.calls == 1
    assert answer.unreachable is None
    assert answer.jobs == {
        "27_2": JobState(job_id="27_2", state="CANCELLED", node="n3", exit_code="0:15"),
        "27_1": JobState(
            job_id="27_1",
            state="PENDING",
            restarts=1,
            reason="BeginTime",
            exit_code="0:0",
            comment="isoflop:a:0",
        ),
        "28": JobState(
            job_id="28",
            state="FAILED",
            node="n4",
            reason="NonZeroExitCode",
            exit_code="7:0",
            comment="x|y",
        ),
    }


def test_nothing_is_asked_for_no_jobs(told: Scheduler) -> None:
    assert scheduler.query([]).calls == 0
    assert told.calls == []


@pytest.mark.parametrize(
    ("state", "is_final", "is_running"),
    [
        ("PENDING", False, False),
        ("CONFIGURING", False, False),
        ("REQUEUED", False, False),
        ("REQUEUE_HOLD", False, False),
        ("RUNNING", False, True),
        ("COMPLETING", False, True),
        ("SUSPENDED", False, True),
        ("COMPLETED", True, False),
        ("NODE_FAIL", True, False),
        ("OUT_OF_MEMORY", True, False),
        ("A_STATE_OF_LATER_VERSIONS", False, False),
    ],
)
def test_a_job_is_over_only_in_states_known_to_be_final(
    state: str, is_final: bool, is_running: bool
) -> None:
    job = JobState(job_id="1", state=state)
    assert (job.is_final, job.is_running) == (is_final, is_running)


def test_a_controller_that_is_down_is_told_in_its_words(told: Scheduler) -> None:
    told.says("squeue", error=DOWN, code=1)
    answer = scheduler.query(["1"])
    assert answer.unreachable == DOWN
    assert answer.jobs == {}


def test_a_forgotten_job_is_no_error(told: Scheduler) -> None:
    told.says("squeue", error="slurm_load_jobs error: Invalid job id specified", code=1)
    assert scheduler.query(["999"]) == scheduler.Answer(calls=1)


def test_without_slurm_it_says_what_is_missing(told: Scheduler) -> None:
    told.remove("squeue")
    told.remove("scontrol")
    assert scheduler.query(["1"]).unreachable == "squeue is not on the PATH"
    with pytest.raises(SchedulerError, match="scontrol is not on the PATH"):
        scheduler.config()


def test_no_answer_is_given_up(told: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(told.folder / "squeue").write_text("#!/bin/sh\necho retrying >&2\nexec /bin/sleep 60\n")
    monkeypatch.setattr(scheduler, "TIMEOUT_S", 0.5)
    assert scheduler.query(["1"]).unreachable == "no answer in 0.5 s: retrying"


def test_history_is_what_sacct_says(told: Scheduler) -> None:
    states = {"5_1": "CANCELLED by 0", "6": "OUT_OF_MEMORY", "7": "NODE_FAIL"}
    told.says("sacct", "\n".join(accounted(*item) for item in states.items()))
    answer = scheduler.history(["5_1", "6", "7"])
    assert {job: state.state for job, state in answer.jobs.items()} == {
        "5_1": "CANCELLED",
        "6": "OUT_OF_MEMORY",
        "7": "NODE_FAIL",
    }
    assert told.calls == [
        "sacct -n -X -P --delimiter=\x1f "
        "-o JobID,State,ExitCode,NodeList,User,Submit,JobName,Comment -j 5_1,6,7"
    ]


def test_accounting_is_there_only_where_the_cluster_says_so(
    told: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not scheduler.cluster().has_accounting
    told.says("scontrol", ACCOUNTING)
    monkeypatch.setenv("SLURM_CONF", "another cluster")
    assert scheduler.cluster().has_accounting
    assert scheduler.cluster().has_accounting
    assert told.calls == ["scontrol show config"] * 2


def test_a_refusal_is_told_in_the_scheduler_s_words(told: Scheduler) -> None:
    told.says("scontrol", error="Requested operation is presently disabled", code=1)
    with pytest.raises(SchedulerError) as refused:
        scheduler.requeue("12_3")
    assert refused.value.words == "Requested operation is presently disabled"
    assert told.calls == ["scontrol requeue 12_3"]


def test_a_job_requeues_itself_although_that_ends_its_processes(told: Scheduler) -> None:
    told.says("scontrol")
    script = Path(told.folder / "scontrol")
    first, rest = script.read_text().split("\n", 1)
    script.write_text(f"{first}\nkill -TERM $$\n{rest}")
    scheduler.requeue("12_3", delay_s=60)
    assert told.calls == ["scontrol requeue 12_3", "scontrol update JobId=12_3 StartTime=now+60"]


def test_settings_of_the_shell_do_not_change_what_is_read(
    told: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(told.folder / "squeue").write_text("#!/bin/sh\n/usr/bin/env >&2\nexit 1\n")
    for name in ("SQUEUE_FORMAT", "SQUEUE_STATES", "SLURM_CLUSTERS", "SLURM_JOB_ID"):
        monkeypatch.setenv(name, "x")
    said = scheduler.query(["1"]).unreachable
    assert said is not None
    assert "SLURM_CONF=" in said
    assert not any(name in said for name in ("SQUEUE_", "SLURM_CLUSTERS", "SLURM_JOB_ID"))


def test_a_real_controller_is_understood(slurm_cluster: Cluster) -> None:
    failing = slurm_cluster.sbatch("exit 7", "--comment=isoflop:x|y:0")
    array = slurm_cluster.sbatch("sleep 60", "--array=0-2%2")
    slurm_cluster.wait_for(failing, "FAILED")
    slurm_cluster.wait_for(f"{array}_0", "RUNNING")
    answer = scheduler.query([failing, f"{array}_1", "4000000"])
    assert answer.calls == 1
    assert answer.jobs.keys() == {failing, *(f"{array}_{i}" for i in range(3))}
    ended = answer.jobs[failing]
    assert (ended.state, ended.exit_code, ended.comment) == ("FAILED", "7:0", "isoflop:x|y:0")
    assert ended.node in ("n1", "n2", "n3", "n4")
    assert answer.jobs[f"{array}_2"].reason == "JobArrayTaskLimit"
    assert scheduler.query(["4000000"]) == scheduler.Answer(calls=1)
    assert failing in scheduler.query([], all_of_user=True).jobs
    assert scheduler.config()["ClusterName"]
    assert not scheduler.cluster().has_accounting
    scheduler.requeue(f"{array}_0", delay_s=600)
    assert scheduler.query([array]).jobs[f"{array}_0"].restarts == 1
    slurm_cluster.wait_for(f"{array}_0", "PENDING")
    assert scheduler.query([array]).jobs[f"{array}_0"].reason == "BeginTime"
    # Not only for as long as the cluster waits before it starts a requeued job again.
    words = slurm_cluster.run("scontrol", "--oneliner", "show", "job", f"{array}_0").split()
    dates = dict(word.split("=", 1) for word in words if "Time=" in word)
    start, submitted = (datetime.fromisoformat(dates[n]) for n in ("StartTime", "SubmitTime"))
    assert start - submitted > timedelta(seconds=500)
    refused = scheduler.cancel([f"{array}_1", "4000000", f"{array}_2"])
    assert refused == {"4000000": "Invalid job id specified"}
    slurm_cluster.wait_for(f"{array}_2", "CANCELLED")
    with pytest.raises(SchedulerError, match="Invalid job id"):
        scheduler.requeue("4000000")
    subprocess.run(["scancel", array], check=True)

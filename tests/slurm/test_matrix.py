"""Everything that can come between a run and its end on a cluster: it ends once, and the same."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from command import isoflop, start
from isoflop.files import read_json, write_json_atomic
from isoflop.launch.slurm.records import not_requeued_file
from isoflop.launch.slurm.retry import plan_retry
from isoflop.launch.status import study_status
from isoflop.spec import shown_id
from made_disk import mounted
from made_kills import customize, shorten_leases
from slurm.made_cluster import Cluster, is_alive, wait_until
from slurm.made_slurm import LONG, LONGER, SHORT, VERY_LONG, ClusterStudy, cluster_study

pytestmark = pytest.mark.slow
NewCluster = Callable[..., Cluster]


@pytest.fixture(autouse=True)
def _soon_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks that gave their nodes back begin again as soon as a requeued job may."""
    code = "from isoflop.launch.slurm import waiting\nwaiting.FIRST_DELAY_S = 5\n"
    customize(tmp_path / "site", monkeypatch, code)


def long_run(cluster: Cluster, tmp_path: Path, *, budget_flops: int = LONG) -> ClusterStudy:
    return cluster_study(cluster, tmp_path / "study", budgets=(budget_flops,))


def long_trunk(cluster: Cluster, tmp_path: Path) -> ClusterStudy:
    """A long run, which is disturbed, and one of half its length that begins at its fork."""
    # The recipe's batches are smaller: about as many steps as those of a long run.
    budget_flops = LONG * 7 // 10
    budgets = (budget_flops // 2, budget_flops)
    return cluster_study(cluster, tmp_path / "study", budgets=budgets, recipe="micro-v3")


def finish(
    study: ClusterStudy, *, num_attempts: int, seconds: float = 120.0, is_shared: bool = False
) -> None:
    """All ends as if nothing had been, the long run having gone on where it was.

    Args:
        is_shared: its shorter sibling did not train alone.
    """
    study.wait_for_results(seconds=seconds)
    study.wait_for_empty_queue()
    study.assert_each_ended_once_as_undisturbed()
    if is_shared:
        study.assert_branches_began_at_their_forks()
    folder = study.run_folder()
    assert len(folder.attempts()) >= num_attempts
    resumed = [row for row in folder.metrics() if row.get("event") == "resumed"]
    assert len(resumed) >= num_attempts - 1


def test_two_submits_at_the_same_time_send_each_run_once(
    new_cluster: NewCluster, tmp_path: Path
) -> None:
    cluster = new_cluster()
    study = cluster_study(cluster, tmp_path / "study", budgets=(SHORT, 2 * SHORT, 3 * SHORT))
    profile = study.write_profile()
    typed = [start("submit", study.folder, "--cluster", profile, "--yes") for _ in range(3)]
    said = [process.communicate() for process in typed]
    assert any(process.returncode == 0 for process in typed), said
    jobs = cluster.run("squeue", "-h", "-r", "-t", "all", "-o", "%i").splitlines()
    assert len(jobs) == 3, said
    study.wait_for_results()
    study.assert_each_ended_once_as_undisturbed()


def test_cancelled_and_submitted_again(new_cluster: NewCluster, tmp_path: Path) -> None:
    study = long_trunk(new_cluster(), tmp_path)
    study.submit()
    study.wait_for_step()
    study.cluster.run("scancel", study.job())
    study.wait_for_empty_queue()
    (attempt,) = study.run_folder().attempts()
    assert attempt.exit_reason == "interrupted: SIGTERM"
    # The other one went on alone.
    assert study.run_folder(1).result() is not None
    study.submit()
    finish(study, num_attempts=2)


def test_requeued_from_outside(new_cluster: NewCluster, tmp_path: Path) -> None:
    study = long_trunk(new_cluster(), tmp_path)
    study.submit()
    study.wait_for_step()
    study.cluster.run("scontrol", "requeue", study.job())
    # Typed while it waits to start again: it is on its way, so nothing is sent.
    study.submit()
    assert len(study.arrays()) == 2
    finish(study, num_attempts=2, is_shared=True)


@pytest.mark.parametrize("grace_s", [0, 20])
def test_preempted_by_a_higher_partition(
    grace_s: int, new_cluster: NewCluster, tmp_path: Path
) -> None:
    # With a grace time the cluster sends the job's own signal first.
    cluster = new_cluster(NODES=1, GRACE=grace_s, PREEMPT_SIGNAL=int(grace_s > 0), KILLWAIT=2)
    study = long_trunk(cluster, tmp_path)
    study.submit()
    study.wait_for_step()
    high = cluster.sbatch("sleep 2", "--exclusive", "--partition=high")
    cluster.wait_for(high, "RUNNING", "COMPLETED")
    finish(study, num_attempts=2, is_shared=True)
    reason = study.run_folder().attempts()[0].exit_reason
    assert reason == ("interrupted: SIGUSR2" if grace_s else "interrupted: SIGTERM")


def test_a_time_limit_shorter_than_the_run(new_cluster: NewCluster, tmp_path: Path) -> None:
    # SLURM looks every 30 s, and then signals whoever has less than 90 s left: all. A branch that
    # waits begins so often that it would be signalled before Python handles signals.
    study = long_run(new_cluster(), tmp_path, budget_flops=VERY_LONG)
    study.submit(time_limit_min=1, time_floor_min=1)
    finish(study, num_attempts=2, seconds=300)
    reasons = {a.exit_reason for a in study.run_folder().attempts()}
    assert reasons == {"interrupted: SIGUSR2", "done"}


def test_a_node_dies_and_its_process_lives_on(new_cluster: NewCluster, tmp_path: Path) -> None:
    cluster = new_cluster(NODES=2)
    study = long_run(cluster, tmp_path, budget_flops=LONGER)
    study.submit()
    orphan = study.wait_for_step()
    job, node = study.job(), cluster.run("squeue", "-h", "-o", "%N")
    cluster.kill_node(node)
    # As the controller would by itself, later.
    cluster.run("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    cluster.wait_for(job, "RUNNING", "COMPLETED")
    assert cluster.field(job, "Restarts") == "1"
    assert cluster.field(job, "NodeList") != node
    assert is_alive(orphan)
    study.wait_for_results()
    study.assert_each_ended_once_as_undisturbed()


@pytest.mark.parametrize("forgotten", [False, True])
def test_killed_without_a_word(forgotten: bool, new_cluster: NewCluster, tmp_path: Path) -> None:
    cluster = new_cluster(MINJOBAGE=2 if forgotten else 300)
    study = long_trunk(cluster, tmp_path)
    study.submit()
    os.kill(study.wait_for_step(), signal.SIGKILL)
    job = study.job()
    if forgotten:
        wait_until(lambda: not cluster.state(job), "the controller has forgotten it", seconds=120)
        # Not at once: it could have left the queue a moment ago.
        study.wait_for_state("lost", seconds=120)
    else:
        cluster.wait_for(job, "FAILED")
        state = study.wait_for_state("failed", "lost")
        assert state.reason is not None
        assert job in state.reason
    study.submit()
    finish(study, num_attempts=2)


def test_the_disk_is_full(new_cluster: NewCluster, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "24m") as disk:
        study = long_run(new_cluster(), disk.folder)
        study.submit()
        study.wait_for_step()
        disk.fill()
        failed = study.wait_for_state("failed")
        assert failed.kind == "disk"
        study.wait_for_empty_queue()
        # No node is left out for it, and plain submit sends the run again.
        decided = plan_retry(study.folder, study_status(study.folder, study.plan), "disk", 1)
        assert (len(decided.lines), decided.excluded_nodes) == (1, ())
        disk.free()
        study.submit()
        finish(study, num_attempts=2)


def test_out_of_memory(new_cluster: NewCluster, tmp_path: Path) -> None:
    cluster = new_cluster(ENFORCE_MEM=1)
    study = long_run(cluster, tmp_path)
    study.submit(memory_gb_per_device=0.15)
    assert study.wait_for_state("failed").kind == "oom"
    study.wait_for_empty_queue()
    study.submit(memory_gb_per_device=1.5)
    finish(study, num_attempts=1)


def test_status_while_the_controller_is_down(new_cluster: NewCluster, tmp_path: Path) -> None:
    cluster = new_cluster()
    study = long_run(cluster, tmp_path, budget_flops=LONGER)
    study.submit()
    study.wait_for_step()
    cluster.kill_controller()
    status = isoflop("status", study.folder)
    # The scheduler's own words, and what the run's files tell.
    assert status.returncode == 3
    assert "Unable to contact slurm controller" in status.stdout + status.stderr
    assert "running" in status.stdout
    refused = isoflop("submit", study.folder, "--cluster", study.write_profile(), "--yes")
    assert refused.returncode == 2
    assert len(study.arrays()) == 1
    cluster.start_controller()
    finish(study, num_attempts=1)


@pytest.mark.parametrize("comes_back", [True, False])
def test_the_controller_is_away_when_time_is_up(
    comes_back: bool, new_cluster: NewCluster, tmp_path: Path
) -> None:
    cluster = new_cluster()
    study = long_trunk(cluster, tmp_path)
    study.submit(signal_s=300 if comes_back else 15)
    process, job = study.wait_for_step(), study.job()
    cluster.kill_controller()
    os.kill(process, signal.SIGUSR2)
    left = not_requeued_file(study.folder, study.submission_id(), job)
    # One try in vain takes as long as scontrol waits for a controller.
    wait_until(left.exists, "a try in vain")
    if not comes_back:
        wait_until(lambda: not is_alive(process), "it has given up")
    cluster.start_controller()
    if not comes_back:
        found = study.wait_for_state("failed")
        assert found.kind == "requeue"
        assert found.reason is not None
        assert f"job {job} asked " in found.reason
        study.submit()
    finish(study, num_attempts=2, is_shared=comes_back)
    assert (len(study.arrays()) > 2) is not comes_back
    assert left.exists() is not comes_back
    assert study.run_folder().attempts()[0].exit_reason == "interrupted: SIGUSR2"


def test_the_study_s_folder_is_moved(slurm_cluster: Cluster, tmp_path: Path) -> None:
    study = long_trunk(slurm_cluster, tmp_path)
    study.submit()
    study.wait_for_step()
    job, old, study.folder = study.job(), study.folder, tmp_path / "elsewhere"
    old.rename(study.folder)
    slurm_cluster.wait_for(job, "FAILED")
    # Nothing was made again, and the log that moved with the folder says so.
    assert not old.exists()
    assert study.run_folder().result() is None
    state = study.state()
    assert state.state == "lost"
    assert any("was moved or removed: it is not made again" in line for line in state.log_lines)
    assert not any("Traceback" in line for line in state.log_lines)
    study.submit()
    study.wait_for_results()
    study.assert_each_ended_once_as_undisturbed()
    metrics = study.run_folder().metrics()
    assert sum(row.get("event") == "resumed" for row in metrics) == 1
    assert not old.exists()


def test_a_holder_of_another_boot_is_watched(
    slurm_cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten_leases(tmp_path / "site", monkeypatch, timeout_s=3.0)
    study = long_trunk(slurm_cluster, tmp_path)
    study.submit()
    first = study.wait_for_step()
    # As an orphan on a lost node: another machine's, of which this one sees no process.
    path = study.run_folder().path / "attempts" / "0001.json"
    record = read_json(path, "attempt")
    slurm_cluster.run("scancel", "--signal=STOP", study.job())
    record["holder"]["boot_id"] = "another"
    write_json_atomic(path, record)
    slurm_cluster.run("scontrol", "requeue", study.job())
    os.kill(first, signal.SIGKILL)
    study.wait_for_results()
    study.assert_each_ended_once_as_undisturbed()
    assert len(study.run_folder().attempts()) == 2


def test_a_run_held_elsewhere_gives_its_node_back(
    slurm_cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The task waits for twice as long.
    shorten_leases(tmp_path / "site", monkeypatch, timeout_s=2.0)
    study = cluster_study(slurm_cluster, tmp_path / "study")
    study.submit()
    # This process is faster than a job that has to start Python.
    attempt = study.run_folder().claim({})
    assert attempt is not None
    job = study.job()
    wait_until(lambda: slurm_cluster.field(job, "Restarts") == "1", "put back")
    slurm_cluster.wait_for(job, "PENDING")
    assert slurm_cluster.field(job, "Reason") == "BeginTime"
    assert study.state().state == "running"
    study.run_folder().end_attempt(attempt, "interrupted: SIGTERM")
    assert study.state().state == "requeued"
    # A job that starts within the second of its requeue is killed: its credential counts as the
    # one that the requeue revoked.
    slurm_cluster.run("scontrol", "update", f"JobId={job}", "StartTime=now+3")
    study.wait_for_results()
    study.assert_each_ended_once_as_undisturbed()
    assert len(study.run_folder().attempts()) == 2


def held_back(cluster: Cluster, tmp_path: Path) -> ClusterStudy:
    """A study whose shorter run gets a node while its trunk has none, and has given it back."""
    study = long_trunk(cluster, tmp_path)
    cluster.run("scontrol", "update", "nodename=n1", "state=drain", "reason=test")
    study.submit()
    cluster.run("scontrol", "update", f"JobId={study.job()}", "StartTime=now+3600")
    cluster.run("scontrol", "update", "nodename=n1", "state=resume")
    wait_until(lambda: int(cluster.field(study.job(1), "Restarts")) >= 1, "given back")
    assert study.run_folder(1).attempts() == []
    waits = study.state(1)
    assert waits.state == "requeued"
    assert f"waits for run {shown_id(study.runs[0].run_id)} to pass" in str(waits.reason)
    return study


def test_a_branch_that_comes_too_early_gives_its_node_back_and_begins_at_its_fork(
    new_cluster: NewCluster, tmp_path: Path
) -> None:
    cluster = new_cluster(NODES=1)
    study = held_back(cluster, tmp_path)
    cluster.run("scontrol", "update", f"JobId={study.job()}", "StartTime=now+1")
    finish(study, num_attempts=1, is_shared=True)


def test_a_branch_goes_on_alone_when_its_trunk_is_cancelled(
    new_cluster: NewCluster, tmp_path: Path
) -> None:
    cluster = new_cluster(NODES=1)
    study = held_back(cluster, tmp_path)
    ended = isoflop("cancel", study.folder, study.runs[0].run_id, "--yes")
    assert ended.returncode == 0, ended.stderr
    wait_until(lambda: study.run_folder(1).result() is not None, "the branch alone")
    study.wait_for_empty_queue()
    result = study.run_folder(1).result()
    assert result is not None
    assert (result.trunk_steps, study.run_folder().attempts()) == (0, [])
    study.submit()
    finish(study, num_attempts=1)


def test_two_nodes_train_one_run(new_cluster: NewCluster, tmp_path: Path) -> None:
    cluster = new_cluster(NODES=2)
    study = cluster_study(
        cluster, tmp_path / "study", budgets=(LONG,), placement={"parallel": "ddp", "ranks": 2}
    )
    study.submit(ranks_per_node=1)
    job = study.job()
    cluster.wait_for(job, "RUNNING")
    assert cluster.field(job, "NodeList") == "n[1-2]"
    study.wait_for_step()
    # Both ranks stop, and both go on.
    cluster.run("scontrol", "requeue", job)
    study.wait_for_results()
    study.wait_for_empty_queue()
    local = cluster_study(
        cluster,
        tmp_path / "local",
        budgets=(LONG,),
        placement={"parallel": "ddp", "ranks": 2, "workers": 1},
    )
    run = isoflop("run", local.folder)
    assert run.returncode == 0, run.stderr
    here, there = local.run_folder().result(), study.run_folder().result()
    assert here is not None
    assert there is not None
    assert (there.loss, there.num_steps) == (here.loss, here.num_steps)

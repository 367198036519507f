"""The cluster for tests itself: what the other tests take for granted of it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from slurm.made_cluster import DEV_CLUSTER, Cluster, wait_until

pytestmark = pytest.mark.slow


def processes_of(cluster: Cluster) -> list[str]:
    """Command lines of everything that runs for a cluster."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes().split(b"\0")
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue
        names = f"SLURM_CONF={cluster.conf}".encode()
        if (names in environment or str(cluster.folder).encode() in command) and command:
            found.append(command.replace(b"\0", b" ").decode())
    return found


def test_four_nodes_of_two_gpus_run_an_array(slurm_cluster: Cluster) -> None:
    nodes = slurm_cluster.run("sinfo", "-h", "-N", "-p", "main", "-o", "%N %G").splitlines()
    assert nodes == [f"n{number} gpu:2" for number in range(1, 5)]
    job = slurm_cluster.sbatch(
        "echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES; sleep 1", "--array=0-3", "--gres=gpu:1"
    )
    wait_until(
        lambda: slurm_cluster.state(job).split() == ["COMPLETED"] * 4, "all of the array done"
    )
    logs = slurm_cluster.folder.glob(f"log/job.{job}_*.txt")
    said = [tuple(path.read_text().split()) for path in logs]
    assert len(set(said)) == 4
    assert {gpu for _, gpu in said} == {"0", "1"}


def test_a_job_of_the_high_partition_takes_the_place_of_others(
    new_cluster: Callable[..., Cluster],
) -> None:
    cluster = new_cluster(NODES=1, KILLWAIT=1)
    low = cluster.sbatch("sleep 100", "--exclusive")
    cluster.wait_for(low, "RUNNING")
    high = cluster.sbatch("sleep 1", "--exclusive", "--partition=high")
    cluster.wait_for(high, "RUNNING", "COMPLETED")
    assert cluster.state(low) == "PENDING"
    # It comes back by itself.
    cluster.wait_for(low, "RUNNING")
    assert cluster.field(low, "Restarts") == "1"


def test_settings_reach_the_controller(new_cluster: Callable[..., Cluster]) -> None:
    cluster = new_cluster(
        NODES=1, GPUS=0, MAXARRAY=11, MINJOBAGE=2, KILLWAIT=7, GRACE=9, PREEMPT_SIGNAL=1
    )
    words = dict(
        [part.strip() for part in line.split("=", 1)]
        for line in cluster.run("scontrol", "show", "config").splitlines()
        if "=" in line
    )
    assert words["MaxArraySize"] == "11"
    assert words["MinJobAge"] == "2 sec"
    assert words["KillWait"] == "7 sec"
    assert words["SlurmctldParameters"] == "preempt_send_user_signal"
    assert "GraceTime=9" in cluster.run("scontrol", "--oneliner", "show", "partition", "main")


def test_down_leaves_nothing_behind() -> None:
    cluster = Cluster.up(NODES=2)
    jobs = [cluster.sbatch("sleep 1000", "--nodelist", node) for node in ("n1", "n2")]
    for job in jobs:
        cluster.wait_for(job, "RUNNING")
    # The job of a node that died is an orphan.
    cluster.kill_node("n2")
    wait_until(lambda: sum("sleep 1000" in line for line in processes_of(cluster)) >= 2, "jobs")
    cluster.down()
    assert not cluster.folder.exists()
    assert processes_of(cluster) == []


def test_it_ends_with_the_process_it_is_for() -> None:
    owner = subprocess.Popen(["sleep", "100"])
    cluster = Cluster.up(NODES=1, UNTIL_PID=owner.pid)
    owner.kill()
    owner.wait()
    wait_until(lambda: not cluster.folder.exists(), "the cluster's folder gone")
    wait_until(lambda: not processes_of(cluster), "its processes gone")


@pytest.mark.parametrize("what", ["twice", "not empty", "space", "long"])
def test_a_folder_that_cannot_be_used_is_refused(
    what: str, slurm_cluster: Cluster, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    folder, words = {
        "twice": (slurm_cluster.folder, "a cluster is up in"),
        "not empty": (slurm_cluster.folder / "log", "is not empty"),
        "space": (tmp_path / "a b", "no space"),
        "long": (Path("/tmp") / ("long" * 25), "shorter path"),
    }[what]
    up = subprocess.run([DEV_CLUSTER / "up.sh", folder], capture_output=True, text=True)
    assert up.returncode == 2
    assert words in up.stderr
    assert slurm_cluster.run("sinfo", "-h", "-o", "%P")
    down = subprocess.run([DEV_CLUSTER / "down.sh", tmp_path], capture_output=True, text=True)
    assert (down.returncode, (tmp_path / "file").exists()) == (2, True)

"""On real clusters: numbers that begin again, answers that are lost, a second user."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from command import isoflop, start
from isoflop.launch import status
from isoflop.launch.slurm import scheduler
from isoflop.launch.status import live_work
from slurm.made_cluster import Cluster, wait_until
from slurm.made_slurm import SHORT, ClusterStudy, cluster_study

pytestmark = pytest.mark.slow
NewCluster = Callable[..., Cluster]

# May read what root may, so that Python can lie anywhere; to SLURM it is another user.
AS_NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


def held(cluster: Cluster, folder: Path) -> ClusterStudy:
    """A study whose only job waits until somebody releases it."""
    study = cluster_study(cluster, folder)
    profile = study.write_profile()
    profile.write_text(profile.read_text() + "[sbatch]\nhold = true\n")
    sent = isoflop("submit", study.folder, "--cluster", profile, "--yes")
    assert sent.returncode == 0, sent.stderr
    return study


def test_numbers_that_begin_again_belong_to_others(
    new_cluster: NewCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "GRACE_S", 0.0)
    cluster = new_cluster(NODES=1)
    study = held(cluster, tmp_path / "study")
    assert study.job() == "1"
    assert study.state().state == "waiting"
    # The controller loses its state, and numbers begin again.
    cluster.kill_controller()
    shutil.rmtree(cluster.folder / "state")
    (cluster.folder / "state").mkdir()
    cluster.start_controller()
    assert cluster.sbatch("sleep 600", "--array=0-1", "--comment=another's") == "1"
    state = study.state()
    assert state.state == "lost"
    assert state.job is None
    assert live_work(study.folder, study.plan).run_ids == set()
    ended = isoflop("cancel", study.folder, "--yes")
    assert (ended.returncode, "nothing to cancel" in ended.stdout) == (0, True)
    held(cluster, study.folder)
    ours = study.job()
    assert ours != "1"
    ended = isoflop("cancel", study.folder, "--yes")
    assert ended.returncode == 0, ended.stderr
    cluster.wait_for(ours, "CANCELLED")
    for index in range(2):
        assert cluster.state(f"1_{index}") in ("PENDING", "CONFIGURING", "RUNNING")


# The controller has taken the array; then it stops answering for a while, or submit is killed.
_TIMED_OUT = """#!/bin/bash
controller=$(cat "{folder}/pid/slurmctld.pid")
{sbatch} "$@" >/dev/null || exit 9
kill -STOP "$controller"
(sleep 2; kill -CONT "$controller") >/dev/null 2>&1 &
echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2
exit 1
"""
_KILLED = """#!/bin/bash
{sbatch} "$@" >/dev/null || exit 9
kill -KILL "$PPID"
"""


@pytest.mark.parametrize("script", [_TIMED_OUT, _KILLED], ids=["timed out", "submit killed"])
def test_an_array_that_was_taken_without_an_answer_trains(
    script: str, new_cluster: NewCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = new_cluster(NODES=1)
    study = cluster_study(cluster, tmp_path / "study", sizes=(1, 2), budgets=(2 * SHORT,))
    wrapped = tmp_path / "bin" / "sbatch"
    wrapped.parent.mkdir()
    wrapped.write_text(script.format(folder=cluster.folder, sbatch=shutil.which("sbatch")))
    wrapped.chmod(0o755)
    command = ("submit", study.folder, "--cluster", study.write_profile(), "--yes")
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(wrapped.parent), prepend=":")
        sent = start(*command)
        out, error = sent.communicate()
    is_killed = script == _KILLED
    assert sent.returncode == (-9 if is_killed else 0), error
    (array,) = study.arrays()
    assert array.job_id == (None if is_killed else "1"), out
    # It is known by its comment, and nothing is sent beside it.
    assert isoflop(*command).returncode == 0
    assert len(study.arrays()) == 1
    study.wait_for_results()
    study.assert_each_ended_once_as_undisturbed()
    for run in range(2):
        assert len(study.run_folder(run).attempts()) == 1


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that every user may read; pytest's are private."""
    folder = Path(tempfile.mkdtemp(prefix="isoflop-public-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


_LOOK = """
import json, sys
from pathlib import Path
from isoflop.launch.status import live_work, study_status
from isoflop.plan.artefact import read_plan

folder = Path(sys.argv[1])
plan = read_plan(folder)
(state,) = study_status(folder, plan).states
print(json.dumps([state.state, state.reason, len(live_work(folder, plan).hidden)]))
"""


def seen_by_nobody(study: ClusterStudy) -> list[object]:
    """Where the only run stands for a second user."""
    package = Path(status.__file__).parents[2]
    done = subprocess.run(
        [*AS_NOBODY, sys.executable, "-c", _LOOK, study.folder],
        env=study.cluster.environment | {"PYTHONPATH": f"{package}:{package / 'kernels'}"},
        cwd="/",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found: list[object] = json.loads(done.stdout)
    return found


def test_a_second_user_with_and_without_private_data(
    new_cluster: NewCluster, public_folder: Path
) -> None:
    cluster = new_cluster(NODES=1)
    cluster.folder.chmod(0o755)
    study = held(cluster, public_folder / "study")
    (state, reason, num_hidden) = seen_by_nobody(study)
    assert (state, num_hidden) == ("waiting", 0), reason
    with cluster.conf.open("a") as conf:
        conf.write("PrivateData=jobs\n")
    cluster.run("scontrol", "reconfigure")
    wait_until(lambda: scheduler.config()["PrivateData"] == "jobs", "private data")
    (state, reason, num_hidden) = seen_by_nobody(study)
    assert (state, num_hidden) == ("unknown", 1), reason
    assert "not visible to you, submitted by root" in str(reason)
    # Its own user, and root, see it.
    assert study.state().state == "waiting"

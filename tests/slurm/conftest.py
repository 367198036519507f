"""Real SLURM clusters on this machine; see slurm/dev_cluster."""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from isoflop.data.prepare import prepare as prepare_data
from isoflop.plan.planner import Plan
from slurm import made_sbatch
from slurm.made_cluster import INSTALL, Cluster, can_install, is_installed
from slurm.made_sbatch import Pretended
from slurm.made_scheduler import Scheduler, Sent, use


def _need_slurm() -> None:
    """Skips only where SLURM can neither be found nor installed."""
    if is_installed():
        return
    if can_install():
        pytest.fail(f"run {INSTALL}: the tests of SLURM run where it can be installed", False)
    pytest.skip("no SLURM, and installing it takes root and apt-get")


@pytest.fixture(scope="session")
def _shared_cluster(shared_folder: Path) -> Cluster:
    """One cluster for all workers of pytest, taken down when pytest's main process ends."""
    _need_slurm()
    main_process = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
    note = shared_folder / "slurm_cluster"
    with (shared_folder / "slurm_cluster.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if note.exists():
            return Cluster(Path(note.read_text()))
        cluster = Cluster.up(UNTIL_PID=main_process)
        note.write_text(str(cluster.folder))
    return cluster


@pytest.fixture
def slurm_cluster(
    _shared_cluster: Cluster,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Iterator[Cluster]:
    """The cluster that tests share, set as this process's cluster: n1 to n4, 2 GPUs each.

    For tests whose jobs keep to themselves; whoever kills nodes or needs other settings takes
    ``new_cluster``.
    """
    _use(_shared_cluster, monkeypatch)
    sizes = _shared_cluster.log_sizes()
    yield _shared_cluster
    if _has_failed(request):
        print(_shared_cluster.logs_since(sizes), file=sys.stderr)


@pytest.fixture
def new_cluster(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Cluster]]:
    """Brings up a cluster of the test's own: ``new_cluster(MAXARRAY=11)``, settings as in up.sh."""
    _need_slurm()
    clusters: list[tuple[Cluster, dict[Path, int]]] = []

    def up(**settings: object) -> Cluster:
        cluster = Cluster.up(UNTIL_PID=os.getpid(), **settings)
        clusters.append((cluster, cluster.log_sizes()))
        _use(cluster, monkeypatch)
        return cluster

    yield up
    for cluster, sizes in clusters:
        if _has_failed(request):
            print(cluster.logs_since(sizes), file=sys.stderr)
        cluster.down()


def _use(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
    # Where the daemons are; clients are elsewhere.
    monkeypatch.setenv("PATH", os.pathsep.join((os.environ["PATH"], "/usr/sbin", "/sbin")))
    assert shutil.which("sbatch")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if report.when == "call":
        item.stash[_FAILED] = report.failed
    return report


_FAILED = pytest.StashKey[bool]()


def _has_failed(request: pytest.FixtureRequest) -> bool:
    return request.node.stash.get(_FAILED, True)


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scheduler:
    """A scheduler that answers what a test tells it to."""
    return use(tmp_path / "bin", monkeypatch)


@pytest.fixture
def sent(tmp_path: Path) -> Sent:
    """A study of which a test says what was sent."""
    return Sent(tmp_path / "it's a study")


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pretended:
    """Commands that keep what they are given and answer what a test tells them to."""
    return made_sbatch.use(tmp_path / "pretended", monkeypatch)


@pytest.fixture
def study(tmp_path: Path) -> tuple[Path, Plan]:
    """Three runs of one core."""
    return made_sbatch.made_study(tmp_path / "a 'study'")


@pytest.fixture
def taking(told: Scheduler, monkeypatch: pytest.MonkeyPatch) -> Scheduler:
    """A scheduler that takes jobs."""
    told.takes_jobs()
    told.queue()
    monkeypatch.setattr("submitit.core.core.PicklingExecutor._throttle", lambda self: None)
    prepare_data("sotu-embedded", "byte")
    return told

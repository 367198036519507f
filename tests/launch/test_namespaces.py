"""Two containers with one host name on one study, each in a pid namespace of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from isoflop.launch.run_folder import RunFolder
from isoflop.plan.artefact import write_plan
from isoflop.plan.planner import make_plan
from made_kills import shorten_leases
from made_studies import micro
from slurm.made_cluster import wait_until
from slurm.made_slurm import LONG, NUMBERS, undisturbed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root makes pid namespaces"),
]


class Container:
    """An `isoflop run` in a pid namespace of its own, on this machine's host name."""

    def __init__(self, folder: Path) -> None:
        command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable]
        self.process = subprocess.Popen(
            [*command, "-m", "isoflop", "run", str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    @property
    def namespace(self) -> int | None:
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return Path(f"/proc/{children[0]}/ns/pid").stat().st_ino if children else None

    def kill(self) -> None:
        pid = self.process.pid
        child = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0]
        # Its first process: with it, the kernel ends the others.
        os.kill(int(child), signal.SIGKILL)
        self.process.communicate()


def test_one_of_two_containers_trains_and_the_other_takes_over_when_it_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten_leases(tmp_path / "site", monkeypatch, timeout_s=3.0)
    study = micro(
        budgets=(2 * LONG,), archs=("mlp",), sizes=(1,), placement={"checkpoint_every": 1.0}
    )
    plan = make_plan(study)
    (run,) = plan.unique_runs
    write_plan(plan, tmp_path / "study")
    folder = RunFolder(tmp_path / "study", run.run_id)
    both = [Container(tmp_path / "study") for _ in range(2)]
    try:
        # Several leases long, so that a steal would be seen.
        wait_until(lambda: _step(folder) > 900, "it trains", seconds=180)
        (first,) = folder.attempts()
        (holder,) = (c for c in both if c.namespace == first.holder.pid_namespace)
        (other,) = (c for c in both if c is not holder)
        holder.kill()
        said, _ = other.process.communicate(timeout=120)
        assert other.process.returncode == 0, said
    finally:
        for container in both:
            if container.process.poll() is None:
                container.process.kill()
                container.process.communicate()
    reasons = [attempt.exit_reason for attempt in folder.attempts()]
    assert reasons == [None, "done"]
    assert sum(row.get("event") == "resumed" for row in folder.metrics()) == 1
    found = json.loads((folder.path / "result.json").read_text())
    wanted = undisturbed(study, run.run_id)
    assert {name: found[name] for name in NUMBERS} == {n: getattr(wanted, n) for n in NUMBERS}


def _step(folder: RunFolder) -> int:
    return max((row.get("step", 0) for row in folder.metrics()), default=0)

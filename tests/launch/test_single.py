"""One run in a process of its own, as a cluster starts it: signals, exit codes, a full disk."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from isoflop.data.prepare import prepare
from isoflop.data.windows import open_data
from isoflop.launch.callbacks import StopFlag
from isoflop.launch.run_folder import RunFolder
from isoflop.launch.single import train_one
from isoflop.plan.artefact import write_plan
from isoflop.plan.planner import make_plan
from isoflop.plan.runs import PlannedRun
from isoflop.train.loop import Placement, train_run
from made_studies import micro


@pytest.fixture
def planned(tmp_path: Path) -> tuple[Path, PlannedRun, PlannedRun]:
    """A study's folder, a run that is longer than the tests wait, and a short one."""
    folder = tmp_path / "study"
    plan = make_plan(micro(budgets=(10**8, 4 * 10**8), archs=("mlp",), sizes=(1,)))
    write_plan(plan, folder)
    prepare("sotu-embedded", "byte")
    short, long = plan.runs
    return folder, long, short


def command(folder: Path, run: str, *options: str) -> list[str]:
    return [sys.executable, "-m", "isoflop.launch.single", str(folder), run, *options]


def start(*arguments: Any, **others: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **others,
    )


@pytest.mark.slow
def test_signals_stop_it_at_a_step_and_it_goes_on_to_the_same_loss(
    planned: tuple[Path, PlannedRun, PlannedRun],
) -> None:
    folder, run, _ = planned
    run_folder = RunFolder(folder, run.run_id)
    names = ("SIGUSR2", "SIGTERM", "SIGINT")
    for number, name in enumerate(names, start=1):
        process = start(folder, run.run_id[:12])
        while (lease := run_folder.lease()) is None or lease.attempt < number:
            assert process.poll() is None, process.communicate()
            time.sleep(0.005)
        time.sleep(0.05)
        process.send_signal(getattr(signal, name))
        out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (75, "")
        assert out == f"interrupted: {name}\n"
        assert run_folder.attempts()[-1].exit_reason == f"interrupted: {name}"
    process = start(folder, run.run_id[:12])
    assert process.communicate(timeout=120) == ("done\n", "")
    assert process.returncode == 0
    data = open_data(prepare("sotu-embedded", "byte"))
    wanted = train_run(run.spec, data, placement=Placement())
    found = run_folder.result()
    assert found is not None
    for name in ("loss", "loss_se", "bits_per_byte", "num_steps"):
        assert getattr(found, name) == getattr(wanted, name)
    ranges = [attempt.step_range for attempt in run_folder.attempts()]
    done = [steps for steps in ranges if steps is not None]
    assert done[0][0] == 0
    assert done[-1][1] == run.spec.steps - 1
    assert [b[0] for b in done[1:]] == [a[1] + 1 for a in done[:-1]]
    # It is not trained again.
    assert train_one(folder, run.run_id, {}, StopFlag(())) == 0
    assert len(run_folder.attempts()) == len(names) + 1


def test_a_mistake_is_one_line(planned: tuple[Path, PlannedRun, PlannedRun]) -> None:
    process = start(planned[0], "no-such-run")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert len(err.splitlines()) == 1
    assert "run = 'no-such-run'" in err


@pytest.mark.slow
def test_a_disk_with_no_room_for_checkpoints_costs_no_result(
    planned: tuple[Path, PlannedRun, PlannedRun],
) -> None:
    folder, _, run = planned
    # Files of more than 32 KiB fail when they are written, as on a full disk: those of a
    # checkpoint do, the run's records do not.
    process = start(
        folder,
        run.run_id,
        "--checkpoint-every",
        "0",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2**15, 2**15)),
    )
    assert process.communicate(timeout=120) == ("done\n", "")
    run_folder = RunFolder(folder, run.run_id)
    (row,) = [row for row in run_folder.metrics() if row.get("event") == "checkpoint_failed"]
    assert row["step"] == 1
    assert "File too large" in row["reason"]
    result = json.loads((run_folder.path / "result.json").read_text())
    assert result["num_steps"] == run.spec.steps
    assert not (run_folder.path / "ckpt").exists()

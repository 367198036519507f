"""Runs on a disk that fills up while they train, and go on once there is room."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

import command
from isoflop.cli import main
from isoflop.launch.run_folder import RunFolder
from isoflop.launch.status import study_status
from isoflop.plan.artefact import write_plan
from isoflop.plan.planner import make_plan
from made_disk import Disk, mounted
from made_studies import micro
from slurm.made_cluster import wait_until
from slurm.made_slurm import NUMBERS, undisturbed

STUDY = micro(budgets=(4 * 10**8,), archs=("mlp", "swiglu"), sizes=(1,))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with mounted(tmp_path / "disk", "4m") as made:
        yield made


@pytest.mark.slow
def test_a_disk_that_fills_up_ends_the_session_and_the_same_command_goes_on(
    disk: Disk,
) -> None:
    folder = disk.folder / "study"
    plan = make_plan(STUDY)
    write_plan(plan, folder)
    typed = ("run", folder, "--workers", "1", "--checkpoint-every", "0.2")
    process = command.start(*typed)
    wait_until(lambda: list(folder.glob("runs/*/ckpt/[0-9]*")), "a checkpoint")
    disk.fill()
    out, err = process.communicate(timeout=300)
    assert process.returncode == 3, out + err
    (line,) = [line for line in err.splitlines() if line.startswith("isoflop: ")]
    assert "No space left on device" in line
    assert line.endswith("0 B of 4.19 MB free; free some space, then type the same command again")
    assert "Traceback" not in out + err
    # The second run was not begun: it would only have met the same disk.
    assert len(list(folder.glob("runs/*/attempts"))) == 1
    assert not list(folder.rglob("*.tmp"))
    (failed, other) = study_status(folder, plan).states
    assert (failed.state, failed.kind) in (("failed", "disk"), ("missing", None))
    assert other.state == "missing"
    status = CliRunner().invoke(main, ["status", str(folder)])
    shortage = f"runs can write nothing to {folder}: 0 B of 4.19 MB free"
    assert (status.exit_code, shortage in status.stdout.replace("\n", "")) == (0, True)
    disk.free()
    done = command.isoflop(*typed)
    assert done.returncode == 0, done.stdout + done.stderr
    for run in plan.unique_runs:
        result = RunFolder(folder, run.run_id).result()
        assert result is not None
        wanted = undisturbed(STUDY, run.run_id)
        assert {n: getattr(result, n) for n in NUMBERS} == {n: getattr(wanted, n) for n in NUMBERS}

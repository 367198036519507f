"""What jobs of commands of the user's own ask for: by what was measured, else the profile's."""

from __future__ import annotations

from pathlib import Path

from isoflop.launch.slurm.profile import ClusterProfile
from isoflop.launch.slurm.submit import Prepared, arrays_of, prepare
from isoflop.plan.artefact import write_plan
from isoflop.plan.estimate.hardware import write_calibration
from isoflop.plan.planner import Plan, make_plan
from made_trainer import calibration, measured, own_study
from slurm.made_sbatch import CPU, Pretended, typed, write_profile


def planned(folder: Path) -> tuple[Path, Plan]:
    plan = make_plan(own_study(folder / "code"))
    write_plan(plan, folder / "study")
    return folder / "study", plan


def limits(prepared: Prepared) -> dict[str, tuple[int, int | None]]:
    """Minutes and megabytes by run id."""
    return {
        run_id: (array.resources.time_min, array.resources.memory_mb_per_node)
        for array in arrays_of(prepared)
        for task in array.tasks
        for run_id in task
    }


def test_flops_alone_limit_no_job_and_what_was_measured_does(
    slurm: Pretended, tmp_path: Path
) -> None:
    folder, plan = planned(tmp_path)
    profile: ClusterProfile = CPU
    first = prepare(folder, profile)
    assert set(limits(first).values()) == {(profile.time_limit_min, None)}
    shown = typed(folder, "--cluster", write_profile(folder), "--dry-run").stdout
    assert "time limit of 18 runs: the profile's " in " ".join(shown.split())
    assert "from FLOPs alone, without start-up" in shown
    # Start-up is most of it: 40 minutes, of which a run of few steps has as much.
    found = [measured(plan, "plain", size, start_s=2400.0) for size in (1, 3)]
    write_calibration(folder / "calibration.json", calibration(*found))
    then = limits(prepare(folder, profile))
    for run in plan.runs:
        minutes, megabytes = then[run.run_id]
        if run.arch == "gated":
            assert (minutes, megabytes) == (profile.time_limit_min, None)
        else:
            assert 40 < minutes < profile.time_limit_min
            assert megabytes == {1: 2048, 2: 8192, 3: 16384}[run.size]
    shown = typed(folder, "--cluster", write_profile(folder), "--dry-run").stdout
    assert "time limit of 9 runs: the profile's " in " ".join(shown.split())
    assert not slurm.scripts

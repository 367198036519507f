"""Whole studies whose runs share trunks, against the same studies without."""

from __future__ import annotations

from pathlib import Path

import pytest

import command
from isoflop.launch.collect import collected_rows
from isoflop.launch.run_folder import RunFolder
from isoflop.plan.artefact import write_plan
from isoflop.plan.planner import Plan, make_plan
from isoflop.plan.trunks import flops_of_steps, trunks_of
from made_chaos import AIMS, disturb_study
from made_studies import micro

# What depends on how a run was executed.
TIMES = {"wall_s", "step_s_median", "tokens_per_s", "peak_mem_bytes"}
SPENT = {"flops_spent", "wall_s_spent"}


def plan_of(share: str, *archs: str) -> Plan:
    """Trunks of three runs each."""
    budgets = (15 * 10**7, 2 * 10**8, 3 * 10**8)
    return make_plan(
        micro(
            **{"recipe": "micro-v3", "budgets": budgets, "sizes": (1,)},
            **{"archs": archs, "share": share, "keep_weights": "all"},
        )
    )


def weights(folder: Path) -> dict[str, bytes]:
    return {
        path.parts[-4]: path.read_bytes()
        for path in folder.glob("runs/*/ckpt/*/weights.safetensors")
    }


@pytest.mark.slow
def test_a_study_with_trunks_has_the_results_of_one_without(tmp_path: Path) -> None:
    plans = {share: plan_of(share, "mlp", "sgatlin") for share in ("none", "trunks")}
    rows = {}
    for share, plan in plans.items():
        folder = tmp_path / share
        write_plan(plan, folder)
        process = command.isoflop("run", folder, "--workers", "2")
        assert process.returncode == 0, process.stdout + process.stderr
        rows[share] = collected_rows(folder, plan)
    for shared, alone in zip(rows["trunks"], rows["none"], strict=True):
        same = (shared.keys() | alone.keys()) - TIMES - SPENT
        assert {name: shared.get(name) for name in same} == {name: alone.get(name) for name in same}
    assert weights(tmp_path / "trunks") == weights(tmp_path / "none")
    assert not list(tmp_path.glob("*/runs/*/forks"))
    # Counted from the steps of all attempts.
    plan, executed = plans["trunks"], 0
    for run in plan.unique_runs:
        for attempt in RunFolder(tmp_path / "trunks", run.run_id).attempts():
            assert attempt.step_range is not None
            first, last = attempt.step_range
            executed += flops_of_steps(run, last - first + 1)
    saved = sum(trunk.flops_saved for trunk in trunks_of(plan))
    assert executed == sum(run.flops for run in plan.unique_runs) - saved
    assert executed == sum(row["flops_spent"] for row in rows["trunks"])
    assert "4 of 6 runs began from a state of another" in process.stdout


@pytest.mark.slow
def test_killed_at_random_and_at_forks_a_study_ends_in_the_same_bits(tmp_path: Path) -> None:
    alone = disturb_study(tmp_path / "alone", plan_of("none", "sgatlin"), 0, seed=0)
    found = disturb_study(tmp_path / "killed", plan_of("trunks", "sgatlin"), 6, seed=2)
    assert found.ends == alone.ends
    assert found.left_over == []
    assert set(found.kills) <= set(AIMS)
    assert found.kills.total() > 2
    assert found.num_begun_at_forks > 0

"""More seeds at the size nearest to each optimum."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from analysis.made_runs import parabola
from analysis.test_refine import added, at, fitted, plan_of, results, size_params
from isoflop.analysis.refine import propose_seeds
from isoflop.cli.refine import refine
from isoflop.errors import UserError
from isoflop.plan.artefact import read_plan, write_plan
from isoflop.plan.planner import Plan
from isoflop.tables import RUNS, write_table

SIZES = (3, 4, 5, 6, 7)


def rows_of(plan: Plan, **places: float) -> list[dict[str, Any]]:
    return results(
        plan, at(plan, {arch: size_params(plan, arch, size) for arch, size in places.items()})
    )


def test_the_size_nearest_in_the_logarithm_gets_them_and_no_other() -> None:
    plan = plan_of(sizes=SIZES, archs=("mlp", "swiglu"))
    # Halfway in the logarithm is at rung 4.5: these two are on either side of it.
    proposal = propose_seeds(plan, fitted(rows_of(plan, mlp=4.4, swiglu=4.6)), 2)
    assert added(proposal) == [("mlp", 4, 1), ("mlp", 4, 2), ("swiglu", 5, 1), ("swiglu", 5, 2)]
    assert proposal.goal == "seeds"
    assert proposal.reasons == (
        "mlp at 1e11: add seed 1, 2 to size 4, nearest to its optimum",
        "swiglu at 1e11: add seed 1, 2 to size 5, nearest to its optimum",
    )
    assert proposal.difference.same == plan.runs
    assert proposal.plan.study.more_seeds == {10**11: {"mlp": {4: (1, 2)}, "swiglu": {5: (1, 2)}}}


def test_an_optimum_at_an_edge_gets_them_at_the_edge_and_says_so() -> None:
    plan = plan_of(sizes=SIZES, archs=("mlp",))
    above = results(plan, at(plan, {"mlp": 1.5 * size_params(plan, "mlp", 7)}))
    proposal = propose_seeds(plan, fitted(above), 1)
    assert added(proposal) == [("mlp", 7, 1)]
    assert proposal.reasons == ("mlp at 1e11: add seed 1 to size 7, at its edge",)


def test_a_curve_without_a_minimum_gets_none() -> None:
    plan = plan_of(sizes=SIZES, archs=("mlp",))
    centre = size_params(plan, "mlp", 5)
    rows = results(plan, lambda run: parabola(centre, bend=-0.05)(run.n_params))
    proposal = propose_seeds(plan, fitted(rows), 2)
    assert (proposal.is_empty, proposal.goal) == (True, "nothing")
    assert proposal.dead_ends == ("mlp at 1e11: no minimum (not_convex), so no size to repeat",)


def test_the_only_size_of_a_family_gets_them() -> None:
    plan = plan_of(sizes=(5,), archs=("mlp",))
    proposal = propose_seeds(plan, fitted(results(plan, lambda _: 3.0)), 2)
    assert added(proposal) == [("mlp", 5, 1), ("mlp", 5, 2)]
    assert proposal.reasons == ("mlp at 1e11: add seed 1, 2 to size 5, its only one",)


def test_nothing_is_added_before_the_last_ones_have_a_result() -> None:
    plan = plan_of(sizes=SIZES, archs=("mlp",))
    curve = at(plan, {"mlp": size_params(plan, "mlp", 5)})
    grown = propose_seeds(plan, fitted(results(plan, curve)), 2).plan
    waiting = results(grown, lambda run: curve(run) if run.spec.seed == 0 else None)
    again = propose_seeds(grown, fitted(waiting), 2)
    assert again.is_empty
    assert again.dead_ends == ("mlp at 1e11: runs of size 5 have no result: run or retry them",)
    # With results, the next free seeds.
    assert added(propose_seeds(grown, fitted(results(grown, curve)), 1)) == [("mlp", 5, 3)]


def test_seeds_that_all_sizes_have_are_not_proposed_again() -> None:
    plan = plan_of(sizes=SIZES, archs=("mlp",), seeds=(1, 3))
    proposal = propose_seeds(plan, fitted(rows_of(plan, mlp=5)), 2)
    assert added(proposal) == [("mlp", 5, 0), ("mlp", 5, 2)]


@pytest.mark.parametrize("num", [0, -1])
def test_no_seeds_are_refused(num: int) -> None:
    plan = plan_of(sizes=SIZES, archs=("mlp",))
    with pytest.raises(UserError, match=f"--seeds = {num}: must be 1 or more"):
        propose_seeds(plan, fitted(rows_of(plan, mlp=5)), num)


def test_the_command_grows_the_plan_in_place(tmp_path: Path) -> None:
    plan = plan_of(sizes="auto", num_sizes=5, archs=("mlp",))
    write_plan(plan, tmp_path)
    sizes = sorted({run.size for run in plan.runs})
    params = {run.size: run.n_params for run in plan.runs}
    middle = float(params[sizes[2]])
    write_table(tmp_path / "runs.parquet", results(plan, at(plan, {"mlp": middle})), RUNS)
    shown = CliRunner().invoke(refine, [str(tmp_path), "--seeds", "2"])
    assert shown.exit_code == 0, shown.output
    assert f"mlp at 1e11: add seed 1, 2 to size {sizes[2]}, nearest" in shown.output
    assert "2 runs, " in shown.output
    assert read_plan(tmp_path) == plan
    done = CliRunner().invoke(refine, [str(tmp_path), "--seeds", "2", "--apply"])
    assert done.exit_code == 0, done.output
    grown = read_plan(tmp_path)
    assert grown.study.sizes == "auto"
    assert [r.run_id for r in grown.runs if r.spec.seed == 0] == [r.run_id for r in plan.runs]
    assert [(r.size, r.spec.seed) for r in grown.runs if r.spec.seed] == [
        (sizes[2], 1),
        (sizes[2], 2),
    ]

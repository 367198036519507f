"""Proposals for further runs, on plans whose results are made."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from analysis.made_runs import parabola
from isoflop.analysis.fit import Fits, fit_optima
from isoflop.analysis.optima_methods import DEFAULT_METHOD
from isoflop.analysis.points import select_points
from isoflop.analysis.refine import Refinement, propose
from isoflop.cli.refine import refine
from isoflop.numbers import format_flops
from isoflop.plan.artefact import read_plan, write_plan
from isoflop.plan.planner import Plan, make_plan
from isoflop.plan.runs import PlannedRun
from isoflop.tables import RUNS, read_table, write_table
from made_studies import micro

BUDGET = 10**11


def plan_of(**changes: Any) -> Plan:
    values = {
        "archs": ("mlp", "swiglu"),
        "budgets": (BUDGET,),
        "sizes": (5, 6, 7),
        "max_epochs": 100.0,
    }
    return make_plan(micro(**(values | changes)))


def size_params(plan: Plan, arch: str, size: float) -> float:
    """n_params of a rung, or between two of them."""
    known = {r.size: r.n_params for r in plan.runs if r.arch == arch}
    low, share = math.floor(size), size % 1
    if not share:
        return known[low]
    return math.exp((1 - share) * math.log(known[low]) + share * math.log(known[low + 1]))


def results(
    plan: Plan, loss: Callable[[PlannedRun], float | None], noise: float = 0.0
) -> list[dict[str, Any]]:
    rng = random.Random(0)
    rows = []
    for run in plan.runs:
        value = loss(run)
        status = "missing" if value is None else "done"
        if value is not None:
            value *= 1 + rng.gauss(0, noise)
        others = {**dict.fromkeys(RUNS.names), **run.row()}
        rows.append({**others, "loss": value, "status": status})
    return rows


def fitted(rows: list[dict[str, Any]]) -> Fits:
    return fit_optima(select_points(rows), methods=(DEFAULT_METHOD,), axes=("n_params",))


def at(plan: Plan, places: dict[str, float]) -> Callable[[PlannedRun], float]:
    """Losses whose minimum is at a rung of each arch, or off the ladder by n_params."""
    curves = {arch: parabola(place, bend=0.05) for arch, place in places.items()}
    return lambda run: curves[run.arch](run.n_params)


def added(proposal: Refinement) -> list[tuple[str, int, int]]:
    return [(r.arch, r.size, r.spec.seed) for r in proposal.difference.added]


def test_an_edge_gets_the_next_rungs_on_its_side_and_nothing_else() -> None:
    plan = plan_of()
    places = {
        "mlp": size_params(plan, "mlp", 7) * 1.5,
        "swiglu": size_params(plan, "swiglu", 6),
    }
    proposal = propose(plan, fitted(results(plan, at(plan, places))))
    assert proposal.goal == "edges"
    assert proposal.reasons == ("mlp at 1e11: the optimum is above the largest size: add size 8",)
    # micro-v1 has eight rungs: the second one asked for does not exist.
    assert added(proposal) == [("mlp", 8, 0)]
    assert [r.run_id for r in proposal.difference.same] == [r.run_id for r in plan.runs]
    assert proposal.difference.new_flops == proposal.difference.added[0].flops


def test_a_lower_edge_goes_down_to_the_first_rung() -> None:
    plan = plan_of(sizes=(2, 3, 4, 5))
    places = {
        "mlp": size_params(plan, "mlp", 2) / 1.5,
        "swiglu": size_params(plan, "swiglu", 3.5),
    }
    proposal = propose(plan, fitted(results(plan, at(plan, places))))
    assert added(proposal) == [("mlp", 1, 0)]
    # Grown, but not yet run: there is nothing more to propose.
    grown = proposal.plan
    known = {run.run_id for run in plan.runs}
    curve = at(plan, places)
    waiting = results(grown, lambda run: curve(run) if run.run_id in known else None)
    again = propose(grown, fitted(waiting))
    assert (again.goal, again.is_empty) == ("nothing", True)
    assert again.dead_ends == ("mlp at 1e11: sizes beyond the edge are planned: run or retry them",)


def test_an_edge_at_the_end_of_the_ladder_is_a_dead_end() -> None:
    plan = plan_of(sizes=(1, 2, 3))
    places = {"mlp": size_params(plan, "mlp", 1) / 2, "swiglu": size_params(plan, "swiglu", 2)}
    proposal = propose(plan, fitted(results(plan, at(plan, places))))
    assert any("the ladder has no smaller one" in line for line in proposal.dead_ends)


def test_without_an_edge_the_widest_interval_gets_four_times_the_runs() -> None:
    plan = plan_of(sizes=(1, 2, 4, 5, 6))
    places = {arch: size_params(plan, arch, 4) for arch in ("mlp", "swiglu")}
    rows = results(plan, at(plan, places))
    # Only mlp scatters.
    rng = random.Random(1)
    for one in rows:
        if one["arch"] == "mlp":
            one["loss"] *= 1 + rng.gauss(0, 0.004)
    proposal = propose(plan, fitted(rows))
    assert proposal.goal == "interval"
    assert "the widest interval is mlp's at 1e11" in proposal.reasons[0]
    assert proposal.reasons[0].endswith("add size 3")
    assert "add seed 1, 2, 3 to every size" in proposal.reasons[1]
    new = added(proposal)
    assert {place for place in new if place[1] == 3} == {("mlp", 3, seed) for seed in range(4)}
    mlp_runs = [r for r in proposal.plan.runs if r.arch == "mlp"]
    assert len(mlp_runs) == 24 >= 4 * 5


def test_too_few_runs_for_an_interval_get_one_seed_more() -> None:
    plan = plan_of(sizes=(2, 3, 4))
    places = {arch: size_params(plan, arch, 3) for arch in ("mlp", "swiglu")}
    proposal = propose(plan, fitted(results(plan, at(plan, places))))
    assert proposal.reasons == (
        "no optimum has an interval (too few runs each): add seed 1 to every size",
    )
    assert {seed for _, _, seed in added(proposal)} == {1}


def test_too_few_sizes_are_added_and_missing_results_are_not() -> None:
    plan = plan_of(sizes=(2, 3), archs=("mlp",))
    proposal = propose(plan, fitted(results(plan, lambda run: 3.0 + run.size / 100)))
    assert added(proposal) == [("mlp", 4, 0)]
    plan = plan_of(archs=("mlp",))
    proposal = propose(plan, fitted(results(plan, lambda run: 3.0 if run.size == 5 else None)))
    assert proposal.is_empty
    assert "run or retry" in proposal.dead_ends[0]


@pytest.mark.parametrize(
    ("bend", "word"), [(-0.05, "no minimum"), (0.0, "do not differ by more than")]
)
def test_a_curve_without_a_minimum_is_for_a_person(bend: float, word: str) -> None:
    plan = plan_of(archs=("mlp",))
    centre = size_params(plan, "mlp", 5.5)
    proposal = propose(
        plan, fitted(results(plan, lambda run: parabola(centre, bend=bend)(run.n_params)))
    )
    assert proposal.is_empty
    assert word in proposal.dead_ends[0]


def study_folder(folder: Path) -> Plan:
    plan = plan_of(archs=("mlp",))
    write_plan(plan, folder)
    above = size_params(plan, "mlp", 7) * 1.5
    rows = results(plan, at(plan, {"mlp": above}))
    write_table(folder / "runs.parquet", rows, RUNS)
    return plan


def test_the_command_shows_the_cost_and_leaves_the_plan_alone(tmp_path: Path) -> None:
    plan = study_folder(tmp_path)
    shown = CliRunner().invoke(refine, [str(tmp_path)])
    assert shown.exit_code == 0, shown.output
    assert "mlp at 1e11: the optimum is above the largest size: add size 8" in shown.output
    flops = propose(plan, fitted(read_table(tmp_path / "runs.parquet", RUNS))).difference.new_flops
    assert f"1 run, {format_flops(flops, digits=3)} FLOPs, about 0.00" in shown.output
    assert "core-hours (estimate, cpu2)" in shown.output
    assert read_plan(tmp_path) == plan


def test_apply_grows_the_plan_and_says_so(tmp_path: Path) -> None:
    plan = study_folder(tmp_path)
    done = CliRunner().invoke(refine, [str(tmp_path), "--apply"])
    assert done.exit_code == 0, done.output
    assert "written to" in done.output
    grown = read_plan(tmp_path)
    assert {r.run_id for r in grown.runs} > {r.run_id for r in plan.runs}
    assert max(r.size for r in grown.runs) == 8
    # Before the new run has a result, the same command changes nothing.
    again = CliRunner().invoke(refine, [str(tmp_path), "--apply"])
    assert again.exit_code == 0, again.output
    assert "run or retry them\nnothing to add" in again.output
    assert read_plan(tmp_path) == grown

"""What new runs of a plan cost, given the trunks that exist in its folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from isoflop.launch.run_folder import RunFolder
from isoflop.launch.trunks import Start, starts
from isoflop.plan.estimate import PlanEstimate
from isoflop.plan.planner import Plan
from isoflop.plan.trunks import flops_of_steps, trunks_of


@dataclass(frozen=True, kw_only=True, slots=True)
class NewRuns:
    """What a plan takes more with some runs than without them."""

    num_runs: int
    flops: int
    """Training FLOPs of these runs, as if each were trained alone."""
    flops_to_execute: int
    """What is to be executed more than without them: where a new run is the longest of its trunk,
    shorter ones that are not trained yet take less."""
    gpu_hours: float | None
    """Device-hours of that; None: there are no estimates."""
    num_there: int
    """New runs that begin at a state which lies in the folder."""
    num_coming: int
    """New runs that begin where a longer run is yet to pass."""
    num_left_nothing: int
    """New runs that are longer than all of a trunk that is done and has kept no state."""


def price_new_runs(
    folder: Path, plan: Plan, new: Collection[str], estimate: PlanEstimate | None
) -> NewRuns | None:
    """Return what new runs cost; None: the plan has no trunks.

    Args:
        folder: the study's folder, with what was trained before.
        plan: the plan with the new runs.
        new: their ids.
        estimate: of that plan; None: there is none.

    Raises:
        UserError: a damaged record of a run.
    """
    if not trunks_of(plan):
        return None
    old = dataclasses.replace(plan, runs=tuple(r for r in plan.runs if r.run_id not in new))
    before, after = starts(folder, old), starts(folder, plan)
    flops = {run.run_id: flops_of_steps(run, 1) for run in plan.unique_runs}
    hours = None
    if estimate is not None:
        hours = _hours(estimate, after) - _hours(estimate, before)
    begun = [after[run_id] for run_id in new if run_id in after and after[run_id].sibling]
    return NewRuns(
        num_runs=len(new),
        flops=sum(run.flops for run in plan.unique_runs if run.run_id in new),
        flops_to_execute=sum(flops[i] * start.num_left for i, start in after.items())
        - sum(flops[i] * start.num_left for i, start in before.items()),
        gpu_hours=hours,
        num_there=sum(start.is_there for start in begun),
        num_coming=sum(not start.is_there for start in begun),
        num_left_nothing=0 if plan.study.keep_trunks else _left_nothing(folder, plan, new, after),
    )


def _hours(estimate: PlanEstimate, left: Mapping[str, Start]) -> float:
    """Return the device-hours of the steps that are left, with the start-up of their runs."""
    begun = ((estimate.runs[run_id], start.num_left) for run_id, start in left.items())
    return sum(run.hours_of(num_left) or 0.0 for run, num_left in begun if num_left)


def _left_nothing(folder: Path, plan: Plan, new: Collection[str], left: Mapping[str, Start]) -> int:
    """Return how many new runs could begin at a state that was not kept of a run that is done."""
    number = 0
    for trunk in trunks_of(plan):
        ids = [run.run_id for run in trunk.runs]
        planned = [run_id for run_id in ids if run_id not in new]
        longer = [] if not planned else ids[ids.index(planned[-1]) + 1 :]
        without = [i for i in longer if i in left and left[i].sibling is None]
        if without and RunFolder(folder, planned[-1]).checked()[0] is not None:
            # The shorter of several begin where the longest of them passes.
            number += len(without)
    return number

"""More seeds where they count most: at the planned size nearest to each optimum."""

from __future__ import annotations

import dataclasses
import math

from isoflop.analysis.compare_interval import FitsLike, optima_by_group
from isoflop.analysis.optima import Method, Optimum
from isoflop.analysis.refine import Cell, Refinement
from isoflop.errors import UserError
from isoflop.numbers import format_flops
from isoflop.plan.diff import diff_plans
from isoflop.plan.extend import grow_plan
from isoflop.plan.planner import Plan
from isoflop.study import Study

_UNFINISHED = "missing"


def propose_seeds(
    plan: Plan, fits: FitsLike, num_seeds: int, *, method: Method = "parabola"
) -> Refinement:
    """Return a plan with ``num_seeds`` new seeds at one size of each arch and budget.

    It is the size nearest to the optimum in the logarithm of parameters; where the optimum is at an
    edge of its grid, the size at that edge; the only size where there is one. Where it has runs
    without a result, they come first and nothing is added.

    Raises:
        UserError: fewer than one seed is asked for.
    """
    if num_seeds < 1:
        raise UserError("--seeds", num_seeds, "1 or more", "correct it")
    unfinished = {e.run_id for e in fits.selection.excluded if e.reason == _UNFINISHED}
    study, reasons, dead_ends = plan.study, [], []
    for (arch, budget), optimum in optima_by_group(fits, "n_params", method).items():
        place = f"{arch} at {format_flops(budget)}"
        size = _nearest_size(plan, (arch, int(budget)), optimum)
        if size is None:
            dead_ends.append(f"{place}: no minimum ({optimum.status}), so no size to repeat")
        elif unfinished.intersection(_run_ids(plan, (arch, int(budget)), size)):
            dead_ends.append(f"{place}: runs of size {size} have no result: run or retry them")
        else:
            study, seeds = _with_seeds(study, (arch, int(budget)), size, num_seeds)
            reasons.append(f"{place}: add seed {_list(seeds)} to size {size}, {_where(optimum)}")
    grown = grow_plan(plan, study) if reasons else plan
    return Refinement(
        goal="seeds" if reasons else "nothing",
        reasons=tuple(reasons),
        dead_ends=tuple(dead_ends),
        plan=grown,
        difference=diff_plans(plan, grown),
    )


def _where(optimum: Optimum) -> str:
    if optimum.is_bound:
        return "at its edge"
    return "nearest to its optimum" if optimum.is_point else "its only one"


def _nearest_size(plan: Plan, cell: Cell, optimum: Optimum) -> int | None:
    """The planned size nearest to an optimum, or the only one; None where there is neither."""
    sizes = {run.size: run.n_params for run in plan.runs if (run.arch, run.budget_flops) == cell}
    if len(sizes) == 1:
        return next(iter(sizes))
    x_opt = optimum.x_opt
    if x_opt is None or not (optimum.is_point or optimum.is_bound) or not sizes:
        return None
    return min(sizes, key=lambda size: (abs(math.log(sizes[size] / x_opt)), size))


def _run_ids(plan: Plan, cell: Cell, size: int) -> set[str]:
    return {
        run.run_id for run in plan.runs if (run.arch, run.budget_flops) == cell and run.size == size
    }


def _with_seeds(study: Study, cell: Cell, size: int, num: int) -> tuple[Study, tuple[int, ...]]:
    """Return the study with the next free seeds at one size, and those seeds."""
    arch, budget = cell
    there = study.seeds_at(budget, arch, size)
    new = tuple(seed for seed in range(num + len(there)) if seed not in there)[:num]
    table = {b: {a: dict(by) for a, by in archs.items()} for b, archs in study.more_seeds.items()}
    own = table.setdefault(budget, {}).setdefault(arch, {})
    own[size] = (*own.get(size, ()), *new)
    ordered = {b: {a: table[b][a] for a in study.archs if a in table[b]} for b in sorted(table)}
    return dataclasses.replace(study, more_seeds=ordered), new


def _list(seeds: tuple[int, ...]) -> str:
    return ", ".join(map(str, seeds))

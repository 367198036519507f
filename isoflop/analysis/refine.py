"""Which runs to add: to turn edge optima into interior ones, halve the widest interval, add seeds.

The one part of the analysis that reads plans: a proposal is a plan that the study's plan grows
into, with what it costs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from isoflop.analysis.optima import Optimum
from isoflop.analysis.optima_methods import MIN_DISTINCT_SIZES
from isoflop.analysis.result import Fits
from isoflop.errors import UserError
from isoflop.numbers import format_flops
from isoflop.plan.edit import PlanDiff, diff_plans
from isoflop.plan.grow import compact, grow_plan, planned_rungs
from isoflop.plan.planner import Plan
from isoflop.study import Study

Goal = Literal["edges", "interval", "seeds", "nothing"]
Cell = tuple[str, int]
"""Arch and budget."""

# One rung may just reach the minimum; the second is on its far side.
EDGE_RUNGS = 2

# An interval shrinks with the square root of the number of runs: with so many to half, or to 0.6 by
# two_powers, whose slope is freer the more is known.
RUNS_TO_HALVE = 4

# Why a curve through enough sizes has no minimum that more of them would find.
_NO_MINIMUM: Mapping[str, str] = {
    "not_convex": "no minimum",
    "flat": "losses that do not differ by more than their noise",
    "below_data": "a curve far below every loss",
}

_LADDER_ENDS = (
    "[trainer.ladder] has no larger one: lengthen it, and plan a study of another name with it"
)

# Sizes further than this from the optimum, as a factor of parameters, hardly narrow its interval.
NEAR = 4.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Refinement:
    """Runs that are proposed, as a plan that the study's plan grows into."""

    goal: Goal
    reasons: tuple[str, ...]
    """A line for each thing that the proposal adds, and why."""
    dead_ends: tuple[str, ...]
    """A line for each finding that no run of this ladder and these budgets would help."""
    plan: Plan
    """The grown plan; the same as before where nothing is proposed."""
    difference: PlanDiff

    @property
    def is_empty(self) -> bool:
        """Whether nothing is proposed."""
        return self.difference.is_empty


@dataclass(slots=True)
class _Growth:
    """A plan as it grows, rung by rung."""

    before: Plan
    plan: Plan
    reasons: list[str]
    dead_ends: list[str]
    is_waiting: bool = False
    """Whether runs that are planned already may settle an edge."""

    def rungs(self, cell: Cell) -> list[int]:
        arch, budget = cell
        return sorted(
            {run.size for run in self.plan.runs if (run.arch, run.budget_flops) == (arch, budget)}
        )

    def try_rungs(self, cell: Cell, candidates: Sequence[int]) -> tuple[list[int], str | None]:
        """Add rungs while they can be planned; return them, and why the next one cannot."""
        added: list[int] = []
        for rung in candidates:
            try:
                self.plan = grow_plan(self.before, _with_rung(self.plan, cell, rung))
            except UserError as error:
                return added, str(error)
            added.append(rung)
        return added, None


def propose(plan: Plan, fits: Fits) -> Refinement:
    """Return the runs to add to a plan, judged by the optima over parameters.

    While any optimum is at an edge, or a cell has too few sizes, rungs on that side are proposed.
    Otherwise sizes near the optimum with the widest interval, and seeds, until its runs are four
    times as many.

    Args:
        plan: the study's plan.
        fits: its optima, with intervals where they can be had.

    Raises:
        UserError: the study cannot be planned here at all, as where its data are not prepared.
    """
    # What stands against every run is one error, not one a rung.
    grow_plan(plan, plan.study)
    growth = _Growth(before=plan, plan=plan, reasons=[], dead_ends=[])
    optima = [
        o
        for (arch, _), o in fits.optima_by_group("n_params").items()
        if arch in plan.study.archs and int(o.budget_flops) in plan.study.budgets
    ]
    for optimum in optima:
        _widen(growth, optimum)
    goal: Goal = "edges"
    if not growth.reasons and not growth.is_waiting:
        goal = "interval"
        _narrow(growth, [o for o in optima if o.is_point])
    return Refinement(
        goal=goal if growth.reasons else "nothing",
        reasons=tuple(growth.reasons),
        dead_ends=tuple(growth.dead_ends),
        plan=growth.plan,
        difference=diff_plans(plan, growth.plan),
    )


def _widen(growth: _Growth, optimum: Optimum) -> None:
    """Add rungs where an optimum is at an edge, or its cell was planned with too few sizes."""
    cell = (optimum.arch, int(optimum.budget_flops))
    rungs = growth.rungs(cell)
    if not rungs:
        return
    lower = list(range(rungs[0] - 1, max(0, rungs[0] - 1 - EDGE_RUNGS), -1))
    upper = list(range(rungs[-1] + 1, rungs[-1] + 1 + EDGE_RUNGS))
    trainer = growth.plan.study.trainer
    if trainer is not None and growth.plan.study.has_trainer(optimum.arch):
        upper = [rung for rung in upper if rung <= trainer.num_rungs]
    place = f"{optimum.arch} at {format_flops(optimum.budget_flops)}"
    if _is_waiting(growth.before, cell, optimum):
        growth.is_waiting = True
        growth.dead_ends.append(f"{place}: sizes beyond the edge are planned: run or retry them")
    elif optimum.status == "edge_low":
        why = f"{place}: the optimum is below the smallest size"
        _add(growth, cell, lower, why, "the ladder has no smaller one")
    elif optimum.status == "edge_high":
        _add(growth, cell, upper, f"{place}: the optimum is above the largest size")
    elif optimum.status == "too_few" and len(rungs) < MIN_DISTINCT_SIZES:
        around = upper[: MIN_DISTINCT_SIZES - len(rungs)]
        few = "1 size shows" if len(rungs) == 1 else f"{len(rungs)} sizes show"
        _add(growth, cell, around, f"{place}: {few} no minimum")
    elif optimum.status == "too_few":
        growth.dead_ends.append(
            f"{place}: {len(rungs)} sizes are planned, but too few have a result: run or retry them"
        )
    elif optimum.status in _NO_MINIMUM:
        what = _NO_MINIMUM[optimum.status]
        growth.dead_ends.append(f"{place}: {what}; look at the runs before adding any")


def _is_waiting(plan: Plan, cell: Cell, optimum: Optimum) -> bool:
    """Return whether sizes on the edge's side are planned and have no result."""
    if not optimum.is_bound or optimum.x_opt is None:
        return False
    planned = [r.n_params for r in plan.runs if (r.arch, r.budget_flops) == cell]
    beyond = min(planned) < optimum.x_opt * (1 - 1e-9)
    if optimum.status == "edge_high":
        beyond = max(planned) > optimum.x_opt * (1 + 1e-9)
    return beyond


def _add(
    growth: _Growth, cell: Cell, candidates: Sequence[int], why: str, end: str = _LADDER_ENDS
) -> None:
    """Add rungs, or say that there are none: what ends the ladder is in ``end``."""
    if not candidates:
        growth.dead_ends.append(f"{why}, and {end}")
        return
    added, refusal = growth.try_rungs(cell, candidates)
    if added:
        growth.reasons.append(f"{why}: add size {', '.join(map(str, sorted(added)))}")
    else:
        growth.dead_ends.append(f"{why}, and size {candidates[0]} cannot be planned ({refusal})")


def _narrow(growth: _Growth, interior: Sequence[Optimum]) -> None:
    """Add sizes and seeds that quarter the variance of the optimum with the widest interval."""
    if not interior:
        return
    widths = {id(o): _width(o) for o in interior}
    known = [o for o in interior if widths[id(o)] is not None]
    if not known:
        _more_seeds(growth, 1, "no optimum has an interval (too few runs each)")
        return
    widest = max(known, key=lambda o: (widths[id(o)] or 0.0, o.arch, o.budget_flops))
    cell = (widest.arch, int(widest.budget_flops))
    num_runs = len(growth.rungs(cell)) * len(growth.plan.study.seeds)
    factor = math.exp((widths[id(widest)] or 0.0) / 2)
    why = (
        f"the widest interval is {widest.arch}'s at {format_flops(widest.budget_flops)} "
        f"(a factor of {factor:.3g} either way)"
    )
    added, _ = growth.try_rungs(cell, _near(growth, cell, widest))
    if added:
        growth.reasons.append(f"{why}: add size {', '.join(map(str, sorted(added)))}")
    num_seeds = math.ceil(RUNS_TO_HALVE * num_runs / len(growth.rungs(cell)))
    if num_seeds > len(growth.plan.study.seeds):
        _more_seeds(growth, num_seeds - len(growth.plan.study.seeds), why)


def _near(growth: _Growth, cell: Cell, optimum: Optimum) -> list[int]:
    """Return rungs inside the cell's grid that are not planned and near the optimum."""
    assert optimum.x_opt is not None
    rungs = growth.rungs(cell)
    sizes = {r.size: r.n_params for r in growth.plan.runs if r.arch == cell[0]}
    gaps = [rung for rung in range(rungs[0], rungs[-1]) if rung not in rungs]
    return [
        rung
        for rung in gaps
        if rung not in sizes or abs(math.log(sizes[rung] / optimum.x_opt)) <= math.log(NEAR)
    ]


def _more_seeds(growth: _Growth, num: int, why: str) -> None:
    study = growth.plan.study
    fresh = [seed for seed in range(max(study.seeds) + 1 + num) if seed not in study.seeds][:num]
    grown = dataclasses.replace(study, seeds=(*study.seeds, *fresh))
    try:
        growth.plan = grow_plan(growth.before, grown)
    except UserError as error:
        growth.dead_ends.append(f"{why}, and seeds cannot be added ({error})")
        return
    growth.reasons.append(f"{why}: add seed {', '.join(map(str, fresh))} to every size")


def _width(optimum: Optimum) -> float | None:
    """Return ln of the upper over the lower end of the interval of an optimum."""
    if optimum.ci_lo is None or optimum.ci_hi is None:
        return None
    return math.log(optimum.ci_hi / optimum.ci_lo)


def _with_rung(plan: Plan, cell: Cell, rung: int) -> Study:
    """Return the study of a plan with one rung more in one cell."""
    arch, budget = cell
    table = planned_rungs(plan)
    table[budget][arch] = tuple(sorted({*table[budget][arch], rung}))
    sizes = {budget: compact(by_arch) for budget, by_arch in table.items()}
    return dataclasses.replace(plan.study, sizes=sizes, num_sizes=None)


_UNFINISHED = "missing"


def propose_seeds(plan: Plan, fits: Fits, num_seeds: int) -> Refinement:
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
    for (arch, budget), optimum in fits.optima_by_group("n_params").items():
        place = f"{arch} at {format_flops(budget)}"
        cell = (arch, int(budget))
        rung = _nearest_rung(plan, cell, optimum)
        if rung is None:
            dead_ends.append(f"{place}: no minimum ({optimum.status}), so no size to repeat")
        elif unfinished.intersection(_run_ids(plan, cell, rung)):
            dead_ends.append(f"{place}: runs of size {rung} have no result: run or retry them")
        else:
            study, seeds = _with_seeds(study, cell, rung, num_seeds)
            reasons.append(f"{place}: add seed {_list(seeds)} to size {rung}, {_where(optimum)}")
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


def _nearest_rung(plan: Plan, cell: Cell, optimum: Optimum) -> int | None:
    """Return the planned rung nearest to an optimum, or the only one; None without either."""
    sizes = {run.size: run.n_params for run in plan.runs if (run.arch, run.budget_flops) == cell}
    if len(sizes) == 1:
        return next(iter(sizes))
    x_opt = optimum.x_opt
    if x_opt is None or not (optimum.is_point or optimum.is_bound) or not sizes:
        return None
    return min(sizes, key=lambda rung: (abs(math.log(sizes[rung] / x_opt)), rung))


def _run_ids(plan: Plan, cell: Cell, rung: int) -> set[str]:
    return {
        run.run_id for run in plan.runs if (run.arch, run.budget_flops) == cell and run.size == rung
    }


def _with_seeds(study: Study, cell: Cell, rung: int, num: int) -> tuple[Study, tuple[int, ...]]:
    """Return the study with the next free seeds at one rung, and those seeds."""
    arch, budget = cell
    there = study.seeds_at(budget, arch, rung)
    new = tuple(seed for seed in range(num + len(there)) if seed not in there)[:num]
    table = {b: {a: dict(by) for a, by in archs.items()} for b, archs in study.more_seeds.items()}
    own = table.setdefault(budget, {}).setdefault(arch, {})
    own[rung] = (*own.get(rung, ()), *new)
    ordered = {b: {a: table[b][a] for a in study.archs if a in table[b]} for b in sorted(table)}
    return dataclasses.replace(study, more_seeds=ordered), new


def _list(seeds: tuple[int, ...]) -> str:
    return ", ".join(map(str, seeds))

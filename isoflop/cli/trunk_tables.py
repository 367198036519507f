"""What the runs of a plan share: a line below its table, a table of its own, lines on one run."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from typing import TYPE_CHECKING

from isoflop.cli.plan_tables import flops_text, percent_text, trunk_lines
from isoflop.cli.tables import fitted_table, new_table
from isoflop.numbers import format_flops
from isoflop.plan.trunks import (
    Trunk,
    branches_of,
    flops_of_steps,
    trunks_of,
)
from isoflop.spec import shown_id

if TYPE_CHECKING:
    from rich.table import Table

    from isoflop.plan.planner import Plan
    from isoflop.plan.runs import PlannedRun

HOW_TO_SWITCH_OFF = '`share = "none"` in the study trains each run alone, with the same results'

# More of them are shown as the first and the last, and how many there are.
_LISTED = 3
_TEXT = ("arch",)
_LEAST_WANTED = ("alone", "seeds")


def no_trunks_line(plan: Plan) -> str:
    """Return why there are no trunks to show."""
    if trunks_of(plan):
        return "no trunks of these runs"
    lines = trunk_lines(plan)
    if lines:
        return lines[0]
    own = plan.study.trainer is not None
    declared = ", or has a trainer that declares it in [trainer.branch]" if own else ""
    return (
        "no trunks: runs share one where they differ in steps alone and the recipe has a fixed "
        f"number of warm-up steps (micro-v3, paper-v1){declared}"
    )


def trunk_table(
    plan: Plan, width: int, run_ids: Collection[str] | None = None
) -> tuple[Table, tuple[str, ...]]:
    """Return a row for each trunk, those of several seeds in one.

    Args:
        plan: the whole plan.
        width: characters of the terminal.
        run_ids: only trunks of one of these runs; None: all.

    Returns:
        The table, and the names of the columns that did not fit.
    """
    archs: dict[str, dict[str, None]] = {}
    for run in plan.runs:
        archs.setdefault(run.run_id, {})[run.arch] = None
    groups: dict[Hashable, list[Trunk]] = {}
    for trunk in trunks_of(plan):
        if run_ids is None or any(run.run_id in run_ids for run in trunk.runs):
            labels = ", ".join(archs[trunk.longest.run_id])
            budgets = tuple(run.budget_flops for run in trunk.runs)
            key = (labels, trunk.longest.size, budgets, trunk.forks)
            groups.setdefault(key, []).append(trunk)
    rows = [_row(archs, trunks) for trunks in groups.values()]
    if not rows:
        return new_table(), ()
    return fitted_table(
        rows,
        width,
        least_wanted=_LEAST_WANTED,
        text=_TEXT,
        groups=[row["arch"] for row in rows],
    )


def _row(archs: dict[str, dict[str, None]], trunks: Sequence[Trunk]) -> dict[str, str]:
    first = trunks[0]
    alone = sum(trunk.flops for trunk in trunks)
    saved = sum(trunk.flops_saved for trunk in trunks)
    return {
        "arch": ", ".join(archs[first.longest.run_id]),
        "size": str(first.longest.size),
        "seeds": _listed([str(trunk.longest.spec.seed) for trunk in trunks]),
        "budgets": _listed([flops_text(run.budget_flops) for run in first.runs]),
        "forks at step": _listed([f"{fork:,}" for _, fork in first.branches], between="; "),
        "alone": flops_text(alone),
        "executed": flops_text(alone - saved),
        "saved": percent_text(saved, alone),
    }


def _listed(values: Sequence[str], between: str = ", ") -> str:
    if len(values) <= _LISTED:
        return between.join(values)
    return f"{values[0]}–{values[-1]} ({len(values)})"


def run_trunk_lines(plan: Plan, run: PlannedRun) -> list[str]:
    """Return what a run shares: where it begins, and which runs leave it; none if nothing."""
    trunk = next((t for t in trunks_of(plan) if run.run_id in {r.run_id for r in t.runs}), None)
    if trunk is None:
        return []
    shorter = [(r, fork) for r, fork in trunk.branches if r.spec.steps < run.spec.steps]
    lines = ["", "trunk"]
    branch = branches_of([trunk]).get(run.run_id)
    if branch is None:
        lines.append(f"  trained from its first step: the longest of {len(trunk.runs)} runs")
    else:
        fork = branch[1]
        shared = flops_of_steps(run, fork)
        lines += [
            f"  begins at step {fork:,} of {run.spec.steps:,}, its fork, from the state of a "
            f"longer run (the longest: {_named(trunk.longest)})",
            f"  {flops_text(run.flops - shared)} of {flops_text(run.flops)} FLOPs are executed for "
            "it alone; its result, its FLOPs and its hours are those of a run trained alone",
        ]
    lines += [f"  {_named(left)} begins from its state at step {fork:,}" for left, fork in shorter]
    return lines


def _named(run: PlannedRun) -> str:
    return f"{shown_id(run.run_id)} at {format_flops(run.budget_flops)}"

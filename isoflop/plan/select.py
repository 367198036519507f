"""Finds runs in a plan: by id, by what they are, in any order."""

from __future__ import annotations

from collections.abc import Sequence

from isoflop.errors import UserError, shown
from isoflop.numbers import format_flops
from isoflop.plan.planner import Plan
from isoflop.plan.runs import PlannedRun
from isoflop.spec import shown_id
from isoflop.tables import PLAN

_LIST_RUNS = "`isoflop show FOLDER` lists them"
_SHOWN_MATCHES = 3


def find_run(plan: Plan, prefix: str) -> tuple[PlannedRun, ...]:
    """The run whose id starts with ``prefix``: an entry for each place that it has in the plan.

    Raises:
        UserError: no run's id starts so, or several do.
    """
    matching = [run for run in plan.runs if prefix and run.run_id.startswith(prefix.lower())]
    ids = list(dict.fromkeys(run.run_id for run in matching))
    if len(ids) == 1:
        return tuple(matching)
    if not ids:
        raise UserError("run", prefix, "the first digits of a run id in the plan", _LIST_RUNS)
    names = ", ".join(shown_id(run_id) for run_id in ids[:_SHOWN_MATCHES])
    more = f" and {len(ids) - _SHOWN_MATCHES} more" if len(ids) > _SHOWN_MATCHES else ""
    raise UserError("run", prefix, f"the start of one id (now {names}{more})", "give more digits")


def filter_runs(
    plan: Plan,
    *,
    archs: Sequence[str] = (),
    budgets: Sequence[int] = (),
    sizes: Sequence[int] = (),
) -> tuple[PlannedRun, ...]:
    """Return the runs with one of each kind of value given, in the plan's order; no values: any.

    Raises:
        UserError: a value that no run of the plan has, or no run that has them together.
    """
    _check_there("--arch", archs, [run.arch for run in plan.runs])
    there = [format_flops(run.budget_flops, digits=17) for run in plan.runs]
    _check_there("--budget", [format_flops(b, digits=17) for b in budgets], there)
    _check_there("--size", sizes, sorted(run.size for run in plan.runs))
    found = tuple(
        run
        for run in plan.runs
        if (not archs or run.arch in archs)
        and (not budgets or run.budget_flops in budgets)
        and (not sizes or run.size in sizes)
    )
    if not found:
        raise UserError(
            "filter", shown("these together"), "had by one run or more", "leave out one of them"
        )
    return found


def sort_runs(
    runs: Sequence[PlannedRun], column: str, *, descending: bool = False
) -> tuple[PlannedRun, ...]:
    """Run sorted by a column of plan.parquet; equal ones keep their order, nulls come last.

    Raises:
        UserError: there is no such column.
    """
    if column not in PLAN.names:
        raise UserError("--sort", column, f"one of {', '.join(PLAN.names)}", "correct it")
    values = [(run.row()[column], run) for run in runs]
    known = [(value, run) for value, run in values if value is not None]
    known.sort(key=lambda pair: pair[0], reverse=descending)
    return tuple(run for _, run in known) + tuple(run for value, run in values if value is None)


def _check_there(name: str, asked: Sequence[object], there: Sequence[object]) -> None:
    for value in asked:
        if value not in there:
            distinct = ", ".join(str(known) for known in dict.fromkeys(there))
            raise UserError(name, shown(str(value)), f"one of {distinct}", "correct it")

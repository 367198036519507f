"""What is looked for in plans that are there: some of a plan's runs, the way to another plan."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from isoflop.errors import UserError, shown
from isoflop.numbers import format_flops
from isoflop.plan.artefact import read_plan, read_plan_file
from isoflop.plan.planner import Plan
from isoflop.plan.runs import PlannedRun
from isoflop.plan.trunks import flops_executed
from isoflop.spec import shown_id
from isoflop.tables import PLAN

_LIST_RUNS = "`isoflop show FOLDER` lists them"
_SHOWN_MATCHES = 3


def find_run(plan: Plan, prefix: str) -> tuple[PlannedRun, ...]:
    """Return the run whose id starts with ``prefix``, once for each place it has in the plan.

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
    _check_archs("--arch", archs, plan)
    _check_budgets("--budget", budgets, plan)
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


def select_runs(
    plan: Plan,
    prefixes: Sequence[str] = (),
    *,
    archs: Sequence[str] = (),
    budgets: Sequence[int] = (),
) -> set[str] | None:
    """Return ids of the runs that a command is for; None: of all, as none of these is given.

    Args:
        plan: the plan.
        prefixes: run ids or their first digits.
        archs: of the runs; any, where none is given.
        budgets: likewise.

    Raises:
        UserError: a run, arch or budget that the plan does not have, or none that has all of these.
    """
    if not (prefixes or archs or budgets):
        return None
    _check_archs("--archs", archs, plan)
    _check_budgets("--budgets", budgets, plan)
    named = {find_run(plan, prefix)[0].run_id for prefix in prefixes}
    # A run may stand in a plan more than once, under other archs.
    found = {
        run.run_id
        for run in plan.runs
        if (not prefixes or run.run_id in named)
        and (not archs or run.arch in archs)
        and (not budgets or run.budget_flops in budgets)
    }
    if not found:
        raise UserError(
            "runs", shown("these together"), "had by one run or more", "leave out one of them"
        )
    return found


def sort_runs(
    runs: Sequence[PlannedRun], column: str, *, descending: bool = False
) -> tuple[PlannedRun, ...]:
    """Return runs sorted by a column of plan.parquet; equal ones keep their order, nulls last.

    Raises:
        UserError: there is no such column.
    """
    if column not in PLAN.names:
        raise UserError("--sort", column, f"one of {', '.join(PLAN.names)}", "correct it")
    values = [(run.row()[column], run) for run in runs]
    known = [(value, run) for value, run in values if value is not None]
    known.sort(key=lambda pair: pair[0], reverse=descending)
    return tuple(run for _, run in known) + tuple(run for value, run in values if value is None)


def _check_archs(option: str, archs: Sequence[str], plan: Plan) -> None:
    there = list(dict.fromkeys(run.arch for run in plan.runs))
    for arch in archs:
        near = get_close_matches(arch, there, n=1)
        _check_there(option, [arch], there, f"write {near[0]}" if near else "correct it")


def _check_budgets(option: str, budgets: Sequence[int], plan: Plan) -> None:
    there = list(dict.fromkeys(run.budget_flops for run in plan.runs))
    names = [format_flops(budget, digits=17) for budget in there]
    for budget in budgets:
        near = min(there, key=lambda known: abs(math.log(known / budget)))
        do = f"write {format_flops(near, digits=17)}"
        _check_there(option, [format_flops(budget, digits=17)], names, do)


def _check_there(
    option: str, asked: Sequence[object], there: Sequence[object], do: str = "correct it"
) -> None:
    for value in asked:
        if value not in there:
            distinct = ", ".join(str(known) for known in dict.fromkeys(there))
            raise UserError(option, shown(str(value)), f"one of {distinct}", do)


Place = tuple[int, str, int, int]
"""Budget, arch, size and seed of a run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Changed:
    """A place in both plans whose run is another one."""

    before: PlannedRun
    after: PlannedRun

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of the identity that differ; those of the configuration by dotted name."""
        old, new = _flat(self.before), _flat(self.after)
        return tuple(name for name in {**old, **new} if old.get(name) != new.get(name))


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanDiff:
    """The way from one plan to another. A place is a budget, arch, size and seed."""

    same: tuple[PlannedRun, ...]
    """Places with the same run in both."""
    changed: tuple[Changed, ...]
    """Places in both with another run."""
    added: tuple[PlannedRun, ...]
    """Places of the later plan only."""
    removed: tuple[PlannedRun, ...]
    """Places of the earlier plan only."""
    common_ids: frozenset[str]
    """Run ids in both plans: an added run among them is the same training under another label."""
    study: tuple[tuple[str, Any, Any], ...]
    """Entries of the resolved study that differ: (name, before, after)."""
    flops: tuple[int, int]
    """Training FLOPs of all runs, each counted once, each plan under its own convention."""
    new_flops: int
    """Training FLOPs of the later plan's runs that the earlier plan does not have."""
    flops_executed: tuple[int, int]
    """Of these, what is executed: what runs of a trunk share counts once."""
    gpu_hours: tuple[float, float] | None
    """Estimated device-hours; None unless both plans have them for the same hardware."""

    @property
    def new_ids(self) -> frozenset[str]:
        """Ids of runs that the later plan alone has."""
        ids = {run.run_id for run in self.added} | {change.after.run_id for change in self.changed}
        return frozenset(ids - self.common_ids)

    @property
    def is_empty(self) -> bool:
        """Whether the two plans say the same."""
        return not (self.changed or self.added or self.removed or self.study)


def load_plan(path: Path) -> Plan:
    """Return the plan of a study folder, or of a plan.json wherever it lies.

    Raises:
        UserError: as :func:`isoflop.plan.artefact.read_plan`.
    """
    return read_plan_file(path) if path.is_file() else read_plan(path)


def diff_plans(before: Plan, after: Plan, gpu_hours: tuple[float, float] | None = None) -> PlanDiff:
    """Compare two plans, place by place, and the studies they were made from.

    Args:
        before: the earlier plan.
        after: the later plan.
        gpu_hours: what each is estimated to take on the same hardware, where known.
    """
    old, new = _by_place(before), _by_place(after)
    old_ids = {run.run_id for run in before.runs}
    both = [(old[place], run) for place, run in new.items() if place in old]
    return PlanDiff(
        same=tuple(b for a, b in both if a.run_id == b.run_id),
        changed=tuple(Changed(before=a, after=b) for a, b in both if a.run_id != b.run_id),
        added=tuple(run for place, run in new.items() if place not in old),
        removed=tuple(run for place, run in old.items() if place not in new),
        common_ids=frozenset(old_ids & {run.run_id for run in after.runs}),
        study=_study_changes(before, after),
        flops=(_flops(before.unique_runs), _flops(after.unique_runs)),
        new_flops=_flops(run for run in after.unique_runs if run.run_id not in old_ids),
        flops_executed=(flops_executed(before), flops_executed(after)),
        gpu_hours=gpu_hours,
    )


def _by_place(plan: Plan) -> dict[Place, PlannedRun]:
    return {(run.budget_flops, run.arch, run.size, run.spec.seed): run for run in plan.runs}


def _flat(run: PlannedRun) -> dict[str, Any]:
    values = run.spec.to_json()
    tables = [name for name, value in values.items() if isinstance(value, dict)]
    inside = {f"{t}.{name}": value for t in tables for name, value in values[t].items()}
    return {name: value for name, value in values.items() if name not in tables} | inside


def _study_changes(before: Plan, after: Plan) -> tuple[tuple[str, Any, Any], ...]:
    old, new = _entries(before), _entries(after)
    # An entry may be left out: None stands for it.
    names = {**old, **new}
    return tuple(
        (name, old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)
    )


def _entries(plan: Plan) -> dict[str, Any]:
    """Return the entries of a plan's study; those of its trainer and archs by dotted names."""
    values = plan.study.to_json()
    trainer = values.pop("trainer", {})
    for arch in values.pop("trainer_archs", ()):
        values |= {f"arch.{arch['name']}.{name}": value for name, value in arch.items()}
    inner = {"result": trainer.pop("result", {}), "ladder": trainer.pop("ladder", {})}
    values |= {f"trainer.{name}": value for name, value in trainer.items()}
    for table, entries in inner.items():
        values |= {f"trainer.{table}.{name}": value for name, value in entries.items()}
    return values


def _flops(runs: Iterable[PlannedRun]) -> int:
    return sum(run.flops for run in runs)

"""What is done with a plan that is there: find runs in it, compare it with another, grow it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from isoflop.errors import UserError, shown
from isoflop.numbers import format_flops
from isoflop.plan.artefact import read_plan, read_plan_file, replace_plan
from isoflop.plan.auto import Grid
from isoflop.plan.models import Models
from isoflop.plan.planner import Plan, make_plan
from isoflop.plan.runs import PlannedRun
from isoflop.spec import shown_id
from isoflop.study import SIZES_DEFAULT, SizeTable, Study
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
    gpu_hours: tuple[float, float] | None
    """Estimated device-hours; None unless both plans have them for the same hardware."""

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
        gpu_hours=gpu_hours,
    )


def _by_place(plan: Plan) -> dict[Place, PlannedRun]:
    return {(run.budget_flops, run.arch, run.size, run.spec.seed): run for run in plan.runs}


def _flat(run: PlannedRun) -> dict[str, Any]:
    values = run.spec.to_json()
    config = values.pop("config")
    return values | {f"config.{name}": value for name, value in config.items()}


def _study_changes(before: Plan, after: Plan) -> tuple[tuple[str, Any, Any], ...]:
    old, new = before.study.to_json(), after.study.to_json()
    # An entry may be left out: None stands for it.
    names = {**old, **new}
    return tuple(
        (name, old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)
    )


def _flops(runs: Iterable[PlannedRun]) -> int:
    return sum(run.flops for run in runs)


# What may differ between a plan and the one that it grows into.
GROWS = ("budgets", "seeds", "more_seeds", "sizes", "num_sizes")

Sizes = tuple[int, ...] | SizeTable | str | None

Rungs = dict[int, dict[str, tuple[int, ...]]]
"""By budget and arch (`default` where all archs have the same)."""


def extend_folder(
    folder: Path,
    *,
    budgets: Sequence[int] = (),
    seeds: Sequence[int] = (),
    sizes: Sequence[int] = (),
    at: Sequence[int] = (),
) -> tuple[Plan, PlanDiff]:
    """Grow the plan of a study folder and write it; results and run folders are left alone.

    The old plan is not kept: every run of it is in the new one, unchanged.

    Returns:
        The new plan, and what is new in it; an empty difference means that nothing was written.

    Raises:
        UserError: as :func:`extend_plan`, or the folder holds no sound plan; nothing is written.
    """
    before = read_plan(folder, with_code=True)
    after = extend_plan(before, budgets=budgets, seeds=seeds, sizes=sizes, at=at)
    difference = diff_plans(before, after)
    if not difference.is_empty:
        replace_plan(after, folder)
    return after, difference


def extend_plan(
    plan: Plan,
    *,
    budgets: Sequence[int] = (),
    seeds: Sequence[int] = (),
    sizes: Sequence[int] = (),
    at: Sequence[int] = (),
) -> Plan:
    """Return the plan with more budgets, seeds and sizes, as if always asked for.

    What is asked for and there already is no mistake, so a command can be repeated. A new budget
    takes the rungs that the study names for all budgets, or the recipe's; where the study has a
    table of sizes by budget, ``sizes`` must give them.

    Args:
        plan: what there is.
        budgets: training FLOPs per run to add, in any order.
        seeds: seeds to add.
        sizes: rungs to add, for every arch.
        at: budgets, old or new, at which ``sizes`` are added; empty: all.

    Raises:
        UserError: nothing to add, a value that the study refuses, or a run that would go or change.
    """
    _need_code(plan)
    if not (budgets or seeds or sizes):
        raise UserError(
            "extend", None, "given something to add", "add --budgets, --seeds or --sizes"
        )
    if plan.study.epochs and (budgets or sizes):
        raise UserError(
            "extend",
            "--budgets or --sizes",
            "--seeds alone where the study is set by epochs",
            "plan a study of another name",
        )
    study = dataclasses.replace(
        plan.study,
        budgets=tuple(sorted({*plan.study.budgets, *budgets})),
        seeds=_with(plan.study.seeds, seeds),
        # Of a study set by epochs they stay; else they are worked out below.
        sizes=plan.study.sizes if plan.study.epochs else None,
        num_sizes=None,
    )
    _check_at(study, sizes, at)
    grown = _grown_sizes(plan, study, sizes, at)
    num_sizes = plan.study.num_sizes if grown == plan.study.sizes else None
    return grow_plan(plan, dataclasses.replace(study, sizes=grown, num_sizes=num_sizes))


def add_budget(plan: Plan, budget_flops: int, n_params: Mapping[str, float]) -> Plan:
    """Return the plan with one budget more, whose sizes lie about given models.

    As many of each arch as it has at the largest budget of the plan, as far as its ladder reaches,
    spread as an ``auto`` grid.

    Args:
        plan: what there is; without that budget.
        budget_flops: training FLOPs per run.
        n_params: parameters of the model in the middle, for every arch of the study.

    Raises:
        UserError: a model is beyond its ladder, or as :func:`grow_plan`.
    """
    _need_code(plan)
    largest = max(run.budget_flops for run in plan.runs)
    table = planned_rungs(plan)
    study = dataclasses.replace(
        plan.study,
        budgets=tuple(sorted({*plan.study.budgets, budget_flops})),
        sizes=None,
        num_sizes=None,
    )
    models = Models(study, plan.runs[0].spec.vocab_size)
    table[budget_flops] = {}
    for arch in study.archs:
        grid = Grid(study, models, budget_flops, arch)
        num_sizes = len(table[largest][arch])
        table[budget_flops][arch] = grid.sizes(num_sizes, grid.rung_of(n_params[arch]))
    sizes = {budget: compact(table[budget]) for budget in study.budgets}
    return grow_plan(plan, dataclasses.replace(study, sizes=sizes))


def grow_plan(plan: Plan, study: Study) -> Plan:
    """Return the plan of a study that asks for all of an older plan's runs, and more.

    Raises:
        UserError: an entry of the study other than budgets, seeds and sizes differs; a run of the
            older plan is missing in the new one or is another there; or the source of a family from
            outside the package has changed, or was not imported.
    """
    _need_code(plan)
    for field in dataclasses.fields(Study):
        there, asked = getattr(plan.study, field.name), getattr(study, field.name)
        if field.name not in GROWS and there != asked:
            raise UserError(
                field.name, asked, f"{there!r}, as planned", "plan a study of another name"
            )
    grown = make_plan(study)
    difference = diff_plans(plan, grown)
    gone = [*difference.removed, *(change.before for change in difference.changed)]
    if gone:
        run = gone[0]
        what = (
            f"{run.arch} size {run.size} seed {run.spec.seed} at {format_flops(run.budget_flops)}"
        )
        raise UserError(
            "extend",
            shown(what),
            f"planned as before ({len(gone)} runs would go or change)",
            "only add; or plan a study of another name",
        )
    for family, digest in plan.family_digests.items():
        now = grown.family_digests.get(family)
        if now != digest:
            raise UserError(
                f"family {family}",
                now,
                f"the one that was planned ({digest})",
                "restore its source, or plan a study of another name",
            )
    return grown


def _need_code(plan: Plan) -> None:
    """Refuse to plan more runs of families whose code was not imported when the plan was read."""
    if plan.stated_families:
        raise UserError(
            "families",
            shown(", ".join(plan.stated_families)),
            "imported to plan more of their runs: they are from outside the package",
            "add --with-code, which imports them if their sources are those that were planned",
        )


def _with(there: Sequence[int], new: Sequence[int]) -> tuple[int, ...]:
    return tuple(dict.fromkeys((*there, *new)))


def _check_at(study: Study, sizes: Sequence[int], at: Sequence[int]) -> None:
    if at and not sizes:
        raise UserError("--at", shown(_list(at)), "given together with --sizes", "add --sizes")
    for budget in at:
        if budget not in study.budgets:
            raise UserError(
                "--at",
                shown(format_flops(budget)),
                f"budgets of the plan ({_list(study.budgets)})",
                "correct it, or add it under --budgets too",
            )


def _grown_sizes(plan: Plan, study: Study, sizes: Sequence[int], at: Sequence[int]) -> Sizes:
    """Return the `sizes` entry of the grown study."""
    old = plan.study.sizes
    if not sizes and not isinstance(old, Mapping):
        return old
    new_budgets = [budget for budget in study.budgets if budget not in plan.study.budgets]
    if not sizes and not new_budgets:
        return old
    if isinstance(old, tuple) and not at:
        return tuple(sorted({*old, *sizes}))
    table = planned_rungs(plan)
    if isinstance(old, Mapping):
        table |= {budget: {} for budget in new_budgets}
    elif new_budgets:
        table |= planned_rungs(make_plan(_open_sizes(plan, study)))
    for budget in at or study.budgets:
        for arch in study.archs:
            table[budget][arch] = tuple(sorted({*table[budget].get(arch, ()), *sizes}))
    for budget in new_budgets:
        if not all(table[budget].get(arch) for arch in study.archs):
            raise UserError(
                "--sizes",
                None,
                f"given for the new budget {format_flops(budget)} (the study names its sizes by "
                "budget)",
                f"add --sizes 3,4,5 --at {format_flops(budget)}",
            )
    return {budget: compact(table[budget]) for budget in study.budgets}


def _open_sizes(plan: Plan, study: Study) -> Study:
    """Return the grown study with the sizes as the old one left them to the recipe."""
    return dataclasses.replace(study, sizes=plan.study.sizes, num_sizes=plan.study.num_sizes)


def planned_rungs(plan: Plan) -> Rungs:
    """Return the rungs that a plan has, by budget and arch, however its study came by them."""
    found: dict[int, dict[str, dict[int, None]]] = {}
    for run in plan.runs:
        found.setdefault(run.budget_flops, {}).setdefault(run.arch, {})[run.size] = None
    return {
        budget: {arch: tuple(rungs) for arch, rungs in by_arch.items()}
        for budget, by_arch in found.items()
    }


def compact(by_arch: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return one `default` entry where all archs have the same rungs."""
    different = set(by_arch.values())
    return {SIZES_DEFAULT: different.pop()} if len(different) == 1 else by_arch


def _list(budgets: Sequence[int]) -> str:
    return ", ".join(map(format_flops, budgets))

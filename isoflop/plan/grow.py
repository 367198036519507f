"""How a plan that is there grows: more budgets, seeds and sizes; no run goes or changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from isoflop.code_folder import Code
from isoflop.errors import UserError, shown
from isoflop.numbers import format_flops
from isoflop.plan.artefact import read_plan, replace_plan
from isoflop.plan.auto import Grid
from isoflop.plan.edit import PlanDiff, diff_plans
from isoflop.plan.models import Models
from isoflop.plan.own import check_unchanged, nearest_rungs
from isoflop.plan.planner import Plan, make_plan
from isoflop.spec import RunSpec
from isoflop.study import SIZES_DEFAULT, SizeTable, Study

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
    code = _planned_code(plan)
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
    grown = _grown_sizes(plan, study, sizes, at, code)
    num_sizes = plan.study.num_sizes if grown == plan.study.sizes else None
    return _grow(plan, dataclasses.replace(study, sizes=grown, num_sizes=num_sizes), code)


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
    code = _planned_code(plan)
    largest = max(run.budget_flops for run in plan.runs)
    table = planned_rungs(plan)
    study = dataclasses.replace(
        plan.study,
        budgets=tuple(sorted({*plan.study.budgets, budget_flops})),
        sizes=None,
        num_sizes=None,
    )
    vocab_sizes = {r.spec.vocab_size for r in plan.runs if isinstance(r.spec, RunSpec)}
    models = Models(study, vocab_sizes.pop()) if vocab_sizes else None
    table[budget_flops] = {}
    for arch in study.archs:
        num_sizes = len(table[largest][arch])
        if models is None or study.has_trainer(arch):
            sizes = nearest_rungs(plan.counts, arch, n_params[arch], num_sizes)
        else:
            grid = Grid(study, models, budget_flops, arch)
            sizes = grid.sizes(num_sizes, grid.rung_of(n_params[arch]))
        table[budget_flops][arch] = sizes
    by_budget = {budget: compact(table[budget]) for budget in study.budgets}
    return _grow(plan, dataclasses.replace(study, sizes=by_budget), code)


def grow_plan(plan: Plan, study: Study) -> Plan:
    """Return the plan of a study that asks for all of an older plan's runs, and more.

    Raises:
        UserError: an entry of the study other than budgets, seeds and sizes differs; a run of the
            older plan is missing in the new one or is another there; or the source of a family from
            outside the package has changed, or was not imported.
    """
    return _grow(plan, study, _planned_code(plan))


def _grow(plan: Plan, study: Study, code: Code | None) -> Plan:
    for field in dataclasses.fields(Study):
        there, asked = getattr(plan.study, field.name), getattr(study, field.name)
        if field.name not in GROWS and there != asked:
            raise UserError(
                field.name, asked, f"{there!r}, as planned", "plan a study of another name"
            )
    grown = make_plan(study, code)
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


def _planned_code(plan: Plan) -> Code | None:
    """Return the code of the plan's own trainer, before anything of it is imported.

    Raises:
        UserError: it is not what was planned, or code was not to be used when the plan was read.
    """
    trainer = plan.study.trainer
    if trainer is not None and not plan.with_code:
        allowed = "used to plan more runs: models are counted by importing it"
        do = "add --with-code, which imports it if it is what was planned"
        raise UserError("trainer.code", trainer.code, allowed, do)
    if plan.stated_families:
        raise UserError(
            "families",
            shown(", ".join(plan.stated_families)),
            "imported to plan more of their runs: they are from outside the package",
            "add --with-code, which imports them if their sources are those that were planned",
        )
    return None if trainer is None else check_unchanged(plan.code, trainer)


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


def _grown_sizes(
    plan: Plan, study: Study, sizes: Sequence[int], at: Sequence[int], code: Code | None
) -> Sizes:
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
        table |= planned_rungs(make_plan(_open_sizes(plan, study), code))
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

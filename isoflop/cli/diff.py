"""`isoflop diff`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from isoflop.cli.tables import console, print_lines
from isoflop.numbers import format_flops
from isoflop.spec import shown_id

if TYPE_CHECKING:
    from isoflop.plan.edit import PlanDiff
    from isoflop.plan.runs import PlannedRun

# A longer list says how many more there are; plan.json has them all.
_MAX_LISTED = 40


@click.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
def diff(a: Path, b: Path) -> None:
    """Say what plan B adds to, removes from and changes in plan A, and what that costs.

    A and B are study folders or plan.json files.
    """
    from isoflop.plan.edit import diff_plans, load_plan
    from isoflop.plan.estimate import load_estimates
    from isoflop.plan.estimate.stored import same_hardware_hours

    before, after = load_plan(a), load_plan(b)
    estimates = [load_estimates(path if path.is_dir() else path.parent) for path in (a, b)]
    conventions = (before.study.convention, after.study.convention)
    difference = diff_plans(before, after, same_hardware_hours(*estimates))
    print_lines(console(), diff_lines(difference, conventions))


def diff_lines(difference: PlanDiff, conventions: tuple[str, str]) -> list[str]:
    """Return a difference of two plans as lines: study, runs, cost."""
    if difference.is_empty:
        return [f"the same plan, {len(difference.same)} runs"]
    lines = [
        f"study.{name}: {_study_value(name, before)} -> {_study_value(name, after)}"
        for name, before, after in difference.study
    ]
    lines += _listed(_changed_lines(difference))
    for sign, runs in (("-", difference.removed), ("+", difference.added)):
        lines += _listed(
            [_run_line(sign, run, run.run_id in difference.common_ids) for run in runs]
        )
    lines.append(
        f"{len(difference.same)} runs unchanged, {len(difference.changed)} changed, "
        f"{len(difference.added)} added, {len(difference.removed)} removed"
    )
    return lines + _cost_lines(difference, conventions)


def _changed_lines(difference: PlanDiff) -> list[str]:
    return [
        f"~ {_what(change.after)}: {shown_id(change.before.run_id)} -> "
        f"{shown_id(change.after.run_id)} ({', '.join(change.fields)})"
        for change in difference.changed
    ]


def _run_line(sign: str, run: PlannedRun, is_common: bool) -> str:
    note = "  (in both plans, under another label)" if is_common else ""
    flops = format_flops(run.flops, digits=3)
    return f"{sign} {_what(run)}: {shown_id(run.run_id)}, {flops} FLOPs{note}"


def _what(run: PlannedRun) -> str:
    budget = format_flops(run.budget_flops)
    return f"{budget} {run.arch} size {run.size} seed {run.spec.seed}"


def _listed(lines: list[str]) -> list[str]:
    if len(lines) <= _MAX_LISTED:
        return lines
    return [*lines[:_MAX_LISTED], f"{lines[0][0]} … and {len(lines) - _MAX_LISTED} more"]


def _study_value(name: str, value: Any) -> str:
    """Return an entry of the study as a person would type it, budgets as 1e17."""
    if name == "budgets":
        value = [format_flops(budget, digits=17) for budget in value]
    if name in ("sizes", "more_seeds") and isinstance(value, dict):
        return "; ".join(
            f"{format_flops(int(budget), digits=17)}: {_study_value('', by_arch)}"
            for budget, by_arch in value.items()
        )
    if isinstance(value, list) and not any(isinstance(entry, dict) for entry in value):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key} {entry}" for key, entry in value.items())
    if name == "share" and value is None:
        return "as the recipe allows"
    return "none" if value in (None, []) else str(value)


def _flops(flops: int) -> str:
    return format_flops(flops, digits=4) if flops else "0"


def _executed_lines(difference: PlanDiff, *, is_comparable: bool) -> list[str]:
    """Return what is executed of the FLOPs of both plans, where trunks are shared in one."""
    if difference.flops_executed == difference.flops:
        return []
    before, after = difference.flops_executed
    change = after - before
    sign = "+" if change >= 0 else "-"
    by = f" ({sign}{_flops(abs(change))})" if is_comparable else ""
    return [f"executed, if trained from nothing: {_flops(before)} -> {_flops(after)}{by}"]


def _cost_lines(difference: PlanDiff, conventions: tuple[str, str]) -> list[str]:
    before, after = difference.flops
    shown = [_flops(flops) for flops in (before, after)]
    if conventions[0] != conventions[1]:
        lines = [
            f"training FLOPs: {shown[0]} ({conventions[0]}) -> {shown[1]} ({conventions[1]}); two "
            "conventions do not compare"
        ]
    else:
        sign = "+" if after >= before else "-"
        lines = [f"training FLOPs: {shown[0]} -> {shown[1]} ({sign}{_flops(abs(after - before))})"]
    lines += _executed_lines(difference, is_comparable=conventions[0] == conventions[1])
    lines.append(f"to train that the first plan does not have: {_flops(difference.new_flops)}")
    if difference.gpu_hours is not None:
        old, new = difference.gpu_hours
        lines.append(f"device-hours (estimates): {old:,.1f} -> {new:,.1f} ({new - old:+,.1f})")
    return lines

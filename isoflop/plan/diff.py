"""What changed between two plans: runs added, removed and changed, and what it costs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isoflop.plan.artefact import read_plan, read_plan_file
from isoflop.plan.planner import Plan
from isoflop.plan.runs import PlannedRun

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

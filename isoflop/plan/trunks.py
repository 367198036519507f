"""Trunks: runs that are one training until the shorter one's learning rate falls.

Under a warm-up of a fixed number of steps, a constant phase and a decay, runs of one model, seed,
batch and data that differ in their steps alone have the same state until the shorter one begins to
decay: each step's batch follows from its number, and so does its learning rate until then. What
they have in common is their trunk. The longest of them is trained from its first step to its last;
every other one, a branch, begins at its fork, the last state before its decay. What a run is, and
what comes of it, does not change.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter

from isoflop.plan.planner import Plan
from isoflop.plan.runs import PlannedRun
from isoflop.recipe import get_recipe
from isoflop.spec import AnySpec, RunSpec, TrainerSpec
from isoflop.study import Study
from isoflop.study.trainer import OF_LENGTH, filled


@dataclass(frozen=True, kw_only=True, slots=True)
class Trunk:
    """Runs that differ in their steps alone, and how far their training is the same."""

    runs: tuple[PlannedRun, ...]
    """The shortest first."""
    forks: tuple[int, ...]
    """By run: the completed steps up to which every longer one is the same training."""

    @property
    def longest(self) -> PlannedRun:
        """The run that is trained from its first step to its last."""
        return self.runs[-1]

    @property
    def branches(self) -> tuple[tuple[PlannedRun, int], ...]:
        """The other runs, each with the completed steps at which it leaves the longest."""
        return tuple(zip(self.runs[:-1], self.forks[:-1], strict=True))

    @property
    def flops(self) -> int:
        """Training FLOPs of all runs, as if each were trained alone."""
        return sum(run.flops for run in self.runs)

    @property
    def flops_saved(self) -> int:
        """Training FLOPs that are not executed again."""
        return sum(flops_of_steps(run, fork) for run, fork in self.branches)


def flops_of_steps(run: PlannedRun, num_steps: int) -> int:
    """Return the FLOPs of some steps of a run: all of its steps take the same."""
    return run.flops // run.spec.steps * num_steps


def trunks_of(plan: Plan, *, with_single: bool = False) -> tuple[Trunk, ...]:
    """Return the trunks of a plan, in the order of their first runs; none if they are not shared.

    They follow from the runs' specs alone.

    Args:
        plan: the plan.
        with_single: whether a run that has no other to share with is a trunk, too.
    """
    if plan.study.share == "none":
        return ()
    groups: dict[Hashable, list[PlannedRun]] = {}
    for run in plan.unique_runs:
        key = _trunk_key(run, plan.study)
        if key is not None:
            groups.setdefault(key, []).append(run)
    least = 1 if with_single else 2
    return tuple(_trunk(runs, plan.study) for runs in groups.values() if len(runs) >= least)


def without_sharing_named(plan: Plan) -> Plan:
    """Return a plan as if its study said nothing of sharing: its runs share what they can."""
    return dataclasses.replace(plan, study=dataclasses.replace(plan.study, share=None))


def flops_executed(plan: Plan) -> int:
    """Return the training FLOPs of a plan's runs, of what they share once."""
    alone = sum(run.flops for run in plan.unique_runs)
    return alone - sum(trunk.flops_saved for trunk in trunks_of(plan))


def branches_of(trunks: Iterable[Trunk]) -> Mapping[str, tuple[Trunk, int]]:
    """Return the trunk and fork of each run that has a longer one, by run id."""
    return {run.run_id: (trunk, fork) for trunk in trunks for run, fork in trunk.branches}


def _trunk(runs: Iterable[PlannedRun], study: Study) -> Trunk:
    ordered = tuple(sorted(runs, key=lambda run: run.spec.steps))
    return Trunk(runs=ordered, forks=tuple(decay_start(run.spec, study) for run in ordered))


def decay_start(spec: AnySpec, study: Study) -> int:
    """Return how many steps a run that may share a trunk completes before its decay."""
    if isinstance(spec, RunSpec):
        return get_recipe(spec.recipe).decay_start(spec.steps)
    assert study.trainer is not None
    start = study.trainer.decay_start(spec.steps)
    assert start is not None
    return start


_STEPLESS = attrgetter(
    *(f.name for f in dataclasses.fields(RunSpec) if f.name not in ("steps", "config"))
)


@functools.cache
def _recipe_shares(name: str) -> bool:
    return get_recipe(name).shares_trunks


def _trunk_key(run: PlannedRun, study: Study) -> Hashable | None:
    """Return what runs of one trunk have in common; None: the run shares none."""
    spec = run.spec
    if isinstance(spec, RunSpec):
        if not _recipe_shares(spec.recipe):
            return None
        return _STEPLESS(spec), tuple(spec.config.items())
    return _own_key(run.arch, spec, study)


def _own_key(arch: str, spec: TrainerSpec, study: Study) -> Hashable | None:
    """Return the same of a run by the study's own command, which names its steps."""
    trainer = study.trainer
    assert trainer is not None
    if not trainer.shares_trunks:
        return None
    table = study.trainer_arch(arch)
    values = trainer.values(arch, spec.rung, spec.steps, spec.seed)
    # The arch's name, too, where the command names it: what is left follows from the steps.
    fixed = {name: value for name, value in values.items() if name not in OF_LENGTH}
    named = (
        tuple(filled(text, fixed) for text in trainer.command_of(table)),
        tuple((name, filled(text, fixed)) for name, text in trainer.env_of(table).items()),
    )
    same = dataclasses.replace(spec, command=(), env={}, steps=1)
    return (named, _frozen(same))


def _frozen(spec: AnySpec) -> Hashable:
    fields = ((f.name, getattr(spec, f.name)) for f in dataclasses.fields(spec))
    return tuple((n, tuple(v.items()) if isinstance(v, Mapping) else v) for n, v in fields)

"""From a study to its plan: which rungs, how many steps, what each run costs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from isoflop.accounting import get_convention
from isoflop.data.catalog import DataIdentity, identify
from isoflop.errors import UserError
from isoflop.families import config_from_mapping, get_spec
from isoflop.numbers import format_flops
from isoflop.plan.identity import RunSpec
from isoflop.plan.runs import PlannedRun, describe_run, run_ledger
from isoflop.recipe import Recipe, Shape, get_recipe
from isoflop.study import Study

_SHAPE_FIELDS = tuple(f.name for f in dataclasses.fields(Shape))


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The runs of a study, in the order: budget, arch, size, seed."""

    study: Study
    num_train_tokens: int | None
    runs: tuple[PlannedRun, ...]
    left_out: tuple[str, ...]
    """Rungs that the recipe's rule offered and the planner dropped, each with its reason."""

    @property
    def unique_runs(self) -> tuple[PlannedRun, ...]:
        """Each run id once: two budgets may resolve to the same training."""
        return tuple({run.run_id: run for run in self.runs}.values())


def make_plan(study: Study) -> Plan:
    """Plans every run of a study.

    Raises:
        UserError: a run would be impossible (shape, steps, data), with the knob to turn.
    """
    data = identify(study.source, study.tokenizer)
    runs: list[PlannedRun] = []
    left_out: list[str] = []
    for budget in study.budgets:
        for arch in study.archs:
            runs.extend(_plan_cell(study, budget, arch, data, left_out))
    return Plan(
        study=study,
        num_train_tokens=data.num_train_tokens,
        runs=tuple(runs),
        left_out=tuple(left_out),
    )


def _plan_cell(
    study: Study, budget: int, arch: str, data: DataIdentity, left_out: list[str]
) -> list[PlannedRun]:
    """All sizes and seeds of one arch at one budget."""
    recipe = get_recipe(study.recipe)
    family, _ = study.family_and_overrides(arch)
    named = study.sizes_at(budget, arch)
    sizes = recipe.sizes(budget, family) if named is None else named
    # A rung that the person named, or that a source published, must be trained or refused; one
    # that a rule only offered may be left out where the budget is too small for it.
    may_drop = named is None and budget not in recipe.published_sizes
    runs: list[PlannedRun] = []
    for size in sizes:
        spec = _resolve(study, recipe, budget, arch, size, data)
        if spec.steps >= recipe.min_steps:
            runs.extend(_seeded(study, spec, budget, arch, size, data))
        elif may_drop and size != min(sizes):
            left_out.append(
                f"{arch} size {size} at {format_flops(budget)}: {spec.steps} steps, "
                f"{recipe.name} needs {recipe.min_steps}"
            )
        else:
            raise _too_few_steps(study, recipe, budget, arch, size, spec)
    return runs


def _resolve(
    study: Study, recipe: Recipe, budget: int, arch: str, size: int, data: DataIdentity
) -> RunSpec:
    """The identity of one run, with as many whole steps as the budget pays for."""
    family, overrides = study.family_and_overrides(arch)
    shape_overrides = {k: v for k, v in overrides.items() if k in _SHAPE_FIELDS}
    _check_shape_overrides(arch, shape_overrides)
    shape = Shape(**(dataclasses.asdict(recipe.shape(size)) | shape_overrides))
    ladder_config = dataclasses.asdict(get_spec(family).ladder(recipe, size))
    config = ladder_config | {k: v for k, v in overrides.items() if k not in _SHAPE_FIELDS}
    batch_size, seq_len = recipe.batch_and_seq_len(budget)
    one_step = RunSpec(
        family=family,
        config=dataclasses.asdict(config_from_mapping(family, config)),
        d_model=shape.d_model,
        n_layers=shape.n_layers,
        n_heads=shape.n_heads,
        vocab_size=data.vocab_size,
        seq_len=study.seq_len or seq_len,
        batch_size=study.batch_size or batch_size,
        steps=1,
        data_id=data.data_id,
        tokenizer_hash=data.tokenizer_hash,
        seed=study.seeds[0],
        recipe=recipe.name,
        precision=recipe.precision,
    )
    flops_per_token = get_convention(study.convention)(run_ledger(one_step))
    steps = budget // (flops_per_token * one_step.n_tokens)
    return dataclasses.replace(one_step, steps=steps)


def _check_shape_overrides(arch: str, overrides: dict[str, Any]) -> None:
    for name, value in overrides.items():
        if type(value) is not int:
            raise UserError(f"{arch}.{name}", value, "a whole number", "correct the variant")


def _seeded(
    study: Study, spec: RunSpec, budget: int, arch: str, size: int, data: DataIdentity
) -> list[PlannedRun]:
    return [
        describe_run(
            dataclasses.replace(spec, seed=seed),
            arch=arch,
            size=size,
            budget_flops=budget,
            convention=study.convention,
            num_train_tokens=data.num_train_tokens,
        )
        for seed in study.seeds
    ]


def _too_few_steps(
    study: Study, recipe: Recipe, budget: int, arch: str, size: int, spec: RunSpec
) -> UserError:
    batch = f"batch_size {spec.batch_size} × seq_len {spec.seq_len}"
    return UserError(
        "steps",
        spec.steps,
        f"{recipe.min_steps} or more under recipe {recipe.name} "
        f"({arch} size {size} at budget {format_flops(budget)}, {batch})",
        "raise the budget, lower batch_size, or take smaller sizes"
        + ("" if recipe.name == "micro-v1" else " or recipe micro-v1"),
    )

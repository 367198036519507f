"""From a study to its plan: which rungs, how many steps, what each run costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

from isoflop.data.catalog import DataIdentity, identify
from isoflop.errors import UserError
from isoflop.families import ensure_gated, family_digest
from isoflop.numbers import format_count, format_flops
from isoflop.plan.auto import ExpectedOptimum, Grid, edge_warning, expected_optima
from isoflop.plan.identity import RunSpec
from isoflop.plan.models import Models
from isoflop.plan.runs import PlannedRun, describe_run, with_seed
from isoflop.recipe import Recipe, get_recipe
from isoflop.study import SIZES_AUTO, Study


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The runs of a study, in the order: budget, arch, size, seed."""

    study: Study
    num_train_tokens: int | None
    runs: tuple[PlannedRun, ...]
    left_out: tuple[str, ...]
    """Rungs that the recipe's rule offered and the planner dropped, each with its reason."""
    expected: tuple[ExpectedOptimum, ...] = ()
    """Where the optima of an `auto` study are expected, in the order: budget, arch. Estimates."""
    family_digests: Mapping[str, str] = field(default_factory=dict)
    """Hex sha256 over the source of each family from outside the package."""

    @property
    def unique_runs(self) -> tuple[PlannedRun, ...]:
        """Each run id once: two budgets may resolve to the same training."""
        return tuple({run.run_id: run for run in self.runs}.values())

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the reviewer should know of the plan as a whole: optima expected near an edge."""
        sizes: dict[tuple[str, int], list[int]] = {}
        for run in self.runs:
            sizes.setdefault((run.arch, run.budget_flops), []).append(run.size)
        found = (
            edge_warning(optimum, sorted(set(sizes.get((optimum.arch, optimum.budget_flops), ()))))
            for optimum in self.expected
        )
        return tuple(warning for warning in found if warning is not None)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Planner:
    """What all cells of a plan share, and what they leave behind."""

    study: Study
    recipe: Recipe
    data: DataIdentity
    models: Models
    left_out: list[str] = field(default_factory=list)


def make_plan(study: Study) -> Plan:
    """Plans every run of a study.

    Raises:
        UserError: a run would be impossible (shape, match, steps, data), with the knob to turn.
    """
    data = identify(study.source, study.tokenizer)
    planner = _Planner(
        study=study,
        recipe=get_recipe(study.recipe),
        data=data,
        models=Models(study, data.vocab_size),
    )
    runs = [
        run
        for budget in study.budgets
        for arch in study.archs
        for run in _plan_cell(planner, budget, arch)
    ]
    return Plan(
        study=study,
        num_train_tokens=data.num_train_tokens,
        runs=tuple(runs),
        left_out=tuple(planner.left_out),
        expected=expected_optima(study, planner.models),
        family_digests=_gate(runs),
    )


def _gate(runs: list[PlannedRun]) -> dict[str, str]:
    """Checks the families from outside the package; returns the digests of their sources."""
    configs: dict[str, list[Mapping[str, int | str]]] = {}
    for run in runs:
        of_family = configs.setdefault(run.spec.family, [])
        # The seeds of a cell share one mapping.
        if not of_family or of_family[-1] is not run.spec.config:
            of_family.append(run.spec.config)
    digests = {}
    for family in sorted(configs):
        digest = family_digest(family)
        if digest is not None:
            ensure_gated(family, *configs[family])
            digests[family] = digest
    return digests


def _plan_cell(planner: _Planner, budget: int, arch: str) -> list[PlannedRun]:
    """All sizes and seeds of one arch at one budget."""
    study, recipe = planner.study, planner.recipe
    named = study.sizes_at(budget, arch)
    sizes = _open_sizes(planner, budget, arch) if named is None else named
    # A rung that the person named, or that a source published, must be trained or refused; one
    # that a rule only offered may be left out where the budget is too small for it.
    published = study.sizes != SIZES_AUTO and budget in recipe.published_sizes
    may_drop = named is None and not published
    runs: list[PlannedRun] = []
    for size in sizes:
        first = _first_seed(planner, budget, arch, size)
        if first.spec.steps >= recipe.min_steps:
            _check_epochs(study, first, planner.data)
            runs.append(first)
            runs.extend(with_seed(first, seed) for seed in study.seeds[1:])
        elif may_drop and size != min(sizes):
            planner.left_out.append(
                f"{arch} size {size} at {format_flops(budget)}: {first.spec.steps} steps, "
                f"{recipe.name} needs {recipe.min_steps}"
            )
        else:
            raise _too_few_steps(first, recipe)
    return runs


def _open_sizes(planner: _Planner, budget: int, arch: str) -> tuple[int, ...]:
    """The rungs where the study leaves them to the recipe, or to the prior (`auto`)."""
    study, recipe = planner.study, planner.recipe
    if study.sizes != SIZES_AUTO:
        return recipe.sizes(budget, study.family_and_overrides(arch)[0])
    return Grid(study, planner.models, budget, arch).sizes(study.num_sizes)


def _first_seed(planner: _Planner, budget: int, arch: str, size: int) -> PlannedRun:
    """The run of a cell at the first seed, with as many whole steps as the budget pays for."""
    study, data = planner.study, planner.data
    batch_size, seq_len = planner.recipe.batch_and_seq_len(budget)
    batch_size, seq_len = study.batch_size or batch_size, study.seq_len or seq_len
    model = planner.models.model(arch, size, seq_len)
    step_flops = planner.models.flops_per_token(model) * batch_size * seq_len
    spec = RunSpec(
        family=model.family,
        config=dataclasses.asdict(model.config),
        d_model=model.shape.d_model,
        n_layers=model.shape.n_layers,
        n_heads=model.shape.n_heads,
        vocab_size=data.vocab_size,
        seq_len=seq_len,
        batch_size=batch_size,
        steps=budget // step_flops,
        data_id=data.data_id,
        tokenizer_hash=data.tokenizer_hash,
        seed=study.seeds[0],
        recipe=study.recipe_of(arch),
        precision=planner.recipe.precision,
        document_mask=study.document_mask,
    )
    return describe_run(
        spec,
        arch=arch,
        size=size,
        budget_flops=budget,
        convention=study.convention,
        num_train_tokens=data.num_train_tokens,
        match_residual=model.match_residual,
        ledger=model.ledger,
    )


def _check_epochs(study: Study, run: PlannedRun, data: DataIdentity) -> None:
    if run.epochs is None or run.epochs <= study.max_epochs:
        return
    assert data.num_train_tokens is not None
    raise UserError(
        "data.max_epochs",
        study.max_epochs,
        f"{run.epochs:.3g} or more for {run.arch} size {run.size} at "
        f"{format_flops(run.budget_flops)}, which reads {format_count(run.n_tokens)} tokens of the "
        f"{format_count(data.num_train_tokens)} in {data.source}",
        "take a larger corpus, a smaller budget or larger sizes, or raise max_epochs",
    )


def _too_few_steps(run: PlannedRun, recipe: Recipe) -> UserError:
    batch = f"batch_size {run.spec.batch_size} × seq_len {run.spec.seq_len}"
    return UserError(
        "steps",
        run.spec.steps,
        f"{recipe.min_steps} or more under recipe {recipe.name} "
        f"({run.arch} size {run.size} at budget {format_flops(run.budget_flops)}, {batch})",
        "raise the budget, lower batch_size, or take smaller sizes"
        + ("" if recipe.base_name == "micro-v1" else " or recipe micro-v1"),
    )

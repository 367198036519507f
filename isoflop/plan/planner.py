"""From a study to its plan: which rungs, how many steps, what each run costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from isoflop.code_folder import Code
from isoflop.data.catalog import DataIdentity, identify
from isoflop.errors import UserError
from isoflop.families import add_family_folder, ensure_gated, family_digest
from isoflop.numbers import format_count, format_flops, round_up
from isoflop.plan.auto import ExpectedOptimum, Grid, edge_warning, expected_optima
from isoflop.plan.models import Models
from isoflop.plan.own import OwnRuns, PlannedCount, count_models, planned_code
from isoflop.plan.runs import PlannedRun, describe_run, steps_of_epochs, with_seed
from isoflop.recipe import MICRO_V1, Recipe, get_recipe
from isoflop.spec import RunSpec, TrainerSpec
from isoflop.study import SIZES_AUTO, Study, check_more_seeds_at

# Beyond it, equal budgets are not equal compute: the analysis calls attention to it from there on.
MAX_RESIDUAL = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The runs of a study, in the order: budget (or epochs), arch, size, seed."""

    study: Study
    num_train_tokens: int | None
    runs: tuple[PlannedRun, ...]
    left_out: tuple[str, ...]
    """Rungs that the recipe's rule offered and the planner dropped, each with its reason."""
    expected: tuple[ExpectedOptimum, ...] = ()
    """Where the optima of an `auto` study are expected, in the order: budget, arch. Estimates."""
    family_digests: Mapping[str, str] = field(default_factory=dict)
    """Hex sha256 over the source of each family from outside the package."""
    stated_families: tuple[str, ...] = ()
    """Of these, whose code was not imported when the plan was read: their runs' counts are as the
    plan states them."""
    counts: tuple[PlannedCount, ...] = ()
    """What the models of the study's own trainer cost, in the order: arch, size."""
    code: Code | None = None
    """The files of that trainer's code; None where code.json is not beside the plan."""
    with_code: bool = field(default=True, compare=False)
    """Whether the code that the plan names may be imported, to plan more runs."""

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
        return (*(warning for warning in found if warning is not None), *self._far_from_budget())

    def _far_from_budget(self) -> Iterator[str]:
        """Yield a warning where whole steps of an own trainer are large parts of its budgets."""
        own = [run for run in self.unique_runs if isinstance(run.spec, TrainerSpec)]
        far = [run for run in own if run.residual > MAX_RESIDUAL]
        if far:
            most = max(far, key=lambda run: run.residual)
            yield (
                f"{len(far)} runs leave more than {MAX_RESIDUAL:.0%} of their budget, "
                f"{most.arch} size {most.size} at {format_flops(most.budget_flops)} "
                f"{most.residual:.0%} with {most.spec.steps} steps: a lower batch_tokens or larger "
                "budgets leave less"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Planner:
    """What all cells of a plan share, and what they leave behind."""

    study: Study
    recipe: Recipe
    data: DataIdentity
    models: Models
    left_out: list[str] = field(default_factory=list)


def make_plan(study: Study, code: Code | None = None) -> Plan:
    """Plan every run of a study; this imports the code of its families and of its own trainer.

    Args:
        study: the study.
        code: that of its trainer, where the caller has found the folder to hold it; None: it is
            read.

    Raises:
        UserError: a run would be impossible (shape, match, steps, data), with the knob to turn.
    """
    for path in study.family_paths:
        add_family_folder(Path(path))
    planner = None if all(map(study.has_trainer, study.archs)) else _planner(study)
    own = None
    if study.trainer is not None:
        code = code or planned_code(study)
        own = OwnRuns(study, count_models(study, code.digest), code.digest)
    runs: list[PlannedRun] = []
    for target in study.targets:
        for arch in study.archs:
            if own is not None and study.has_trainer(arch):
                runs.extend(own.cell(int(target), arch))
            else:
                assert planner is not None
                runs.extend(_plan_cell(planner, target, arch))
    _check_epochs_differ(study, runs)
    is_auto = study.sizes == SIZES_AUTO
    return Plan(
        study=study,
        num_train_tokens=None if planner is None else planner.data.num_train_tokens,
        runs=tuple(runs),
        left_out=() if planner is None else tuple(planner.left_out),
        expected=expected_optima(study, planner.models) if planner and is_auto else (),
        family_digests=_gate(runs),
        counts=() if own is None else own.counts,
        code=code,
    )


def _planner(study: Study) -> _Planner:
    data = identify(study.source, study.tokenizer)
    return _Planner(
        study=study,
        recipe=get_recipe(study.recipe),
        data=data,
        models=Models(study, data.vocab_size),
    )


def _gate(runs: list[PlannedRun]) -> dict[str, str]:
    """Check the families from outside the package, and return the digests of their sources."""
    digests = {}
    by_family: dict[str, list[tuple[PlannedRun, RunSpec]]] = {}
    for run in runs:
        if isinstance(run.spec, RunSpec):
            by_family.setdefault(run.spec.family, []).append((run, run.spec))
    for family, planned in sorted(by_family.items()):
        digest = family_digest(family)
        if digest is not None:
            ensure_gated(family, *_outer_rungs(planned))
            digests[family] = digest
    return digests


def _outer_rungs(planned: Iterable[tuple[PlannedRun, RunSpec]]) -> list[RunSpec]:
    """Return the smallest and the largest model of each arch, and of each of its words."""
    models: dict[object, list[tuple[PlannedRun, RunSpec]]] = {}
    for run, spec in planned:
        words = tuple(value for value in spec.config.values() if isinstance(value, str))
        models.setdefault((run.arch, words), []).append((run, spec))
    return [
        pick(found, key=lambda pair: pair[0].n_params)[1]
        for found in models.values()
        for pick in (min, max)
    ]


def _plan_cell(planner: _Planner, target: int | float, arch: str) -> list[PlannedRun]:
    """Return all sizes and seeds of one arch at one budget, or at a number of epochs."""
    study, recipe = planner.study, planner.recipe
    budget = 0 if study.epochs else int(target)
    named = study.sizes_at(budget, arch)
    sizes = _open_sizes(planner, budget, arch) if named is None else named
    # A rung that the person named, or that a source published, must be trained or refused; one
    # that a rule only offered may be left out where the budget is too small for it.
    published = study.sizes != SIZES_AUTO and budget in recipe.published_sizes
    may_drop = named is None and not published
    runs: list[PlannedRun] = []
    for rung in sizes:
        first = _first_seed(planner, target, arch, rung)
        if first.spec.steps >= recipe.min_steps:
            _check_epochs(study, first, planner.data)
            runs.append(first)
            seeds = study.seeds_at(budget, arch, rung)
            runs.extend(with_seed(first, seed) for seed in seeds[1:])
        elif may_drop and rung != min(sizes):
            planner.left_out.append(
                f"{arch} size {rung} at {format_flops(budget)}: {first.spec.steps} steps, "
                f"{recipe.name} needs {recipe.min_steps}"
            )
        else:
            raise _too_few_steps(planner, first, named or (rung,))
    check_more_seeds_at(study, budget, arch, list(dict.fromkeys(run.size for run in runs)))
    return runs


def _open_sizes(planner: _Planner, budget: int, arch: str) -> tuple[int, ...]:
    """Return the rungs where the study leaves them to the recipe, or to the prior (`auto`)."""
    study, recipe = planner.study, planner.recipe
    if study.sizes != SIZES_AUTO:
        return recipe.sizes(budget, study.family_and_overrides(arch)[0])
    return Grid(study, planner.models, budget, arch).sizes(study.num_sizes)


def _first_seed(planner: _Planner, target: int | float, arch: str, rung: int) -> PlannedRun:
    """Return the run of a cell at the first seed, with as many whole steps as its target allows."""
    study, data = planner.study, planner.data
    # Without a budget, the batch of small ones.
    batch_size, seq_len = _batch_and_seq_len(planner, 0 if study.epochs else int(target))
    model = planner.models.model(arch, rung, seq_len)
    step_flops = planner.models.flops_per_token(model) * batch_size * seq_len
    steps = _num_steps(planner, target, step_flops, batch_size * seq_len)
    spec = RunSpec(
        family=model.family,
        config=dataclasses.asdict(model.config),
        d_model=model.shape.d_model,
        n_layers=model.shape.n_layers,
        n_heads=model.shape.n_heads,
        vocab_size=data.vocab_size,
        seq_len=seq_len,
        batch_size=batch_size,
        steps=steps,
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
        size=rung,
        budget_flops=steps * step_flops if study.epochs else int(target),
        convention=study.convention,
        num_train_tokens=data.num_train_tokens,
        match_residual=model.match_residual,
        ledger=model.ledger,
    )


def _batch_and_seq_len(planner: _Planner, budget: int) -> tuple[int, int]:
    batch_size, seq_len = planner.recipe.batch_and_seq_len(budget)
    return planner.study.batch_size or batch_size, planner.study.seq_len or seq_len


def _num_steps(
    planner: _Planner, target: int | float, step_flops: int, tokens_per_step: int
) -> int:
    if not planner.study.epochs:
        return int(target) // step_flops
    num_tokens = planner.data.num_train_tokens
    if num_tokens is None:
        raise UserError(
            "epochs",
            list(planner.study.epochs),
            f"left out: how much text {planner.data.source} has is not known before it is prepared",
            "prepare it, or give budgets",
        )
    return steps_of_epochs(target, num_tokens, tokens_per_step)


def _check_epochs_differ(study: Study, runs: list[PlannedRun]) -> None:
    places = {(run.budget_flops, run.arch, run.size, run.spec.seed) for run in runs}
    if study.epochs and len(places) < len(runs):
        allowed = "further apart: two of them have equally many steps"
        raise UserError("epochs", list(study.epochs), allowed, "remove one of them")


def _by_default(study: Study) -> str:
    """Return what to add to the name of the data that a study takes if it names none."""
    default = {field.name: field.default for field in dataclasses.fields(Study)}["source"]
    return " (what a study takes without a source in [data])" if study.source == default else ""


def _check_epochs(study: Study, run: PlannedRun, data: DataIdentity) -> None:
    if run.epochs is None or run.epochs <= study.max_epochs:
        return
    assert data.num_train_tokens is not None
    raise UserError(
        "data.max_epochs",
        study.max_epochs,
        f"{run.epochs:.3g} or more for {run.arch} size {run.size} at "
        f"{format_flops(run.budget_flops)}, which reads {format_count(run.n_tokens)} tokens of the "
        f"{format_count(data.num_train_tokens)} in {data.source}{_by_default(study)}",
        "take a larger corpus, a smaller budget or larger sizes, or raise max_epochs",
    )


def _too_few_steps(planner: _Planner, run: PlannedRun, sizes: Sequence[int]) -> UserError:
    """Return the error with the smallest budget at which all these sizes have enough steps."""
    recipe = planner.recipe
    batch = f"batch_size {run.spec.batch_size} × seq_len {run.spec.seq_len}"
    if planner.study.epochs:
        do = "raise epochs"
    else:
        needed = max(_smallest_budget(planner, run, arch, sizes) for arch in planner.study.archs)
        listed = f"size{'s' if len(sizes) > 1 else ''} {', '.join(map(str, sizes))}"
        do = (
            f"raise the budget to {format_flops(round_up(needed, digits=2))} or more (enough for "
            f"{listed} of every arch)"
        )
    return UserError(
        "steps",
        run.spec.steps,
        f"{recipe.min_steps} or more under recipe {recipe.name} "
        f"({run.arch} size {run.size} at budget {format_flops(run.budget_flops)}, {batch})",
        f"{do}, lower batch_size, or take smaller sizes"
        + ("" if recipe.min_steps <= MICRO_V1.min_steps else " or recipe micro-v1"),
    )


def _smallest_budget(planner: _Planner, run: PlannedRun, arch: str, sizes: Sequence[int]) -> int:
    """Return FLOPs that pay for the recipe's least steps of each size of an arch."""
    budget = run.budget_flops
    # Twice, since a recipe may take larger batches from some budget on.
    for _ in range(2):
        batch_size, seq_len = _batch_and_seq_len(planner, budget)
        models = [planner.models.model(arch, rung, seq_len) for rung in sizes]
        per_token = max(planner.models.flops_per_token(model) for model in models)
        budget = planner.recipe.min_steps * per_token * batch_size * seq_len
    return budget

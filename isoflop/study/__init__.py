"""A study: what a person asks for, with everything resolved and checked."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any, ClassVar

from isoflop.accounting import get_convention
from isoflop.errors import UserError, shown
from isoflop.families import family_names, is_family, name_of_folder
from isoflop.numbers import format_flops
from isoflop.placement import PlacementTable, placement_from, with_layout
from isoflop.recipe import RECIPES, get_recipe, name_at_rate
from isoflop.study.trainer import LATER_TRAINER_ENTRIES, ArchTable, Trainer, check_trainer
from isoflop.texts import has_control
from isoflop.units import NATS
from isoflop.validate import CLOSED, Ge, ReadBy

PAPER_ARCHS = ("mlp", "swiglu", "moe", "peer", "sgatlin")
MATCHES = ("ladder", "flops_per_token", "active_params")
KEEP_WEIGHTS = ("none", "best", "all")
SHARE = ("trunks", "none")
SIZES_DEFAULT = "default"
SIZES_AUTO = "auto"

# Entries that later versions added. Plans that do without are written as they were before.
LATER_ENTRIES = (
    "epochs",
    "more_seeds",
    "learning_rates",
    "document_mask",
    "trainer",
    "trainer_archs",
    "share",
    "keep_trunks",
)

# A minimum needs a rung on either side.
MIN_NUM_SIZES = 3


def parse_flops(value: object, field_name: str = "budgets") -> int:
    """Return an exact whole number of FLOPs from 1e17, "6e17" or 600000000000000000.

    Raises:
        UserError: not a positive, finite, whole number.
    """
    allowed = "a positive whole number of FLOPs such as 1e17"
    typed = shown(str(value))
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise UserError(field_name, value, allowed, "correct it")
    try:
        # repr of a float is the shortest decimal that a person would type for it.
        number = Decimal(value.strip() if isinstance(value, str) else repr(value))
    except InvalidOperation:
        raise UserError(field_name, typed, allowed, "correct it") from None
    # The upper bound keeps the exact integer small enough to compute with.
    if not number.is_finite() or not 0 < number < Decimal("1e40") or number != int(number):
        raise UserError(field_name, typed, allowed, "correct it")
    return int(number)


def _parse_size(text: str) -> int:
    """Return a size from the key of a table, in its one spelling."""
    if not re.fullmatch("[1-9][0-9]{0,5}", text):
        raise UserError("more_seeds", text, "a size such as 4", "correct the study")
    return int(text)


SizesBudget = Annotated[int, ReadBy(function=functools.partial(parse_flops, field_name="sizes"))]
SizeTable = Mapping[SizesBudget, Mapping[str, tuple[int, ...]]]
"""Rungs by budget and arch."""
SeedTable = Mapping[
    Annotated[int, ReadBy(function=functools.partial(parse_flops, field_name="more_seeds"))],
    Mapping[str, Mapping[Annotated[int, ReadBy(function=_parse_size)], tuple[int, ...]]],
]
"""Seeds by budget, arch and size."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """An ablation: a family with some fields set otherwise, under a label of its own."""

    __pydantic_config__: ClassVar = CLOSED

    arch: str
    family: str
    overrides: Mapping[str, int | str] = field(default_factory=dict)
    """Fields of the family's configuration, or d_model, n_layers, n_heads of the model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hypothesis:
    """A claim and the rule that decides it, frozen with the plan."""

    __pydantic_config__: ClassVar = CLOSED

    id: str
    claim: str
    decide: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """The resolved study: everything that determines a plan."""

    __pydantic_config__: ClassVar = CLOSED

    name: str
    budgets: tuple[Annotated[int, Ge(1), ReadBy(function=parse_flops)], ...] = ()
    """Training FLOPs per run, ascending."""
    epochs: tuple[float, ...] = ()
    """In place of budgets: passes over the training data per run, ascending. A run's budget is
    then what it takes."""
    archs: tuple[str, ...]
    """Families and variant labels to compare."""
    convention: str = "paper"
    sizes: tuple[int, ...] | SizeTable | str | None = None
    """Rungs for all; or by budget and arch (`default` for the rest); None: the recipe's; `auto`:
    centred where the recipe's prior expects the optimum."""
    num_sizes: int | None = None
    """Rungs of an `auto` grid; None: as many as are worth it (isoflop.plan.auto)."""
    match: str = "ladder"
    """What families have in common at a size: the recipe's `ladder`, `flops_per_token` or
    `active_params`."""
    match_reference: str | None = None
    """The arch that the others are matched to; None: the first dense one, else mlp."""
    tolerance: float = 0.01
    """Largest relative difference to the reference that a matched shape may have."""
    seeds: tuple[int, ...] = (0,)
    more_seeds: SeedTable = field(default_factory=dict)
    """Seeds beyond those that all sizes have, where single sizes are repeated more often."""
    recipe: str = "paper-v1"
    learning_rates: Mapping[str, float] = field(default_factory=dict)
    """Peak learning rates by arch, where they are not the recipe's."""
    keep_weights: str = "none"
    """Of which runs the final weights stay: none, the best of each arch and budget, or all."""
    variants: tuple[Variant, ...] = ()
    hypotheses: tuple[Hypothesis, ...] = ()
    source: str = "sotu-embedded"
    tokenizer: str = "byte"
    seq_len: int | None = None
    """Tokens per sequence; None: the recipe's at each budget."""
    batch_size: int | None = None
    """Sequences per step; None: the recipe's at each budget."""
    max_epochs: float = 4.0
    """Passes over the training data that a run may make, where the size of the corpus is known.

    Up to four, repeated data are about as good as new (Muennighoff et al. 2023)."""
    document_mask: bool = False
    """Whether a token attends to its own document only."""
    family_paths: tuple[str, ...] = ()
    """Folders of families defined outside the package; never part of a run's identity."""
    placement: PlacementTable = field(default_factory=lambda: PlacementTable(cluster="local"))
    """Never part of a run's identity."""
    trainer: Trainer | None = None
    """The command that trains the archs that are no built-in families."""
    trainer_archs: tuple[ArchTable, ...] = ()
    """What is different in single archs of the trainer."""
    share: str | None = None
    """Whether runs that differ in length alone train what they have in common once (`trunks`) or
    each for itself (`none`); None: once, where the recipe allows it. Results are the same."""
    keep_trunks: bool = False
    """Whether the state before its decay stays of each longest run, for longer ones to be planned
    later."""

    def __post_init__(self) -> None:
        _check_name(self.name)
        _check_budgets(self.budgets)
        get_convention(self.convention)
        if self.recipe not in RECIPES:
            raise UserError("recipe", self.recipe, " or ".join(RECIPES), "correct the study")
        _check_targets(self)
        _check_learning_rates(self)
        _check_word("match", self.match, MATCHES)
        _check_word("keep_weights", self.keep_weights, KEEP_WEIGHTS)
        _check_share(self)
        _check_list("seeds", self.seeds, at_least=0)
        for name in ("seq_len", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"data.{name}", value, "1 or more", "correct the study")
        _check_number("tolerance", self.tolerance, above=0, up_to=0.5)
        _check_number("data.max_epochs", self.max_epochs, above=0, up_to=None)
        self._check_archs()
        _check_sizes(self)
        _check_more_seeds(self)
        _check_hypotheses(self)
        self._check_placement()

    def _check_archs(self) -> None:
        labels = [v.arch for v in self.variants]
        # Families in folders are known by name here: whoever uses their code makes it known.
        named = [name_of_folder(Path(path)) for path in self.family_paths]
        own = [name for name in named if not is_family(name)]
        for label in labels:
            if label in own or is_family(label) or labels.count(label) > 1:
                raise UserError("variant.arch", label, "a label of its own", "rename the variant")
            if has_control(label):
                allowed = "a label without control characters"
                raise UserError("variant.arch", label, allowed, "rename the variant")
        for variant in self.variants:
            _check_family(f"family of variant {variant.arch}", variant.family, own)
        labels = [*own, *labels]
        if not self.archs:
            known = ", ".join((*family_names(), *labels))
            raise UserError("archs", [], f"one or more of {known}", "name some")
        if self.trainer is not None or self.trainer_archs:
            check_trainer(self, labels)
        for arch in self.archs:
            if not self.has_trainer(arch):
                _check_family("archs", arch, labels)
            if self.archs.count(arch) > 1:
                raise UserError("archs", arch, "named once", "remove the repetition")
        if self.match_reference is not None:
            _check_family("match_reference", self.match_reference, labels)

    def _check_placement(self) -> None:
        placement_from(self.placement if self.trainer is None else with_layout(self.placement))
        workers = self.placement.get("workers")
        if workers is not None and workers < 1:
            raise UserError("placement.workers", workers, "1 or more", "correct the study")

    def sizes_at(self, budget_flops: int, arch: str) -> tuple[int, ...] | None:
        """Return the rungs the study names for a budget and arch; None where it leaves them open.

        Raises:
            UserError: the study's table of sizes lacks the entry.
        """
        if self.sizes is None or isinstance(self.sizes, str):
            if self.trainer is not None and self.has_trainer(arch):
                return tuple(range(1, self.trainer.num_rungs + 1))
            return None
        if isinstance(self.sizes, tuple):
            return self.sizes
        by_arch = self.sizes.get(budget_flops, {})
        if arch in by_arch or SIZES_DEFAULT in by_arch:
            return by_arch.get(arch, by_arch.get(SIZES_DEFAULT))
        where = f"sizes at {format_flops(budget_flops)}"
        raise UserError(where, None, f"given for {arch} or default", "add the entry")

    def has_trainer(self, arch: str) -> bool:
        """Return whether the runs of an arch are trained by the study's own command."""
        if self.trainer is None:
            return False
        named = arch in (table.name for table in self.trainer_archs)
        return named or not (is_family(arch) or arch in (v.arch for v in self.variants))

    def trainer_arch(self, arch: str) -> ArchTable:
        """Return what is different in an arch of the trainer."""
        found = (table for table in self.trainer_archs if table.name == arch)
        return next(found, ArchTable(name=arch))

    @property
    def loss_unit(self) -> str:
        """Unit of the losses of all runs: that of the trainer's result, or nats per token."""
        return NATS if self.trainer is None else self.trainer.result.unit

    @property
    def targets(self) -> tuple[int, ...] | tuple[float, ...]:
        """What sets the length of a run: the budgets (whole numbers), or the epochs (floats)."""
        return self.epochs or self.budgets

    def seeds_at(self, budget_flops: int, arch: str, size: int) -> tuple[int, ...]:
        """Return the seeds of one size: those of all, then its own."""
        more = self.more_seeds.get(budget_flops, {}).get(arch, {}).get(size, ())
        return tuple(dict.fromkeys((*self.seeds, *more)))

    def family_and_overrides(self, arch: str) -> tuple[str, Mapping[str, int | str]]:
        """Return the family behind a label and what the label changes in it."""
        for variant in self.variants:
            if variant.arch == arch:
                return variant.family, variant.overrides
        return arch, {}

    def recipe_of(self, arch: str) -> str:
        """Return the recipe's name, with an arch's own peak learning rate in it if it has one."""
        rate = self.learning_rates.get(arch)
        return self.recipe if rate is None else name_at_rate(self.recipe, rate)

    def to_json(self) -> dict[str, Any]:
        """Return the resolved study as it is frozen into plan.json; FLOPs as exact integers."""
        values = {f.name: _as_json(getattr(self, f.name)) for f in dataclasses.fields(Study)}
        for name in LATER_TRAINER_ENTRIES:
            if self.trainer is not None and not values["trainer"][name]:
                del values["trainer"][name]
        return {name: value for name, value in values.items() if value or name not in LATER_ENTRIES}


def paper_study(budgets: tuple[int, ...]) -> Study:
    """Return the paper's study at any budgets: all five families on its ladder and data.

    The name carries the budgets, so that different requests land in different folders.
    """
    return Study(
        name="-".join(["paper", *map(format_flops, budgets)]),
        budgets=budgets,
        archs=PAPER_ARCHS,
        seeds=(1,),
        recipe="paper-v1",
        source="slimpajama-627b",
        tokenizer="gpt2",
    )


def _as_json(value: Any) -> Any:
    """Return a value of a study as JSON has it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _as_json(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _as_json(inner) for key, inner in value.items()}
    return [_as_json(inner) for inner in value] if isinstance(value, tuple | list) else value


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UserError("name", name, "letters, digits and . _ - (it names a folder)", "rename")


def _check_budgets(budgets: Sequence[int]) -> None:
    for budget in budgets:
        parse_flops(budget)
    for before, after in itertools.pairwise(budgets):
        if after <= before:
            given = shown(", ".join(map(format_flops, budgets)))
            raise UserError("budgets", given, "ascending, each once", "sort them")


def _check_word(name: str, value: str, allowed: Sequence[str]) -> None:
    """Refuse what is not one of the words."""
    if value not in allowed:
        raise UserError(name, value, f"one of {', '.join(allowed)}", "correct the study")


def _check_family(name: str, value: str, labels: Sequence[str]) -> None:
    """Refuse what is neither a family nor one of the labels."""
    # The list of all families is slow to make; only the message needs it.
    if value not in labels and not is_family(value):
        _check_word(name, value, (*family_names(), *labels))


def _check_number(name: str, value: float, *, above: float, up_to: float | None) -> None:
    """Refuse a number outside (above, up_to], NaN and infinities."""
    fits = math.isfinite(value) and value > above and (up_to is None or value <= up_to)
    if not fits:
        top = "" if up_to is None else f" and at most {up_to:g}"
        raise UserError(name, value, f"a number above {above:g}{top}", "correct the study")


def _check_list(name: str, values: Sequence[int], at_least: int) -> None:
    """Refuse an empty list, an entry that is too small, and repetitions."""
    if not values:
        raise UserError(name, [], "one entry or more", "add one")
    for value in values:
        if value < at_least:
            raise UserError(name, value, f"{at_least} or more", "correct it")
    if len(set(values)) < len(values):
        raise UserError(name, list(values), "distinct", "remove the repetition")


def _check_targets(study: Study) -> None:
    """Refuse a study set by neither budgets nor epochs, or by both, and epochs that are none."""
    if not study.epochs:
        if not study.budgets:
            allowed = "one budget or more, such as 1e17 (or epochs)"
            raise UserError("budgets", [], allowed, "add one")
        return
    if study.budgets:
        given = [format_flops(budget) for budget in study.budgets]
        raise UserError("budgets", given, "left out where epochs are given", "remove one of them")
    if study.more_seeds:
        raise UserError("more_seeds", "given", "left out where epochs are", "use seeds")
    for number in study.epochs:
        _check_number("epochs", number, above=0, up_to=None)
    for before, after in itertools.pairwise(study.epochs):
        if after <= before:
            raise UserError("epochs", list(study.epochs), "ascending, each once", "sort them")
    is_open = study.sizes is None and RECIPES[study.recipe].centre is not None
    if is_open or not isinstance(study.sizes, tuple | None):
        allowed = "rungs for all, such as [1, 2], where epochs are given"
        raise UserError("sizes", study.sizes, allowed, "name them")


def _check_learning_rates(study: Study) -> None:
    """Refuse rates of archs that the study does not have, and rates that are none."""
    for arch, rate in study.learning_rates.items():
        _check_word("learning_rates", arch, study.archs)
        _check_number(f"learning_rates.{arch}", rate, above=0, up_to=None)


def _check_share(study: Study) -> None:
    """Refuse a word that is none, and trunks of a recipe whose runs have none."""
    if study.share is None:
        return
    _check_word("share", study.share, SHARE)
    own = study.trainer is not None and study.trainer.shares_trunks
    if study.share == "trunks" and not (own or get_recipe(study.recipe).shares_trunks):
        sharing = ", ".join(name for name, recipe in RECIPES.items() if recipe.shares_trunks)
        allowed = f"'none', or a recipe with a fixed number of warm-up steps ({sharing})"
        raise UserError("share", study.share, allowed, "correct the study")


def _check_sizes(study: Study) -> None:
    """Refuse sizes that are no rungs or not given for every budget and arch."""
    if study.num_sizes is not None:
        if study.sizes != SIZES_AUTO:
            raise UserError(
                "num_sizes", study.num_sizes, 'left out unless sizes = "auto"', "remove it"
            )
        if study.num_sizes < MIN_NUM_SIZES:
            raise UserError("num_sizes", study.num_sizes, f"{MIN_NUM_SIZES} or more", "correct it")
    if study.sizes is None:
        return
    if isinstance(study.sizes, str):
        allowed = 'rungs such as [1, 2, 3], a table of them by budget, or "auto"'
        if study.sizes != SIZES_AUTO:
            raise UserError("sizes", study.sizes, allowed, "correct the study")
        return
    if isinstance(study.sizes, tuple):
        _check_list("sizes", study.sizes, at_least=1)
        return
    for budget, by_arch in study.sizes.items():
        _check_is_budget(study, "sizes", budget)
        for arch, rungs in by_arch.items():
            _check_word("sizes", arch, (*study.archs, SIZES_DEFAULT))
            _check_list(f"sizes.{format_flops(budget)}.{arch}", rungs, at_least=1)
    for budget in study.budgets:
        for arch in study.archs:
            study.sizes_at(budget, arch)


def _check_more_seeds(study: Study) -> None:
    """Refuse more seeds for what the study does not have, and seeds that are none."""
    for budget, by_arch in study.more_seeds.items():
        _check_is_budget(study, "more_seeds", budget)
        for arch, by_size in by_arch.items():
            _check_word("more_seeds", arch, study.archs)
            sizes = study.sizes_at(budget, arch)
            if sizes is not None:
                check_more_seeds_at(study, budget, arch, sizes)
            for size, seeds in by_size.items():
                where = f"more_seeds.{format_flops(budget)}.{arch}.{size}"
                _check_list(where, seeds, at_least=0)


def check_more_seeds_at(study: Study, budget_flops: int, arch: str, sizes: Sequence[int]) -> None:
    """Refuse more seeds for a size that is none of a budget's and arch's.

    Raises:
        UserError: there is one; it and the sizes that there are are named.
    """
    for size in study.more_seeds.get(budget_flops, {}).get(arch, {}):
        if size not in sizes:
            raise UserError(
                f"more_seeds.{format_flops(budget_flops)}.{arch}",
                size,
                f"a size that is planned there ({', '.join(map(str, sizes))})",
                "correct the study",
            )


def _check_hypotheses(study: Study) -> None:
    """Refuse hypotheses with an empty part or the id of another."""
    ids = [hypothesis.id for hypothesis in study.hypotheses]
    for hypothesis in study.hypotheses:
        for name in ("id", "claim", "decide"):
            value = getattr(hypothesis, name)
            if not value.strip():
                raise UserError(f"hypothesis.{name}", value, "given", "write it out")
        if ids.count(hypothesis.id) > 1:
            raise UserError("hypothesis.id", hypothesis.id, "used once", "rename one")


def _check_is_budget(study: Study, name: str, budget: int) -> None:
    if budget not in study.budgets:
        there = ", ".join(map(format_flops, study.budgets))
        raise UserError(name, format_flops(budget), f"a budget ({there})", "remove it")

"""A study: what a person asks for, read from TOML, with everything resolved and checked."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from isoflop.accounting import get_convention
from isoflop.errors import UserError, shown
from isoflop.families import add_family_folder, family_names, is_family
from isoflop.numbers import format_flops
from isoflop.recipe import RECIPES, name_at_rate
from isoflop.study_checks import (
    KEEP_WEIGHTS,
    MATCHES,
    SIZES_DEFAULT,
    check_family,
    check_hypotheses,
    check_learning_rates,
    check_list,
    check_more_seeds,
    check_number,
    check_sizes,
    check_targets,
    check_word,
)
from isoflop.train.options import placement_from

PAPER_ARCHS = ("mlp", "swiglu", "moe", "peer", "sgatlin")

SizeTable = Mapping[int, Mapping[str, tuple[int, ...]]]
SeedTable = Mapping[int, Mapping[str, Mapping[int, tuple[int, ...]]]]
"""Seeds by budget, arch and size."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """An ablation: a family with some fields set otherwise, under a label of its own."""

    arch: str
    family: str
    overrides: Mapping[str, int | str]
    """Fields of the family's configuration, or d_model, n_layers, n_heads of the model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hypothesis:
    """A claim and the rule that decides it, frozen with the plan."""

    id: str
    claim: str
    decide: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """Everything that determines a plan."""

    name: str
    budgets: tuple[int, ...] = ()
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
    placement: Mapping[str, Any] = field(default_factory=lambda: {"cluster": "local"})
    """Where to run, as far as it is not left to the command line; never part of a run's identity.
    See isoflop.train.options.placement_from."""

    def __post_init__(self) -> None:
        _check_name(self.name)
        _check_budgets(self.budgets)
        self._add_families()
        get_convention(self.convention)
        if self.recipe not in RECIPES:
            raise UserError("recipe", self.recipe, " or ".join(RECIPES), "correct the study")
        check_targets(self)
        check_learning_rates(self)
        check_word("match", self.match, MATCHES)
        check_word("keep_weights", self.keep_weights, KEEP_WEIGHTS)
        check_list("seeds", self.seeds, at_least=0)
        for name in ("seq_len", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"data.{name}", value, "1 or more", "correct the study")
        check_number("tolerance", self.tolerance, above=0, up_to=0.5)
        check_number("data.max_epochs", self.max_epochs, above=0, up_to=None)
        self._check_archs()
        check_sizes(self)
        check_more_seeds(self)
        check_hypotheses(self)
        self._check_placement()

    def _add_families(self) -> None:
        for path in self.family_paths:
            add_family_folder(Path(path))

    def _check_archs(self) -> None:
        labels = [v.arch for v in self.variants]
        for label in labels:
            if is_family(label) or labels.count(label) > 1:
                raise UserError("variant.arch", label, "a label of its own", "rename the variant")
        for variant in self.variants:
            check_family(f"family of variant {variant.arch}", variant.family, ())
        if not self.archs:
            known = ", ".join((*family_names(), *labels))
            raise UserError("archs", [], f"one or more of {known}", "name some")
        for arch in self.archs:
            check_family("archs", arch, labels)
            if self.archs.count(arch) > 1:
                raise UserError("archs", arch, "named once", "remove the repetition")
        if self.match_reference is not None:
            check_family("match_reference", self.match_reference, labels)

    def _check_placement(self) -> None:
        placement_from(self.placement)
        workers = self.placement.get("workers")
        if workers is not None and workers < 1:
            raise UserError("placement.workers", workers, "1 or more", "correct the study")

    def sizes_at(self, budget_flops: int, arch: str) -> tuple[int, ...] | None:
        """The rungs the study names for a budget and arch; None where it leaves them open.

        Raises:
            UserError: the study's table of sizes lacks the entry.
        """
        if self.sizes is None or isinstance(self.sizes, str):
            return None
        if isinstance(self.sizes, tuple):
            return self.sizes
        by_arch = self.sizes.get(budget_flops, {})
        if arch in by_arch or SIZES_DEFAULT in by_arch:
            return by_arch.get(arch, by_arch.get(SIZES_DEFAULT))
        where = f"sizes at {format_flops(budget_flops)}"
        raise UserError(where, None, f"given for {arch} or default", "add the entry")

    @property
    def targets(self) -> tuple[int, ...] | tuple[float, ...]:
        """What sets the length of a run: the budgets (whole numbers), or the epochs (floats)."""
        return self.epochs or self.budgets

    def seeds_at(self, budget_flops: int, arch: str, size: int) -> tuple[int, ...]:
        """The seeds of one size: those of all, then its own."""
        more = self.more_seeds.get(budget_flops, {}).get(arch, {}).get(size, ())
        return tuple(dict.fromkeys((*self.seeds, *more)))

    def family_and_overrides(self, arch: str) -> tuple[str, Mapping[str, int | str]]:
        """The family behind a label and what the label changes in it."""
        for variant in self.variants:
            if variant.arch == arch:
                return variant.family, variant.overrides
        return arch, {}

    def recipe_of(self, arch: str) -> str:
        """The recipe's name with the peak learning rate of an arch in it, where that is another."""
        rate = self.learning_rates.get(arch)
        return self.recipe if rate is None else name_at_rate(self.recipe, rate)

    def to_json(self) -> dict[str, Any]:
        """The resolved study as it is frozen into plan.json; FLOPs as exact integers."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(Study)} | {
            "budgets": list(self.budgets),
            "epochs": list(self.epochs),
            "archs": list(self.archs),
            "seeds": list(self.seeds),
            "more_seeds": _with_text_keys(self.more_seeds),
            "learning_rates": dict(self.learning_rates),
            "variants": [dataclasses.asdict(v) for v in self.variants],
            "hypotheses": [dataclasses.asdict(h) for h in self.hypotheses],
            "family_paths": list(self.family_paths),
            "placement": dict(self.placement),
        }
        if isinstance(self.sizes, Mapping | tuple):
            values["sizes"] = _with_text_keys(self.sizes)
        # Plans that were written before there were such fields stay as they are.
        for later in ("epochs", "more_seeds", "learning_rates", "document_mask"):
            if not values[later]:
                del values[later]
        return values


def paper_study(budgets: tuple[int, ...]) -> Study:
    """The paper's study at any budgets: all five families on its ladder and data.

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


def parse_flops(value: object, field_name: str = "budgets") -> int:
    """An exact whole number of FLOPs from 1e17, "6e17" or 600000000000000000.

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


def _with_text_keys(value: Any) -> Any:
    """A table as JSON has it."""
    if isinstance(value, Mapping):
        return {str(key): _with_text_keys(inner) for key, inner in value.items()}
    return list(value)


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

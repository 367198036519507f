"""A study: what a person asks for, read from TOML, with everything resolved and checked."""

from __future__ import annotations

import dataclasses
import itertools
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from isoflop.accounting import get_convention
from isoflop.errors import UserError, shown
from isoflop.families import family_names
from isoflop.numbers import format_flops
from isoflop.recipe import get_recipe

MATCHES = ("ladder",)
KEEP_WEIGHTS = ("none", "all")
SIZES_DEFAULT = "default"

PAPER_ARCHS = ("mlp", "swiglu", "moe", "peer", "sgatlin")

SizeTable = Mapping[int, Mapping[str, tuple[int, ...]]]


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
    budgets: tuple[int, ...]
    """Training FLOPs per run, ascending."""
    archs: tuple[str, ...]
    """Families and variant labels to compare."""
    convention: str = "paper"
    sizes: tuple[int, ...] | SizeTable | None = None
    """Rungs for all; or by budget and arch (`default` for the rest); None: the recipe's."""
    match: str = "ladder"
    seeds: tuple[int, ...] = (0,)
    recipe: str = "paper-v1"
    keep_weights: str = "none"
    variants: tuple[Variant, ...] = ()
    hypotheses: tuple[Hypothesis, ...] = ()
    source: str = "sotu-embedded"
    tokenizer: str = "byte"
    seq_len: int | None = None
    """Tokens per sequence; None: the recipe's at each budget."""
    batch_size: int | None = None
    """Sequences per step; None: the recipe's at each budget."""
    placement: Mapping[str, str] = field(default_factory=lambda: {"cluster": "local"})
    """Where to run; never part of a run's identity."""

    def __post_init__(self) -> None:
        _check_name(self.name)
        _check_budgets(self.budgets)
        get_convention(self.convention)
        get_recipe(self.recipe)
        _check_word("match", self.match, MATCHES)
        _check_word("keep_weights", self.keep_weights, KEEP_WEIGHTS)
        _check_list("seeds", self.seeds, at_least=0)
        for name in ("seq_len", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"data.{name}", value, "1 or more", "correct the study")
        self._check_archs()
        self._check_sizes()

    def _check_archs(self) -> None:
        labels = [v.arch for v in self.variants]
        for label in labels:
            if label in family_names() or labels.count(label) > 1:
                raise UserError("variant.arch", label, "a label of its own", "rename the variant")
        for variant in self.variants:
            _check_word(f"family of variant {variant.arch}", variant.family, family_names())
        known = (*family_names(), *labels)
        if not self.archs:
            raise UserError("archs", [], f"one or more of {', '.join(known)}", "name some")
        for arch in self.archs:
            _check_word("archs", arch, known)
            if self.archs.count(arch) > 1:
                raise UserError("archs", arch, "named once", "remove the repetition")

    def _check_sizes(self) -> None:
        if self.sizes is None:
            return
        if isinstance(self.sizes, tuple):
            _check_list("sizes", self.sizes, at_least=1)
            return
        for budget, by_arch in self.sizes.items():
            if budget not in self.budgets:
                there = ", ".join(map(format_flops, self.budgets))
                raise UserError("sizes", format_flops(budget), f"a budget ({there})", "remove it")
            for arch, rungs in by_arch.items():
                _check_word("sizes", arch, (*self.archs, SIZES_DEFAULT))
                _check_list(f"sizes.{format_flops(budget)}.{arch}", rungs, at_least=1)
        for budget in self.budgets:
            for arch in self.archs:
                self.sizes_at(budget, arch)

    def sizes_at(self, budget_flops: int, arch: str) -> tuple[int, ...] | None:
        """The rungs the study names for a budget and arch; None where it leaves them open.

        Raises:
            UserError: the study's table of sizes lacks the entry.
        """
        if self.sizes is None or isinstance(self.sizes, tuple):
            return self.sizes
        by_arch = self.sizes.get(budget_flops, {})
        if arch in by_arch or SIZES_DEFAULT in by_arch:
            return by_arch.get(arch, by_arch.get(SIZES_DEFAULT))
        where = f"sizes at {format_flops(budget_flops)}"
        raise UserError(where, None, f"given for {arch} or default", "add the entry")

    def family_and_overrides(self, arch: str) -> tuple[str, Mapping[str, int | str]]:
        """The family behind a label and what the label changes in it."""
        for variant in self.variants:
            if variant.arch == arch:
                return variant.family, variant.overrides
        return arch, {}

    def to_json(self) -> dict[str, Any]:
        """The resolved study as it is frozen into plan.json; FLOPs as exact integers."""
        sizes: Any = self.sizes
        if isinstance(sizes, Mapping):
            sizes = {
                str(budget): {arch: list(rungs) for arch, rungs in by_arch.items()}
                for budget, by_arch in sizes.items()
            }
        elif sizes is not None:
            sizes = list(sizes)
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(Study)}
        return plain | {
            "budgets": list(self.budgets),
            "archs": list(self.archs),
            "sizes": sizes,
            "seeds": list(self.seeds),
            "variants": [dataclasses.asdict(v) for v in self.variants],
            "hypotheses": [dataclasses.asdict(h) for h in self.hypotheses],
            "placement": dict(self.placement),
        }


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


def load_study(path: Path) -> Study:
    """The study in a TOML file.

    Raises:
        UserError: no such file, not TOML, an unknown key, or a value that is not allowed.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError):
        raise UserError("study", str(path), "a study file (.toml)", "check the path") from None
    except (UnicodeDecodeError, PermissionError) as error:
        raise UserError("study", str(path), f"readable text ({error})", "check the file") from None
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError("study", str(path), f"valid TOML ({error})", "correct the file") from None
    from isoflop.study_file import study_from_toml

    return study_from_toml(values)


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UserError("name", name, "letters, digits and . _ - (it names a folder)", "rename")


def _check_budgets(budgets: Sequence[int]) -> None:
    if not budgets:
        raise UserError("budgets", list(budgets), "one budget or more, such as 1e17", "add one")
    for budget in budgets:
        parse_flops(budget)
    for before, after in itertools.pairwise(budgets):
        if after <= before:
            given = shown(", ".join(map(format_flops, budgets)))
            raise UserError("budgets", given, "ascending, each once", "sort them")


def _check_word(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise UserError(name, value, f"one of {', '.join(allowed)}", "correct the study")


def _check_list(name: str, values: Sequence[int], at_least: int) -> None:
    if not values:
        raise UserError(name, [], "one entry or more", "add one")
    for value in values:
        if value < at_least:
            raise UserError(name, value, f"{at_least} or more", "correct it")
    if len(set(values)) < len(values):
        raise UserError(name, list(values), "distinct", "remove the repetition")

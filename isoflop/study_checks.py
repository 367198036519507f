"""Checks of a study; each refuses in one line that names the field."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from isoflop.errors import UserError
from isoflop.families import family_names, is_family
from isoflop.numbers import format_flops
from isoflop.recipe import RECIPES

if TYPE_CHECKING:
    from isoflop.study import Study

MATCHES = ("ladder", "flops_per_token", "active_params")
KEEP_WEIGHTS = ("none", "best", "all")
SIZES_DEFAULT = "default"
SIZES_AUTO = "auto"

# A minimum needs a rung on either side.
MIN_NUM_SIZES = 3


def check_word(name: str, value: str, allowed: Sequence[str]) -> None:
    """Refuses what is not one of the words."""
    if value not in allowed:
        raise UserError(name, value, f"one of {', '.join(allowed)}", "correct the study")


def check_family(name: str, value: str, labels: Sequence[str]) -> None:
    """Refuses what is neither a family nor one of the labels."""
    # The list of all families is slow to make; only the message needs it.
    if value not in labels and not is_family(value):
        check_word(name, value, (*family_names(), *labels))


def check_number(name: str, value: float, *, above: float, up_to: float | None) -> None:
    """Refuses a number outside (above, up_to], NaN and infinities."""
    fits = math.isfinite(value) and value > above and (up_to is None or value <= up_to)
    if not fits:
        top = "" if up_to is None else f" and at most {up_to:g}"
        raise UserError(name, value, f"a number above {above:g}{top}", "correct the study")


def check_list(name: str, values: Sequence[int], at_least: int) -> None:
    """Refuses an empty list, an entry that is too small, and repetitions."""
    if not values:
        raise UserError(name, [], "one entry or more", "add one")
    for value in values:
        if value < at_least:
            raise UserError(name, value, f"{at_least} or more", "correct it")
    if len(set(values)) < len(values):
        raise UserError(name, list(values), "distinct", "remove the repetition")


def check_targets(study: Study) -> None:
    """Refuses a study set by neither budgets nor epochs, or by both, and epochs that are none."""
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
        check_number("epochs", number, above=0, up_to=None)
    for before, after in itertools.pairwise(study.epochs):
        if after <= before:
            raise UserError("epochs", list(study.epochs), "ascending, each once", "sort them")
    is_open = study.sizes is None and RECIPES[study.recipe].centre is not None
    if is_open or not isinstance(study.sizes, tuple | None):
        allowed = "rungs for all, such as [1, 2], where epochs are given"
        raise UserError("sizes", study.sizes, allowed, "name them")


def check_learning_rates(study: Study) -> None:
    """Refuses rates of archs that the study does not have, and rates that are none."""
    for arch, rate in study.learning_rates.items():
        check_word("learning_rates", arch, study.archs)
        check_number(f"learning_rates.{arch}", rate, above=0, up_to=None)


def check_sizes(study: Study) -> None:
    """Refuses sizes that are no rungs or not given for every budget and arch."""
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
        check_list("sizes", study.sizes, at_least=1)
        return
    for budget, by_arch in study.sizes.items():
        _check_is_budget(study, "sizes", budget)
        for arch, rungs in by_arch.items():
            check_word("sizes", arch, (*study.archs, SIZES_DEFAULT))
            check_list(f"sizes.{format_flops(budget)}.{arch}", rungs, at_least=1)
    for budget in study.budgets:
        for arch in study.archs:
            study.sizes_at(budget, arch)


def check_more_seeds(study: Study) -> None:
    """Refuses more seeds for what the study does not have, and seeds that are none."""
    for budget, by_arch in study.more_seeds.items():
        _check_is_budget(study, "more_seeds", budget)
        for arch, by_size in by_arch.items():
            check_word("more_seeds", arch, study.archs)
            sizes = study.sizes_at(budget, arch)
            if sizes is not None:
                check_more_seeds_at(study, budget, arch, sizes)
            for size, seeds in by_size.items():
                where = f"more_seeds.{format_flops(budget)}.{arch}.{size}"
                check_list(where, seeds, at_least=0)


def check_more_seeds_at(study: Study, budget_flops: int, arch: str, sizes: Sequence[int]) -> None:
    """Refuses more seeds for a size that is none of a budget's and arch's.

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


def check_hypotheses(study: Study) -> None:
    """Refuses hypotheses with an empty part or the id of another."""
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

"""The rules that `decide` may hold, read without eval.

    RULE     = QUANTITY TEST [at WHERE]
    QUANTITY = multiplier(A, B[, RESOURCE])
             | exponent(A, AXIS)
             | exponent(A, AXIS) - exponent(B, AXIS)
             | loss(A) / loss(B)
             | seed_mean(A) / seed_mean(B)
    TEST     = [lower bound | upper bound] (> | >= | < | <=) NUMBER
             | interval (contains | excludes) NUMBER
    WHERE    = every budget | some budget | the largest budget | the smallest budget | NUMBER

`loss` is the loss at the optimum of a family's sizes. `seed_mean` is for families of one size at
the budget: the mean loss over the seeds, compared seed by seed (isoflop.analysis.compare.one_size).
`loss(A) < loss(B)` is short for `loss(A) / loss(B) < 1`, and so for seed_mean. RESOURCE is flops
(the default), wall_s, n_active, n_params, n_tokens or peak_mem_bytes; AXIS is n_params, n_tokens,
n_active, n_nonembed or loss. Without WHERE a rule is meant for every budget; an exponent has none.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from isoflop.analysis.laws import LAW_AXES
from isoflop.analysis.resources import RESOURCES

Kind = Literal["multiplier", "exponent", "exponent_difference", "loss_ratio", "seed_ratio"]
Comparator = Literal[">", ">=", "<", "<=", "contains", "excludes"]
Side = Literal["lower", "upper"]
Where = Literal["every", "some", "largest", "smallest"] | float

SIGNS: Mapping[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
"""What the comparators of bounds mean."""

GRAMMAR = (
    "multiplier(A, B[, RESOURCE]) | exponent(A, AXIS)[ - exponent(B, AXIS)] | loss(A) / loss(B) | "
    "seed_mean(A) / seed_mean(B), then [lower bound | upper bound] > | >= | < | <= NUMBER or "
    "interval contains | excludes NUMBER, then [at every budget | some budget | the largest budget "
    "| the smallest budget | 1e18]"
)

_AXES = (*LAW_AXES, "n_nonembed")
_LABEL = r"\s*([^,()]+?)\s*"
_CALL = rf"\({_LABEL}(?:,{_LABEL})?(?:,{_LABEL})?\)"
_HEADS: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    ("multiplier", re.compile(rf"multiplier{_CALL}")),
    ("exponent_difference", re.compile(rf"exponent{_CALL}\s*[-−]\s*exponent{_CALL}")),
    ("exponent", re.compile(rf"exponent{_CALL}")),
    ("loss_ratio", re.compile(rf"loss\({_LABEL}\)\s*/\s*loss\({_LABEL}\)")),
    ("seed_ratio", re.compile(rf"seed_mean\({_LABEL}\)\s*/\s*seed_mean\({_LABEL}\)")),
)
_SHORT = re.compile(rf"(loss|seed_mean)\({_LABEL}\)\s*(>=|<=|>|<)\s*\1\({_LABEL}\)")
_TAIL = re.compile(
    r"(?:(?:(lower|upper)\s+bound\s*)?(>=|<=|>|<)|interval\s+(contains|excludes))\s*"
    r"([-−]?[\d.]+(?:[eE][-+]?\d+)?)(?:\s+at\s+(.+))?"
)
_PLACES: dict[str, Where] = {
    "every budget": "every",
    "all budgets": "every",
    "some budget": "some",
    "the largest budget": "largest",
    "the smallest budget": "smallest",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """A rule of a hypothesis, parsed."""

    kind: Kind
    arch: str
    other: str | None
    """The reference or the second family; None for a single exponent."""
    along: str
    """The resource of a multiplier or the axis of an exponent; `loss` for ratios of losses."""
    comparator: Comparator
    side: Side
    """The bound of the interval that is compared; not used by contains and excludes."""
    number: float
    where: Where | None
    """None for exponents."""


def parse_rule(text: str) -> Rule | None:
    """Return the rule, or None for text that is none (a person must decide it)."""
    text = " ".join(text.split())
    short = _SHORT.match(text)
    if short:
        name, one, sign, other = short.groups()
        text = f"{name}({one}) / {name}({other}) {sign} 1{text[short.end() :]}"
    for kind, pattern in _HEADS:
        head = pattern.match(text)
        tail = _TAIL.fullmatch(text[head.end() :].strip()) if head else None
        if head and tail:
            return _rule(kind, head.groups(), tail.groups())
    return None


def _rule(kind: Kind, names: tuple[str | None, ...], tail: tuple[str | None, ...]) -> Rule | None:
    side, sign, contains, digits, place = tail
    parts = _parts(kind, names)
    where = _where(kind, place)
    try:
        number = float((digits or "").replace("−", "-"))
    except ValueError:
        return None
    if parts is None or where == "unknown" or not math.isfinite(number):
        return None
    arch, other, along = parts
    comparator = sign or contains
    return Rule(
        kind=kind,
        arch=arch,
        other=other,
        along=along,
        comparator=comparator,  # type: ignore[arg-type]
        side=side or ("lower" if comparator in (">", ">=") else "upper"),  # type: ignore[arg-type]
        number=number,
        where=where,
    )


def _parts(kind: str, names: tuple[str | None, ...]) -> tuple[str, str | None, str] | None:
    """Return (arch, other, along), or None where a name is missing or no resource or axis."""
    first, second, third = (*names, None)[:3]
    assert first is not None
    if kind in ("loss_ratio", "seed_ratio"):
        return first, second, "loss"
    if kind == "multiplier":
        resource = third or "flops"
        return (first, second, resource) if second and resource in RESOURCES else None
    if second not in _AXES or third is not None:
        return None
    if kind == "exponent":
        return first, None, second
    other, other_axis, extra = names[3:]
    return (first, other, second) if other_axis == second and extra is None else None


def _where(kind: str, place: str | None) -> Where | Literal["unknown"] | None:
    if kind.startswith("exponent"):
        return None if place is None else "unknown"
    if place is None:
        return "every"
    if place in _PLACES:
        return _PLACES[place]
    try:
        budget = float(place)
    except ValueError:
        return "unknown"
    return budget if math.isfinite(budget) and budget > 0 else "unknown"

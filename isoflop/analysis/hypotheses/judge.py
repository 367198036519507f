"""Verdicts on hypotheses: supported, not supported or undecided, with the numbers behind them."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from isoflop.analysis.compare_interval import FitsLike, Interval
from isoflop.analysis.hypotheses.cases import Case, Judged, cases_of
from isoflop.analysis.hypotheses.grammar import GRAMMAR, Rule, parse_rule
from isoflop.analysis.optima import Method
from isoflop.analysis.points import Axis
from isoflop.tables import HYPOTHESES

Answer = Literal["supported", "not supported", "undecided"]

_SIGNS: Mapping[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}


class HypothesisLike(Protocol):
    """isoflop.study.Hypothesis, or anything with its fields."""

    @property
    def id(self) -> str:
        """Short name."""

    @property
    def claim(self) -> str:
        """In words."""

    @property
    def decide(self) -> str:
        """The rule."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """One row of hypotheses.parquet."""

    id: str
    claim: str
    decide: str
    verdict: Answer
    detail: str
    """The numbers that decided, or why nothing could be decided."""

    def row(self) -> dict[str, Any]:
        """Return the row of hypotheses.parquet."""
        return {name: getattr(self, name) for name in HYPOTHESES.names}


def judge(
    hypotheses: Iterable[HypothesisLike],
    fits: FitsLike,
    *,
    axis: Axis = "n_params",
    method: Method = "parabola",
    confidence: float = 0.95,
) -> tuple[Verdict, ...]:
    """Judge each hypothesis by its own rule, in their order.

    Supported: the bound that the rule names (without one: the end of the interval that is nearer
    to the number) satisfies it. Not supported: the opposite bound does not satisfy it either.
    Undecided: neither; there is no interval; or the rule is not machine-readable. An interval that
    is asked to contain a number, or to exclude it, decides at once.
    """
    return tuple(
        _judge(one, Judged(fits=fits, axis=axis, method=method, confidence=confidence))
        for one in hypotheses
    )


def _judge(hypothesis: HypothesisLike, fit: Judged) -> Verdict:
    rule = parse_rule(hypothesis.decide)
    if rule is None:
        answer, detail = "undecided", f"not machine-readable; a rule is: {GRAMMAR}"
    else:
        answer, detail = _apply(rule, fit)
    return Verdict(
        id=hypothesis.id,
        claim=hypothesis.claim,
        decide=hypothesis.decide,
        verdict=answer,  # type: ignore[arg-type]
        detail=detail,
    )


def _apply(rule: Rule, fit: Judged) -> tuple[Answer, str]:
    for arch in (rule.arch, rule.other):
        if arch is not None and arch not in fit.archs:
            return "undecided", f"the table has no arch {arch}"
    cases = cases_of(rule, fit)
    if not cases:
        return "undecided", "the table has no such budget"
    answers = [_answer(rule, case.strict) for case in cases]
    detail = "; ".join(
        f"{_shown(case)}: {answer}" for case, answer in zip(cases, answers, strict=True)
    )
    return _together(answers, any_is_enough=rule.where == "some"), detail


def _answer(rule: Rule, bounds: Interval) -> Answer:
    low, high = bounds
    if low is None or high is None:
        return "undecided"
    if rule.comparator in ("contains", "excludes"):
        if not (math.isfinite(low) and math.isfinite(high)):
            return "undecided"
        is_inside = low <= rule.number <= high
        return "supported" if is_inside == (rule.comparator == "contains") else "not supported"
    holds = _SIGNS[rule.comparator]
    named, opposite = (low, high) if rule.side == "lower" else (high, low)
    if holds(named, rule.number):
        return "supported"
    return "undecided" if holds(opposite, rule.number) else "not supported"


def _together(answers: Sequence[Answer], *, any_is_enough: bool) -> Answer:
    decisive: Answer = "supported" if any_is_enough else "not supported"
    if decisive in answers:
        return decisive
    return "undecided" if "undecided" in answers else answers[0]


def _shown(case: Case) -> str:
    value = "no value" if case.value is None else f"{case.value:.4g}"
    low, high = case.bounds
    span = "no interval" if low is None or high is None else f"{low:.4g} to {high:.4g}"
    note = f"; {case.note}" if case.note else ""
    return f"{case.place} {value} ({span}{note})"

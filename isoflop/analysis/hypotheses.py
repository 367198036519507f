"""Verdicts on a study's hypotheses, and the numbers behind them.

A hypothesis has a rule (isoflop.analysis.rules). Every budget that the rule names, or an exponent,
is a case with a value and an interval; the intervals decide: supported, not supported, undecided.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from isoflop.analysis.axes import has_axis
from isoflop.analysis.compare.claims import (
    Interval,
    exp_interval,
    interval,
    num_failed,
    strict_interval,
)
from isoflop.analysis.compare.differences import exponent, exponent_differences, pair_orders
from isoflop.analysis.compare.multipliers import Comparison, compared_along
from isoflop.analysis.compare.one_size import (
    claim_together,
    compare_shapes,
    paired_loss,
)
from isoflop.analysis.fit import fit_optima
from isoflop.analysis.laws import LawAxis, law_axes, law_source
from isoflop.analysis.result import Fits
from isoflop.analysis.rules import GRAMMAR, SIGNS, Rule, parse_rule
from isoflop.numbers import format_flops
from isoflop.study import Hypothesis
from isoflop.tables import schema_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """What one budget (or one exponent) says about a rule."""

    place: str
    value: float | None
    bounds: Interval
    """Of all comparisons of its table together."""
    strict: Interval
    """The same with failed draws counted against any claim: what decides."""
    note: str
    """Empty, or why there is no interval or what to mind about it."""


def _cases(rule: Rule, fits: Fits) -> list[Case]:
    """Return what each budget of the rule says, or the one exponent; no budget, no case."""
    if rule.kind == "exponent":
        return [_exponent_case(rule, fits)]
    if rule.kind == "exponent_difference":
        return [_difference_case(rule, fits)]
    budgets = _at(rule, fits.budgets)
    if rule.kind == "multiplier":
        same = rule.other == fits.reference
        rows = compared_along(fits if same else fits.under(reference=rule.other), rule.along)
        by_budget = {row.budget_flops: row for row in rows if row.arch == rule.arch}
        return [_multiplier_case(budget, by_budget.get(budget)) for budget in budgets]
    if rule.kind == "seed_ratio":
        return [_seed_case(rule, fits, budget) for budget in budgets]
    ratios = _loss_ratios(rule, fits)
    return [ratios.get(budget, _missing(format_flops(budget))) for budget in budgets]


def _at(rule: Rule, budgets: Sequence[float]) -> list[float]:
    if rule.where == "largest":
        return list(budgets[-1:])
    if rule.where == "smallest":
        return list(budgets[:1])
    if isinstance(rule.where, float):
        # People write 1e18 for a budget that a table may hold with rounding.
        return [b for b in budgets if math.isclose(b, rule.where, rel_tol=1e-6)]
    return list(budgets)


def _missing(place: str) -> Case:
    return Case(
        place=place,
        value=None,
        bounds=(None, None),
        strict=(None, None),
        note="no interior optimum of both",
    )


def _multiplier_case(budget: float, row: Comparison | None) -> Case:
    if row is None:
        return _missing(format_flops(budget))
    note = "" if row.status == "estimate" else row.status.replace("_", " ")
    if row.extrapolated:
        note = _joined(note, "extrapolated")
    return Case(
        place=format_flops(budget),
        value=row.multiplier,
        bounds=(row.ci_lo_simultaneous, row.ci_hi_simultaneous),
        strict=row.strict,
        note=_with_failed(note, row.n_failed, row.n_boot),
    )


def _exponent_case(rule: Rule, fits: Fits) -> Case:
    found = exponent(_fitted_along(fits, rule.along), rule.arch, rule.along)
    return Case(
        place=f"exponent of {rule.along}",
        value=found.value,
        bounds=interval(found.drawn, fits.options.confidence),
        strict=strict_interval(found.drawn, fits.options.confidence),
        note=_with_failed(
            "" if found.value is not None else "fewer than two interior optima",
            num_failed(found.drawn),
            None if found.drawn is None else len(found.drawn),
        ),
    )


def _difference_case(rule: Rule, fits: Fits) -> Case:
    assert rule.other is not None
    along = _fitted_along(fits, rule.along)
    rows = exponent_differences(along.under(reference=rule.other))
    found = next((row for row in rows if (row.arch, row.axis) == (rule.arch, rule.along)), None)
    if found is None:
        return _missing(f"difference of the exponents of {rule.along}")
    return Case(
        place=f"difference of the exponents of {rule.along}",
        value=found.difference,
        bounds=(found.ci_lo_simultaneous, found.ci_hi_simultaneous),
        strict=found.strict,
        note=_with_failed(
            "" if found.status == "estimate" else "fewer than two shared interior optima",
            found.n_failed,
            found.n_boot,
        ),
    )


def _loss_ratios(rule: Rule, fits: Fits) -> dict[float, Case]:
    cases = {}
    for pair in pair_orders(fits):
        if {pair.better, pair.worse} != {rule.arch, rule.other}:
            continue
        sign = -1 if pair.worse == rule.arch else 1
        cases[pair.budget_flops] = Case(
            place=format_flops(pair.budget_flops),
            value=math.exp(sign * pair.log_ratio),
            bounds=_exp(pair.strict, sign),
            strict=_exp(pair.strict, sign),
            note="",
        )
    return cases


def _seed_case(rule: Rule, fits: Fits, budget: float) -> Case:
    assert rule.other is not None
    pairs = compare_shapes(fits, rule.other)
    places = [(pair.arch, pair.budget_flops) for pair in pairs]
    if (rule.arch, budget) in places:
        place = places.index((rule.arch, budget))
        pair, bounds = pairs[place], claim_together(pairs, fits.options.confidence)[place].bounds
    else:
        pair = paired_loss(fits, rule.arch, rule.other, budget)
        bounds = pair.bounds
    seeds = f"seeds {', '.join(map(str, pair.seeds))}" if pair.seeds else ""
    return Case(
        place=format_flops(budget),
        value=pair.ratio,
        bounds=bounds,
        strict=bounds,
        note=_joined(pair.problem, seeds, pair.note),
    )


def _fitted_along(fits: Fits, axis: LawAxis) -> Fits:
    """Return the fits with the optima along an axis that was not asked for, where runs have it."""
    if axis in law_axes(o.axis for o in fits.optima) or not has_axis(fits.selection, axis):
        return fits
    # Optima over parameters too: their draws weigh those along any axis.
    asked = replace(fits.options, axis=axis)
    axes, methods = (law_source("loss"), axis), (fits.options.method,)
    found = fit_optima(fits.selection, asked, methods=methods, axes=axes)
    added = tuple(o for o in found.optima if o.axis == axis)
    return replace(fits, optima=(*fits.optima, *added), draws=fits.draws | found.draws)


def _exp(log_bounds: Interval, sign: int) -> Interval:
    low, high = log_bounds
    return exp_interval((low, high) if sign > 0 or low is None or high is None else (-high, -low))


def _with_failed(note: str, failed: int | None, drawn: int | None) -> str:
    return _joined(note, f"{failed} of {drawn} draws failed" if failed else "")


def _joined(*notes: str) -> str:
    return ", ".join(note for note in notes if note)


Answer = Literal["supported", "not supported", "undecided"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """The verdict on a hypothesis: a row of hypotheses.parquet."""

    id: str
    claim: str
    decide: str
    verdict: Answer
    detail: str
    """The numbers that decided, or why nothing could be decided."""


HYPOTHESES = schema_of("hypotheses", Verdict, version=4)


def judge(hypotheses: Iterable[Hypothesis], fits: Fits) -> tuple[Verdict, ...]:
    """Judge each hypothesis by its own rule, in their order.

    Supported: the bound that the rule names (without one: the end of the interval that is nearer
    to the number) satisfies it. Not supported: the opposite bound does not satisfy it either.
    Undecided: neither; there is no interval; or the rule is not machine-readable. An interval that
    is asked to contain a number, or to exclude it, decides at once.
    """
    return tuple(_judge(one, fits) for one in hypotheses)


def _judge(hypothesis: Hypothesis, fits: Fits) -> Verdict:
    rule = parse_rule(hypothesis.decide)
    if rule is None:
        answer, detail = "undecided", f"not machine-readable; a rule is: {GRAMMAR}"
    else:
        answer, detail = _apply(rule, fits)
    return Verdict(
        id=hypothesis.id,
        claim=hypothesis.claim,
        decide=hypothesis.decide,
        verdict=answer,  # type: ignore[arg-type]
        detail=detail,
    )


def _apply(rule: Rule, fits: Fits) -> tuple[Answer, str]:
    for arch in (rule.arch, rule.other):
        if arch is not None and arch not in fits.archs:
            return "undecided", f"the table has no arch {arch}"
    cases = _cases(rule, fits)
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
    holds = SIGNS[rule.comparator]
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

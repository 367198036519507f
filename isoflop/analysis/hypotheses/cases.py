"""What each budget of a fit, or an exponent, says about a rule: its value and its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from isoflop.analysis.compare import Comparison, compare_archs
from isoflop.analysis.compare_exponents import exponent, exponent_difference
from isoflop.analysis.compare_interval import (
    FitsLike,
    Interval,
    interval,
    num_failed,
    strict_interval,
)
from isoflop.analysis.compare_orders import pair_orders
from isoflop.analysis.compare_sizes import paired_loss
from isoflop.analysis.hypotheses.grammar import Rule
from isoflop.analysis.laws import LawAxis
from isoflop.analysis.optima import Method
from isoflop.analysis.points import Axis
from isoflop.analysis.resample import Resource
from isoflop.numbers import format_flops


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """What one budget (or one exponent) says about a rule."""

    place: str
    value: float | None
    bounds: Interval
    strict: Interval
    """The interval in which failed draws count against any claim: what decides."""
    note: str
    """Empty, or why there is no interval or what to mind about it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """A fit, and by which optima it is judged."""

    fits: FitsLike
    axis: Axis
    method: Method
    confidence: float

    @property
    def archs(self) -> set[str]:
        """Labels in the table."""
        return {optimum.arch for optimum in self.fits.optima}

    @property
    def budgets(self) -> list[float]:
        """Ascending."""
        return sorted({budget for _, budget in self.fits.selection.groups})


def cases_of(rule: Rule, fit: Judged) -> list[Case]:
    """Return what each budget of the rule says, or the one exponent; no budget, no case."""
    if rule.kind == "exponent":
        return [_exponent_case(rule, fit)]
    if rule.kind == "exponent_difference":
        return [_difference_case(rule, fit)]
    budgets = _at(rule, fit.budgets)
    if rule.kind == "multiplier":
        rows = compare_archs(
            fit.fits,
            reference=rule.other,
            axis=fit.axis,
            method=fit.method,
            confidence=fit.confidence,
            resources=(_resource(rule),),
        )
        by_budget = {row.budget_flops: row for row in rows if row.arch == rule.arch}
        return [_multiplier_case(budget, by_budget.get(budget)) for budget in budgets]
    if rule.kind == "seed_ratio":
        return [_seed_case(rule, fit, budget) for budget in budgets]
    ratios = _loss_ratios(rule, fit)
    return [ratios.get(budget, _missing(budget)) for budget in budgets]


def _at(rule: Rule, budgets: Sequence[float]) -> list[float]:
    if rule.where == "largest":
        return list(budgets[-1:])
    if rule.where == "smallest":
        return list(budgets[:1])
    if isinstance(rule.where, float):
        # People write 1e18 for a budget that a table may hold with rounding.
        return [b for b in budgets if math.isclose(b, rule.where, rel_tol=1e-6)]
    return list(budgets)


def _missing(budget: float) -> Case:
    return Case(
        place=format_flops(budget),
        value=None,
        bounds=(None, None),
        strict=(None, None),
        note="no interior optimum of both",
    )


def _multiplier_case(budget: float, row: Comparison | None) -> Case:
    if row is None:
        return _missing(budget)
    note = "" if row.status == "estimate" else row.status.replace("_", " ")
    if row.extrapolated:
        note = f"{note}, extrapolated".removeprefix(", ")
    return Case(
        place=format_flops(budget),
        value=row.multiplier,
        bounds=row.bounds,
        strict=row.strict,
        note=_with_failed(note, row.n_failed, row.n_boot),
    )


def _exponent_case(rule: Rule, fit: Judged) -> Case:
    found = exponent(fit.fits, rule.arch, _law_axis(rule), fit.method)
    return Case(
        place=f"exponent of {rule.along}",
        value=found.value,
        bounds=interval(found.drawn, fit.confidence),
        strict=strict_interval(found.drawn, fit.confidence),
        note=_with_failed(
            "" if found.value is not None else "fewer than two interior optima",
            num_failed(found.drawn),
            None if found.drawn is None else len(found.drawn),
        ),
    )


def _difference_case(rule: Rule, fit: Judged) -> Case:
    assert rule.other is not None
    found = exponent_difference(
        fit.fits,
        rule.arch,
        rule.other,
        axis=_law_axis(rule),
        method=fit.method,
        confidence=fit.confidence,
    )
    return Case(
        place=f"difference of the exponents of {rule.along}",
        value=found.difference,
        bounds=(found.ci_lo, found.ci_hi),
        strict=found.strict,
        note=_with_failed(
            "" if found.status == "estimate" else "fewer than two shared interior optima",
            found.n_failed,
            found.n_boot,
        ),
    )


def _loss_ratios(rule: Rule, fit: Judged) -> dict[float, Case]:
    pairs = pair_orders(fit.fits, axis=fit.axis, method=fit.method, confidence=fit.confidence)
    cases = {}
    for pair in pairs:
        if {pair.better, pair.worse} != {rule.arch, rule.other}:
            continue
        sign = -1 if pair.worse == rule.arch else 1
        cases[pair.budget_flops] = Case(
            place=format_flops(pair.budget_flops),
            value=math.exp(sign * pair.log_ratio),
            bounds=_exp((pair.ci_lo, pair.ci_hi), sign),
            strict=_exp(pair.strict, sign),
            note="",
        )
    return cases


def _seed_case(rule: Rule, fit: Judged, budget: float) -> Case:
    assert rule.other is not None
    pair = paired_loss(fit.fits.selection, rule.arch, rule.other, budget, fit.confidence)
    seeds = f"seeds {', '.join(map(str, pair.seeds))}" if pair.seeds else ""
    return Case(
        place=format_flops(budget),
        value=pair.ratio,
        bounds=pair.bounds,
        strict=pair.bounds,
        note=", ".join(said for said in (pair.problem, seeds, pair.note) if said),
    )


def _law_axis(rule: Rule) -> LawAxis:
    return rule.along  # type: ignore[return-value]


def _resource(rule: Rule) -> Resource:
    return rule.along  # type: ignore[return-value]


def _exp(log_bounds: Interval, sign: int) -> Interval:
    low, high = log_bounds
    if low is None or high is None:
        return None, None
    with np.errstate(over="ignore"):
        ends = sorted(float(np.exp(sign * end)) for end in (low, high))
    return ends[0], ends[1]


def _with_failed(note: str, failed: int | None, drawn: int | None) -> str:
    said = [note] if note else []
    return ", ".join([*said, f"{failed} of {drawn} draws failed"] if failed else said)

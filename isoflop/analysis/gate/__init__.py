"""One run or a few against the frontier of a finished study: pass, fail or undecided.

The multiplier of a run is what the reference's frontier needs of a resource for the loss of the
run, over what the run took; above 1 the run is better. It is judged as it is: a run off its best
size has a higher loss, and a lower multiplier than its family.

Each draw takes the reference's optima as the bootstrap has them, and the run's loss with the noise
that one run of the reference has at those FLOPs. That the multiplier is above t says that the loss
is below the frontier at t times what the run took. So a bound rests on the frontier there alone,
and counts only where the reference was measured: of a draw that leads beyond that, it takes no more
than the side. Several runs are judged together by those losses (compare/claims.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np

from isoflop.analysis.compare.claims import (
    Interval,
    JointClaims,
    Order,
    agreeing,
    joint_claims,
    stretched,
)
from isoflop.analysis.compare.frontier import SLACK, Frontier, frontier_along
from isoflop.analysis.compare.frontier_curve import FrontierCurve
from isoflop.analysis.gate.rule import GateRule, Resource, default_rule
from isoflop.analysis.gate.runs import Run, RunNoise, cells_of, noise_of_runs, size_ratio
from isoflop.analysis.optima_methods import Method
from isoflop.analysis.resources import RESOURCES
from isoflop.analysis.result import Fits
from isoflop.analysis.rules import SIGNS, Rule
from isoflop.arrays import Floats
from isoflop.tables import schema_of

Answer = Literal["pass", "fail", "undecided"]

_STREAM = 40_961

# The order of the losses by which a test of that side of the interval holds.
_SIDES: Mapping[str, Order] = {"lower": "higher", "upper": "lower"}

# As much of a resource, but for rounding, in logs.
_EQUAL = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class GateRow:
    """A run, or the mean of the seeds of one cell, along a resource: a row of gate.parquet."""

    run_id: str | None
    """Of a mean, the ids joined by commas."""
    arch: str | None
    num_runs: int
    """Seeds averaged."""
    n_params: float | None
    n_tokens: float | None
    flops: float | None
    loss: float | None
    """Of a mean, the geometric one. None where it cannot be used."""
    reference: str | None
    resource: str
    taken: float | None
    """What the run took of the resource."""
    size_ratio: float | None = None
    """Parameters over the reference's N* at as many FLOPs; None beyond its budgets."""
    frontier_loss: float | None = None
    """The reference's at as much of the resource; None beyond what was measured."""
    noise_sd: float | None = None
    """Of ln loss: what one run of the reference has there, over the root of the seeds."""
    multiplier: float | None = None
    """None where there is none, or where it leads over 100 times beyond the reference's optima."""
    extrapolated: bool | None = None
    """Whether the loss lies beyond the reference's measured optima."""
    ci_lo: float | None = None
    ci_hi: float | None = None
    """None where the draws have no end."""
    ci_lo_simultaneous: float | None = None
    ci_hi_simultaneous: float | None = None
    """For all runs of the table together; an end that the interval lacks is lacking here, too."""
    claim_lo: float | None = None
    claim_hi: float | None = None
    """The bounds that decide: those of the interval as far as the reference was measured."""
    verdict: Answer = "undecided"
    reason: str = ""
    """Why it is undecided."""
    confidence: float
    method: Method
    n_boot: int | None = None
    n_failed: int | None = None
    """Draws in which the frontier was not monotone or had no optimum."""
    rule_sha: str


GATE = schema_of("gate", GateRow, version=4)


@dataclass(frozen=True, kw_only=True, slots=True)
class Gate:
    """The verdict on one run or a few."""

    rule: GateRule
    rows: tuple[GateRow, ...]
    """By run in the order of the table, each along FLOPs and time."""
    verdict: Answer
    """Of all runs together, by intervals that hold for all of them at once."""

    def along(self, resource: str) -> list[GateRow]:
        """Return the rows along a resource."""
        return [row for row in self.rows if row.resource == resource]


def gate(fits: Fits, rows: Iterable[Mapping[str, Any]], rule: GateRule | None = None) -> Gate:
    """Judge runs against the frontier of the reference of a fit.

    Args:
        fits: with the draws of the options' axis and method.
        rows: runs with ``loss`` and ``flops`` or ``wall_s``, as `load_rows` gives them.
        rule: when a run passes; None: `default_rule`.

    Raises:
        UserError: the reference of the options is not in the table.
    """
    rule = rule or default_rule()
    runs = cells_of(rows, fits.unit)
    judged = {name: _along(fits, runs, rule, name) for name in get_args(Resource)}
    in_order = zip(*judged.values(), strict=True)
    return Gate(
        rule=rule,
        rows=tuple(one.row for of_run in in_order for one in of_run),
        verdict=_together(judged[rule.resource], rule),
    )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Judged:
    """A row, its draws, and the verdict on it that stands beside those on all other runs."""

    row: GateRow
    drawn: Floats | None = None
    """Ln of the multiplier in every draw; NaN failed, infinite beyond any number."""
    span: tuple[float, float] = (0.0, 0.0)
    """Ln of the multipliers that lead to the reference's ends."""
    margin: float = 0.0
    """How far beyond them its frontier counts, in logs."""
    gaps: tuple[Floats | None, Floats | None] = (None, None)
    """For the test of passing and of failing: ln of the reference's loss over the run's, at as many
    times what the run took as the test asks; None where the reference was not measured there."""
    beside_all: Answer = "undecided"


def _along(fits: Fits, runs: Sequence[Run], rule: GateRule, resource: Resource) -> list[_Judged]:
    """Judge every run along one resource."""
    reference = fits.reference
    frontier = None if reference is None else frontier_along(fits, reference, resource)
    noise = None if reference is None else noise_of_runs(fits, reference)
    judged = []
    for index, run in enumerate(runs):
        row = _row(run, fits, rule, resource)
        problem = _why_not(run, row, frontier)
        if problem or frontier is None:
            judged.append(_Judged(row=replace(row, reason=problem)))
        else:
            judged.append(_measured(row, frontier, noise, rule, (fits.options.seed, index)))
    judged = [_with_verdict(one, rule) for one in judged]
    orders = joint_claims([gap for one in judged for gap in one.gaps], rule.confidence).orders
    pairs = zip(orders[::2], orders[1::2], strict=True)
    judged = [_beside_all(one, pair, rule) for one, pair in zip(judged, pairs, strict=True)]
    shown = [_shown_draws(one) for one in judged]
    claims = joint_claims(shown, rule.confidence)
    return [_with_all(one, values, claims, rule) for one, values in zip(judged, shown, strict=True)]


def _row(run: Run, fits: Fits, rule: GateRule, resource: Resource) -> GateRow:
    return GateRow(
        run_id=run.run_id,
        arch=run.arch,
        num_runs=run.num_runs,
        n_params=run.n_params,
        n_tokens=run.n_tokens,
        flops=run.flops,
        loss=run.loss,
        reference=fits.reference,
        resource=resource,
        taken=getattr(run, resource),
        size_ratio=None
        if fits.reference is None
        else size_ratio(fits, fits.reference, run.n_params, run.flops),
        confidence=rule.confidence,
        method=fits.options.method,
        rule_sha=rule.sha,
    )


def _why_not(run: Run, row: GateRow, frontier: Frontier | None) -> str:
    """Return why a run has no multiplier; empty where it has one."""
    if run.problem:
        return run.problem
    if row.taken is None:
        return f"{row.resource} of the run is missing or not above 0"
    if frontier is None:
        return "the reference's table has no runs"
    return _why_no_frontier(frontier)


def _measured(
    row: GateRow,
    frontier: Frontier,
    noise: RunNoise | None,
    rule: GateRule,
    seed: tuple[int, int],
) -> _Judged:
    """Fill in the multiplier of a run, and its draws."""
    assert row.loss is not None
    assert row.taken is not None
    log_loss, log_taken = np.array([math.log(row.loss)]), math.log(row.taken)
    curve = frontier.interior
    found = float(_reached(curve, log_loss)[0]) - log_taken
    low, high = (float(curve.log_r[0, end]) - log_taken for end in (0, -1))
    equal = float(curve.at(np.array([log_taken]), SLACK)[0])
    row = replace(
        row,
        frontier_loss=_factor(equal),
        multiplier=_factor(found),
        extrapolated=not low <= found <= high,
    )
    if noise is None or frontier.drawn is None:
        reason = "no draws of the reference: too few sizes or seeds to know its noise"
        return _Judged(row=replace(row, reason=reason))
    sd = noise.sd(row.flops, row.num_runs)
    error = sd * np.random.default_rng((_STREAM, *seed)).standard_normal(len(sd))
    drawn = _reached(frontier.drawn, log_loss + error) - log_taken
    span, margin = (low, high), _margin(curve, rule)
    gaps = [
        None if place is None else _gap(frontier.drawn, log_taken + place, log_loss + error, margin)
        for place in (_place(test, span, margin) for test in (rule.passes, rule.fails))
    ]
    return _Judged(
        row=replace(
            row,
            noise_sd=float(np.median(sd)),
            n_boot=len(drawn),
            n_failed=int(np.isnan(drawn).sum()),
        ),
        drawn=drawn,
        span=span,
        margin=margin,
        gaps=(gaps[0], gaps[1]),
    )


def _why_no_frontier(frontier: Frontier) -> str:
    """Return in words why a family has no frontier along a resource; empty where it has one."""
    words = RESOURCES[frontier.resource].words
    if frontier.lacks_data:
        return f"the table of {frontier.arch} lacks {words}"
    if not any(not node.is_edge for node in frontier.nodes):
        return f"{frontier.arch} has no optimum inside its grid at any budget"
    if not frontier.interior.is_monotone[0]:
        return f"the loss of {frontier.arch} does not fall with {words} from budget to budget"
    return ""


def _reached(curve: FrontierCurve, log_loss: Floats) -> Floats:
    """Return ln of the resource at which each draw's frontier reaches a loss [draws].

    Infinite where that is too far to say more than the side, as always with one optimum. NaN where
    the draw has no optimum, or a frontier that is not monotone.
    """
    inverse = curve.invert(log_loss)
    there = np.isfinite(curve.log_r) & np.isfinite(curve.log_loss)
    lowest = np.min(np.where(there, curve.log_loss, np.inf), axis=1)
    only_side = inverse.too_far | ((there.sum(axis=1) == 1) & (log_loss != lowest))
    return np.where(only_side, np.where(log_loss < lowest, np.inf, -np.inf), inverse.log_r)


def _margin(curve: FrontierCurve, rule: GateRule) -> float:
    # One optimum has no slope: beyond it nothing is known but the side.
    factor = rule.max_extrapolation if curve.log_r.shape[1] > 1 else 1.0
    return max(math.log(factor), _EQUAL)


def _place(test: Rule, span: tuple[float, float], margin: float) -> float | None:
    """Return the multiplier, in ln, at which a test compares losses; None: beyond the reference.

    The frontier falls: what is better than its first optimum is better than all that costs less,
    and what is worse than its last one worse than all that costs more.
    """
    first, last = span[0] - margin, span[1] + margin
    asked = math.log(test.number)
    place = max(asked, first) if test.side == "lower" else min(asked, last)
    return place if first <= place <= last else None


def _gap(drawn: FrontierCurve, log_r: float, log_loss: Floats, margin: float) -> Floats:
    return drawn.at(np.full(len(log_loss), log_r), margin + SLACK) - log_loss


def _ends(low: Floats, high: Floats, confidence: float) -> tuple[float, float]:
    """Return the lower bound from one set of draws and the upper one from another, in logs."""
    tail = (1 - confidence) / 2
    return (
        float(np.quantile(low, tail, method="lower")),
        float(np.quantile(high, 1 - tail, method="higher")),
    )


def _claim(one: _Judged, confidence: float, margin: float) -> tuple[float, float]:
    """Return the bounds as far as the reference counts, in logs; infinite: none.

    A draw beyond the upper end says that the multiplier leads at least there, one beyond the lower
    end that it leads at most there. A failed one counts against any claim.
    """
    assert one.drawn is not None
    first, last = one.span[0] - margin, one.span[1] + margin
    failed = np.isnan(one.drawn)
    at_least = np.where(failed | (one.drawn < first), -np.inf, np.minimum(one.drawn, last))
    at_most = np.where(failed | (one.drawn > last), np.inf, np.maximum(one.drawn, first))
    return _ends(at_least, at_most, confidence)


def _with_verdict(one: _Judged, rule: GateRule) -> _Judged:
    """Add the interval and the verdict of a run alone."""
    if one.drawn is None:
        return one
    claim = _claim(one, rule.confidence, one.margin)
    row = replace(one.row, claim_lo=_factor(claim[0]), claim_hi=_factor(claim[1]))
    row = replace(row, verdict=_answer(rule, claim))
    known = one.drawn[~np.isnan(one.drawn)]
    if row.multiplier is not None and 2 * len(known) >= len(one.drawn):
        low, high = _ends(known, known, rule.confidence)
        row = replace(row, ci_lo=_factor(low), ci_hi=_factor(high))
    if row.verdict == "undecided":
        row = replace(row, reason=_why_undecided(one, rule))
    return replace(one, row=row)


def _beside_all(one: _Judged, orders: tuple[Order, Order], rule: GateRule) -> _Judged:
    """Add the verdict that is claimed together with those on all other runs."""
    tests = (rule.passes, rule.fails)
    for answer, test, order in zip(("pass", "fail"), tests, orders, strict=True):
        needed = _SIDES[test.side]
        if one.row.verdict == answer and order == needed:
            return replace(one, beside_all=one.row.verdict)
    return one


def _shown_draws(one: _Judged) -> Floats | None:
    """Return the draws of the interval that is shown; None where it has no end.

    Where one end lacks, no draw on that side is far; a failed draw is far on neither.
    """
    row = one.row
    if one.drawn is None or (row.ci_lo is None and row.ci_hi is None):
        return None
    middle = float(np.median(one.drawn[~np.isnan(one.drawn)]))
    if not math.isfinite(middle):
        return None
    values = np.where(np.isnan(one.drawn), middle, one.drawn)
    if row.ci_hi is None:
        values = np.minimum(values, middle)
    return np.maximum(values, middle) if row.ci_lo is None else values


def _with_all(one: _Judged, values: Floats | None, claims: JointClaims, rule: GateRule) -> _Judged:
    """Add the interval that holds for all runs at once, so that it says what is claimed."""
    if values is None:
        return one
    row, middle = one.row, float(np.median(values))
    single = (
        middle if row.ci_lo is None else math.log(row.ci_lo),
        middle if row.ci_hi is None else math.log(row.ci_hi),
    )
    low, high = _agreeing(stretched(values, single, claims), one, rule)
    row = replace(
        row,
        ci_lo_simultaneous=None if row.ci_lo is None or low is None else _factor(low),
        ci_hi_simultaneous=None if row.ci_hi is None or high is None else _factor(high),
    )
    return replace(one, row=row)


def _agreeing(bounds: Interval, one: _Judged, rule: GateRule) -> Interval:
    """Return a simultaneous interval cut so that it says what is claimed of a run beside all."""
    low, high = bounds
    if one.row.verdict == "undecided" or low is None or high is None:
        return bounds
    test = rule.fails if one.row.verdict == "fail" else rule.passes
    claimed = _SIDES[test.side]
    asked = math.log(test.number)
    is_claimed = one.beside_all == one.row.verdict
    low, high = agreeing((low - asked, high - asked), claimed if is_claimed else "none")
    assert low is not None
    assert high is not None
    return low + asked, high + asked


def _answer(rule: GateRule, log_bounds: tuple[float, float]) -> Answer:
    if _holds(rule.fails, log_bounds):
        return "fail"
    return "pass" if _holds(rule.passes, log_bounds) else "undecided"


def _holds(test: Rule, log_bounds: tuple[float, float]) -> bool:
    bound = log_bounds[0] if test.side == "lower" else log_bounds[1]
    return bool(SIGNS[test.comparator](bound, math.log(test.number)))


def _why_undecided(one: _Judged, rule: GateRule) -> str:
    """Return in words why neither test holds."""
    assert one.drawn is not None
    row = one.row
    if row.n_failed and row.n_failed > (1 - rule.confidence) / 2 * len(one.drawn):
        return (
            f"in {row.n_failed} of {row.n_boot} draws the loss of {row.reference} does not fall "
            "from budget to budget"
        )
    if one.span[0] == one.span[1]:
        return f"{row.reference} has an optimum at one budget, which is no frontier"
    answer = _answer(rule, _claim(one, rule.confidence, math.inf))
    if answer == "undecided":
        if rule.passes.number == rule.fails.number:
            return f"the interval holds {rule.passes.number:g}"
        return "the interval settles neither pass nor fail"
    test = rule.fails if answer == "fail" else rule.passes
    at, beyond = math.log(test.number), "the largest"
    factor = at - one.span[1]
    if factor < 0:
        factor, beyond = one.span[0] - at, "the smallest"
    return (
        f"{answer} only by where the frontier of {row.reference} would be {_exp(factor)} times "
        f"beyond {beyond} of its optima"
    )


def _together(judged: Sequence[_Judged], rule: GateRule) -> Answer:
    """Return the verdict on all runs: all have to pass, or any.

    That all of them pass (or fail) is as sure as the least sure; that some do is claimed by
    intervals that hold for all at once.
    """
    one_is_enough: Answer = "fail" if rule.runs == "all" else "pass"
    all_needed: Answer = "pass" if rule.runs == "all" else "fail"
    if any(one.beside_all == one_is_enough for one in judged):
        return one_is_enough
    is_all = judged and all(one.row.verdict == all_needed for one in judged)
    return all_needed if is_all else "undecided"


def _factor(log_factor: float) -> float | None:
    """Return a factor; None where there is none."""
    return math.exp(log_factor) if math.isfinite(log_factor) else None


def _exp(log_factor: float) -> str:
    return f"{math.exp(log_factor):.3g}" if log_factor < 20 else "many"

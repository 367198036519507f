"""Frontiers of tables without isoFLOP profiles: through the runs that no cheaper run beats.

Approach 1 of Hoffmann et al. 2022 (arXiv 2203.15556), on ends of runs: L(C) = L_inf + A · C^−α by
least squares through the lower envelope of a family's losses against the FLOPs spent. It needs no
budgets, and is the least reliable of the laws here: what is on the envelope depends on which sizes
were run, and is lucky, since noise lowers the lowest loss of several. Intervals draw whole runs
anew, envelope and all, which shows the first and not the second: the envelope of drawn runs is no
lower than that of all. So no order of families is claimed by it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np

from isoflop.analysis.compare.multipliers import CompareStatus, Comparison
from isoflop.analysis.optima_methods import MIN_DISTINCT_SIZES
from isoflop.analysis.parametric.fitting import (
    ParametricFit,
    context_of,
    natural_values,
    solve_into,
)
from isoflop.analysis.parametric.forms import FRONTIER, FrontierLaw
from isoflop.analysis.parametric.solve import log_rmse, refit_each
from isoflop.analysis.parametric.terms import make_problem
from isoflop.analysis.points import Point, Selection
from isoflop.analysis.result import Fits, default_reference
from isoflop.arrays import Floats, percentiles

ENVELOPE: Final = "envelope"

MIN_RUNS = 4
"""Runs on an envelope that its law needs: one more than it has parameters."""

_STREAM = 71_993
# Budgets that families are compared at: these, times powers of ten, within the FLOPs of both.
_STEPS = (1.0, 3.0)


def lacks_profiles(selection: Selection) -> bool:
    """Return whether a family has sizes enough for an isoFLOP profile, and none has a profile."""
    at_one_budget = _most_sizes(selection.groups.values())
    return at_one_budget < MIN_DISTINCT_SIZES <= _most_sizes(selection.by_arch().values())


def _most_sizes(groups: Iterable[Sequence[Point]]) -> int:
    return max((len({point.n_params for point in points}) for points in groups), default=0)


def spent(point: Point) -> float:
    """Return the training FLOPs of a run: achieved, else its budget (else 6 N D)."""
    return point.budget_flops if point.flops is None else point.flops


def envelope(points: Sequence[Point]) -> tuple[Point, ...]:
    """Return the runs whose loss is below that of every run as cheap or cheaper, cheapest first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (spent(p), p.loss, p.n_params)):
        if not best or point.loss < best[-1].loss:
            best.append(point)
    return tuple(best)


def envelopes(selection: Selection) -> dict[str, tuple[Point, ...]]:
    """Return the envelope of every family, archs sorted; empty where there are profiles."""
    if not lacks_profiles(selection):
        return {}
    return {arch: envelope(points) for arch, points in _by_arch(selection).items()}


def fit_envelopes(fits: Fits) -> tuple[ParametricFit, ...]:
    """Return the law of every family's envelope; none where the table has isoFLOP profiles."""
    if not lacks_profiles(fits.selection):
        return ()
    options = fits.options
    return tuple(
        fit_envelope(
            points,
            arch=arch,
            n_boot=options.n_boot,
            seed=options.seed,
            confidence=options.confidence,
        )
        for arch, points in _by_arch(fits.selection).items()
    )


def fit_envelope(
    points: Sequence[Point],
    *,
    arch: str,
    n_boot: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> ParametricFit:
    """Fit L_inf + A · C^−α through the envelope of some runs; C is what each spent.

    With fewer than ``MIN_RUNS`` runs on the envelope there are no values. ``n_boot`` of 0 gives no
    intervals.
    """
    best = envelope(points)
    flops = np.array([spent(point) for point in best], dtype=np.float64)
    losses = np.array([point.loss for point in best], dtype=np.float64)
    known = context_of(
        ENVELOPE,
        FRONTIER.parameters,
        arch=arch,
        method="least_squares",
        budgets=flops.tolist(),
        confidence=confidence,
        settings=f"sum of squares of L residuals; the {len(best)} of {len(points)} runs that no "
        "cheaper run beats",
    )
    known.update(axis="loss")
    if len(best) < MIN_RUNS:
        reason = f"{len(best)} runs that no cheaper run beats; a frontier needs {MIN_RUNS}"
        return ParametricFit(**known, status="too_few", reason=reason)
    problem = make_problem(FRONTIER, "vpnls", ((flops,), ()), losses)
    solution = solve_into(known, problem)
    if solution is None:
        return ParametricFit(**known)
    known.update(rmse=log_rmse(problem, solution.theta))
    if n_boot:
        draws = _draws(points, known["values"], arch, n_boot, seed)
        known.update(draws=draws, bootstrap_kind="case", n_boot=n_boot)
    return ParametricFit(**known)


def _draws(
    points: Sequence[Point], values: dict[str, float], arch: str, n_boot: int, seed: int
) -> dict[str, Floats]:
    """Return the law of the envelope of runs drawn with replacement; NaN where there is none."""
    order = sorted(points, key=lambda p: (spent(p), p.loss, p.n_params))
    flops = np.array([spent(point) for point in order], dtype=np.float64)
    losses = np.array([point.loss for point in order], dtype=np.float64)
    rng = np.random.default_rng((_STREAM, seed, *arch.encode()))
    drawn_Bn = np.zeros((n_boot, len(order)), dtype=bool)
    rows = np.arange(n_boot)[:, None]
    drawn_Bn[rows, rng.integers(0, len(order), (n_boot, len(order)))] = True
    # The lowest loss of the runs before each in a draw.
    lowest_Bn = np.minimum.accumulate(np.where(drawn_Bn, losses, np.inf), axis=1)
    before_Bn = np.concatenate([np.full((n_boot, 1), np.inf), lowest_Bn[:, :-1]], axis=1)
    best_Bn = drawn_Bn & (losses < before_Bn)
    used = best_Bn.any(axis=0)
    problem = make_problem(FRONTIER, "vpnls", ((flops[used],), ()), losses[used])
    weights = best_Bn[:, used].astype(np.float64)
    theta = np.full((n_boot, len(FRONTIER.parameters)), np.nan)
    enough = weights.sum(axis=1) >= MIN_RUNS
    if enough.any():
        start = problem.standardised(values)
        theta[enough] = refit_each(problem, start, problem.target[None], weights[enough])
    return natural_values(problem, theta)


def compare_envelopes(fits: Fits) -> tuple[Comparison, ...]:
    """Compare the envelopes of families with that of the reference, where both have a law.

    At FLOPs that both have spent: those that the reference's law needs for the loss of the other
    law there, over what the other spends.
    """
    laws = {fit.arch: fit for fit in fits.parametric if fit.form == ENVELOPE}
    reference = fits.options.reference or default_reference(list(laws))
    # The reference of a study may have no law, as where its runs are at one budget.
    if reference is None or reference not in laws:
        return ()
    base = laws[reference]
    return tuple(
        _comparison(fits, law, base, budget)
        for arch, law in laws.items()
        if arch != reference and law.has_values and base.has_values
        for budget in _shared_budgets(law, base)
    )


def _shared_budgets(one: ParametricFit, other: ParametricFit) -> list[float]:
    """Return round FLOPs within the envelopes of both; their middle where there are none."""
    low = max(one.budget_lo or 0.0, other.budget_lo or 0.0)
    high = min(one.budget_hi or 0.0, other.budget_hi or 0.0)
    if not 0 < low < high:
        return []
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [float(f"{step:g}e{power}") for power in powers for step in _STEPS]
    return [c for c in found if low <= c <= high] or [float(f"{math.sqrt(low * high):.2e}")]


def _comparison(fits: Fits, law: ParametricFit, base: ParametricFit, budget: float) -> Comparison:
    loss = FrontierLaw(**law.values).loss(budget)
    needed = float(FrontierLaw(**base.values).flops(loss))
    is_reached = math.isfinite(needed)
    status: CompareStatus = "estimate" if is_reached else "no_overlap"
    drawn = _drawn_multipliers(law, base, budget) if is_reached else None
    ends = None if drawn is None else percentiles(drawn, fits.options.confidence)
    slope = -base.values["alpha"] * (loss - base.values["L_inf"])
    low, high = base.budget_lo or 0.0, base.budget_hi or math.inf
    return Comparison(
        arch=law.arch,
        reference=base.arch,
        budget_flops=budget,
        resource="flops",
        multiplier=needed / budget if is_reached else None,
        ci_lo=None if ends is None else ends[0],
        ci_hi=None if ends is None else ends[1],
        ci_lo_simultaneous=None,
        ci_hi_simultaneous=None,
        local_slope=float(slope) if is_reached else None,
        extrapolated=not low <= needed <= high if is_reached else None,
        status=status,
        order_claimed="none",
        strict=(None, None),
        axis=fits.options.axis,
        method=ENVELOPE,
        frontier=ENVELOPE,
        confidence=fits.options.confidence,
        bootstrap_kind=None if drawn is None else "case",
        n_boot=None if drawn is None else len(drawn),
        n_failed=None if drawn is None else int(np.count_nonzero(~np.isfinite(drawn))),
    )


def _drawn_multipliers(law: ParametricFit, base: ParametricFit, budget: float) -> Floats | None:
    if not law.draws or not base.draws:
        return None
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        loss = FrontierLaw(**law.draws).loss(budget)
        needed = FrontierLaw(**base.draws).flops(loss)
        return np.where(np.isfinite(needed), needed / budget, np.nan)


def _by_arch(selection: Selection) -> dict[str, list[Point]]:
    return {arch: points for arch, points in selection.by_arch().items() if points}

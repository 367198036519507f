"""Held-out extrapolation: laws fitted on the smaller budgets, scored on the next one, rolling.

The errors are relative: predicted / observed − 1. The power laws are scored on the optimum of the
budget that was held out, the surface on each of its runs. The paired draws of law and optimum give
an error of a power law its interval. It needs attention where it is off by more than chance allows
in as many scores as the table has (Bonferroni; tails beyond the draws are those of a Gaussian).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from isoflop.analysis.laws import PowerLaw, fit_laws, flops_of, law_draws, law_source
from isoflop.analysis.optima import Optimum
from isoflop.analysis.points import GroupKey, Point
from isoflop.analysis.result import Fits
from isoflop.analysis.validity.finding import Finding
from isoflop.arrays import Floats, percentiles
from isoflop.numbers import format_flops

if TYPE_CHECKING:
    from isoflop.analysis.parametric import ChinchillaLaw, Constraints

# The largest budgets; of dozens, each would take a fit of a surface.
MOST_HELD_OUT = 8

SURFACE_METHOD: Literal["vpnls"] = "vpnls"


def held_out_findings(fits: Fits) -> list[Finding]:
    """Return a finding per arch, held-out budget and law; the smallest two budgets only train.

    Of more than `MOST_HELD_OUT` others the largest are held out.
    """
    scores = {arch: _power_laws(fits, arch) for arch in fits.archs}
    num_scores = sum(score.errors is not None for found in scores.values() for score in found)
    return [
        finding
        for arch in fits.archs
        for finding in (
            *(_judged(score, num_scores, fits.options.confidence) for score in scores[arch]),
            *_surfaces(fits, arch),
        )
    ]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Score:
    """An error of a law, without a judgement, and the error in every draw."""

    finding: Finding
    errors: Floats | None


def _held(budgets: Sequence[float]) -> range:
    """Return the places of the budgets that are held out, in turn."""
    return range(max(2, len(budgets) - MOST_HELD_OUT), len(budgets))


def _judged(score: _Score, num_scores: int, confidence: float) -> Finding:
    """Return the finding with the interval of its error, and whether chance explains it."""
    value = score.finding.value
    bounds = None if score.errors is None else percentiles(score.errors, confidence)
    if value is None or score.errors is None or bounds is None:
        return score.finding
    from scipy.special import ndtri

    # Laws of two budgets nearly equal are off by any power of ten.
    with np.errstate(over="ignore"):
        spread = float(np.std(score.errors[np.isfinite(score.errors)]))
    allowed = float(ndtri(1 - (1 - confidence) / (2 * num_scores))) * spread
    return replace(
        score.finding,
        ci_lo=bounds[0],
        ci_hi=bounds[1],
        status="ok" if abs(value) <= allowed else "attention",
    )


def _power_laws(fits: Fits, arch: str) -> list[_Score]:
    optima = [o for o in fits.optima if o.arch == arch and o.method == fits.options.method]
    budgets = sorted({o.budget_flops for o in optima})
    scores = []
    for index in _held(budgets):
        held, train = budgets[index], set(budgets[:index])
        known = [o for o in optima if o.budget_flops in train]
        for law in fit_laws(known, budget=fits.law_budget):
            source = law_source(law.axis)
            target = [o for o in optima if o.budget_flops == held and o.axis == source]
            found = _score(law, target[0] if target else None, held, budgets[:index])
            errors = None
            if found.value is not None:
                errors = _drawn_errors(fits, law, target[0], known)
            scores.append(_Score(finding=found, errors=errors))
    return scores


def _drawn_errors(
    fits: Fits, law: PowerLaw, held: Optimum, optima: Sequence[Optimum]
) -> Floats | None:
    """Return the relative error of a law in every draw; None where law or optimum has none."""
    draws = fits.draws_of(law_source(law.axis))
    drawn = None if draws is None else law_draws(optima, draws, law.arch, law.axis, law.budget)
    flops = flops_of(held, law.budget)
    if draws is None or drawn is None or flops is None:
        return None
    observed = (draws.loss_opt if law.axis == "loss" else draws.x_opt).get(
        (law.arch, held.budget_flops)
    )
    if observed is None:
        return None
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        predicted = np.exp(drawn.log_coefficient + drawn.exponent * np.log(flops))
        return np.asarray(predicted / observed - 1)


def _score(law: PowerLaw, target: Optimum | None, held: float, train: Sequence[float]) -> Finding:
    observed = None
    if target is not None and target.is_point:
        observed = target.loss_opt if law.axis == "loss" else target.x_opt
    flops = None if target is None else flops_of(target, law.budget)
    predicted = None if flops is None else _predicted(law, flops)
    error = None
    if predicted is not None and observed is not None and observed > 0:
        error = predicted / observed - 1
    note = f"trained on {_list(train)}"
    if observed is None:
        note += "; no interior optimum to score on"
    elif law.exponent is None:
        note += "; too few interior optima"
    return Finding(
        check="held_out",
        quantity="relative_error",
        status="not_measured" if error is None else "info",
        arch=law.arch,
        axis=law.axis,
        method=law.method,
        budget_flops=held,
        variant="power_law",
        value=error,
        baseline=observed,
        n_points=law.n_points,
        detail=note,
    )


def _predicted(law: PowerLaw, flops: float) -> float | None:
    """Return the law's value; None without a law, or where no float64 can hold it."""
    if law.exponent is None:
        return None
    try:
        return law.at(flops)
    except OverflowError:
        return None


def _surfaces(fits: Fits, arch: str) -> list[Finding]:
    by_budget = _by_budget(fits.groups, arch)
    budgets = sorted(by_budget)
    return [
        _score_surface(arch, by_budget, budgets[:index], budgets[index], fits.options.constraints)
        for index in _held(budgets)
    ]


def _score_surface(
    arch: str,
    by_budget: Mapping[float, Sequence[Point]],
    train: Sequence[float],
    held: float,
    constraints: Constraints,
) -> Finding:
    from isoflop.analysis.parametric import Resampling, fit_surface, surface_of

    points = [point for budget in train for point in by_budget[budget]]
    fit = fit_surface(
        points,
        arch=arch,
        method=SURFACE_METHOD,
        resampling=Resampling(n_boot=0, seed=0, kind="auto", confidence=0.95),
        constraints=constraints,
    )
    errors = _errors(surface_of(fit), by_budget[held]) if fit.has_values else None
    note = f"trained on {_list(train)}"
    if errors is not None:
        note += f"; mean {errors.mean():+.4f} over {len(errors)} runs"
    elif not fit.has_values:
        note += f"; {fit.reason or fit.status}"
    return Finding(
        check="held_out",
        quantity="mean_absolute_relative_error",
        status="not_measured" if errors is None else "info",
        arch=arch,
        method=SURFACE_METHOD,
        budget_flops=held,
        variant="chinchilla",
        value=None if errors is None else float(np.abs(errors).mean()),
        n_points=len(points),
        detail=note,
    )


def _errors(law: ChinchillaLaw, points: Sequence[Point]) -> Floats | None:
    """Return relative error at each run; None where an extrapolation overflows."""
    with np.errstate(over="ignore", invalid="ignore"):
        predicted = law.loss(
            np.array([p.n_params for p in points]), np.array([p.n_tokens for p in points])
        )
    errors = predicted / np.array([p.loss for p in points]) - 1
    return errors if np.all(np.isfinite(errors)) else None


def _by_budget(
    groups: Mapping[GroupKey, Sequence[Point]], arch: str
) -> dict[float, Sequence[Point]]:
    return {budget: points for (name, budget), points in groups.items() if name == arch and points}


def _list(budgets: Sequence[float]) -> str:
    return ", ".join(map(format_flops, budgets))

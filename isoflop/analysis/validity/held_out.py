"""Held-out extrapolation: laws fitted on the smaller budgets, scored on the next one, rolling.

The errors are relative: predicted / observed − 1. The power laws are scored on the optimum of the
budget that was held out, the surface on each of its runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from isoflop.analysis.laws import PowerLaw, fit_laws, law_source
from isoflop.analysis.optima import Optimum
from isoflop.analysis.points import GroupKey, Point
from isoflop.analysis.result import Fits
from isoflop.analysis.validity.finding import Finding
from isoflop.arrays import Floats
from isoflop.numbers import format_flops

if TYPE_CHECKING:
    from isoflop.analysis.parametric import ChinchillaLaw

SURFACE_METHOD: Literal["vpnls"] = "vpnls"


def held_out_findings(fits: Fits) -> list[Finding]:
    """Return a finding per arch, held-out budget and law; the smallest two budgets only train."""
    return [
        finding
        for arch in fits.archs
        for finding in (*_power_laws(fits, arch), *_surfaces(fits, arch))
    ]


def _power_laws(fits: Fits, arch: str) -> list[Finding]:
    optima = [o for o in fits.optima if o.arch == arch and o.method == fits.options.method]
    budgets = sorted({o.budget_flops for o in optima})
    findings = []
    for index in range(2, len(budgets)):
        held, train = budgets[index], set(budgets[:index])
        laws = fit_laws([o for o in optima if o.budget_flops in train])
        for law in laws:
            source = law_source(law.axis)
            target = [o for o in optima if o.budget_flops == held and o.axis == source]
            findings.append(_score(law, target[0] if target else None, held, budgets[:index]))
    return findings


def _score(law: PowerLaw, target: Optimum | None, held: float, train: Sequence[float]) -> Finding:
    observed = None
    if target is not None and target.is_point:
        observed = target.loss_opt if law.axis == "loss" else target.x_opt
    predicted = _predicted(law, held)
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


def _predicted(law: PowerLaw, budget: float) -> float | None:
    """Return the law's value; None without a law, or where no float64 can hold it."""
    if law.exponent is None:
        return None
    try:
        return law.at(budget)
    except OverflowError:
        return None


def _surfaces(fits: Fits, arch: str) -> list[Finding]:
    by_budget = _by_budget(fits.groups, arch)
    budgets = sorted(by_budget)
    return [
        _score_surface(arch, by_budget, budgets[:index], budgets[index])
        for index in range(2, len(budgets))
    ]


def _score_surface(
    arch: str, by_budget: Mapping[float, Sequence[Point]], train: Sequence[float], held: float
) -> Finding:
    from isoflop.analysis.parametric import Resampling, fit_surface, surface_of

    points = [point for budget in train for point in by_budget[budget]]
    fit = fit_surface(
        points,
        arch=arch,
        method=SURFACE_METHOD,
        resampling=Resampling(n_boot=0, seed=0, kind="auto", confidence=0.95),
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

"""Parametric laws: Chinchilla surface, frontier with an asymptote, joint law, routed experts.

`fit_parametric` fits all of them to a selection of runs; `fit_surface`, `fit_frontier`, `fit_joint`
and `fit_routed` fit one to points or optima of the caller's choice. A fit that the data do not
allow comes back with a typed status and null values.
"""

from __future__ import annotations

from collections.abc import Iterable

from isoflop.analysis.bootstrap import Draws, Requested, Resampling
from isoflop.analysis.optima import Optimum
from isoflop.analysis.optima_methods import DEFAULT_METHOD, Method
from isoflop.analysis.parametric.against import LawTest, check_given, law_test
from isoflop.analysis.parametric.fitting import ParametricFit
from isoflop.analysis.parametric.forms import (
    CHINCHILLA,
    ChinchillaLaw,
    FrontierLaw,
    fit_frontier,
    fit_joint,
    fit_surface,
    frontier_of,
    has_experts,
    surface_draws,
    surface_of,
)
from isoflop.analysis.parametric.routed import (
    RoutedLaw,
    fit_routed,
    has_numbers_of_experts,
    routed_of,
)
from isoflop.analysis.parametric.terms import FREE, Constraints, Criterion
from isoflop.analysis.points import Selection
from isoflop.analysis.shared_noise import shared_noise

__all__ = [
    "CHINCHILLA",
    "ChinchillaLaw",
    "Constraints",
    "FrontierLaw",
    "LawTest",
    "ParametricFit",
    "Resampling",
    "RoutedLaw",
    "check_given",
    "fit_frontier",
    "fit_joint",
    "fit_parametric",
    "fit_routed",
    "fit_surface",
    "frontier_of",
    "has_experts",
    "has_numbers_of_experts",
    "law_test",
    "routed_of",
    "surface_draws",
    "surface_of",
]

SURFACE_METHODS: tuple[Criterion, ...] = ("huber", "vpnls")


def fit_parametric(
    selection: Selection,
    *,
    n_boot: int = 1000,
    seed: int = 0,
    bootstrap: Requested = "auto",
    confidence: float = 0.95,
    optima: Iterable[Optimum] = (),
    draws: Draws | None = None,
    method: Method = DEFAULT_METHOD,
    constraints: Constraints = FREE,
) -> tuple[ParametricFit, ...]:
    """Fit every law to every arch, archs sorted.

    Per arch: chinchilla by huber and by vpnls; the frontier through the ``optima`` of ``method``,
    with ``draws`` of the same method over n_params; the joint law where the arch has experts, and
    that of routed experts where the table says how many. The laws through points take those without
    a budget, too, and all but the last ``constraints``. ``n_boot`` of 0 gives no intervals.
    """
    resampling = Resampling(
        n_boot=n_boot,
        seed=seed,
        kind=bootstrap,
        confidence=confidence,
        shared=shared_noise(selection),
    )
    known_optima = tuple(optima)
    fits: list[ParametricFit] = []
    for arch, points in selection.by_arch().items():
        for surface_method in SURFACE_METHODS:
            fits.append(
                fit_surface(
                    points,
                    arch=arch,
                    method=surface_method,
                    resampling=resampling,
                    constraints=constraints,
                )
            )
        fits.append(
            fit_frontier(known_optima, arch=arch, method=method, draws=draws, confidence=confidence)
        )
        if has_experts(points):
            joint = fit_joint(points, arch=arch, resampling=resampling, constraints=constraints)
            fits.append(joint)
        if has_numbers_of_experts(points):
            fits.append(fit_routed(points, arch=arch, resampling=resampling))
    return tuple(fits)

"""The compute-optimal frontier with an asymptote: L*(C) = L_inf + A · C^−α through the optima.

Unlike a power law of L* it has a floor, and so an opinion about larger budgets; three optima fix
its three parameters and say nothing of their error. Least squares on the loss of the interior
optima; intervals refit the bootstrap draws of those optima.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from isoflop.analysis.optima import Optimum
from isoflop.analysis.parametric.bootstrap import refit_each
from isoflop.analysis.parametric.fitting import natural_values
from isoflop.analysis.parametric.result import WITH_VALUES, ParametricFit
from isoflop.analysis.parametric.solve import log_rmse, solve
from isoflop.analysis.parametric.terms import Floats, Form, Problem, make_problem
from isoflop.analysis.resample import Draws

FRONTIER = Form(name="frontier", terms=(("A", "alpha"), ("L_inf",)))

MIN_OPTIMA = 3
MIN_OPTIMA_FOR_INTERVAL = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class FrontierLaw:
    """A frontier, or one per bootstrap draw where the fields are arrays; methods broadcast."""

    L_inf: float | Floats
    A: float | Floats
    alpha: float | Floats

    def loss(self, flops: Any) -> Any:
        """Return the optimal loss at ``flops``."""
        return self.L_inf + self.A * flops**-self.alpha

    def flops(self, loss: Any) -> Any:
        """Return the compute whose optimum has this loss; NaN at or below the asymptote."""
        above = np.asarray(loss - self.L_inf, dtype=np.float64)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            return np.where(above > 0, above / self.A, np.nan) ** (-1.0 / self.alpha)


def frontier_of(fit: ParametricFit) -> FrontierLaw:
    """Return the fitted frontier; ValueError where the fit has none."""
    if fit.form != FRONTIER.name or not fit.has_values:
        raise ValueError(f"{fit.arch}: no {FRONTIER.name} ({fit.status})")
    return FrontierLaw(**{name: fit.values[name] for name in FRONTIER.parameters})


def fit_frontier(
    optima: Iterable[Optimum],
    *,
    arch: str,
    method: str,
    draws: Draws | None = None,
    confidence: float = 0.95,
) -> ParametricFit:
    """Fit the frontier of ``arch`` through its interior n_params optima of one method.

    Fewer than three give no fit, three a fit without rmse or interval. ``draws`` are those of the
    same method and axis; None gives no intervals.
    """
    points = sorted(
        (optimum.budget_flops, optimum.loss_opt)
        for optimum in optima
        if (optimum.arch, optimum.method, optimum.axis) == (arch, method, "n_params")
        and optimum.is_point
        and optimum.loss_opt is not None
        and optimum.loss_opt > 0
    )
    known = _known(arch, method, [budget for budget, _ in points], confidence)
    if len(points) < MIN_OPTIMA:
        reason = f"{len(points)} interior optima; a frontier needs {MIN_OPTIMA}"
        return ParametricFit(**known, status="too_few", reason=reason)
    budgets, losses = (np.array(values, dtype=np.float64) for values in zip(*points, strict=True))
    problem = make_problem(FRONTIER, "vpnls", ((budgets,), ()), losses)
    solution = solve(problem)
    known.update(solution.verdict)
    if solution.status not in WITH_VALUES:
        return ParametricFit(**known)
    natural = natural_values(problem, solution.theta[None])
    known.update(
        values={name: float(value[0]) for name, value in natural.items()},
        objective=problem.objective(solution.value),
    )
    if len(points) >= MIN_OPTIMA_FOR_INTERVAL:
        known.update(rmse=log_rmse(problem, solution.theta))
        known.update(_bootstrap(problem, solution.theta, arch, budgets, draws))
    return ParametricFit(**known)


def _bootstrap(
    problem: Problem, theta_P: Floats, arch: str, budgets: Floats, draws: Draws | None
) -> Mapping[str, Any]:
    """Return the bootstrap fields; none where some optimum has no draws.

    A draw in which some budget had no interior optimum is failed: NaN in every parameter.
    """
    keys = [(arch, budget) for budget in budgets.tolist()]
    if draws is None or any(key not in draws.loss_opt for key in keys):
        return {}
    losses_Bn = np.stack([draws.loss_opt[key] for key in keys], axis=1)
    usable = np.all(np.isfinite(losses_Bn) & (losses_Bn > 0), axis=1)
    theta = np.full((draws.n_boot, len(theta_P)), np.nan)
    if usable.any():
        targets = losses_Bn[usable] / np.exp(problem.log_scale)
        weights = np.ones((len(targets), problem.num_points))
        theta[usable] = refit_each(problem, theta_P, targets, weights)
    return {
        "draws": natural_values(problem, theta),
        "bootstrap_kind": draws.kind,
        "n_boot": draws.n_boot,
    }


def _known(arch: str, method: str, budgets: list[float], confidence: float) -> dict[str, Any]:
    return {
        "arch": arch,
        "form": FRONTIER.name,
        "method": method,
        "axis": "loss",
        "parameters": FRONTIER.parameters,
        "n_points": len(budgets),
        "confidence": confidence,
        "budget_lo": min(budgets, default=None),
        "budget_hi": max(budgets, default=None),
        "settings": "sum of squares of L* residuals",
    }

"""The three laws: what each says, what it gives where it is fitted, and how points are put to it.

- *Surface* (chinchilla): L(N, D) = E + A / N^α + B / D^β (Hoffmann et al. 2022, section 3.3,
  approach 3), N parameters, D training tokens, loss in nats per token. At fixed compute
  C = k · N · D the best N is G · (C / k)^a with a = β / (α + β) and
  G = (α A / (β B))^(1 / (α + β)); D takes the rest, with exponent b = α / (α + β) = 1 − a.
- *Frontier*: L*(C) = L_inf + A · C^−α through the optima. Unlike a power law of L* it has a floor,
  and so an opinion about larger budgets; three optima fix its three parameters and say nothing of
  their error. Least squares on the loss of the interior optima; intervals refit the bootstrap
  draws of those optima.
- *Joint*: L = E + A · N_active^−α · (N / N_active)^−γ + B · D^−β for families with experts, N being
  all parameters. γ says what parameters that a token does not use are worth: 0 nothing, α as much
  as used ones (then the law is Chinchilla's in N), negative a harm. It is the interaction of size
  and sparsity alone; the law of Abnar et al. 2025 (arXiv 2501.12370) has further terms of
  sparsity, whose ten coefficients a study of a few dozen runs cannot tell apart. Parameters
  besides the experts count as active, so N / N_active is not the number of experts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isoflop.analysis.bootstrap import DEFAULT_RESAMPLING, Draws, Resampling
from isoflop.analysis.optima import Optimum
from isoflop.analysis.parametric.fitting import (
    Data,
    ParametricFit,
    context_of,
    fit_law,
    natural_values,
    solve_into,
)
from isoflop.analysis.parametric.solve import Status, log_rmse, refit_each
from isoflop.analysis.parametric.terms import (
    FREE,
    Constraints,
    Criterion,
    Form,
    Problem,
    make_problem,
)
from isoflop.analysis.points import Point
from isoflop.arrays import Floats

CHINCHILLA = Form(name="chinchilla", terms=(("A", "alpha"), ("B", "beta"), ("E",)))

# Training FLOPs per parameter and token, forward and backward.
FLOPS_PER_PARAM_TOKEN = 6.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ChinchillaLaw:
    """A surface, or one per bootstrap draw where the fields are arrays; methods broadcast."""

    E: float | Floats
    A: float | Floats
    B: float | Floats
    alpha: float | Floats
    beta: float | Floats

    def loss(self, n_params: Any, n_tokens: Any) -> Any:
        """Return the loss in nats per token (the table's unit)."""
        return self.E + self.A * n_params**-self.alpha + self.B * n_tokens**-self.beta

    @property
    def a(self) -> Any:
        """Exponent of N* in compute."""
        return self.beta / (self.alpha + self.beta)

    @property
    def b(self) -> Any:
        """Exponent of D* in compute."""
        return self.alpha / (self.alpha + self.beta)

    def optimum(self, flops: Any, flops_per_param_token: float = FLOPS_PER_PARAM_TOKEN) -> Any:
        """Return (N*, D*) with k · N* · D* = flops; NaN where α or β is not positive."""
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            ratio = (self.alpha * self.A) / (self.beta * self.B)
            constant = ratio ** (1.0 / (self.alpha + self.beta))
            n_params = constant * (flops / flops_per_param_token) ** self.a
            n_params = np.where(self._has_optimum, n_params, np.nan)
            return n_params, flops / flops_per_param_token / n_params

    def optimal_loss(self, flops: Any, flops_per_param_token: float = FLOPS_PER_PARAM_TOKEN) -> Any:
        """Return the loss at the optimum of ``flops``."""
        return self.loss(*self.optimum(flops, flops_per_param_token))

    @property
    def _has_optimum(self) -> Any:
        return (np.asarray(self.alpha) > 0) & (np.asarray(self.beta) > 0)


def surface_of(fit: ParametricFit) -> ChinchillaLaw:
    """Return the fitted surface; ValueError where the fit has none."""
    if fit.form != CHINCHILLA.name or not fit.has_values:
        raise ValueError(f"{fit.arch}: no {CHINCHILLA.name} surface ({fit.status})")
    return ChinchillaLaw(**{name: fit.values[name] for name in CHINCHILLA.parameters})


def surface_draws(fit: ParametricFit) -> ChinchillaLaw | None:
    """Return one surface per bootstrap draw, as arrays; None for a fit without draws.

    Quantities derived from it (N*, D*, L* of any compute) have their intervals by
    `isoflop.arrays.percentiles`.
    """
    if fit.form != CHINCHILLA.name or not fit.draws:
        return None
    return ChinchillaLaw(**{name: fit.draws[name] for name in CHINCHILLA.parameters})


def fit_surface(
    points: Sequence[Point],
    *,
    arch: str,
    method: Criterion = "huber",
    resampling: Resampling = DEFAULT_RESAMPLING,
    constraints: Constraints = FREE,
) -> ParametricFit:
    """Fit the surface to points of any budgets; N is n_params, D is n_tokens.

    ``huber`` minimises the sum of Huber(1e-3) of the residuals of ln L, ``vpnls`` the sum of
    squares of those of L. With ``constraints`` the exponents are tied (the surface of Gadre et al.
    2024, arXiv 2403.08540, which extrapolates better from small runs), E is given, or Huber's δ
    is another. A fit that these points do not allow has no values and says why.
    """
    ordered = sorted(points, key=lambda p: (p.budget_flops, p.n_params, p.n_tokens, p.loss))
    n_params = np.array([point.n_params for point in ordered], dtype=np.float64)
    n_tokens = np.array([point.n_tokens for point in ordered], dtype=np.float64)
    return fit_law(
        Data(
            arch=arch,
            inputs=((n_params,), (n_tokens,), ()),
            losses=np.array([point.loss for point in ordered], dtype=np.float64),
            budgets=tuple(point.budget_flops for point in ordered),
            cells=tuple(point.size_key for point in ordered),
            trunks=resampling.shared.keys(ordered),
        ),
        CHINCHILLA,
        method,
        resampling,
        derive=_exponents,
        derived=("a", "b"),
        constraints=constraints,
    )


def _exponents(natural: Mapping[str, Floats]) -> dict[str, Floats]:
    """Return a and b of each vector; NaN where there is no optimum."""
    law = ChinchillaLaw(**{name: natural[name] for name in CHINCHILLA.parameters})
    has_optimum = (natural["alpha"] > 0) & (natural["beta"] > 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "a": np.where(has_optimum, law.a, np.nan),
            "b": np.where(has_optimum, law.b, np.nan),
        }


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
    known = context_of(
        FRONTIER.name,
        FRONTIER.parameters,
        arch=arch,
        method=method,
        budgets=[budget for budget, _ in points],
        confidence=confidence,
        settings="sum of squares of L* residuals",
    )
    known.update(axis="loss")
    if len(points) < MIN_OPTIMA:
        reason = f"{len(points)} interior optima; a frontier needs {MIN_OPTIMA}"
        return ParametricFit(**known, status="too_few", reason=reason)
    budgets, losses = (np.array(values, dtype=np.float64) for values in zip(*points, strict=True))
    problem = make_problem(FRONTIER, "vpnls", ((budgets,), ()), losses)
    solution = solve_into(known, problem)
    if solution is None:
        return ParametricFit(**known)
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


JOINT = Form(
    name="joint",
    terms=(("A", "alpha", "gamma"), ("B", "beta"), ("E",)),
    signed=("gamma",),
)

# ln(N / N_active) must vary by this much (standard deviation, 5 %) beside what N_active and D tell.
_LEAST_VARIATION = 0.05


def has_experts(points: Sequence[Point]) -> bool:
    """Return whether some point is known to use fewer parameters per token than it has."""
    return any(point.n_active is not None and point.n_active < point.n_params for point in points)


def fit_joint(
    points: Sequence[Point],
    *,
    arch: str,
    method: Criterion = "huber",
    resampling: Resampling = DEFAULT_RESAMPLING,
    constraints: Constraints = FREE,
) -> ParametricFit:
    """Fit the joint law to points whose n_active is known.

    ``points`` may pool several archs of one family (its variants by sparsity), under any label. A
    study whose sparsity follows from its sizes gets the status ``sparsity_not_varied``.
    """
    ordered = sorted(
        (point for point in points if point.n_active is not None),
        key=lambda p: (p.budget_flops, p.n_active or 0.0, p.n_params, p.n_tokens, p.loss),
    )
    active, total, tokens = (
        np.array([getattr(point, name) for point in ordered], dtype=np.float64)
        for name in ("n_active", "n_params", "n_tokens")
    )
    return fit_law(
        Data(
            arch=arch,
            inputs=((active, total / active), (tokens,), ()),
            losses=np.array([point.loss for point in ordered], dtype=np.float64),
            budgets=tuple(point.budget_flops for point in ordered),
            cells=tuple((point.n_active, *point.size_key) for point in ordered),
            trunks=resampling.shared.keys(ordered),
        ),
        JOINT,
        method,
        resampling,
        refuse=_refuse_fixed_sparsity,
        constraints=constraints,
    )


def _refuse_fixed_sparsity(data: Data) -> tuple[Status, str] | None:
    """Refuse data whose ln(N / N_active) hardly leaves a plane in ln N_active and ln D."""
    (active, sparsity), (tokens,), _ = data.inputs
    plane = np.column_stack([np.ones(len(active)), np.log(active), np.log(tokens)])
    log_sparsity = np.log(sparsity)
    beside = log_sparsity - plane @ np.linalg.lstsq(plane, log_sparsity, rcond=None)[0]
    if beside.std() >= _LEAST_VARIATION:
        return None
    return "sparsity_not_varied", "the share of active parameters follows from size and tokens"

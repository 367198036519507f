"""The loss surface L(N, D) = E + A / N^α + B / D^β and its compute-optimal line.

Hoffmann et al. 2022, section 3.3 (approach 3): N parameters, D training tokens, loss in nats per
token. At fixed compute C = k · N · D the best N is G · (C / k)^a with a = β / (α + β) and
G = (α A / (β B))^(1 / (α + β)); D takes the rest, with exponent b = α / (α + β) = 1 − a.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isoflop.analysis.parametric.bootstrap import DEFAULT_RESAMPLING, Resampling
from isoflop.analysis.parametric.fitting import Data, fit_law
from isoflop.analysis.parametric.result import ParametricFit
from isoflop.analysis.parametric.terms import Floats, Form, Method
from isoflop.analysis.points import Point

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
    `isoflop.analysis.resample.percentiles`.
    """
    if fit.form != CHINCHILLA.name or not fit.draws:
        return None
    return ChinchillaLaw(**{name: fit.draws[name] for name in CHINCHILLA.parameters})


def fit_surface(
    points: Sequence[Point],
    *,
    arch: str,
    method: Method = "huber",
    resampling: Resampling = DEFAULT_RESAMPLING,
) -> ParametricFit:
    """Fit the surface to points of any budgets; N is n_params, D is n_tokens.

    ``huber`` minimises the sum of Huber(1e-3) of the residuals of ln L, ``vpnls`` the sum of
    squares of those of L. A fit that these points do not allow has no values and says why.
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
        ),
        CHINCHILLA,
        method,
        resampling,
        derive=_exponents,
        derived=("a", "b"),
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

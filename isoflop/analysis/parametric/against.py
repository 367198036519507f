"""Whether a fitted law and given parameters can both be true of the points.

Two tests of all parameters at once, since each parameter alone can lie in its interval where the
law is far off (coefficients and exponents vary together):

- *Wald*: the distance of the given parameters (logarithms of coefficients, exponents, the constant)
  from the fitted ones in the covariance of the bootstrap draws, against χ². For many points; it
  rejects too often with few, 10 to 25 % in place of 5 % in simulated studies of 28 runs.
- *Likelihood ratio*: how much lower the criterion is at the fit than at the given law, as a share
  of the fit's (for least squares a multiple of the F statistic). Its distribution for a true law
  comes from residuals of the fit, put on the fit and fitted again. This one decides. In 100
  simulated studies of 28 runs with Gaussian noise it rejected the true law at 95 % in 7 by
  ``vpnls``, where the F statistic, nearly exact there, does so in 8. By ``huber`` it did so in 11:
  by that criterion it rejects too often.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from isoflop.analysis.bootstrap import widened
from isoflop.analysis.parametric.fitting import ParametricFit
from isoflop.analysis.parametric.solve import refit_all
from isoflop.analysis.parametric.terms import TIED, Constraints, Form, Problem, evaluate, predict
from isoflop.arrays import Floats
from isoflop.errors import UserError

_STREAM = 40_277
_MIN_DRAWS = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class LawTest:
    """A law held against given parameters."""

    arch: str
    form: str
    method: str
    dof: int
    """Free parameters of the law."""
    chi2: float | None
    """Wald's statistic; None without enough draws of the fit."""
    chi2_p_value: float | None
    ratio: float
    """(criterion at the given law − at the fit) / at the fit; infinite where the fit is exact."""
    p_value: float
    """Share of drawn points of a true law whose ratio is as large; 1 / (n_draws + 1) where none
    is."""
    n_draws: int
    confidence: float

    @property
    def is_rejected(self) -> bool:
        """Whether the points speak against the given law at the fit's confidence."""
        return self.p_value < 1 - self.confidence


def law_test(
    fit: ParametricFit, given: Mapping[str, float], *, n_draws: int = 1000, seed: int = 0
) -> LawTest:
    """Hold a fitted surface or joint law against parameters in the table's units.

    ``given`` has a value for each parameter of the form (E, A, alpha, B, beta of a surface).

    Raises:
        UserError: a parameter is missing, unknown, no number or below 0, or is not what a
            constraint of the fit sets.
        ValueError: the fit has no values, or is a frontier.
    """
    problem = fit.problem
    if problem is None or not fit.has_values:
        raise ValueError(f"{fit.arch}: no {fit.form} law through points ({fit.status})")
    check_given(problem.form, problem.constraints, given)
    theta = problem.standardised(fit.values)
    other = problem.standardised(given)
    best, at_given = _value(problem, theta), _value(problem, other)
    ratio = _ratio(np.array([at_given]), np.array([best]))[0]
    drawn = _ratios_of_truth(fit, problem, theta, n_draws, seed)
    # A refit that failed counts as one that was as large.
    as_large = int(np.count_nonzero(~(drawn < ratio)))
    dof = len(theta) - problem.constraints.num
    chi2 = _wald(fit, problem, given)
    return LawTest(
        arch=fit.arch,
        form=fit.form,
        method=fit.method,
        dof=dof,
        chi2=chi2,
        chi2_p_value=None if chi2 is None else _chi2_tail(chi2, dof),
        ratio=float(ratio),
        p_value=(1 + as_large) / (n_draws + 1),
        n_draws=n_draws,
        confidence=fit.confidence,
    )


def check_given(form: Form, constraints: Constraints, given: Mapping[str, float]) -> None:
    """Refuse parameters that a law of this form with these constraints cannot have.

    Raises:
        UserError: one is missing, unknown, no number or below 0, or not what was held.
    """
    names = form.parameters
    if set(given) != set(names):
        raise UserError("given law", sorted(given), f"all of {', '.join(names)}", "name these")
    for name, value in given.items():
        signed = name in form.signed
        if not math.isfinite(value) or (value < 0 and not signed):
            raise UserError(name, value, "a number, not below 0", "correct it")
    for name in (term[0] for term in form.terms[:-1]):
        if given[name] == 0:
            raise UserError(name, given[name], "above 0", "correct it")
    constant = names[-1]
    if constraints.tied and given[TIED[0]] != given[TIED[1]]:
        allowed = f"{TIED[0]} ({given[TIED[0]]:g}), as the fit ties them"
        raise UserError(TIED[1], given[TIED[1]], allowed, "test it against a free fit")
    if constraints.fixed_e not in (None, given[constant]):
        allowed = f"{constraints.fixed_e:g}, as in the fit"
        raise UserError(constant, given[constant], allowed, "test it against a free fit")


def _value(problem: Problem, theta_P: Floats) -> float:
    ones = np.ones((1, problem.num_points))
    return float(evaluate(problem, theta_P[None], problem.target[None], ones)[0][0])


def _ratio(at_given: Floats, best: Floats) -> Floats:
    """Return (at_given − best) / best; infinite for an exact fit, zero where both are exact."""
    fall = np.maximum(at_given - best, 0.0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.where(fall > 0, fall / best, 0.0)


def _ratios_of_truth(
    fit: ParametricFit, problem: Problem, theta_P: Floats, n_draws: int, seed: int
) -> Floats:
    """Return the ratios of points of a law held against that law; NaN where a fit failed.

    Its size does not matter to the ratio, so the residuals need no Student factor.
    """
    num = problem.num_points
    expected = predict(problem, theta_P[None])[0][0]
    noise = widened(problem.target - expected, len(theta_P) - problem.constraints.num)
    rng = np.random.default_rng((_STREAM, seed))
    picked = rng.integers(0, num, (n_draws, num))
    picked = fit.shared.draws(n_draws, seed).picks(picked, fit.trunks, num, rng)
    targets = expected + noise[picked]
    ones = np.ones((1, num))
    found = refit_all(problem, theta_P, targets, ones)
    start, weight = np.tile(theta_P, (n_draws, 1)), np.tile(ones, (n_draws, 1))
    at_truth = evaluate(problem, start, targets, weight)[0]
    return np.where(found.converged, _ratio(at_truth, found.value), np.nan)


def _wald(fit: ParametricFit, problem: Problem, given: Mapping[str, float]) -> float | None:
    """Return the squared distance of the given parameters in the covariance of the draws."""
    if not fit.draws:
        return None
    draws = _free(problem, fit.draws)
    draws = draws[np.isfinite(draws).all(axis=1)]
    if len(draws) < max(_MIN_DRAWS, (fit.n_boot or 0) / 2):
        return None
    off = _free(problem, {name: np.array([value]) for name, value in given.items()})
    off = off - _free(problem, {name: np.array([value]) for name, value in fit.values.items()})
    spread = draws.std(axis=0)
    if not (spread > 0).all():
        return None
    correlation = np.corrcoef(draws.T)
    scaled = off[0] / spread
    return float(scaled @ np.linalg.pinv(correlation, hermitian=True) @ scaled)


def _free(problem: Problem, values: Mapping[str, Floats]) -> Floats:
    """Return (B, q): coefficients at the centre of the data as logarithms, exponents, the constant.

    At the centre, since elsewhere a coefficient follows its exponents so closely that rounding
    would count.
    """
    columns: list[Floats] = []
    for names, centre in zip(problem.form.terms[:-1], problem.centres, strict=False):
        exponents = [values[name] for name in names[1:]]
        with np.errstate(divide="ignore", invalid="ignore"):
            log_coefficient = np.log(values[names[0]])
        columns.append(log_coefficient - sum(e * c for e, c in zip(exponents, centre, strict=True)))
        is_free = [not (problem.constraints.tied and name == TIED[1]) for name in names[1:]]
        columns += [e for e, free in zip(exponents, is_free, strict=True) if free]
    if problem.constraints.fixed_e is None:
        columns.append(values[problem.form.parameters[-1]])
    return np.column_stack(columns)


def _chi2_tail(chi2: float, dof: int) -> float:
    from scipy.special import chdtrc

    return float(chdtrc(dof, chi2))

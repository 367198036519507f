"""Laws that are sums of power terms, and how far one is from the losses measured.

Every parametric law here has the form L = Σ_k exp(Z_k · θ_k): a coefficient times powers of the
inputs, and a constant. A `Form` names the terms, a `Problem` holds one data set in it. Inputs enter
as logarithms with mean zero and unit spread and losses relative to their geometric mean, so that
units (parameters in millions, losses in bits) change no step of a fit.

All functions work on a batch of parameter vectors at once: B vectors (starts or bootstrap draws),
n points, p parameters.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from isoflop.arrays import Floats

Criterion = Literal["huber", "vpnls"]
"""What a fit minimises; tables have it as the method of the fit."""

# By default residuals beyond this weigh linearly (Hoffmann et al. 2022, section D.2). It is also
# the unit of a residual: objectives are minimised divided by its square, so that optimisers do not
# stop early.
HUBER_DELTA = 1e-3

# Logarithm of the constant's share of the loss below which the constant is zero.
NO_FLOOR = -14.0

# exp(300) squared is still a float64.
_MAX_EXPONENT = 300.0


# Exponents that are one where a user ties them, where a form has both.
TIED = ("alpha", "beta")


@dataclass(frozen=True, kw_only=True, slots=True)
class Constraints:
    """What a user sets of the laws through points; by default all parameters are free."""

    tied: bool = False
    """alpha = beta: one exponent for parameters and tokens."""
    fixed_e: float | None = None
    """The irreducible loss E, in the unit of the losses."""
    huber_delta: float = HUBER_DELTA
    """Residuals of ln L beyond this weigh linearly."""

    @property
    def are_set(self) -> bool:
        """Whether anything differs from what holds by default."""
        return self != FREE

    @property
    def num(self) -> int:
        """Parameters that are not free."""
        return int(self.tied) + int(self.fixed_e is not None)


FREE = Constraints()


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """Names of a law's terms, each its coefficient and then its exponents; the constant last."""

    name: str
    terms: tuple[tuple[str, ...], ...]
    signed: tuple[str, ...] = ()
    """Exponents that mean something when negative, too."""

    @property
    def parameters(self) -> tuple[str, ...]:
        """All names in the order of a parameter vector."""
        return tuple(name for term in self.terms for name in term)

    @property
    def slices(self) -> tuple[slice, ...]:
        """Where each term's parameters stand in a parameter vector."""
        return _slices(self.terms)

    @property
    def exponents(self) -> tuple[str, ...]:
        """Names of the exponents, in the order of the terms."""
        return tuple(name for term in self.terms for name in term[1:])


@functools.cache
def _slices(terms: tuple[tuple[str, ...], ...]) -> tuple[slice, ...]:
    ends = np.cumsum([len(term) for term in terms]).tolist()
    return tuple(slice(end - len(t), end) for end, t in zip(ends, terms, strict=True))


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """Losses and inputs of one fit, standardised."""

    form: Form
    method: Criterion
    columns: tuple[Floats, ...]
    """Per term (n, 1 + exponents): a one, then minus each standardised logarithm."""
    centres: tuple[Floats, ...]
    spreads: tuple[Floats, ...]
    log_scale: float
    """Mean of ln L."""
    target: Floats
    """(n,): ln L − log_scale for huber, L / exp(log_scale) for vpnls."""
    constraints: Constraints = FREE
    basis: Floats | None = None
    """(p, q): the directions in which a constrained vector may move; None where all are free."""

    @property
    def num_points(self) -> int:
        """Points to fit."""
        return len(self.target)

    @property
    def is_log(self) -> bool:
        """Whether residuals are those of ln L."""
        return self.method == "huber"

    def natural(self, theta_BP: Floats) -> dict[str, Floats]:
        """Return coefficients and exponents in the table's own units, one array per name."""
        values: dict[str, Floats] = {}
        for names, part, centre, spread in zip(
            self.form.terms, self.form.slices, self.centres, self.spreads, strict=True
        ):
            exponents_BF = theta_BP[:, part][:, 1:] / spread
            log_coefficient_B = theta_BP[:, part][:, 0] + exponents_BF @ centre + self.log_scale
            with np.errstate(over="ignore"):
                values[names[0]] = np.exp(log_coefficient_B)
            if names == self.form.terms[-1]:
                values[names[0]] = np.where(theta_BP[:, -1] > NO_FLOOR, values[names[0]], 0.0)
            values.update(zip(names[1:], exponents_BF.T, strict=True))
        # Without the rounding of the standardised vector.
        if self.constraints.tied:
            values[TIED[1]] = values[TIED[0]]
        if self.constraints.fixed_e is not None:
            values[self.form.parameters[-1]] = np.full(len(theta_BP), self.constraints.fixed_e)
        return values

    def standardised(self, values: Mapping[str, float]) -> Floats:
        """Return the parameter vector (p,) of coefficients and exponents in the table's units."""
        theta: list[float] = []
        for names, centre, spread in zip(self.form.terms, self.centres, self.spreads, strict=True):
            exponents = np.array([values[name] for name in names[1:]], dtype=np.float64)
            scale = float(exponents @ centre) + self.log_scale
            coefficient = values[names[0]]
            theta.append(math.log(coefficient) - scale if coefficient > 0 else NO_FLOOR)
            theta.extend((exponents * spread).tolist())
        return np.array(theta)

    @property
    def fixed_share(self) -> float | None:
        """The given constant as a share of the geometric mean loss; None where it is free."""
        given = self.constraints.fixed_e
        return None if given is None else given * math.exp(-self.log_scale)

    def objective(self, value: float) -> float:
        """Return a minimised value as a Huber sum in (ln L)², or a sum of squares in L²."""
        scaled = value * HUBER_DELTA**2
        return scaled if self.is_log else 2 * scaled * math.exp(2 * self.log_scale)


def make_problem(
    form: Form,
    method: Criterion,
    inputs: Sequence[Sequence[Floats]],
    losses: Floats,
    constraints: Constraints = FREE,
) -> Problem:
    """Standardise inputs (per term, one positive array per exponent) and losses."""
    logs = [np.log(np.array(term)).reshape(len(term), len(losses)).T for term in inputs]
    centres = tuple(log.mean(axis=0) for log in logs)
    # An input that never varies has no spread; its fit is refused for that, not for a division.
    spreads = tuple(np.where((spread := log.std(axis=0)) > 0, spread, 1.0) for log in logs)
    log_loss = np.log(losses)
    log_scale = float(log_loss.mean())
    relative = log_loss - log_scale
    return Problem(
        form=form,
        method=method,
        columns=tuple(
            np.column_stack([np.ones(len(losses)), -(log - centre) / spread])
            for log, centre, spread in zip(logs, centres, spreads, strict=True)
        ),
        centres=centres,
        spreads=spreads,
        log_scale=log_scale,
        target=relative if method == "huber" else np.exp(relative),
        constraints=constraints,
        basis=_basis(form, spreads, constraints),
    )


def _basis(form: Form, spreads: Sequence[Floats], constraints: Constraints) -> Floats | None:
    """Return the directions (p, q), of length one, that leave what is given as it is."""
    if not constraints.num:
        return None
    basis = np.eye(len(form.parameters))
    if constraints.tied:
        first, second = (form.parameters.index(name) for name in TIED)
        scales = [np.concatenate(([1.0], spread)) for spread in spreads]
        scale = np.concatenate(scales)[[first, second]]
        basis[[first, second], first] = scale / np.hypot(*scale)
        basis = np.delete(basis, second, axis=1)
    return basis if constraints.fixed_e is None else basis[:, :-1]


def predict(problem: Problem, theta_BP: Floats) -> tuple[Floats, list[Floats]]:
    """Return (B, n) predictions in the target's unit, and their slopes in each term's exponent.

    A slope is the term's share of L where residuals are logarithmic (log-sum-exp), and the
    term itself otherwise.
    """
    exponents = [
        np.minimum(theta_BP[:, part] @ column.T, _MAX_EXPONENT)
        for part, column in zip(problem.form.slices, problem.columns, strict=True)
    ]
    if not problem.is_log:
        terms = [np.exp(exponent) for exponent in exponents]
        return sum(terms[1:], start=terms[0]), terms
    largest = np.maximum.reduce(exponents)
    terms = [np.exp(exponent - largest) for exponent in exponents]
    total = sum(terms[1:], start=terms[0])
    return largest + np.log(total), [term / total for term in terms]


def evaluate(
    problem: Problem,
    theta_BP: Floats,
    target_Bn: Floats,
    weight_Bn: Floats,
    delta: float | None = None,
) -> tuple[Floats, Floats, Floats]:
    """Return value (B,), gradient (B, p) and Hessian (B, p, p) of the weighted sum over points.

    The value is Σ w · Huber(r) / u² with r = target − prediction for huber, and Σ w · r² / (2 u²)
    for vpnls, in units of u = 1e-3. ``delta`` is where Huber's criterion turns linear, by default
    the problem's. Derivatives are exact.
    """
    delta = problem.constraints.huber_delta if delta is None else delta
    prediction_Bn, slopes = predict(problem, theta_BP)
    residual_Bn = target_Bn - prediction_Bn
    value_Bn, gradient_Bn, second_derivative_Bn = _criterion(
        residual_Bn, delta if problem.is_log else np.inf
    )
    weighted_gradient = weight_Bn * gradient_Bn
    # The second derivative of a log-sum-exp is its weighted spread: −J Jᵀ beside the terms' own.
    inner_Bn = weight_Bn * second_derivative_Bn + (weighted_gradient if problem.is_log else 0.0)
    num_parameters = theta_BP.shape[1]
    gradient = np.empty_like(theta_BP)
    hessian = np.empty((len(theta_BP), num_parameters, num_parameters))
    parts = problem.form.slices
    for k, (rows, column) in enumerate(zip(parts, problem.columns, strict=True)):
        gradient[:, rows] = -(weighted_gradient * slopes[k]) @ column
        for m in range(k, len(parts)):
            weight = inner_Bn * slopes[k] * slopes[m]
            if m == k:
                weight = weight - weighted_gradient * slopes[k]
            block = _products(weight, column, problem.columns[m])
            hessian[:, rows, parts[m]] = block
            hessian[:, parts[m], rows] = block.transpose(0, 2, 1)
    return (weight_Bn * value_Bn).sum(axis=1), gradient, hessian


def _criterion(residual: Floats, delta: float) -> tuple[Floats, Floats, Floats]:
    """Return Huber's criterion, its derivative and second derivative, in units of 1e-3."""
    clipped = np.clip(residual, -delta, delta)
    unit = HUBER_DELTA**-2
    second_derivative = np.where(np.abs(residual) <= delta, unit, 0.0)
    return clipped * (residual - clipped / 2) * unit, clipped * unit, second_derivative


def _products(weight_Bn: Floats, left_ni: Floats, right_nj: Floats) -> Floats:
    """Return Σ_n weight · left_i · right_j as (B, i, j), by one matrix product."""
    pairs = (left_ni[:, :, None] * right_nj[:, None, :]).reshape(len(left_ni), -1)
    shape = (len(weight_Bn), left_ni.shape[1], right_nj.shape[1])
    return (weight_Bn @ pairs).reshape(shape)

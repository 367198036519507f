"""The best parameter vector of a problem from many starts, the verdict on it, and its refits.

Starts are a grid over exponents and shares of the constant, and variable projection.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from isoflop.analysis.parametric.descent import Descent, minimise
from isoflop.analysis.parametric.terms import NO_FLOOR, TIED, Problem, predict
from isoflop.arrays import Floats

Status = Literal[
    "ok",
    "single_start",
    "at_bound",
    "too_few",
    "degenerate",
    "sparsity_not_varied",
    "tokens_varied",
    "ill_conditioned",
    "not_converged",
]
"""The verdict on a fit. The first three come with values, the others with null:

- ``ok``;
- ``single_start``: only one start reached the best objective, which may be no global optimum;
- ``at_bound``: the constant went to zero or an exponent is not positive: these data do not support
  the form, and the values describe them only where they were measured;
- ``too_few``: fewer distinct points than the form needs;
- ``degenerate``: the inputs of all points lie on one line (one budget, one size or one ratio);
- ``sparsity_not_varied``: the share of active parameters does not vary beside the other inputs, or
  there are too few numbers of experts;
- ``tokens_varied``: a law of runs on equally many tokens, and these differ;
- ``ill_conditioned``: another set of parameters fits as well to rounding;
- ``not_converged``: no start settled.
"""

WITH_VALUES: tuple[Status, ...] = ("ok", "single_start", "at_bound")

_NUM_PROJECTED = {"huber": 1, "vpnls": 10}

# Two starts are at the same optimum when their values agree to this share of the value, or this
# far in absolute terms: (residual / δ)², so 1e-9 is a residual of 3e-8.
_SAME_VALUE = 1e-6
_SAME_VALUE_ABSOLUTE = 1e-9

# Inputs are on one line when they leave it by less than this share of their spread.
_LINE_SHARE = 1e-3

# Square root of the condition number of the correlations between parameters. The Chinchilla data
# have 33, studies of two to five budgets 30 to 70, points of nearly one ratio D / N thousands.
MAX_CONDITION = 1e4

# A term below this share of the loss goes to zero.
_ZERO_SHARE = 1e-4

# Values of each exponent on the grid, by the number of exponents.
_GRID_EXPONENTS = {1: (0.1, 0.3, 0.6, 1.0), 2: (0.1, 0.3, 0.6, 1.0), 3: (0.1, 0.4, 1.0)}
# Shares of the constant term in the loss at the centre of the data.
_GRID_SHARES = (0.3, 0.6, 0.9)

# The projection tries so many values of each exponent, by the number of exponents.
_PROJECTED_EXPONENTS = {1: 64, 2: 16, 3: 8}
_PROJECTED_RANGE = (0.03, 2.0)
# A coefficient that the projection puts at zero starts at this share of the loss.
_LEAST_SHARE = 1e-4
# Inputs over hundreds of decades would overflow.
_MAX_EXPONENT = 50.0

# Draws refitted together: bounds memory at about 100 MB for 1,000 points.
_BATCH_ELEMENTS = 500_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Solution:
    """The best of all starts."""

    theta: Floats
    value: float
    """The criterion divided by δ²."""
    n_starts: int
    share_at_optimum: float
    status: Status
    reason: str | None

    @property
    def verdict(self) -> dict[str, Any]:
        """The fields of a ParametricFit on the search, whether or not it gave values."""
        return {
            "status": self.status,
            "reason": self.reason,
            "n_starts": self.n_starts,
            "share_of_starts_at_optimum": self.share_at_optimum,
        }


def solve(problem: Problem) -> Solution:
    """Fit from the starts of the problem's method: a grid and variable projection, or only that.

    All starts, and so the solution, keep to the problem's constraints.
    """
    starts = projected_starts(problem, _NUM_PROJECTED[problem.method])
    if problem.method == "huber":
        starts = np.concatenate([starts, grid_starts(problem)])
    found = minimise(problem, starts, problem.target[None], np.ones((1, problem.num_points)))
    at_optimum = found.converged & (
        found.value <= found.value.min() * (1 + _SAME_VALUE) + _SAME_VALUE_ABSOLUTE
    )
    # Among settled starts at the best value, else the lowest point that any start reached.
    best = int(np.where(at_optimum, found.value, np.inf).argmin())
    if not at_optimum.any():
        best = int(found.value.argmin())
    num_close = int(np.count_nonzero(at_optimum))
    status, reason = _verdict(problem, found.theta[best], num_close, len(starts))
    return Solution(
        theta=found.theta[best],
        value=float(found.value[best]),
        n_starts=len(starts),
        share_at_optimum=num_close / len(starts),
        status=status,
        reason=reason,
    )


def refit_each(problem: Problem, theta_P: Floats, targets_Bn: Floats, weights_Bn: Floats) -> Floats:
    """Return one parameter vector per row of targets or weights; NaN where it did not settle."""
    found = refit_all(problem, theta_P, targets_Bn, weights_Bn)
    return np.where(found.converged[:, None], found.theta, np.nan)


def refit_all(problem: Problem, theta_P: Floats, targets_Bn: Floats, weights_Bn: Floats) -> Descent:
    """Return where each row of targets or weights ends from ``theta_P``, settled or not."""
    n_boot = max(len(targets_Bn), len(weights_Bn))
    size = max(1, _BATCH_ELEMENTS // problem.num_points)
    parts = []
    for first in range(0, n_boot, size):
        rows = slice(first, min(first + size, n_boot))
        start = np.tile(theta_P, (rows.stop - rows.start, 1))
        found = minimise(
            problem,
            start,
            targets_Bn[rows] if len(targets_Bn) > 1 else targets_Bn,
            weights_Bn[rows] if len(weights_Bn) > 1 else weights_Bn,
        )
        parts.append(found.arrays)
    theta, value, converged = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Descent(theta=theta, value=value, converged=converged)


def _verdict(
    problem: Problem, theta_P: Floats, num_close: int, num_starts: int
) -> tuple[Status, str | None]:
    bound = _bound(problem, theta_P)
    if bound is not None:
        return "at_bound", bound
    if num_close == 0:
        return "not_converged", f"none of {num_starts} starts settled at the best objective"
    condition = conditioning(problem, theta_P)
    if condition > MAX_CONDITION:
        return "ill_conditioned", f"condition {condition:.1g}: other parameters fit as well"
    if num_close == 1:
        return "single_start", f"1 of {num_starts} starts reached the best objective"
    return "ok", None


def _bound(problem: Problem, theta_P: Floats) -> str | None:
    """Return why the law is at the edge of its form, None where it is not."""
    shares = [
        float(np.exp(column @ theta_P[part]).mean())
        for part, column in zip(problem.form.slices, problem.columns, strict=True)
    ]
    is_given = [False] * (len(shares) - 1) + [problem.fixed_share is not None]
    for names, share, given in zip(problem.form.terms, shares, is_given, strict=True):
        if share < _ZERO_SHARE and not given:
            return f"{names[0]} goes to zero"
    for names, part in zip(problem.form.terms, problem.form.slices, strict=True):
        for name, exponent in zip(names[1:], theta_P[part][1:], strict=True):
            if exponent <= 0 and name not in problem.form.signed:
                return f"{name} is not positive"
    return None


def conditioning(problem: Problem, theta_P: Floats) -> float:
    """Return √condition of the parameters' correlation at a solution, for residuals in ln L.

    At 1e4, losses known to 1e-4 leave some combination of parameters uncertain by its own size.
    """
    prediction, slopes = predict(problem, theta_P[None])
    jacobian = np.column_stack(
        [slope[0][:, None] * column for slope, column in zip(slopes, problem.columns, strict=True)]
    )
    if not problem.is_log:
        jacobian = jacobian / prediction[0][:, None]
    if problem.basis is not None:
        jacobian = jacobian @ problem.basis
    lengths = np.linalg.norm(jacobian, axis=0)
    singular = np.linalg.svd(jacobian / np.where(lengths > 0, lengths, 1.0), compute_uv=False)
    return float(singular[0] / max(singular[-1], 1e-300))


def is_on_a_line(inputs: Sequence[Floats]) -> bool:
    """Return whether the logarithms of all points lie on a line, a lower plane or a point."""
    logs = np.log(np.column_stack(inputs))
    centred = logs - logs.mean(axis=0)
    singular = np.linalg.svd(centred, compute_uv=False)
    return bool(singular[-1] <= _LINE_SHARE * max(singular[0], 1e-300)) or len(logs) < len(inputs)


def log_rmse(problem: Problem, theta_P: Floats) -> float:
    """Return the root mean square of the residuals in ln L."""
    prediction = predict(problem, theta_P[None])[0][0]
    target = problem.target if problem.is_log else np.log(problem.target)
    fitted = prediction if problem.is_log else np.log(prediction)
    return float(np.sqrt(np.mean((target - fitted) ** 2)))


def grid_starts(problem: Problem) -> Floats:
    """Return (B, p): every combination of 3 or 4 values per exponent and 3 shares of the constant.

    The rest of the loss is split evenly over the other terms at the centre of the data. Exponents
    that are tied are one; a constant that is given has its own share.
    """
    exponents = _combinations(problem, _GRID_EXPONENTS[_num_exponents(problem)])
    shares: tuple[float, ...] = _GRID_SHARES
    if problem.fixed_share is not None:
        shares = (min(max(problem.fixed_share, _GRID_SHARES[0]), _GRID_SHARES[-1]),)
    powers = len(problem.form.terms) - 1
    return np.concatenate(
        [
            _assemble(
                problem,
                exponents,
                np.full((len(exponents), powers + 1), (1 - share) / powers)
                * np.array([1.0] * powers + [share * powers / (1 - share)]),
            )
            for share in shares
        ]
    )


def projected_starts(problem: Problem, num: int) -> Floats:
    """Return the (num + 1, p) best vectors of an exponent grid whose coefficients are solved for.

    For fixed exponents the law is linear, and non-negative least squares on the loss gives its
    coefficients (variable projection: Golub and Pereyra 1973). The last vector is the best without
    a constant: the valley to a floor of zero is long and flat, and starts elsewhere may not reach
    its end. There is no such vector where the constant is given.
    """
    num_steps = _PROJECTED_EXPONENTS[_num_exponents(problem)]
    steps = np.geomspace(*_PROJECTED_RANGE, num_steps)
    exponents = _combinations(problem, steps)
    with_floor, residuals = _coefficients(problem, exponents, constant=True)
    best = np.argsort(residuals, kind="stable")[:num]
    if problem.fixed_share is not None:
        return _assemble(problem, exponents[best], np.maximum(with_floor[best], _LEAST_SHARE))
    without, floorless_residuals = _coefficients(problem, exponents, constant=False)
    last = [int(np.argmin(floorless_residuals))]
    coefficients = np.concatenate([with_floor[best], without[last]])
    least = np.full(coefficients.shape, _LEAST_SHARE)
    least[-1, -1] = np.exp(NO_FLOOR)
    chosen = np.concatenate([exponents[best], exponents[last]])
    return _assemble(problem, chosen, np.maximum(coefficients, least))


def _coefficients(
    problem: Problem, exponents_BE: Floats, *, constant: bool
) -> tuple[Floats, Floats]:
    """Return the best non-negative coefficients (B, K) for each vector of exponents, and residuals.

    Without ``constant`` the last coefficient is zero; where it is given it is that.
    """
    from scipy.optimize import nnls

    loss = np.exp(problem.target) if problem.is_log else problem.target
    num_terms = len(problem.form.terms)
    given = problem.fixed_share
    num_free = num_terms if constant and given is None else num_terms - 1
    coefficients = np.zeros((len(exponents_BE), num_terms))
    if given is not None:
        coefficients[:, -1] = given
        loss = loss - given
    residuals = np.empty(len(exponents_BE))
    for i, vector in enumerate(exponents_BE):
        found = nnls(_powers(problem, vector)[:, :num_free], loss)
        coefficients[i, :num_free], residuals[i] = found
    return coefficients, residuals


def _combinations(problem: Problem, exponents: Sequence[float] | Floats) -> Floats:
    """Return every vector of the law's exponents, in the order of its terms."""
    combinations = np.array(list(itertools.product(exponents, repeat=_num_exponents(problem))))
    if not problem.constraints.tied:
        return combinations
    first, second = (problem.form.exponents.index(name) for name in TIED)
    return np.insert(combinations, second, combinations[:, first], axis=1)


def _num_exponents(problem: Problem) -> int:
    """Return how many exponents are free."""
    return len(problem.form.exponents) - int(problem.constraints.tied)


def _assemble(problem: Problem, exponents_BE: Floats, coefficients_BK: Floats) -> Floats:
    """Return parameter vectors from natural exponents and coefficients at the data's centre."""
    columns: list[Floats] = []
    first = 0
    for k, spread in enumerate(problem.spreads):
        columns.append(np.log(coefficients_BK[:, k : k + 1]))
        columns.append(exponents_BE[:, first : first + len(spread)] * spread)
        first += len(spread)
    if problem.fixed_share is not None:
        columns[-2] = np.full_like(columns[-2], _log_or_nothing(problem.fixed_share))
    return np.concatenate(columns, axis=1)


def _log_or_nothing(share: float) -> float:
    return max(float(np.log(share)), NO_FLOOR) if share > 0 else NO_FLOOR


def _powers(problem: Problem, exponents_E: Floats) -> Floats:
    """Return (n, K): each term at coefficient one."""
    ones = np.ones((1, len(problem.form.terms)))
    theta = _assemble(problem, exponents_E[None], ones)[0]
    return np.column_stack(
        [
            np.exp(np.minimum(column @ theta[part], _MAX_EXPONENT))
            for part, column in zip(problem.form.slices, problem.columns, strict=True)
        ]
    )

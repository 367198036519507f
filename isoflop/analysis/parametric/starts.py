"""Starts of a fit: a grid over exponents and shares of the constant, and variable projection."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from isoflop.analysis.parametric.terms import NO_FLOOR, Floats, Form, Problem

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


def grid_starts(problem: Problem) -> Floats:
    """Return (B, p): every combination of 3 or 4 values per exponent and 3 shares of the constant.

    The rest of the loss is split evenly over the other terms at the centre of the data.
    """
    exponents = _combinations(problem.form, _GRID_EXPONENTS[_num_exponents(problem.form)])
    powers = len(problem.form.terms) - 1
    return np.concatenate(
        [
            _assemble(
                problem,
                exponents,
                np.full((len(exponents), powers + 1), (1 - share) / powers)
                * np.array([1.0] * powers + [share * powers / (1 - share)]),
            )
            for share in _GRID_SHARES
        ]
    )


def projected_starts(problem: Problem, num: int) -> Floats:
    """Return the (num + 1, p) best vectors of an exponent grid whose coefficients are solved for.

    For fixed exponents the law is linear, and non-negative least squares on the loss gives its
    coefficients (variable projection: Golub and Pereyra 1973). The last vector is the best without
    a constant: the valley to a floor of zero is long and flat, and starts elsewhere may not reach
    its end.
    """
    num_steps = _PROJECTED_EXPONENTS[_num_exponents(problem.form)]
    steps = np.geomspace(*_PROJECTED_RANGE, num_steps)
    exponents = _combinations(problem.form, steps)
    with_floor, residuals = _coefficients(problem, exponents, constant=True)
    without, floorless_residuals = _coefficients(problem, exponents, constant=False)
    best = np.argsort(residuals, kind="stable")[:num]
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

    Without ``constant`` the last coefficient is zero.
    """
    from scipy.optimize import nnls

    loss = np.exp(problem.target) if problem.is_log else problem.target
    num_terms = len(problem.form.terms)
    num_free = num_terms if constant else num_terms - 1
    coefficients = np.zeros((len(exponents_BE), num_terms))
    residuals = np.empty(len(exponents_BE))
    for i, vector in enumerate(exponents_BE):
        found = nnls(_powers(problem, vector)[:, :num_free], loss)
        coefficients[i, :num_free], residuals[i] = found
    return coefficients, residuals


def _combinations(form: Form, exponents: Sequence[float] | Floats) -> Floats:
    """Return every vector of the law's exponents, in the order of its terms."""
    return np.array(list(itertools.product(exponents, repeat=_num_exponents(form))))


def _num_exponents(form: Form) -> int:
    return len(form.parameters) - len(form.terms)


def _assemble(problem: Problem, exponents_BE: Floats, coefficients_BK: Floats) -> Floats:
    """Return parameter vectors from natural exponents and coefficients at the data's centre."""
    columns: list[Floats] = []
    first = 0
    for k, spread in enumerate(problem.spreads):
        columns.append(np.log(coefficients_BK[:, k : k + 1]))
        columns.append(exponents_BE[:, first : first + len(spread)] * spread)
        first += len(spread)
    return np.concatenate(columns, axis=1)


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

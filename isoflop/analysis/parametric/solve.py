"""The best parameter vector of a problem from many starts, and the verdict on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isoflop.analysis.parametric.descent import minimise
from isoflop.analysis.parametric.result import Status
from isoflop.analysis.parametric.starts import grid_starts, projected_starts
from isoflop.analysis.parametric.terms import Floats, Problem, predict

_NUM_PROJECTED = {"huber": 1, "vpnls": 10}

# Two starts are at the same optimum when their values agree to this share of the value, or this
# far in absolute terms: (residual / δ)², so 1e-9 is a residual of 3e-8.
_SAME_VALUE = 1e-6
_SAME_VALUE_ABSOLUTE = 1e-9

# Inputs are on one line when they leave it by less than this share of their spread.
_LINE_SHARE = 1e-3

# Square root of the condition number of the correlations between parameters. The Chinchilla data
# have 33, studies of two to five budgets 30 to 70, points of nearly one ratio D / N thousands.
_MAX_CONDITION = 1e4

# A term below this share of the loss goes to zero.
_ZERO_SHARE = 1e-4


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
    """Fit from the starts of the problem's method: a grid and variable projection, or only that."""
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


def _verdict(
    problem: Problem, theta_P: Floats, num_close: int, num_starts: int
) -> tuple[Status, str | None]:
    bound = _bound(problem, theta_P)
    if bound is not None:
        return "at_bound", bound
    if num_close == 0:
        return "not_converged", f"none of {num_starts} starts settled at the best objective"
    condition = conditioning(problem, theta_P)
    if condition > _MAX_CONDITION:
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
    for names, share in zip(problem.form.terms, shares, strict=True):
        if share < _ZERO_SHARE:
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
    lengths = np.linalg.norm(jacobian, axis=0)
    singular = np.linalg.svd(jacobian / np.where(lengths > 0, lengths, 1.0), compute_uv=False)
    return float(singular[0] / max(singular[-1], 1e-300))


def is_on_a_line(inputs: Sequence[Floats]) -> bool:
    """Whether the logarithms of all points lie on a line, a plane of lower dimension or a point."""
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

"""Damped Newton steps on many parameter vectors of one problem at once.

scipy minimises one vector at a time, and 1,000 bootstrap refits take it half a minute. Here all
starts, or all draws, move together: the sums over points are matrix products. The results agree
with scipy's to rounding (tests/analysis/parametric/test_descent.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from isoflop.analysis.parametric.terms import NO_FLOOR, Problem, evaluate
from isoflop.arrays import Floats

_MAX_DIRECT_STEPS = 60
_MAX_STEPS = 300
# Times the problem's δ.
_WIDE_DELTAS = (30.0, 10.0, 3.0)
_MAX_WIDE_STEPS = 25
# Longest step in the norm of standardised parameters: far starts must not jump out of range.
_MAX_STEP = 2.0
_FIRST_DAMPING = 1e-3
_MAX_DAMPING = 1e8
# The fall that a step promises, relative to the value and absolute, in (residual / δ)².
_RELATIVE_FALL = 1e-14
_ABSOLUTE_FALL = 1e-22
# Where rounding keeps a vector from settling, a promise below this is an optimum (1e-9 is a
# residual of 3e-8).
_STALLED_RELATIVE_FALL = 1e-9
_STALLED_ABSOLUTE_FALL = 1e-9


@dataclass(frozen=True, kw_only=True, slots=True)
class Descent:
    """Where each vector of a batch ended."""

    theta: Floats
    """(B, p)."""
    value: Floats
    """(B,), divided by δ²."""
    converged: npt.NDArray[np.bool_]

    @property
    def arrays(self) -> tuple[npt.NDArray[Any], ...]:
        """The fields, in order."""
        return self.theta, self.value, self.converged


def minimise(problem: Problem, start_BP: Floats, target_Bn: Floats, weight_Bn: Floats) -> Descent:
    """Return a local minimum from each start.

    ``target_Bn`` and ``weight_Bn`` have one row per start or a single row for all. Starts keep to
    the problem's constraints, and vectors move along its basis alone. A constant that
    sinks to nothing stays at NO_FLOOR. Where residuals are far beyond 1e-3, Huber's criterion is
    close to a sum of absolute values, whose many kinks hold Newton steps up: vectors that have not
    settled within 60 steps begin anew with the criterion first wide, then narrow. One that still
    does not settle within 300 is marked as not converged.
    """
    theta = np.maximum(start_BP, _lowest(problem))
    target = np.broadcast_to(target_Bn, (len(theta), problem.num_points))
    weight = np.broadcast_to(weight_Bn, (len(theta), problem.num_points))
    delta = problem.constraints.huber_delta
    direct = _descend(problem, theta, target, weight, delta, _MAX_DIRECT_STEPS)
    left = np.flatnonzero(~direct.converged)
    if not len(left):
        return direct
    theta, target, weight = direct.theta[left], target[left], weight[left]
    if problem.is_log:
        for factor in _WIDE_DELTAS:
            wide = factor * delta
            theta = _descend(problem, theta, target, weight, wide, _MAX_WIDE_STEPS).theta
    found = _descend(problem, theta, target, weight, delta, _MAX_STEPS)
    for whole, part in zip(direct.arrays, found.arrays, strict=True):
        whole[left] = part
    return direct


def _lowest(problem: Problem) -> Floats:
    """Return the lower bound of each parameter: only the constant has one."""
    lowest = np.full(len(problem.form.parameters), -np.inf)
    lowest[-1] = NO_FLOOR
    return lowest


def _descend(
    problem: Problem,
    start_BP: Floats,
    target_Bn: Floats,
    weight_Bn: Floats,
    delta: float,
    max_steps: int,
) -> Descent:
    theta, lowest = start_BP.copy(), _lowest(problem)
    value, gradient, hessian = evaluate(problem, theta, target_Bn, weight_Bn, delta)
    damping = np.full(len(theta), _FIRST_DAMPING)
    converged = np.zeros(len(theta), dtype=bool)
    at_work = np.arange(len(theta))
    for taken in range(max_steps + 1):
        held = (theta[at_work] <= lowest) & (gradient[at_work] > 0)
        step, fall = _step_along(
            problem.basis, gradient[at_work], hessian[at_work], damping[at_work], held
        )
        done = fall <= _RELATIVE_FALL * value[at_work] + _ABSOLUTE_FALL
        stuck = (damping[at_work] >= _MAX_DAMPING) | (taken == max_steps)
        stalled = fall <= _STALLED_RELATIVE_FALL * value[at_work] + _STALLED_ABSOLUTE_FALL
        converged[at_work[done | (stuck & stalled)]] = True
        going = ~(done | stuck)
        at_work, step = at_work[going], step[going]
        if not len(at_work):
            break
        trial = np.maximum(theta[at_work] + step, lowest)
        found = evaluate(problem, trial, target_Bn[at_work], weight_Bn[at_work], delta)
        better = found[0] < value[at_work]
        moved = at_work[better]
        theta[moved] = trial[better]
        value[moved], gradient[moved], hessian[moved] = (part[better] for part in found)
        damping[at_work] *= np.where(better, 0.25, 4.0)
    return Descent(theta=theta, value=value, converged=converged)


def _step_along(
    basis: Floats | None,
    gradient_BP: Floats,
    hessian_BPP: Floats,
    damping_B: Floats,
    held_BP: npt.NDArray[np.bool_],
) -> tuple[Floats, Floats]:
    """Return `_newton_step` in the directions of a basis (p, q); None is all directions."""
    if basis is None:
        return _newton_step(gradient_BP, hessian_BPP, damping_B, held_BP)
    held_BQ = held_BP @ (basis != 0)
    step_BQ, fall = _newton_step(
        gradient_BP @ basis, basis.T @ hessian_BPP @ basis, damping_B, held_BQ
    )
    return step_BQ @ basis.T, fall


def _newton_step(
    gradient_BP: Floats, hessian_BPP: Floats, damping_B: Floats, held_BP: npt.NDArray[np.bool_]
) -> tuple[Floats, Floats]:
    """Return the damped step (B, p) and the fall of the value that an undamped one promises (B,).

    Parameters that are held do not move. Directions of negative curvature are walked downhill by
    its absolute value, so that a start beyond an inflection still descends.
    """
    free = ~held_BP
    gradient_BP = gradient_BP * free
    hessian_BPP = hessian_BPP * (free[:, :, None] & free[:, None, :])
    curvatures, directions = np.linalg.eigh(hessian_BPP)
    largest = np.abs(curvatures).max(axis=1, keepdims=True)
    # Losses that no parameter explains leave no curvature at all.
    curvatures = np.maximum(np.abs(curvatures), 1e-14 * largest + 1e-30)
    along = np.einsum("bpq,bp->bq", directions, gradient_BP)
    damped = along / (curvatures + damping_B[:, None] * largest)
    step = -np.einsum("bpq,bq->bp", directions, damped) * free
    length = np.linalg.norm(step, axis=1, keepdims=True)
    # A far start of a fit without logarithms promises more than a float64 holds.
    with np.errstate(over="ignore"):
        fall = (along**2 / curvatures).sum(axis=1)
    return step * np.minimum(1.0, _MAX_STEP / np.maximum(length, 1e-300)), fall

"""Five ways to read the minimum off an isoFLOP profile, each for many sets of losses at once.

All take ln x of the points (ascending), their losses [B, n] and optionally weights [B, n] or [1, n]
(how often a bootstrap drew each point), and return the minima of all B sets:

- ``two_powers``: least squares of two power laws and a slope held near 0 (``two_powers.py``).
- ``parabola``: least squares of the loss on 1, ln x, (ln x)² over all points (approach 2 of
  Hoffmann et al. 2022, section 3.2, there in log10).
- ``parabola_window``: the same over the sizes within a factor of ``WINDOW_FACTOR`` of the size with
  the lowest mean loss, or the ``WINDOW_MIN_SIZES`` sizes nearest to it in ln x where the factor
  holds fewer. Parabolas over wide grids misplace optima without any noise (Czech, "Problems with
  Chinchilla Approach 2"): on its asymmetric surface over ±16x, D*(1e24) by 23 %, windowed by 5 %.
- ``akima``: Akima's spline (J. ACM 17, 1970) through the mean losses per size in ln loss over ln x,
  25 points a gap; the lowest grid point is refined by the parabola through its neighbours, and a
  lowest point at an end is an edge.
- ``parabola_robust``: the first with Huber's weights (k = 1.345) by iterated least squares; the
  scale is the median of the n − 3 largest absolute residuals over 0.6745, since three coefficients
  make up to three residuals vanish.

Letters: B sets of losses, n points, K distinct sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np
import numpy.typing as npt

from isoflop.analysis.two_powers import TwoPowers, fit_two_powers, two_powers_curve
from isoflop.arrays import Bools, Floats, row_patterns

Codes = npt.NDArray[np.int8]

Method = str
"""The name of a method, as it stands in ``METHODS`` and in the tables."""

DEFAULT_METHOD: Method = "two_powers"

INTERIOR, BELOW, ABOVE, NO_MINIMUM, TOO_FEW = 0, -1, 1, 2, 3

# Losses are means of float32 terms: differences below this share of the loss are rounding.
LOSS_RESOLUTION = 1e-6

# Three sizes determine a parabola without a residual, and two powers with a slope of 0. That is
# allowed here (a small study has no more) and shown by n_points; two leave both undetermined.
# Akima's slopes need a fourth size to be more than that parabola.
MIN_DISTINCT_SIZES = 3
AKIMA_MIN_SIZES = 4

WINDOW_FACTOR = 4.0
WINDOW_MIN_SIZES = 5
AKIMA_POINTS_PER_GAP = 25
HUBER_K = 1.345
_ROBUST_ROUNDS = 20
# In units of the largest loss; far below what any table resolves.
_ROBUST_CONVERGED = 1e-10
_MAD_OF_NORMAL = 0.6745
_TINY = 1e-300


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Minima:
    """The minimum of each of B sets of losses."""

    log_x: Floats
    """[B]; NaN where the code is not INTERIOR."""
    loss: Floats
    """[B]; NaN where the code is not INTERIOR."""
    code: Codes
    """[B]: INTERIOR, BELOW or ABOVE the points, NO_MINIMUM, TOO_FEW."""
    curvature: Floats
    """[B]: coefficient of (ln x)² at the minimum; NaN for TOO_FEW and at Akima's edges."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Parabolas:
    """B fitted parabolas in z = (ln x − centre) / half_width, so that the points span [−1, 1].

    Centred and scaled in both directions, the least-squares problem is well conditioned however
    narrow the sizes lie and whatever their unit.
    """

    centre: float
    half_width: float
    scale: Floats
    """[B]: largest loss of the set; the coefficients are in units of it."""
    coefficients: Floats
    """[B, 3]: constant, slope, quadratic; NaN where the points do not determine them."""

    def at(self, log_x: Floats) -> Floats:
        """Return the fitted losses [B, len(log_x)]."""
        powers = np.vander((log_x - self.centre) / self.half_width, 3, increasing=True)
        return np.asarray(self.scale[:, None] * (self.coefficients @ powers.T))


def fit_parabolas(log_x: Floats, loss_BN: Floats, weight_BN: Floats | None = None) -> Parabolas:
    """Fit all sets by weighted least squares; log_x must hold two distinct values."""
    centre = float(log_x[0] + log_x[-1]) / 2
    half_width = float(log_x[-1] - log_x[0]) / 2
    z = (log_x - centre) / half_width
    scale = loss_BN.max(axis=1)
    weight = np.ones((1, len(z))) if weight_BN is None else weight_BN
    coefficients = _solve(z, loss_BN / scale[:, None], weight)
    if weight_BN is not None:
        coefficients[_num_sizes(log_x, weight_BN) < MIN_DISTINCT_SIZES] = np.nan
    return Parabolas(centre=centre, half_width=half_width, scale=scale, coefficients=coefficients)


def minima_of_parabolas(parabolas: Parabolas, low: float, high: float) -> Minima:
    """Return the vertices; those outside [low, high] (ln x) are edges."""
    constant, slope, quadratic = parabolas.coefficients.T
    with np.errstate(divide="ignore", invalid="ignore"):
        vertex = -slope / (2 * quadratic)
        loss = parabolas.scale * (constant - quadratic * vertex**2)
        log_x = parabolas.centre + parabolas.half_width * vertex
    slack = _slack(low, high)
    code = np.where(log_x < low - slack, BELOW, np.where(log_x > high + slack, ABOVE, INTERIOR))
    code = np.where(quadratic > LOSS_RESOLUTION, code, NO_MINIMUM)
    code = np.where(np.isfinite(constant), code, TOO_FEW).astype(np.int8)
    inside = code == INTERIOR
    return Minima(
        log_x=np.where(inside, np.clip(log_x, low, high), np.nan),
        loss=np.where(inside, loss, np.nan),
        code=code,
        curvature=parabolas.scale * quadratic / parabolas.half_width**2,
    )


def minima_of_two_powers(curves: TwoPowers, low: float, high: float) -> Minima:
    """Return the lowest points between low and high (ln x); those at an end are edges."""
    lowest, loss, curvature = curves.lowest()
    at_low, at_high = curves.at(np.array([low, high])).T
    slack = _slack(low, high)
    # A leaning curve can fall below its minimum again on the far side of a maximum.
    inside = (lowest >= low - slack) & (lowest <= high + slack)
    inside &= loss <= np.minimum(at_low, at_high) * (1 + slack)
    code = np.where(inside, INTERIOR, np.where(at_low < at_high, BELOW, ABOVE))
    code = np.where(curves.bend > LOSS_RESOLUTION, code, NO_MINIMUM)
    code = np.where(np.isfinite(curves.bend), code, TOO_FEW).astype(np.int8)
    inside = code == INTERIOR
    return Minima(
        log_x=np.where(inside, np.clip(lowest, low, high), np.nan),
        loss=np.where(inside, loss, np.nan),
        code=code,
        curvature=np.where(inside, curvature, curves.coefficients[:, 2]),
    )


def _slack(low: float, high: float) -> float:
    """Return by how much ln x may leave its range: one rounding outwards is no edge.

    The minimum of points symmetric about an end lies on it.
    """
    return 1e-12 * max(1.0, abs(low), abs(high))


def two_powers(log_x: Floats, loss_BN: Floats, weight_BN: Floats | None = None) -> Minima:
    """Return the lowest points of two power laws and a slope over all points."""
    curves = fit_two_powers(log_x, loss_BN, weight_BN)
    if weight_BN is not None:
        curves.coefficients[_num_sizes(log_x, weight_BN) < MIN_DISTINCT_SIZES] = np.nan
    return minima_of_two_powers(curves, log_x[0], log_x[-1])


def parabola(log_x: Floats, loss_BN: Floats, weight_BN: Floats | None = None) -> Minima:
    """Return vertices of least-squares parabolas over all points."""
    return minima_of_parabolas(fit_parabolas(log_x, loss_BN, weight_BN), log_x[0], log_x[-1])


def parabola_robust(log_x: Floats, loss_BN: Floats, weight_BN: Floats | None = None) -> Minima:
    """Return vertices of parabolas with Huber's weights."""
    return minima_of_parabolas(fit_robust(log_x, loss_BN, weight_BN), log_x[0], log_x[-1])


def parabola_window(log_x: Floats, loss_BN: Floats, weight_BN: Floats | None = None) -> Minima:
    """Return vertices of parabolas over a window about the size with the lowest mean loss."""
    sizes, mean_BK = size_means(log_x, loss_BN, weight_BN)
    lowest = np.argmin(np.where(np.isfinite(mean_BK), mean_BK, np.inf), axis=1)
    num = len(loss_BN)
    found = {name: np.full(num, np.nan) for name in ("log_x", "loss", "curvature")}
    code = np.full(num, TOO_FEW, dtype=np.int8)
    for index in np.unique(lowest):
        of_index = lowest == index
        inside = window_of(log_x, sizes, int(index))
        weight = None if weight_BN is None else weight_BN[of_index][:, inside]
        fitted = fit_parabolas(log_x[inside], loss_BN[of_index][:, inside], weight)
        minima = minima_of_parabolas(fitted, log_x[0], log_x[-1])
        for name, values in found.items():
            values[of_index] = getattr(minima, name)
        code[of_index] = minima.code
    return Minima(code=code, **found)


def window_of(log_x: Floats, sizes: Floats, lowest: int) -> Bools:
    """Return which points [n] lie in the window about sizes[lowest]; sizes are distinct ln x."""
    distance = np.abs(sizes - sizes[lowest])
    reach = float(np.log(WINDOW_FACTOR))
    if np.count_nonzero(distance <= reach) < WINDOW_MIN_SIZES:
        reach = float(np.sort(distance)[min(WINDOW_MIN_SIZES, len(sizes)) - 1])
    # Rounding must not decide whether a size exactly at the reach is in.
    return np.asarray(np.abs(log_x - sizes[lowest]) <= reach * (1 + 1e-9))


def akima(log_x: Floats, loss_BN: Floats, weight_BN: Floats | None = None) -> Minima:
    """Return minima of Akima splines through the mean losses per size, log–log."""
    sizes, mean_BK = size_means(log_x, loss_BN, weight_BN)
    log_mean = np.log(np.maximum(mean_BK, _TINY))
    num = len(loss_BN)
    found = {name: np.full(num, np.nan) for name in ("log_x", "loss", "curvature")}
    code = np.full(num, TOO_FEW, dtype=np.int8)
    for there, chosen in row_patterns(np.isfinite(log_mean)):
        if np.count_nonzero(there) < AKIMA_MIN_SIZES:
            continue
        minima = _akima_minima(sizes[there], log_mean[chosen][:, there])
        for name, values in found.items():
            values[chosen] = getattr(minima, name)
        code[chosen] = minima.code
    return Minima(code=code, **found)


def fit_robust(log_x: Floats, loss_BN: Floats, weight_BN: Floats | None = None) -> Parabolas:
    """Fit all sets with Huber's weights, starting from least squares."""
    fitted = fit_parabolas(log_x, loss_BN, weight_BN)
    if len(log_x) <= MIN_DISTINCT_SIZES:
        return fitted
    z = (log_x - fitted.centre) / fitted.half_width
    powers = np.vander(z, 3, increasing=True)
    base = np.ones((1, len(z))) if weight_BN is None else weight_BN
    scaled_BN = loss_BN / fitted.scale[:, None]
    coefficients = fitted.coefficients
    for _ in range(_ROBUST_ROUNDS):
        off = np.abs(scaled_BN - coefficients @ powers.T)
        spread = np.median(np.sort(off, axis=1)[:, 3:], axis=1) / _MAD_OF_NORMAL
        bound = HUBER_K * np.maximum(spread, LOSS_RESOLUTION)[:, None]
        weight = np.minimum(1.0, bound / np.maximum(off, _TINY))
        before, coefficients = coefficients, _solve(z, scaled_BN, base * np.nan_to_num(weight))
        if np.all(np.abs(coefficients - before) < _ROBUST_CONVERGED):
            break
    # Sets without three sizes stay undetermined whatever their weights.
    coefficients[np.isnan(fitted.coefficients[:, 0])] = np.nan
    return replace(fitted, coefficients=coefficients)


def size_means(
    log_x: Floats, loss_BN: Floats, weight_BN: Floats | None = None
) -> tuple[Floats, Floats]:
    """Return the distinct ln x [K] and the mean loss at each [B, K]; NaN where none was drawn."""
    sizes, size_of = np.unique(log_x, return_inverse=True)
    member = np.equal.outer(size_of, np.arange(len(sizes))).astype(np.float64)
    weight = np.ones((1, len(log_x))) if weight_BN is None else weight_BN
    with np.errstate(divide="ignore", invalid="ignore"):
        return sizes, ((loss_BN * weight) @ member) / (weight @ member)


def _num_sizes(log_x: Floats, weight_BN: Floats) -> npt.NDArray[np.int64]:
    sizes = np.unique(log_x)
    drawn = np.stack([(weight_BN[:, log_x == size] > 0).any(axis=1) for size in sizes])
    return np.asarray(drawn.sum(axis=0))


def _akima_minima(sizes: Floats, log_loss_BK: Floats) -> Minima:
    from scipy.interpolate import Akima1DInterpolator

    shares = np.arange(AKIMA_POINTS_PER_GAP) / AKIMA_POINTS_PER_GAP
    grid = np.append((sizes[:-1, None] + np.diff(sizes)[:, None] * shares).ravel(), sizes[-1])
    curve = Akima1DInterpolator(sizes, log_loss_BK.T, axis=0)(grid).T
    lowest = np.argmin(curve, axis=1)
    code = np.where(lowest == 0, BELOW, np.where(lowest == len(grid) - 1, ABOVE, INTERIOR))
    middle = np.clip(lowest, 1, len(grid) - 2)
    log_x, log_loss, quadratic = _through_three(grid, curve, middle)
    inside = code == INTERIOR
    loss = np.where(inside, np.exp(np.where(inside, log_loss, 0.0)), np.nan)
    return Minima(
        log_x=np.where(inside, log_x, np.nan),
        loss=loss,
        code=code.astype(np.int8),
        # At a minimum, d²L/d(ln x)² = L · d²(ln L)/d(ln x)².
        curvature=loss * quadratic,
    )


def _through_three(
    grid: Floats, curve_BG: Floats, middle: npt.NDArray[np.intp]
) -> tuple[Floats, Floats, Floats]:
    """Return vertex, value and quadratic coefficient of parabolas through three neighbours."""
    row = np.arange(len(curve_BG))
    left, right = grid[middle] - grid[middle - 1], grid[middle + 1] - grid[middle]
    fall = (curve_BG[row, middle] - curve_BG[row, middle - 1]) / left
    rise = (curve_BG[row, middle + 1] - curve_BG[row, middle]) / right
    quadratic = (rise - fall) / (left + right)
    slope = (fall * right + rise * left) / (left + right)
    with np.errstate(divide="ignore", invalid="ignore"):
        step = np.where(quadratic > 0, np.clip(-slope / (2 * quadratic), -left, right), 0.0)
    return grid[middle] + step, curve_BG[row, middle] + step * (slope + quadratic * step), quadratic


def _solve(z: Floats, loss_BN: Floats, weight_BN: Floats) -> Floats:
    """Return weighted least-squares coefficients [B, 3] on 1, z, z²; NaN where singular."""
    powers = np.vander(z, 5, increasing=True)
    moment = weight_BN @ powers
    right = (weight_BN * loss_BN) @ powers[:, :3]
    s0, s1, s2, s3, s4 = moment.T
    adjugate = np.stack(
        [
            [s2 * s4 - s3 * s3, s2 * s3 - s1 * s4, s1 * s3 - s2 * s2],
            [s2 * s3 - s1 * s4, s0 * s4 - s2 * s2, s1 * s2 - s0 * s3],
            [s1 * s3 - s2 * s2, s1 * s2 - s0 * s3, s0 * s2 - s1 * s1],
        ]
    )
    determinant = s0 * adjugate[0, 0] + s1 * adjugate[0, 1] + s2 * adjugate[0, 2]
    # With weights summing to s0 and z in [−1, 1]; below this, coefficients are undetermined.
    usable = determinant > 1e-12 * s0**3
    with np.errstate(divide="ignore", invalid="ignore"):
        solved = np.einsum("ijb,bj->bi", adjugate, right) / determinant[:, None]
    return np.where(usable[:, None], solved, np.nan)


def parabola_curve(
    log_x: Floats,
    loss: Floats,
    at: Floats,
    fit: Callable[[Floats, Floats], Parabolas] = fit_parabolas,
) -> Floats:
    """Return the parabola at some ln x."""
    return fit(log_x, loss[None]).at(at)[0]


def window_curve(log_x: Floats, loss: Floats, at: Floats) -> Floats:
    """Return the windowed parabola at some ln x, NaN outside its window."""
    inside = _window(log_x, loss)
    there = (at >= log_x[inside][0]) & (at <= log_x[inside][-1])
    return np.where(there, parabola_curve(log_x[inside], loss[inside], at), np.nan)


def akima_curve(log_x: Floats, loss: Floats, at: Floats) -> Floats:
    """Return Akima's spline at some ln x; it passes through the mean of every size."""
    from scipy.interpolate import Akima1DInterpolator

    sizes, means = size_means(log_x, loss[None])
    return np.asarray(np.exp(Akima1DInterpolator(sizes, np.log(np.maximum(means[0], _TINY)))(at)))


def smooth_everywhere(
    log_x: Floats, loss: Floats, curve: Callable[[Floats, Floats, Floats], Floats]
) -> tuple[Floats, Bools]:
    """Return a curve at all points, which are all fitted."""
    return curve(log_x, loss, log_x), np.ones(len(log_x), dtype=np.bool_)


def smooth_in_window(log_x: Floats, loss: Floats) -> tuple[Floats, Bools]:
    """Return the windowed parabola at all points, and which lie inside its window.

    It stands in for Akima's spline, too, which passes through the mean of every size and leaves no
    residual: noise added to noisy means would count twice.
    """
    inside = _window(log_x, loss)
    return parabola_curve(log_x[inside], loss[inside], log_x), inside


def _window(log_x: Floats, loss: Floats) -> Bools:
    sizes, means = size_means(log_x, loss[None])
    return window_of(log_x, sizes, int(np.argmin(means[0])))


def _num_distinct(log_x: Floats) -> float:
    return float(len(np.unique(log_x)))


# A study has few grids, and each is asked for by its optima, draws and checks.
class Curves(Protocol):
    """Fitted curves of many sets of losses."""

    def at(self, log_x: Floats) -> Floats:
        """Return the fitted losses [B, len(log_x)]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FitMethod:
    """One method of finding optima: all that the analysis knows of it."""

    name: Method
    find: Callable[[Floats, Floats, Floats | None], Minima]
    """From (ln x, losses, weights or None) to the minimum of each set of losses."""
    curve: Callable[[Floats, Floats, Floats], Floats]
    """From (ln x [n], losses [n], other ln x [m]) to the fitted curve there [m]; NaN where the
    method fits none."""
    smooth: Callable[[Floats, Floats], tuple[Floats, Bools]]
    """From (ln x [n], losses [n]) to a smooth curve [n], about which losses are drawn, and which
    points it was fitted to: their residuals measure the noise."""
    fit: Callable[[Floats, Floats, Floats | None], Curves] | None = None
    """Of a curve that is linear in the losses, whatever they are: all sets of losses at once."""
    is_interpolation: bool = False
    """Whether the curve passes through the mean of each size."""
    min_sizes: int = MIN_DISTINCT_SIZES
    """Distinct sizes needed; with fewer the verdict is ``too_few``."""
    is_low: bool = False
    """Whether the minimum found in noisy losses lies too low. Draws made about a smooth curve are
    then shifted so that the estimate is their median."""

    def smoother(self, log_x: Floats, weight: Floats | None = None) -> Floats:
        """Return the matrix [n, n] that makes fitted losses of losses; only of linear methods.

        ``weight`` [n] counts the runs that each loss is the mean of; None: one.
        """
        assert self.fit is not None
        counted = None if weight is None else np.tile(weight, (len(log_x), 1))
        return self.fit(log_x, np.eye(len(log_x)), counted).at(log_x).T

    def lack_of_fit_dof(self, log_x: Floats, used: Bools) -> float:
        """Return the degrees of freedom of the means of the sizes about the smooth curve.

        Those of the residuals of a linear smoother H are tr (I − H)ᵀ(I − H), less those of repeats:
        with n runs of a size and M the smoother of the means, K − 2 tr M + Σ M² n_k / n_j.
        """
        sizes, num = np.unique(log_x[used], return_counts=True)
        if self.fit is None:
            return float(len(sizes) - MIN_DISTINCT_SIZES)
        of_means = self.smoother(sizes, num.astype(np.float64))
        shares = num[:, None] / num[None]
        return float(len(sizes) - 2 * np.trace(of_means) + np.sum(of_means**2 * shares))

    def num_coefficients(self, log_x: Floats) -> float:
        """Return how many coefficients the curve has: what it takes of the degrees of freedom.

        Of a linear method the trace of its smoother; a coefficient per size of an interpolation;
        three of the other parabolas.
        """
        if self.fit is not None:
            sizes, num = np.unique(log_x, return_counts=True)
            return float(np.trace(self.smoother(sizes, num.astype(np.float64))))
        return _num_distinct(log_x) if self.is_interpolation else MIN_DISTINCT_SIZES


def _of_curve(
    name: Method,
    find: Callable[[Floats, Floats, Floats | None], Minima],
    curve: Callable[[Floats, Floats, Floats], Floats],
    fit: Callable[[Floats, Floats, Floats | None], Curves] | None = None,
) -> FitMethod:
    """Return a method that is its own smooth curve."""
    smooth = partial(smooth_everywhere, curve=curve)
    return FitMethod(name=name, find=find, curve=curve, smooth=smooth, fit=fit)


METHODS: dict[Method, FitMethod] = {
    method.name: method
    for method in (
        _of_curve("two_powers", two_powers, two_powers_curve, fit_two_powers),
        _of_curve("parabola", parabola, parabola_curve, fit_parabolas),
        FitMethod(
            name="parabola_window",
            find=parabola_window,
            curve=window_curve,
            smooth=smooth_in_window,
        ),
        FitMethod(
            name="akima",
            find=akima,
            curve=akima_curve,
            smooth=smooth_in_window,
            is_interpolation=True,
            min_sizes=AKIMA_MIN_SIZES,
            is_low=True,
        ),
        _of_curve(
            "parabola_robust",
            parabola_robust,
            partial(parabola_curve, fit=fit_robust),
        ),
    )
}
"""All methods by name, in the order of the tables and figures."""

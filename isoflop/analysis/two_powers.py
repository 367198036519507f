"""Two power laws and a slope: the curve of the default method of finding optima.

At equal FLOPs C = 6ND the loss E + A/N^α + B/D^β is, over x = ln N, a constant, a falling and a
rising exponential. With one rate k for both it is ``a + b·e^(−kx) + c·e^(kx)``, which is symmetric
about its minimum; a slope ``d·x`` makes it lean, as it does where α ≠ β (at the minimum, the third
derivative is −k²·d). Published surfaces of dense transformers have α and β of .31 to .37, so k is
fixed, and |α − β| of .06 at most, so d is held near 0 by a ridge: on narrow grids, where the data
cannot tell it, the curve is the parabola's equal with three coefficients; on wide ones, where the
data decide, it has four.

The fit is linear in the losses, moves with the unit of x, and its minimum has a closed form.

Letters: B sets of losses, n points.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from isoflop.arrays import Floats

# Both exponents. Between .25 and .45 of the truth the curves hardly differ within a factor of 16.
RATE = 0.35

# Squared ratio of the noise in ln L (.003) to the spread of d over L (.03) that |α − β| of .06
# makes: d/L = (α − β)·L''/(L·k²), and L''/L is about .06 at the minimum.
RIDGE = 0.01

# With columns within [−1, 1]; below this share of the weights, coefficients are undetermined.
_SMALLEST_DETERMINANT = 1e-12


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TwoPowers:
    """B curves ``a + p·sinh(kz)/k + q·(2·sinh(kz/2)/k)² + d·z`` over z = ln x − centre."""

    centre: float
    coefficients: Floats
    """[B, 4]: a, p, q, d, in the unit of the loss; NaN where the points do not determine them."""
    bend: Floats
    """[B]: q's part of the loss at the ends of the points, over the largest loss."""

    def at(self, log_x: Floats) -> Floats:
        """Return the fitted losses [B, len(log_x)]."""
        return np.asarray(self.coefficients @ _columns(log_x - self.centre).T)

    def lowest(self) -> tuple[Floats, Floats, Floats]:
        """Return ln x and loss [B] of the one minimum of each curve, and half of L'' there.

        NaN for a curve without a minimum. With u = e^(kz) the slope is rising·u + falling/u + d.
        """
        # A quotient of coefficients, whose squares would overflow in a tiny unit of the loss.
        largest = np.abs(self.coefficients).max(axis=1)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            _, p, q, d = self.coefficients.T / largest
            rising, falling = p / 2 + q / RATE, p / 2 - q / RATE
            root = np.sqrt(d * d - 4 * rising * falling)
            # Two forms of the same root: each is exact where the other subtracts equal numbers.
            u = np.where(d > 0, -2 * falling / (d + root), (root - d) / (2 * rising))
            u = np.where((u > 0) & np.isfinite(u), u, np.nan)
            z = np.log(u) / RATE
            loss = np.einsum("bi,bi->b", self.coefficients, _columns(z))
            bend = largest * RATE * (rising * u - falling / u) / 2
            return self.centre + z, loss, bend


def fit_two_powers(log_x: Floats, loss_BN: Floats, weight_BN: Floats | None = None) -> TwoPowers:
    """Fit all sets by weighted least squares; log_x (ascending) must hold two distinct values.

    Args:
        log_x: ln of the sizes [n].
        loss_BN: losses [B, n].
        weight_BN: how often each point counts, [B, n] or [1, n]; None: once.
    """
    centre = float(log_x[0] + log_x[-1]) / 2
    half_width = float(log_x[-1] - log_x[0]) / 2
    unit = _columns(np.array([half_width]))[0]
    # The slope keeps its unit on narrow grids, where the ridge alone determines it.
    unit[3] = max(1.0, half_width)
    columns = _columns(log_x - centre) / unit
    scale = loss_BN.max(axis=1, keepdims=True)
    weight = np.ones((1, len(log_x))) if weight_BN is None else weight_BN
    moment = np.einsum("bn,ni,nj->bij", weight, columns, columns)
    usable = np.linalg.det(moment[:, :3, :3]) > _SMALLEST_DETERMINANT * moment[:, 0, 0] ** 3
    moment[:, 3, 3] += RIDGE / unit[3] ** 2
    moment[~usable] = np.eye(4)
    right = (weight * (loss_BN / scale)) @ columns
    solved = np.einsum("bij,bj->bi", np.linalg.inv(moment), right)
    coefficients = np.where(usable[:, None], scale * solved / unit, np.nan)
    bend = np.where(usable, solved[:, 2], np.nan)
    return TwoPowers(centre=centre, coefficients=coefficients, bend=bend)


def two_powers_curve(log_x: Floats, loss: Floats, at: Floats) -> Floats:
    """Return the two power laws fitted to one set of losses [n], at some ln x [m]."""
    return fit_two_powers(log_x, loss[None]).at(at)[0]


def _columns(z: Floats) -> Floats:
    """Return what the coefficients multiply [len(z), 4]; about 1, z, z², z near 0."""
    rise = np.sinh(RATE * z) / RATE
    bend = (2 * np.sinh(RATE * z / 2) / RATE) ** 2
    return np.stack([np.ones_like(z), rise, bend, z], axis=1)

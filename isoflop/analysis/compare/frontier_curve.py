"""A family's frontier by some resource R: through its optima, invertible, for many draws at once.

Between optima ln (loss − floor) is linear in ln R, and beyond them it goes on like the last step
inside. With the right floor that is exact for a power law with an asymptote; a chord in ln loss
(floor 0) lies above such a curve, by 1.4 % of the resource at budgets a factor of 3 apart. The
floor is not known, so every draw has its own (``draw_floors``), and what follows from not knowing
it is inside the intervals. Beyond the optima all rests on it; such values are flagged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from isoflop.arrays import Bools, Floats, row_patterns

REACH = math.log(100.0)
"""Farther beyond its optima, in ln R, a frontier says nothing; draws end there."""

# The floor as a share of the lowest loss: what is irreducible is some of it, seldom nearly all
# (E / L is .45 to .75 for published surfaces over their sizes), and 0 is the chord in ln loss.
_PRIOR_SHARE, _PRIOR_SHARE_SD = 0.5, 0.25
_SHARES = np.linspace(0.0, 0.95, 39)
_STREAM = 61_027
# Relative; losses of noise-free tables are exact to rounding.
_LEAST_SE = 1e-9


def draw_floors(
    log_r: Floats, log_loss: Floats, log_loss_se: Floats, *, seed: int | None = None
) -> Floats:
    """Return the floor of the frontier in each draw [B], in the unit of the loss.

    The share f of the lowest loss that makes the optima a power law of R above the floor: the least
    sum of squares of ln (L − f · L_min) about a line in ln R, over their errors, plus
    ((f − centre) / .25)² for the prior. With a seed every draw has a centre of its own from the
    prior, so that draws hold what neither the data nor the prior decide (randomised maximum a
    posteriori; exact where the problem is linear and Gaussian); without one it is the prior's mean.

    Args:
        log_r: ln of the resource at the optima [B, K]; NaN where a draw lost one.
        log_loss: ln of the losses at the optima [B, K].
        log_loss_se: standard errors of ln loss [K].
        seed: of the prior's draws; None: no draws, as for an estimate.
    """
    num_draws = len(log_loss)
    centre = np.full(num_draws, _PRIOR_SHARE)
    if seed is not None:
        rng = np.random.default_rng((_STREAM, seed))
        centre = _PRIOR_SHARE + _PRIOR_SHARE_SD * rng.standard_normal(num_draws)
    there = np.isfinite(log_r) & np.isfinite(log_loss)
    loss = np.where(there, np.exp(np.where(there, log_loss, 0.0)), np.inf)
    lowest = np.where(there.any(axis=1), loss.min(axis=1), 1.0)
    least = np.full(num_draws, np.inf)
    best = np.zeros(num_draws)
    for share in _SHARES:
        cost = ((share - centre) / _PRIOR_SHARE_SD) ** 2
        cost = cost + _squares_about_line(log_r, loss, there, share * lowest, log_loss_se)
        is_less = cost < least
        least, best = np.where(is_less, cost, least), np.where(is_less, share, best)
    return best * lowest


def _squares_about_line(
    log_r: Floats, loss: Floats, there: Bools, floor: Floats, log_loss_se: Floats
) -> Floats:
    """Return the weighted sum of squares [B] of ln (loss − floor) about a line in ln R."""
    excess = np.where(there, loss - floor[:, None], 1.0)
    error = np.maximum(log_loss_se, _LEAST_SE) * np.where(there, loss, 1.0) / excess
    weight = np.where(there, error**-2, 0.0)
    x, y = np.where(there, log_r, 0.0), np.log(excess)
    total = np.maximum(weight.sum(axis=1), 1e-300)
    x = x - ((weight * x).sum(axis=1) / total)[:, None]
    y = y - ((weight * y).sum(axis=1) / total)[:, None]
    squares = (weight * x * x).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = np.where(squares > 0, (weight * x * y).sum(axis=1) / squares, 0.0)
    return np.asarray((weight * (y - slope[:, None] * x) ** 2).sum(axis=1))


@dataclass(frozen=True, kw_only=True, slots=True)
class Inverse:
    """Where each draw's frontier reaches a given loss; NaN where it does not."""

    log_r: Floats
    """[draws]; no farther than ``REACH`` beyond the optima."""
    elasticity: Floats
    """d ln loss / d ln R there [draws]."""
    extrapolated: Bools
    too_far: Bools
    """Whether the loss is reached farther away than that, or never."""
    segment: npt.NDArray[np.intp]
    """The optimum on the left of it [draws]; the first or last segment when extrapolated."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FrontierCurve:
    """Optima of one family by budget, smallest first."""

    log_r: Floats
    """[draws, optima]"""
    log_loss: Floats
    """[draws, optima]"""
    floor: Floats | None = None
    """[draws], below all losses, in the unit of the loss; None: 0."""

    @property
    def is_monotone(self) -> Bools:
        """Whether more of the resource buys a lower loss at every step [draws]."""
        rises = np.all(np.diff(self.log_r, axis=1) > 0, axis=1)
        falls = np.all(np.diff(self.log_loss, axis=1) < 0, axis=1)
        return np.asarray(rises & falls)

    def invert(self, log_loss: Floats) -> Inverse:
        """Return the resource at which each draw's frontier reaches ``log_loss`` [draws].

        A draw's frontier passes through the optima that are there (not NaN) in that draw. NaN where
        it is not monotone. A frontier of one optimum is only inverted at that very loss.
        """
        found = _all_nan(len(log_loss))
        for rows, kept, part in self._by_pattern():
            _store(found, rows, part._of_whole(log_loss[rows]), kept)
        return found

    def at(self, log_r: Floats, slack: float) -> Floats:
        """Return ln loss of each draw's frontier at a resource [draws].

        NaN where it is not monotone, and farther than ``slack`` (in ln R) beyond its optima.
        """
        found = np.full(len(log_r), np.nan)
        for rows, _, part in self._by_pattern():
            found[rows] = part._value_at(log_r[rows], slack)
        return found

    def _by_pattern(self) -> list[tuple[Bools, npt.NDArray[np.intp], FrontierCurve]]:
        """Return draws that lack the same optima together: which, their optima, their curve."""
        there = np.isfinite(self.log_r) & np.isfinite(self.log_loss)
        parts = []
        # Sorting the patterns takes longer than all the rest, and mostly there is one.
        for pattern, rows in row_patterns(there):
            kept = np.flatnonzero(pattern)
            if len(kept):
                part = FrontierCurve(
                    log_r=self.log_r[np.ix_(rows, kept)],
                    log_loss=self.log_loss[np.ix_(rows, kept)],
                    floor=None if self.floor is None else self.floor[rows],
                )
                parts.append((rows, kept, part))
        return parts

    def _excess(self, log_loss: Floats) -> Floats:
        """Return ln (loss − floor); −inf at or below the floor. Losses are [draws, any]."""
        if self.floor is None:
            return log_loss
        excess = np.exp(log_loss) - self.floor[:, None]
        shifted = np.log(np.maximum(excess, 1e-300))
        # Without a floor the logarithm is taken as it is, to the last bit.
        return np.where(self.floor[:, None] > 0, shifted, log_loss)

    def _of_whole(self, log_loss: Floats) -> Inverse:
        if self.log_r.shape[1] < 2:
            return self._invert_single(log_loss)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return self._invert(log_loss)

    def _invert(self, log_loss: Floats) -> Inverse:
        num = self.log_r.shape[1]
        above = np.sum(self.log_loss >= log_loss[:, None], axis=1)
        left = np.clip(above - 1, 0, num - 2)
        rows = np.arange(len(log_loss))
        nodes, target = self._excess(self.log_loss), self._excess(log_loss[:, None])[:, 0]
        excess_l, excess_r = nodes[rows, left], nodes[rows, left + 1]
        log_l, log_r = self.log_r[rows, left], self.log_r[rows, left + 1]
        share = (target - excess_l) / (excess_r - excess_l)
        # Counted from the nearer end, so that an optimum's own loss gives its own resource.
        reached = np.where(
            share <= 0.5, log_l + share * (log_r - log_l), log_r - (1 - share) * (log_r - log_l)
        )
        low, high = self.log_r[:, 0] - REACH, self.log_r[:, -1] + REACH
        slope = (excess_r - excess_l) / (log_r - log_l)
        sound = self.is_monotone
        return Inverse(
            log_r=np.where(sound, np.clip(reached, low, high), np.nan),
            elasticity=np.where(sound, slope * self._share_above(log_loss), np.nan),
            extrapolated=(share < 0) | (share > 1),
            too_far=sound & ((reached < low) | (reached > high)),
            segment=left,
        )

    def _share_above(self, log_loss: Floats) -> Floats:
        """Return (loss − floor) / loss: what a share of the excess is as a share of the loss."""
        if self.floor is None:
            return np.ones_like(log_loss)
        return np.maximum(1 - self.floor * np.exp(-log_loss), 0.0)

    def _value_at(self, log_r: Floats, slack: float) -> Floats:
        num = self.log_r.shape[1]
        near = np.abs(log_r - self.log_r[:, 0]) <= slack
        if num < 2:
            return np.where(near, self.log_loss[:, 0], np.nan)
        left = np.clip(np.sum(self.log_r <= log_r[:, None], axis=1) - 1, 0, num - 2)
        rows = np.arange(len(log_r))
        nodes = self._excess(self.log_loss)
        log_l, step = self.log_r[rows, left], self.log_r[rows, left + 1] - self.log_r[rows, left]
        # Far beyond the optima, where nothing is returned, a steep draw has no finite loss.
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            share = (log_r - log_l) / step
            excess = nodes[rows, left] + share * (nodes[rows, left + 1] - nodes[rows, left])
            value = excess
            if self.floor is not None:
                with_floor = np.log(self.floor + np.exp(excess))
                value = np.where(self.floor > 0, with_floor, excess)
        inside = (log_r >= self.log_r[:, 0] - slack) & (log_r <= self.log_r[:, -1] + slack)
        return np.where(self.is_monotone & inside, value, np.nan)

    def _invert_single(self, log_loss: Floats) -> Inverse:
        same = log_loss == self.log_loss[:, 0]
        never = np.zeros(len(log_loss), dtype=np.bool_)
        return Inverse(
            log_r=np.where(same, self.log_r[:, 0], np.nan),
            elasticity=np.full(len(log_loss), np.nan),
            extrapolated=never,
            too_far=never,
            segment=np.zeros(len(log_loss), dtype=np.intp),
        )


def _all_nan(num_draws: int) -> Inverse:
    return Inverse(
        log_r=np.full(num_draws, np.nan),
        elasticity=np.full(num_draws, np.nan),
        extrapolated=np.zeros(num_draws, dtype=np.bool_),
        too_far=np.zeros(num_draws, dtype=np.bool_),
        segment=np.zeros(num_draws, dtype=np.intp),
    )


def _store(found: Inverse, rows: Bools, part: Inverse, kept: npt.NDArray[np.intp]) -> None:
    found.log_r[rows] = part.log_r
    found.elasticity[rows] = part.elasticity
    found.extrapolated[rows] = part.extrapolated
    found.too_far[rows] = part.too_far
    found.segment[rows] = kept[part.segment]

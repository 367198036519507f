"""A family's frontier by some resource R: through its optima, invertible, for many draws at once.

Between optima ln loss is linear in ln R, and beyond them it goes on like the last step inside: the
slope of a frontier changes over the budgets, so that a line through all of them would be too steep
at its end. Such values are flagged as extrapolated.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from isoflop.arrays import Floats

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class Inverse:
    """Where each draw's frontier reaches a given loss; NaN where it does not."""

    log_r: Floats
    """[draws]"""
    elasticity: Floats
    """d ln loss / d ln R there [draws]."""
    extrapolated: Bools
    segment: npt.NDArray[np.intp]
    """The optimum on the left of it [draws]; the first or last segment when extrapolated."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FrontierCurve:
    """Optima of one family by budget, smallest first."""

    log_r: Floats
    """[draws, optima]"""
    log_loss: Floats
    """[draws, optima]"""

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
        there = np.isfinite(self.log_r) & np.isfinite(self.log_loss)
        found = _all_nan(len(log_loss))
        # Draws that lack the same optima are inverted together.
        for pattern in np.unique(there, axis=0):
            rows, kept = np.all(there == pattern, axis=1), np.flatnonzero(pattern)
            if not len(kept):
                continue
            part = FrontierCurve(
                log_r=self.log_r[np.ix_(rows, kept)], log_loss=self.log_loss[np.ix_(rows, kept)]
            )
            _store(found, rows, part._of_whole(log_loss[rows]), kept)
        return found

    def _of_whole(self, log_loss: Floats) -> Inverse:
        if self.log_r.shape[1] < 2:
            return self._invert_single(log_loss)
        with np.errstate(divide="ignore", invalid="ignore"):
            return self._invert(log_loss)

    def _invert(self, log_loss: Floats) -> Inverse:
        num = self.log_r.shape[1]
        above = np.sum(self.log_loss >= log_loss[:, None], axis=1)
        left = np.clip(above - 1, 0, num - 2)
        rows = np.arange(len(log_loss))
        loss_l, loss_r = self.log_loss[rows, left], self.log_loss[rows, left + 1]
        log_l, log_r = self.log_r[rows, left], self.log_r[rows, left + 1]
        share = (log_loss - loss_l) / (loss_r - loss_l)
        # Counted from the nearer end, so that an optimum's own loss gives its own resource.
        reached = np.where(
            share <= 0.5, log_l + share * (log_r - log_l), log_r - (1 - share) * (log_r - log_l)
        )
        sound = self.is_monotone
        return Inverse(
            log_r=np.where(sound, reached, np.nan),
            elasticity=np.where(sound, (loss_r - loss_l) / (log_r - log_l), np.nan),
            extrapolated=(share < 0) | (share > 1),
            segment=left,
        )

    def _invert_single(self, log_loss: Floats) -> Inverse:
        same = log_loss == self.log_loss[:, 0]
        return Inverse(
            log_r=np.where(same, self.log_r[:, 0], np.nan),
            elasticity=np.full(len(log_loss), np.nan),
            extrapolated=np.zeros(len(log_loss), dtype=np.bool_),
            segment=np.zeros(len(log_loss), dtype=np.intp),
        )


def _all_nan(num_draws: int) -> Inverse:
    return Inverse(
        log_r=np.full(num_draws, np.nan),
        elasticity=np.full(num_draws, np.nan),
        extrapolated=np.zeros(num_draws, dtype=np.bool_),
        segment=np.zeros(num_draws, dtype=np.intp),
    )


def _store(found: Inverse, rows: Bools, part: Inverse, kept: npt.NDArray[np.intp]) -> None:
    found.log_r[rows] = part.log_r
    found.elasticity[rows] = part.elasticity
    found.extrapolated[rows] = part.extrapolated
    found.segment[rows] = kept[part.segment]

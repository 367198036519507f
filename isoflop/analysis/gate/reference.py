"""What a run is held against: the reference's frontier, how far it was measured, and its noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from isoflop.analysis.compare.frontier_curve import FrontierCurve
from isoflop.analysis.compare.multipliers import SLACK, Frontier
from isoflop.analysis.noise import draw_noise
from isoflop.analysis.resources import RESOURCES
from isoflop.analysis.result import Fits
from isoflop.arrays import Floats


def why_no_frontier(frontier: Frontier) -> str:
    """Return in words why a family has no frontier along a resource; empty where it has one."""
    words = RESOURCES[frontier.resource].words
    if frontier.lacks_data:
        return f"the table of {frontier.arch} lacks {words}"
    if not any(not node.is_edge for node in frontier.nodes):
        return f"{frontier.arch} has no optimum inside its grid at any budget"
    if not frontier.interior.is_monotone[0]:
        return f"the loss of {frontier.arch} does not fall with {words} from budget to budget"
    return ""


def reached(curve: FrontierCurve, log_loss: Floats) -> Floats:
    """Return ln of the resource at which each draw's frontier reaches a loss [draws].

    Infinite where that is too far to say more than the side, as always with one optimum. NaN where
    the draw has no optimum, or a frontier that is not monotone.
    """
    inverse = curve.invert(log_loss)
    there = np.isfinite(curve.log_r) & np.isfinite(curve.log_loss)
    lowest = np.min(np.where(there, curve.log_loss, np.inf), axis=1)
    only_side = inverse.too_far | ((there.sum(axis=1) == 1) & (log_loss != lowest))
    return np.where(only_side, np.where(log_loss < lowest, np.inf, -np.inf), inverse.log_r)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RunNoise:
    """How much ln loss scatters between single runs of the reference, by budget and draw."""

    log_flops: Floats
    """Of the budgets [K], ascending."""
    between_sizes: Floats
    """Variance of what all runs of one size share [draws, K]."""
    between_runs: Floats
    """Variance of what each run has alone [draws, K]."""

    def sd(self, flops: float | None, num_runs: int) -> Floats:
        """Return the noise of a mean of seeds at some FLOPs [draws].

        Between budgets ln of the variance is linear in ln C, beyond them it is that of the nearest.
        Without FLOPs it is the largest that there is.
        """
        log_variance = np.log(self.between_sizes + self.between_runs / num_runs)
        if flops is None:
            return np.asarray(np.exp(log_variance.max(axis=1) / 2))
        places = np.arange(len(self.log_flops))
        place = float(np.interp(math.log(flops), self.log_flops, places))
        left = min(int(place), max(len(places) - 2, 0))
        right = min(left + 1, len(places) - 1)
        share = place - left
        between = (1 - share) * log_variance[:, left] + share * log_variance[:, right]
        return np.asarray(np.exp(between / 2))


def noise_of_runs(fits: Fits, arch: str) -> RunNoise | None:
    """Return the noise that one run of a family has; None where the draws know of none."""
    draws = fits.draws_of()
    if draws is None:
        return None
    # The same numbers again: those that the optima were drawn with.
    noise = draw_noise(draws.scatter, draws.n_boot, draws.seed)
    own = {budget: drawn for (label, budget), drawn in sorted(noise.items()) if label == arch}
    if not own:
        return None
    return RunNoise(
        log_flops=np.log(np.array(list(own))),
        between_sizes=np.stack([drawn.between_sizes**2 for drawn in own.values()], axis=1),
        between_runs=np.stack([drawn.between_runs**2 for drawn in own.values()], axis=1),
    )


def size_ratio(fits: Fits, arch: str, n_params: float | None, flops: float | None) -> float | None:
    """Return parameters over the family's N* at some FLOPs, between its optima in logs."""
    optima = [o for o in fits.optima_of(arch, "n_params") if o.is_point and o.x_opt]
    if not optima or n_params is None or flops is None:
        return None
    log_c = [math.log(o.budget_flops) for o in optima]
    if not log_c[0] - SLACK <= math.log(flops) <= log_c[-1] + SLACK:
        return None
    log_n = [math.log(o.x_opt or 1.0) for o in optima]
    return n_params / math.exp(float(np.interp(math.log(flops), log_c, log_n)))

"""What a run is held against: the reference's frontier, how far it was measured, and its noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from isoflop.analysis.compare.frontier_curve import FrontierCurve
from isoflop.analysis.noise import draw_noise
from isoflop.analysis.optima import Optimum
from isoflop.analysis.points import profile_of
from isoflop.analysis.resources import RESOURCES, resource_at
from isoflop.analysis.result import Fits
from isoflop.arrays import Floats

# Budgets that are taken for the same one, in ln C.
_SAME = math.log(1.1)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Frontier:
    """The reference's frontier along one resource."""

    curve: FrontierCurve
    """Through the optima that are points; one draw."""
    drawn: FrontierCurve | None
    """The same in every draw; None without draws of all of them."""

    @property
    def span(self) -> tuple[float, float]:
        """Ln of the resource at the cheapest and at the dearest optimum."""
        return float(self.curve.log_r.min()), float(self.curve.log_r.max())

    @property
    def num_optima(self) -> int:
        """Optima that it goes through."""
        return self.curve.log_r.shape[1]


def frontier_of(fits: Fits, arch: str, resource: str) -> Frontier | str:
    """Return the frontier of a family along a resource, or why there is none."""
    optima = [o for o in fits.optima_of(arch) if o.is_point and (o.loss_opt or 0) > 0]
    if not optima:
        return f"{arch} has no optimum inside its grid at any budget"
    nodes = {(arch, o.budget_flops): _node(fits, o, resource) for o in optima}
    found = {key: node for key, node in nodes.items() if node is not None}
    if not found:
        return f"the table of {arch} lacks {RESOURCES[resource].words}"
    log_r, log_loss = np.array(list(found.values())).T[:, None]
    curve = FrontierCurve(log_r=log_r, log_loss=log_loss)
    if not curve.is_monotone[0]:
        words = RESOURCES[resource].words
        return f"the loss of {arch} does not fall with {words} from budget to budget"
    draws, drawn = fits.draws_of(), None
    by_group = {} if draws is None else draws.resource.get(resource, {})
    if draws is not None and found.keys() <= by_group.keys():
        with np.errstate(invalid="ignore"):
            drawn = FrontierCurve(
                log_r=np.log(np.stack([by_group[key] for key in found], axis=1)),
                log_loss=np.log(np.stack([draws.loss_opt[key] for key in found], axis=1)),
            )
    return Frontier(curve=curve, drawn=drawn)


def _node(fits: Fits, optimum: Optimum, resource: str) -> tuple[float, float] | None:
    """Return ln of the resource and of the loss at an optimum; None without the resource."""
    assert optimum.x_opt is not None
    assert optimum.loss_opt is not None
    points = fits.groups[optimum.arch, optimum.budget_flops]
    value = resource_at(profile_of(points, optimum.axis), resource, np.array([optimum.x_opt]))
    return None if value is None else (math.log(value[0]), math.log(optimum.loss_opt))


def reached(curve: FrontierCurve, log_loss: Floats) -> Floats:
    """Return ln of the resource at which each draw's frontier reaches a loss [draws].

    Of a frontier of one optimum only the side is known: infinite. NaN where the draw has none, or
    one that is not monotone.
    """
    there = np.isfinite(curve.log_r) & np.isfinite(curve.log_loss)
    only = np.max(np.where(there, curve.log_loss, -np.inf), axis=1)
    side = np.where(log_loss < only, np.inf, np.where(log_loss > only, -np.inf, np.nan))
    found = curve.invert(log_loss).log_r
    is_side = (there.sum(axis=1) == 1) & np.isnan(found)
    return np.where(is_side, side, found)


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
    if not log_c[0] - _SAME <= math.log(flops) <= log_c[-1] + _SAME:
        return None
    log_n = [math.log(o.x_opt or 1.0) for o in optima]
    return n_params / math.exp(float(np.interp(math.log(flops), log_c, log_n)))

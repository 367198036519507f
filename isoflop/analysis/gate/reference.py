"""What a run is held against: the reference's frontier, how far it was measured, and its noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from isoflop.analysis.bootstrap import student_factor
from isoflop.analysis.compare.frontier_curve import FrontierCurve
from isoflop.analysis.optima import Optimum
from isoflop.analysis.optima_methods import METHODS, MIN_DISTINCT_SIZES
from isoflop.analysis.points import profile_of
from isoflop.analysis.resources import RESOURCES, resource_at
from isoflop.analysis.result import Fits
from isoflop.arrays import Floats

_STREAM = 40_961


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
    """How much ln loss scatters between single runs of the reference, by FLOPs."""

    log_flops: Floats
    log_sd: Floats
    dof: int

    def sd_at(self, flops: float | None, num_runs: int) -> float:
        """Return the noise of a mean of runs; without FLOPs, the largest that there is."""
        log_sd = float(self.log_sd.max())
        if flops is not None:
            log_sd = float(np.interp(math.log(flops), self.log_flops, self.log_sd))
        return math.exp(log_sd) / math.sqrt(num_runs)

    def draws(self, n_boot: int, seed: tuple[int, int]) -> Floats:
        """Return noise of sd 1 with Student's tails [n_boot].

        Args:
            n_boot: draws.
            seed: of the fit and of the run; the scale of the noise is the same for all runs.
        """
        scale = np.random.default_rng((_STREAM, seed[0])).chisquare(self.dof, n_boot)
        normal = np.random.default_rng((_STREAM, *seed)).standard_normal(n_boot)
        return normal * student_factor(scale, self.dof)


def noise_of_runs(fits: Fits, arch: str) -> RunNoise | None:
    """Return the noise of a family's runs about its fitted profiles; None without any."""
    squares, dof, log_flops = 0.0, 0, []
    for optimum in fits.optima_of(arch):
        if optimum.is_point:
            profile = profile_of(fits.groups[arch, optimum.budget_flops], fits.options.axis)
            curve, used = METHODS[fits.options.method].smooth(profile.log_x, profile.loss)
            residuals = (profile.loss / curve - 1)[used]
            squares += float(np.sum(residuals**2))
            dof += max(len(residuals) - MIN_DISTINCT_SIZES, 0)
            log_flops.append(math.log(optimum.budget_flops))
    if not dof or not squares:
        return None
    log_sd = np.full(len(log_flops), math.log(squares / dof) / 2)
    return RunNoise(log_flops=np.array(log_flops), log_sd=log_sd, dof=dof)

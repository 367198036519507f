"""The minimum of each isoFLOP profile by each method, and a typed verdict on each.

One profile is a family's losses at one budget over parameters, tokens or active parameters; the
methods are those of isoflop.analysis.optima_methods. The loss is in nats per token (or the unit of
the table) and the budget is the nominal one; ``mean_flops`` holds the FLOPs achieved.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from isoflop.analysis.bootstrap import Draws, num_failed
from isoflop.analysis.noise import MeanSquare, equality_p, group_noise, lack_of_fit_p
from isoflop.analysis.optima_methods import (
    ABOVE,
    BELOW,
    DEFAULT_METHOD,
    INTERIOR,
    LOSS_RESOLUTION,
    METHODS,
    NO_MINIMUM,
    TOO_FEW,
    Method,
)
from isoflop.analysis.points import AXES, Axis, GroupKey, Point, Profile, profile_of
from isoflop.arrays import Floats, percentiles
from isoflop.tables import schema_of

Status = Literal["interior", "edge_low", "edge_high", "not_convex", "flat", "below_data", "too_few"]

# Farther below the lowest mean loss than this share of it and twice the dip that the curve makes
# between two sizes, a minimum is made by the curve alone: the lowest of several noisy means lies
# below the curve rather than above it.
_MOST_BELOW_DATA = 0.01

_STATUS: dict[int, Status] = {
    INTERIOR: "interior",
    BELOW: "edge_low",
    ABOVE: "edge_high",
    NO_MINIMUM: "not_convex",
    TOO_FEW: "too_few",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Optimum:
    """One row of optima.parquet; the fields are its columns.

    status decides what ``x_opt`` and ``loss_opt`` are:

    - ``interior``: the minimum lies within the sizes measured; both describe the minimum.
    - ``edge_low``, ``edge_high``: the minimum lies below the smallest or above the largest x
      measured. ``x_opt`` is then that smallest or largest x, an upper or lower *bound* on the
      optimum, and ``loss_opt`` the mean loss measured there, an upper bound on the optimal loss.
      A bound never enters a power law.
    - ``not_convex``: no measurable upward curvature; both are null.
    - ``flat``: no curvature that differs from 0, as far as the noise lets it be told: the interval
      of the curvature holds 0 (with draws), or the mean losses of the sizes differ by less than
      rounding; both are null.
    - ``below_data``: the curve's minimum lies far below every loss measured (one size of a wild
      loss makes such a curve); both are null.
    - ``too_few``: fewer than three distinct sizes (four for akima); both are null.
    """

    arch: str
    budget_flops: float
    axis: Axis
    method: Method = DEFAULT_METHOD
    x_opt: float | None
    loss_opt: float | None
    ci_lo: float | None = None
    ci_hi: float | None = None
    loss_ci_lo: float | None = None
    loss_ci_hi: float | None = None
    curvature: float | None
    """Coefficient of (ln x − ln x_opt)², nats per token; null for too_few."""
    status: Status
    n_points: int
    grid_lo: float | None
    grid_hi: float | None
    mean_flops: float | None = None
    """Mean FLOPs achieved by the points; null where it is unknown for one of them."""
    off_centre: float | None = None
    """ln of x_opt over the geometric middle of the grid; null unless interior."""
    ci_at_edge: Literal["low", "high", "both"] | None = None
    """Where the interval of x_opt ends at an end of the grid, and so may reach further."""
    bootstrap_kind: str | None = None
    n_boot: int | None = None
    n_failed: int | None = None
    """Draws without an interior minimum."""
    law_weight: float | None = None
    """Its weight in the law of its size (isoflop.analysis.laws.weighed); null where all are 1."""
    curvature_ci_lo: float | None = None
    """Interval of the curvature, nats per token."""
    curvature_ci_hi: float | None = None
    noise_sd: float | None = None
    """Standard deviation of ln loss of one run here, as the draws have it."""
    noise_dof: float | None = None
    """Degrees of freedom that its uncertainty amounts to."""
    noise_source: str | None = None
    noise_equal_p: float | None = None
    """p value of Bartlett's test that the scatter about the curves is the same at all budgets of
    the arch."""
    lack_of_fit_p: float | None = None
    """p value of the F test of the scatter about the curve against that of repeats; null without
    repeats."""

    @property
    def is_point(self) -> bool:
        """Whether the optimum is an estimate; only such optima enter power laws."""
        return self.status == "interior"

    @property
    def is_bound(self) -> bool:
        """Whether ``x_opt`` and ``loss_opt`` are bounds."""
        return self.status in ("edge_low", "edge_high")


OPTIMA = schema_of("optima", Optimum, version=4)


def fitted_curve(
    points: Sequence[Point], axis: Axis, method: Method = DEFAULT_METHOD
) -> Callable[[Floats], Floats] | None:
    """Return the curve whose minimum a method takes: losses at any x, NaN where it fits none.

    None where the points are too few for the method.
    """
    profile = profile_of(points, axis)
    used = METHODS[method]
    if profile.num_sizes < used.min_sizes:
        return None
    return lambda x: used.curve(profile.log_x, profile.loss, np.log(x))


def find_optimum(
    points: Sequence[Point],
    *,
    arch: str,
    budget_flops: float,
    axis: Axis,
    method: Method = DEFAULT_METHOD,
) -> Optimum:
    """Return the verdict on one family at one budget along one axis by one method.

    Points whose x is unknown on this axis are left out; ``n_points`` counts those used. The rules
    are tried in the order too_few, flat, not_convex, edge_low/edge_high, interior (see Optimum).
    """
    profile = profile_of(points, axis)
    status, x_opt, loss_opt, curvature = _verdict(profile, method)
    lo, hi = (float(profile.x[0]), float(profile.x[-1])) if profile.points else (None, None)
    off_centre = None
    if status == "interior" and x_opt is not None:
        middle = float(profile.log_x[0] + profile.log_x[-1]) / 2
        off_centre = float(np.log(x_opt)) - middle
    return Optimum(
        arch=arch,
        budget_flops=budget_flops,
        axis=axis,
        method=method,
        x_opt=x_opt,
        loss_opt=loss_opt,
        curvature=curvature,
        status=status,
        n_points=len(profile.points),
        grid_lo=lo,
        grid_hi=hi,
        mean_flops=_mean_flops(profile.points),
        off_centre=off_centre,
    )


def find_optima(
    groups: Mapping[GroupKey, Sequence[Point]],
    axes: Sequence[Axis] = AXES,
    methods: Collection[Method] = METHODS,
) -> tuple[Optimum, ...]:
    """Return one optimum per group, axis and method, in the order of the groups."""
    return tuple(
        find_optimum(points, arch=arch, budget_flops=budget, axis=axis, method=method)
        for (arch, budget), points in groups.items()
        for axis in axes
        for method in methods
    )


def _verdict(
    profile: Profile, method: Method
) -> tuple[Status, float | None, float | None, float | None]:
    """Return (status, x_opt, loss_opt, curvature)."""
    used = METHODS[method]
    if profile.num_sizes < used.min_sizes:
        return "too_few", None, None, None
    minima = used.find(profile.log_x, profile.loss[None], None)
    log_x, loss, fitted = (float(v[0]) for v in (minima.log_x, minima.loss, minima.curvature))
    curvature = fitted if np.isfinite(fitted) else None
    status = _STATUS[int(minima.code[0])]
    means = _mean_losses(profile)
    if float(means.max() - means.min()) <= LOSS_RESOLUTION * float(means.max()):
        status = "flat"
    if status == "edge_low":
        return status, float(profile.x[0]), float(means[0]), curvature
    if status == "edge_high":
        return status, float(profile.x[-1]), float(means[-1]), curvature
    if status != "interior":
        return status, None, None, curvature
    gap = float(np.diff(np.unique(profile.log_x)).max())
    dip = fitted * (gap / 2) ** 2 if np.isfinite(fitted) else 0.0
    if means.min() - loss > 2 * dip + _MOST_BELOW_DATA * means.min():
        return "below_data", None, None, curvature
    x_opt = min(max(float(np.exp(log_x)), float(profile.x[0])), float(profile.x[-1]))
    return status, x_opt, loss, curvature


def _mean_losses(profile: Profile) -> npt.NDArray[np.float64]:
    """Return the mean loss at each distinct x, smallest x first."""
    xs, index = np.unique(profile.x, return_inverse=True)
    return np.array([float(np.mean(profile.loss[index == i])) for i in range(len(xs))])


def _mean_flops(points: Sequence[Point]) -> float | None:
    achieved = [point.flops for point in points if point.flops is not None]
    if not points or len(achieved) < len(points):
        return None
    return float(np.mean(achieved))


def with_intervals(
    optima: Iterable[Optimum],
    draws: Mapping[tuple[Axis, Method], Draws],
    confidence: float = 0.95,
) -> tuple[Optimum, ...]:
    """Give each interior optimum its interval; a bound has none, nor has one without draws.

    A draw whose minimum lies beyond the grid counts as that end of the grid, so that such draws do
    not shorten the interval from the other side; ``ci_at_edge`` then says that it may reach
    further. No interval when half of the draws or more are not interior. An optimum whose curvature
    does not differ from 0 by its own interval becomes ``flat``.
    """
    found = []
    equal_p = {key: _equality_by_arch(drawn) for key, drawn in draws.items()}
    for optimum in optima:
        of = (optimum.axis, optimum.method)
        if of in draws:
            optimum = _with_noise(optimum, draws[of], equal_p[of].get(optimum.arch))
            optimum = _with_interval(optimum, draws[of], confidence)
        found.append(optimum)
    return tuple(found)


def _equality_by_arch(draws: Draws) -> dict[str, float | None]:
    squares: dict[str, list[MeanSquare]] = {}
    for (arch, _), scatter in draws.scatter.items():
        squares.setdefault(arch, []).append(scatter.lack_of_fit)
    return {arch: equality_p(of_arch) for arch, of_arch in squares.items()}


def _with_noise(optimum: Optimum, draws: Draws, equal_p: float | None) -> Optimum:
    key = (optimum.arch, optimum.budget_flops)
    if key not in draws.noise:
        return optimum
    noise = group_noise(draws.noise[key])
    return replace(
        optimum,
        noise_sd=noise.sd,
        noise_dof=noise.dof,
        noise_source=noise.source,
        noise_equal_p=equal_p,
        lack_of_fit_p=lack_of_fit_p(draws.scatter[key]),
    )


def _with_interval(optimum: Optimum, draws: Draws, confidence: float) -> Optimum:
    key = (optimum.arch, optimum.budget_flops)
    if not optimum.is_point or key not in draws.x_opt:
        return optimum
    failed = num_failed(draws, key)
    known = replace(optimum, bootstrap_kind=draws.kind, n_boot=draws.n_boot, n_failed=failed)
    curvature = percentiles(draws.curvature[key], confidence) if key in draws.curvature else None
    if curvature is not None:
        known = replace(known, curvature_ci_lo=curvature[0], curvature_ci_hi=curvature[1])
        if curvature[0] <= 0:
            return replace(known, status="flat", x_opt=None, loss_opt=None, off_centre=None)
    if 2 * failed >= draws.n_boot:
        return known
    edge, x = draws.edge[key], draws.x_opt[key].copy()
    x[edge == BELOW], x[edge == ABOVE] = optimum.grid_lo, optimum.grid_hi
    interval = percentiles(x[edge < NO_MINIMUM], confidence)
    of_loss = percentiles(draws.loss_opt[key], confidence)
    assert interval is not None
    assert of_loss is not None
    return replace(
        known,
        ci_lo=interval[0],
        ci_hi=interval[1],
        loss_ci_lo=of_loss[0],
        loss_ci_hi=of_loss[1],
        ci_at_edge=_touched(interval, optimum),
    )


def _touched(interval: tuple[float, float], o: Optimum) -> Literal["low", "high", "both"] | None:
    at_low = o.grid_lo is not None and bool(np.isclose(interval[0], o.grid_lo, rtol=1e-12))
    at_high = o.grid_hi is not None and bool(np.isclose(interval[1], o.grid_hi, rtol=1e-12))
    if at_low and at_high:
        return "both"
    return "low" if at_low else "high" if at_high else None

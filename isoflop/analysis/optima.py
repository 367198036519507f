"""One isoFLOP parabola per family, budget and axis, and a typed verdict on its vertex.

The parabola is loss = loss_opt + curvature · (ln x − ln x_opt)², fitted by least squares over all
points of the group (approach 2 of Hoffmann et al. 2022, section 3.2, there in log10). The loss is
in nats per token, x is parameters, tokens or active parameters, the budget is the nominal one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from isoflop.analysis.points import AXES, Axis, GroupKey, Point

Status = Literal["interior", "edge_low", "edge_high", "not_convex", "flat", "too_few"]

METHOD = "parabola"

# Losses are means of float32 terms: differences below this share of the loss are rounding.
LOSS_RESOLUTION = 1e-6

# A parabola has three coefficients. Three sizes determine it without a residual, which is allowed
# here (a small study has no more) and shown by n_points; two leave it undetermined.
MIN_DISTINCT_SIZES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Optimum:
    """One row of optima.parquet; the fields are its columns.

    status decides what ``x_opt`` and ``loss_opt`` are:

    - ``interior``: the vertex lies within the sizes measured; both describe the vertex.
    - ``edge_low``, ``edge_high``: the vertex lies below the smallest or above the largest x
      measured. ``x_opt`` is then that smallest or largest x, an upper or lower *bound* on the
      optimum, and ``loss_opt`` the mean loss measured there, an upper bound on the optimal loss.
      A bound never enters a power law.
    - ``not_convex``: no measurable upward bend; both are null.
    - ``flat``: the mean losses of the sizes differ by less than rounding; both are null.
    - ``too_few``: fewer than three distinct sizes; both are null.
    """

    arch: str
    budget_flops: float
    axis: Axis
    method: str = METHOD
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

    @property
    def is_point(self) -> bool:
        """Whether the optimum is an estimate; only such optima enter power laws."""
        return self.status == "interior"

    @property
    def is_bound(self) -> bool:
        """Whether ``x_opt`` and ``loss_opt`` are bounds."""
        return self.status in ("edge_low", "edge_high")


@dataclass(frozen=True, kw_only=True, slots=True)
class Parabola:
    """A fitted parabola in z = (ln x − centre) / half_width, so that the data span [−1, 1].

    Centred and scaled in both directions, the least-squares problem is well conditioned however
    narrow the sizes lie and whatever their unit.
    """

    centre: float
    half_width: float
    loss_scale: float
    """Largest mean loss; the coefficients are in units of it."""
    constant: float
    slope: float
    bend: float

    def loss_at(self, x: float) -> float:
        """Return the fitted loss in nats per token at x."""
        z = (math.log(x) - self.centre) / self.half_width
        return self.loss_scale * (self.constant + z * (self.slope + z * self.bend))

    @property
    def curvature(self) -> float:
        """Coefficient of (ln x)²."""
        return self.loss_scale * self.bend / self.half_width**2


def fit_parabola(points: Sequence[Point], axis: Axis) -> Parabola | None:
    """Fit loss against ln x by least squares; None when three coefficients are undetermined.

    Points at one x (seeds) are replaced by their mean with their share of all points as weight:
    the same least-squares solution, and one that duplicating every point leaves unchanged.
    """
    losses = _losses_by_x(points, axis)
    if len({math.log(x) for x in losses}) < MIN_DISTINCT_SIZES:
        return None
    log_x = np.log(np.array(list(losses)))
    means = _means(losses)
    num_points = sum(len(group) for group in losses.values())
    root_weight = np.sqrt(np.array([len(group) / num_points for group in losses.values()]))
    centre = float(log_x[0] + log_x[-1]) / 2
    half_width = float(log_x[-1] - log_x[0]) / 2
    scale = float(means.max())
    design = np.vander((log_x - centre) / half_width, 3, increasing=True)
    coefficients, _, rank, _ = np.linalg.lstsq(
        design * root_weight[:, None], means / scale * root_weight, rcond=None
    )
    if rank < 3:
        return None
    constant, slope, bend = (float(value) for value in coefficients)
    return Parabola(
        centre=centre,
        half_width=half_width,
        loss_scale=scale,
        constant=constant,
        slope=slope,
        bend=bend,
    )


def find_optimum(points: Sequence[Point], *, arch: str, budget_flops: float, axis: Axis) -> Optimum:
    """Return the verdict on one family at one budget along one axis.

    Points whose x is unknown on this axis are left out; ``n_points`` counts those used. The rules
    are tried in the order too_few, flat, not_convex, edge_low/edge_high, interior (see Optimum).
    """
    losses = _losses_by_x(points, axis)
    sizes = list(losses)
    parabola = fit_parabola(points, axis)
    status, x_opt, loss_opt = _verdict(parabola, losses)
    return Optimum(
        arch=arch,
        budget_flops=budget_flops,
        axis=axis,
        x_opt=x_opt,
        loss_opt=loss_opt,
        curvature=None if parabola is None else parabola.curvature,
        status=status,
        n_points=sum(len(group) for group in losses.values()),
        grid_lo=sizes[0] if sizes else None,
        grid_hi=sizes[-1] if sizes else None,
    )


def find_optima(
    groups: Mapping[GroupKey, Sequence[Point]], axes: Sequence[Axis] = AXES
) -> tuple[Optimum, ...]:
    """Return one optimum per group and axis, in the order of the groups."""
    return tuple(
        find_optimum(points, arch=arch, budget_flops=budget, axis=axis)
        for (arch, budget), points in groups.items()
        for axis in axes
    )


def _verdict(
    parabola: Parabola | None, losses: Mapping[float, Sequence[float]]
) -> tuple[Status, float | None, float | None]:
    """Return (status, x_opt, loss_opt)."""
    if parabola is None:
        return "too_few", None, None
    means = _means(losses)
    if float(means.max() - means.min()) <= LOSS_RESOLUTION * parabola.loss_scale:
        return "flat", None, None
    if parabola.bend <= LOSS_RESOLUTION:
        return "not_convex", None, None
    sizes = list(losses)
    vertex = -parabola.slope / (2 * parabola.bend)
    if vertex < -1.0:
        return "edge_low", sizes[0], float(means[0])
    if vertex > 1.0:
        return "edge_high", sizes[-1], float(means[-1])
    x_opt = math.exp(parabola.centre + parabola.half_width * vertex)
    loss_opt = parabola.loss_scale * (parabola.constant - parabola.bend * vertex**2)
    return "interior", min(max(x_opt, sizes[0]), sizes[-1]), loss_opt


def _losses_by_x(points: Sequence[Point], axis: Axis) -> dict[float, list[float]]:
    """Return the losses at each distinct x, smallest x first."""
    losses: dict[float, list[float]] = {}
    for point in points:
        x = point.on(axis)
        if x is not None:
            losses.setdefault(x, []).append(point.loss)
    return {x: losses[x] for x in sorted(losses)}


def _means(losses: Mapping[float, Sequence[float]]) -> npt.NDArray[np.float64]:
    # fsum is exact, so the mean does not depend on the order or the repetition of the points.
    return np.array([math.fsum(group) / len(group) for group in losses.values()])

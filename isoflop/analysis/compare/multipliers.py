"""The effective compute multiplier of each family over a reference, along every resource.

m = R_ref(L*) / R: the resource that the reference's frontier needs for the loss that the family
reaches at its own optimum of a budget, over what the family's optimum takes. Above 1 the family is
better. Along FLOPs it is the compute-efficiency gain (effective speed-up) of the literature.

Each arm is taken at its own optimum. Draws are paired, so the interval is that of the ratio. An
optimum at the edge of its grid is a bound on the loss, and gives a bound on m or nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from isoflop.analysis.compare.claims import (
    Interval,
    Order,
    interval,
    num_failed,
    order,
    strict_interval,
)
from isoflop.analysis.compare.frontier_curve import FrontierCurve, Inverse
from isoflop.analysis.optima import Optimum
from isoflop.analysis.optima_methods import Method
from isoflop.analysis.points import AXES, Axis, profile_of
from isoflop.analysis.resources import RESOURCES, resource_at
from isoflop.analysis.result import Fits
from isoflop.arrays import Floats
from isoflop.tables import NOT_A_COLUMN, schema_of

CompareStatus = Literal[
    "estimate",
    "lower_bound",
    "upper_bound",
    "no_optimum",
    "no_reference",
    "no_overlap",
    "not_monotone",
    "no_data",
]

MEANINGS: Mapping[CompareStatus, str] = {
    "estimate": "both optima are inside their grids",
    "lower_bound": "the arch's optimum is at an edge, or the reference has one optimum only and a "
    "higher loss there: the multiplier is at least this",
    "upper_bound": "the reference's optimum is at an edge, or the reference has one optimum only "
    "and a lower loss there: the multiplier is at most this",
    "no_optimum": "an optimum is missing or at an edge that bounds this resource on neither side",
    "no_reference": "the reference has no optimum at any budget",
    "no_overlap": "the loss lies outside the reference's frontier, which has too few optima for a "
    "slope",
    "not_monotone": "the reference's loss does not fall with this resource from budget to budget",
    "no_data": "the table lacks this resource",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """A family over the reference, at a budget along a resource: a row of compare.parquet."""

    arch: str
    reference: str
    budget_flops: float
    resource: str
    multiplier: float | None
    """None where the status says that there is neither an estimate nor a bound."""
    ci_lo: float | None
    """Of an estimate; a bound carries no interval of its own."""
    ci_hi: float | None
    local_slope: float | None
    """d loss / d ln resource of the reference there, in the unit of the loss: an error of the loss
    divided by it is the relative error of the multiplier."""
    extrapolated: bool | None
    """Whether the loss lies beyond the reference's measured optima."""
    status: CompareStatus
    order_claimed: Order
    """Whether the whole strict interval lies above 1 (`higher`) or below it (`lower`)."""
    strict: Interval = field(metadata=NOT_A_COLUMN)
    """The interval with every failed draw counted against a claim."""
    axis: Axis
    method: Method
    frontier: str = "log_log"
    """ln loss linear in ln resource between neighbouring optima."""
    confidence: float
    bootstrap_kind: str | None
    n_boot: int | None
    n_failed: int | None
    """Draws in which either arm lost its optimum or the frontier was not monotone."""

    @property
    def bounds(self) -> Interval:
        """The interval, (None, None) without one."""
        return self.ci_lo, self.ci_hi

    @property
    def meaning(self) -> str:
        """The status in words."""
        return MEANINGS[self.status]


COMPARE = schema_of("compare", Comparison)


def compare_archs(fits: Fits, resources: Sequence[str] | None = None) -> tuple[Comparison, ...]:
    """Compare every arch, the reference included, with the reference of the fit.

    Args:
        fits: the optima and their paired draws; resources are read off on its axis.
        resources: names of `RESOURCES`; None: all, those that are an axis first.

    Returns:
        Sorted by arch and budget, the resources in the order given.

    Raises:
        UserError: the reference is not in the table.
    """
    reference = fits.reference
    if reference is None:
        return ()
    if resources is None:
        resources = sorted(RESOURCES, key=lambda name: (*AXES, name).index(name))
    frontiers = [_frontier(fits, reference, resource) for resource in resources]
    return tuple(
        _compare(fits, optimum, frontier)
        for optimum in fits.optima_by_group().values()
        for frontier in frontiers
    )


def _compare(fits: Fits, optimum: Optimum, frontier: _Frontier) -> Comparison:
    options = fits.options
    found = _multiplier(fits, optimum, frontier)
    drawn = _drawn_multipliers(fits, optimum, frontier) if found.status == "estimate" else None
    bounds: Interval = interval(drawn, options.confidence)
    strict = strict_interval(drawn, options.confidence)
    draws = fits.draws_of()
    return Comparison(
        arch=optimum.arch,
        reference=frontier.arch,
        budget_flops=optimum.budget_flops,
        resource=frontier.resource,
        multiplier=found.multiplier,
        ci_lo=bounds[0],
        ci_hi=bounds[1],
        local_slope=found.local_slope,
        extrapolated=found.extrapolated,
        status=found.status,
        order_claimed=order(strict, 1.0),
        strict=strict,
        axis=options.axis,
        method=options.method,
        confidence=options.confidence,
        bootstrap_kind=None if drawn is None or draws is None else draws.kind,
        n_boot=None if drawn is None else len(drawn),
        n_failed=num_failed(drawn),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Found:
    status: CompareStatus
    multiplier: float | None = None
    local_slope: float | None = None
    extrapolated: bool | None = None


def _multiplier(fits: Fits, optimum: Optimum, frontier: _Frontier) -> _Found:
    if optimum.x_opt is None or optimum.loss_opt is None or optimum.loss_opt <= 0:
        return _Found(status="no_optimum")
    log_r = _log_resource(fits, optimum, frontier.resource)
    if log_r is None or frontier.lacks_data:
        return _Found(status="no_data")
    if not frontier.nodes:
        return _Found(status="no_reference")
    log_loss = math.log(optimum.loss_opt)
    if optimum.is_bound and _grows_beyond(fits, optimum, frontier.resource):
        return _Found(status="no_optimum")
    if len(frontier.nodes) == 1:
        return _against_single(log_loss, log_r, frontier.nodes[0], is_bound=optimum.is_bound)
    if not frontier.curve.is_monotone[0]:
        return _Found(status="not_monotone")
    inverse, touched = frontier.invert(log_loss)
    if not np.isfinite(inverse.log_r[0]):
        return _Found(status="no_overlap")
    if touched and (optimum.is_bound or any(node.grows_beyond for node in touched)):
        return _Found(status="no_optimum")
    status: CompareStatus = "upper_bound" if touched else "estimate"
    return _Found(
        status="lower_bound" if optimum.is_bound else status,
        multiplier=_exp(float(inverse.log_r[0]) - log_r),
        local_slope=optimum.loss_opt * float(inverse.elasticity[0]),
        extrapolated=bool(inverse.extrapolated[0]),
    )


def _drawn_multipliers(fits: Fits, optimum: Optimum, frontier: _Frontier) -> Floats | None:
    """Return the multiplier in every draw; None without draws of either arm."""
    key, draws = (optimum.arch, optimum.budget_flops), fits.draws_of()
    if draws is None or frontier.drawn is None or key not in draws.loss_opt:
        return None
    own = draws.resource.get(frontier.resource, {}).get(key)
    if own is None:
        return None
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        log_loss = np.log(draws.loss_opt[key])
        return np.asarray(np.exp(frontier.drawn.invert(log_loss).log_r - np.log(own)))


def _against_single(log_loss: float, log_r: float, node: _Node, *, is_bound: bool) -> _Found:
    """Compare with a reference of one optimum: its frontier falls, so the side of it is known."""
    ratio = _exp(node.log_r - log_r)
    if node.is_edge and (is_bound or node.grows_beyond or log_loss < node.log_loss):
        return _Found(status="no_optimum")
    if log_loss == node.log_loss and not is_bound and not node.is_edge:
        return _Found(status="estimate", multiplier=ratio, extrapolated=False)
    if log_loss <= node.log_loss:
        return _Found(status="lower_bound", multiplier=ratio, extrapolated=False)
    if is_bound:
        return _Found(status="no_overlap")
    return _Found(status="upper_bound", multiplier=ratio, extrapolated=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Node:
    """One optimum of the reference: a point, or at an edge a bound on the loss from above."""

    budget_flops: float
    log_r: float
    log_loss: float
    is_edge: bool
    grows_beyond: bool
    """Of an edge: whether the true optimum takes more of the resource than the edge does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Frontier:
    """The frontier of the reference along one resource."""

    arch: str
    resource: str
    nodes: tuple[_Node, ...]
    """By budget; edges included."""
    curve: FrontierCurve
    """Through all nodes; one draw."""
    interior: FrontierCurve
    """Through the nodes that are points; one draw."""
    drawn: FrontierCurve | None
    """Through the nodes that are points, in every draw; None where a draw or the resource lacks."""
    lacks_data: bool
    """Whether the table lacks the resource at every optimum."""

    def invert(self, log_loss: float) -> tuple[Inverse, list[_Node]]:
        """Return where the frontier reaches a loss, and the edges that this rests on.

        Needs two nodes. Beyond a measured end that is a point, edges further in do not count.
        """
        inverse = self.curve.invert(np.array([log_loss]))
        left = int(inverse.segment[0])
        segment = self.nodes[left : left + 2]
        if not inverse.extrapolated[0]:
            at_node = [node for node in segment if node.log_r == inverse.log_r[0]]
            return inverse, [node for node in at_node or segment if node.is_edge]
        end = self.nodes[0] if log_loss > self.nodes[0].log_loss else self.nodes[-1]
        if end.is_edge:
            return inverse, [end]
        return self.interior.invert(np.array([log_loss])), []


def _frontier(fits: Fits, arch: str, resource: str) -> _Frontier:
    """Return the frontier of an arch along a resource."""
    optima = [o for o in fits.optima_of(arch) if o.loss_opt is not None and o.loss_opt > 0]
    nodes = [node for optimum in optima if (node := _node(fits, optimum, resource))]
    interior = [node for node in nodes if not node.is_edge]
    return _Frontier(
        arch=arch,
        resource=resource,
        nodes=tuple(nodes),
        curve=_curve(nodes),
        interior=_curve(interior),
        drawn=_drawn_curve(fits, arch, resource, interior),
        lacks_data=bool(optima) and not nodes,
    )


def _node(fits: Fits, optimum: Optimum, resource: str) -> _Node | None:
    assert optimum.loss_opt is not None
    log_r = _log_resource(fits, optimum, resource)
    if log_r is None:
        return None
    return _Node(
        budget_flops=optimum.budget_flops,
        log_r=log_r,
        log_loss=math.log(optimum.loss_opt),
        is_edge=optimum.is_bound,
        grows_beyond=optimum.is_bound and _grows_beyond(fits, optimum, resource),
    )


def _curve(nodes: Sequence[_Node]) -> FrontierCurve:
    return FrontierCurve(
        log_r=np.array([[node.log_r for node in nodes]]),
        log_loss=np.array([[node.log_loss for node in nodes]]),
    )


def _drawn_curve(
    fits: Fits, arch: str, resource: str, nodes: Sequence[_Node]
) -> FrontierCurve | None:
    draws = fits.draws_of()
    if draws is None or not nodes:
        return None
    keys = [(arch, node.budget_flops) for node in nodes]
    by_group = draws.resource.get(resource, {})
    if not all(key in by_group and key in draws.loss_opt for key in keys):
        return None
    with np.errstate(invalid="ignore"):
        return FrontierCurve(
            log_r=np.log(np.stack([by_group[key] for key in keys], axis=1)),
            log_loss=np.log(np.stack([draws.loss_opt[key] for key in keys], axis=1)),
        )


def _log_resource(fits: Fits, optimum: Optimum, resource: str) -> float | None:
    """Return ln of the resource at an optimum, between the group's runs; None without data."""
    assert optimum.x_opt is not None
    if resource == optimum.axis:
        return math.log(optimum.x_opt)
    points = fits.groups[optimum.arch, optimum.budget_flops]
    value = resource_at(profile_of(points, optimum.axis), resource, np.array([optimum.x_opt]))
    return None if value is None else math.log(value[0])


def _grows_beyond(fits: Fits, optimum: Optimum, resource: str) -> bool:
    """Return whether the resource grows from the edge of a grid on to the true optimum.

    Judged by the last step inside the grid. A budget fixes FLOPs, so these do not grow.
    """
    profile = profile_of(fits.groups[optimum.arch, optimum.budget_flops], optimum.axis)
    values = resource_at(profile, resource, np.unique(profile.x))
    if RESOURCES[resource].is_budget or values is None:
        return False
    if optimum.status == "edge_low":
        return bool(values[0] > values[1])
    return bool(values[-1] > values[-2])


def _exp(log_factor: float) -> float | None:
    # Far extrapolations of a flat frontier overflow: no number is better than infinity.
    return math.exp(log_factor) if abs(log_factor) < 700 else None

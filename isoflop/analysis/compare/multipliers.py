"""The effective compute multiplier of each family over a reference, along every resource.

m = R_ref(L*) / R: the resource that the reference's frontier needs for the loss that the family
reaches at its own optimum of a budget, over what the family's optimum takes. Above 1 the family is
better. Along FLOPs it is the compute-efficiency gain (effective speed-up) of the literature.

Each arm is taken at its own optimum. Draw i of one belongs with draw i of the other, so the
interval is that of the ratio. An optimum at the edge of its grid is a bound on the loss, and gives
a bound on m or nothing.

An order is claimed from losses at equal resource alone: the family's against the reference's
frontier at what the family takes, where the reference was measured. m itself may lie beyond, and
then rests on the form of the frontier; which side of 1 it is on does not. Orders along one resource
are claimed together (claims.py): wrong in any of them with 1 − confidence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from isoflop.analysis.bootstrap import scatter_of
from isoflop.analysis.compare.claims import (
    Interval,
    JointClaims,
    Order,
    agreeing,
    interval,
    joint_claims,
    num_failed,
    stretched,
    strict_interval,
)
from isoflop.analysis.compare.frontier_curve import FrontierCurve, Inverse, draw_floors
from isoflop.analysis.optima import Optimum
from isoflop.analysis.optima_methods import METHODS, Method
from isoflop.analysis.points import AXES, Axis, profile_of
from isoflop.analysis.resources import RESOURCES, resource_at
from isoflop.analysis.result import Fits
from isoflop.arrays import Floats
from isoflop.tables import NOT_A_COLUMN, schema_of

# Relative; where nothing tells of the noise of the losses.
_UNKNOWN_ERROR = 0.002

CompareStatus = Literal[
    "estimate",
    "lower_bound",
    "upper_bound",
    "no_optimum",
    "no_reference",
    "no_overlap",
    "not_monotone",
    "too_far",
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
    "too_far": "the loss lies farther beyond the reference's frontier than it can be followed: by "
    "more than 100 times the resource, or below what it reaches at all",
    "no_data": "the table lacks this resource",
}

SLACK = math.log(1.05)
"""How far beyond the reference's optima, in ln of the resource, losses still count as measured at
equal resource: budgets of the same name are spent to within a few percent."""


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
    """Of an estimate, alone; a bound carries no interval of its own."""
    ci_hi: float | None
    ci_lo_simultaneous: float | None
    """Of all estimates along this resource together."""
    ci_hi_simultaneous: float | None
    local_slope: float | None
    """d loss / d ln resource of the reference there, in the unit of the loss: an error of the loss
    divided by it is the relative error of the multiplier."""
    extrapolated: bool | None
    """Whether the loss lies beyond the reference's measured optima."""
    status: CompareStatus
    order_claimed: Order
    """Whether the loss is below that of the reference's frontier at equal resource (`higher`) or
    above it (`lower`), all comparisons along this resource taken together."""
    strict: Interval = field(metadata=NOT_A_COLUMN)
    """The simultaneous interval with every failed draw counted against a claim."""
    axis: Axis
    method: Method
    frontier: str = "floored"
    """ln (loss − floor) linear in ln resource between neighbouring optima, the floor drawn."""
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


COMPARE = schema_of("compare", Comparison, version=4)


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
    rows: list[Comparison] = []
    for resource in resources:
        rows += _compare_along(fits, frontier_along(fits, reference, resource))
    place = {resource: index for index, resource in enumerate(resources)}
    order_of = {key: index for index, key in enumerate(fits.optima_by_group())}
    rows.sort(key=lambda row: (order_of[row.arch, row.budget_flops], place[row.resource]))
    return tuple(rows)


def _compare_along(fits: Fits, frontier: Frontier) -> list[Comparison]:
    """Return the comparisons along one resource, claimed together."""
    found = [(o, _multiplier(fits, o, frontier)) for o in fits.optima_by_group().values()]
    multipliers = [
        _drawn_multipliers(fits, o, frontier) if one.status == "estimate" else None
        for o, one in found
    ]
    gaps = [
        _drawn_gaps(fits, o, frontier)
        if one.status in ("estimate", "too_far") and o.arch != frontier.arch
        else None
        for o, one in found
    ]
    claims = joint_claims(gaps, fits.options.confidence)
    return [
        _comparison(fits, optimum, frontier, one, drawn, claimed, claims)
        for (optimum, one), drawn, claimed in zip(found, multipliers, claims.orders, strict=True)
    ]


def _comparison(
    fits: Fits,
    optimum: Optimum,
    frontier: Frontier,
    found: _Found,
    drawn: Floats | None,
    claimed: Order,
    claims: JointClaims,
) -> Comparison:
    """Return a row; ``drawn`` is ln of the multiplier in every draw."""
    options = fits.options
    single = interval(drawn, options.confidence)
    strict = agreeing(stretched(drawn, strict_interval(drawn, options.confidence), claims), claimed)
    together = agreeing(stretched(drawn, single, claims), claimed)
    (low, high), (low_all, high_all) = _exp_both(single), _exp_both(together)
    draws = fits.draws_of()
    return Comparison(
        arch=optimum.arch,
        reference=frontier.arch,
        budget_flops=optimum.budget_flops,
        resource=frontier.resource,
        multiplier=found.multiplier,
        ci_lo=low,
        ci_hi=high,
        ci_lo_simultaneous=low_all,
        ci_hi_simultaneous=high_all,
        local_slope=found.local_slope,
        extrapolated=found.extrapolated,
        status=found.status,
        order_claimed=claimed,
        strict=_exp_both(strict),
        axis=options.axis,
        method=options.method,
        confidence=options.confidence,
        bootstrap_kind=None if drawn is None or draws is None else draws.kind,
        n_boot=None if drawn is None else len(drawn),
        n_failed=num_failed(drawn),
    )


def _exp_both(log_bounds: Interval) -> Interval:
    low, high = log_bounds
    if low is None or high is None:
        return None, None
    with np.errstate(over="ignore"):
        return float(np.exp(low)), float(np.exp(high))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Found:
    status: CompareStatus
    multiplier: float | None = None
    local_slope: float | None = None
    extrapolated: bool | None = None


def _multiplier(fits: Fits, optimum: Optimum, frontier: Frontier) -> _Found:
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
    if inverse.too_far[0]:
        return _Found(status="too_far", extrapolated=True)
    if touched and (optimum.is_bound or any(node.grows_beyond for node in touched)):
        return _Found(status="no_optimum")
    status: CompareStatus = "upper_bound" if touched else "estimate"
    return _Found(
        status="lower_bound" if optimum.is_bound else status,
        multiplier=_exp(float(inverse.log_r[0]) - log_r),
        local_slope=optimum.loss_opt * float(inverse.elasticity[0]),
        extrapolated=bool(inverse.extrapolated[0]),
    )


def _drawn_arm(fits: Fits, optimum: Optimum, resource: str) -> tuple[Floats, Floats] | None:
    """Return ln loss and ln resource of an optimum in every draw; None without draws of it."""
    key, draws = (optimum.arch, optimum.budget_flops), fits.draws_of()
    if draws is None or key not in draws.loss_opt:
        return None
    own = draws.resource.get(resource, {}).get(key)
    if own is None:
        return None
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.log(draws.loss_opt[key]), np.log(own)


def _drawn_multipliers(fits: Fits, optimum: Optimum, frontier: Frontier) -> Floats | None:
    """Return ln of the multiplier in every draw; None without draws of either arm."""
    arm = _drawn_arm(fits, optimum, frontier.resource)
    if arm is None or frontier.drawn is None:
        return None
    log_loss, log_r = arm
    with np.errstate(invalid="ignore"):
        return np.asarray(frontier.drawn.invert(log_loss).log_r - log_r)


def _drawn_gaps(fits: Fits, optimum: Optimum, frontier: Frontier) -> Floats | None:
    """Return by how much, in ln, the loss is below the reference's at equal resource, per draw.

    NaN where the reference was not measured there, nor within ``SLACK`` of it.
    """
    arm = _drawn_arm(fits, optimum, frontier.resource)
    if arm is None or frontier.drawn is None:
        return None
    log_loss, log_r = arm
    with np.errstate(invalid="ignore"):
        return np.asarray(frontier.drawn.at(log_r, SLACK) - log_loss)


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
class Frontier:
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


def frontier_along(fits: Fits, arch: str, resource: str) -> Frontier:
    """Return the frontier of an arch along a resource, whatever optima it has."""
    optima = [o for o in fits.optima_of(arch) if o.loss_opt is not None and o.loss_opt > 0]
    nodes = [node for optimum in optima if (node := _node(fits, optimum, resource))]
    interior = [node for node in nodes if not node.is_edge]
    error = _loss_error(fits, arch)
    share = _floor_share(interior, error)
    return Frontier(
        arch=arch,
        resource=resource,
        nodes=tuple(nodes),
        curve=_curve(nodes, share),
        interior=_curve(interior, share),
        drawn=_drawn_curve(fits, arch, resource, interior, error),
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


def _loss_error(fits: Fits, arch: str) -> float:
    """Return the standard error of ln loss at an optimum of an arch, of all its budgets together.

    From the scatter about the curves alone, so that an estimate does not depend on the draws.
    Nine quarters of the variance of a mean: what the height of a parabola has at its middle.
    """
    squares, dof, per_run = 0.0, 0.0, []
    method = METHODS[fits.options.method]
    for optimum in fits.optima_of(arch):
        if optimum.is_point:
            profile = profile_of(fits.groups[arch, optimum.budget_flops], fits.options.axis)
            lack = scatter_of(profile, method).lack_of_fit
            squares, dof = squares + lack.value * lack.dof, dof + lack.dof
            per_run.append(2.25 / len(profile.points))
    if not dof:
        return _UNKNOWN_ERROR
    return math.sqrt(squares / dof * float(np.mean(per_run)))


def _floor_share(nodes: Sequence[_Node], error: float) -> float:
    """Return the floor of the estimated frontier as a share of its lowest loss."""
    if not nodes:
        return 0.0
    log_loss = np.array([[node.log_loss for node in nodes]])
    log_r = np.array([[node.log_r for node in nodes]])
    floor = draw_floors(log_r, log_loss, np.full(len(nodes), error))
    return float(floor[0] / np.exp(log_loss.min()))


def _curve(nodes: Sequence[_Node], share: float) -> FrontierCurve:
    log_loss = np.array([[node.log_loss for node in nodes]])
    return FrontierCurve(
        log_r=np.array([[node.log_r for node in nodes]]),
        log_loss=log_loss,
        floor=share * np.exp(log_loss.min(axis=1)) if nodes else None,
    )


def _drawn_curve(
    fits: Fits, arch: str, resource: str, nodes: Sequence[_Node], error: float
) -> FrontierCurve | None:
    draws = fits.draws_of()
    if draws is None or not nodes:
        return None
    keys = [(arch, node.budget_flops) for node in nodes]
    by_group = draws.resource.get(resource, {})
    if not all(key in by_group and key in draws.loss_opt for key in keys):
        return None
    with np.errstate(invalid="ignore", divide="ignore"):
        log_r = np.log(np.stack([by_group[key] for key in keys], axis=1))
        log_loss = np.log(np.stack([draws.loss_opt[key] for key in keys], axis=1))
    errors = np.full(len(keys), error)
    return FrontierCurve(
        log_r=log_r,
        log_loss=log_loss,
        floor=draw_floors(log_r, log_loss, errors, seed=draws.seed),
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

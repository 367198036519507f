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
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from isoflop.analysis.bootstrap import Draws
from isoflop.analysis.compare.claims import (
    FitsLike,
    Interval,
    Order,
    interval,
    num_failed,
    optima_by_group,
    order,
    strict_interval,
)
from isoflop.analysis.frontier_curve import FrontierCurve, Inverse
from isoflop.analysis.optima import Optimum
from isoflop.analysis.optima_methods import Method
from isoflop.analysis.points import RESOURCES, Axis, Point, Resource, profile_of, resource_at
from isoflop.arrays import Floats
from isoflop.errors import UserError
from isoflop.tables import COMPARE


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """One optimum of the reference: a point, or at an edge a bound on the loss from above."""

    budget_flops: float
    log_r: float
    log_loss: float
    is_edge: bool
    grows_beyond: bool
    """Of an edge: whether the true optimum takes more of the resource than the edge does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """The frontier of the reference along one resource."""

    nodes: tuple[Node, ...]
    """By budget; edges included."""
    curve: FrontierCurve
    """Through all nodes; one draw."""
    interior: FrontierCurve
    """Through the nodes that are points; one draw."""
    drawn: FrontierCurve | None
    """Through the nodes that are points, in every draw; None where a draw or the resource lacks."""
    lacks_data: bool
    """Whether the table lacks the resource at every optimum."""

    def invert(self, log_loss: float) -> tuple[Inverse, list[Node]]:
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


def make_reference(
    fits: FitsLike, name: str, axis: Axis, method: Method, resource: Resource, draws: Draws | None
) -> Reference:
    """Return the frontier of the arch called ``name`` along a resource."""
    optima = [
        optimum
        for (arch, _), optimum in optima_by_group(fits, axis, method).items()
        if arch == name and optimum.loss_opt is not None and optimum.loss_opt > 0
    ]
    nodes = [node for optimum in optima if (node := _node(fits, optimum, axis, resource))]
    interior = [node for node in nodes if not node.is_edge]
    return Reference(
        nodes=tuple(nodes),
        curve=_curve(nodes),
        interior=_curve(interior),
        drawn=_drawn(name, interior, resource, draws),
        lacks_data=bool(optima) and not nodes,
    )


def _curve(nodes: Sequence[Node]) -> FrontierCurve:
    return FrontierCurve(
        log_r=np.array([[node.log_r for node in nodes]]),
        log_loss=np.array([[node.log_loss for node in nodes]]),
    )


def log_resource(points: Sequence[Point], axis: Axis, resource: Resource, x: float) -> float | None:
    """Return ln of the resource at x, between the group's runs; None where the table lacks it."""
    if resource == axis:
        return math.log(x)
    value = resource_at(profile_of(points, axis), resource, np.array([x]))
    return None if value is None else math.log(value[0])


def grows_beyond(points: Sequence[Point], axis: Axis, resource: Resource, optimum: Optimum) -> bool:
    """Return whether the resource grows from the edge of a grid on to the true optimum.

    Judged by the last step inside the grid. A budget fixes FLOPs, so these do not grow.
    """
    profile = profile_of(points, axis)
    values = resource_at(profile, resource, np.unique(profile.x))
    if resource == "flops" or values is None:
        return False
    if optimum.status == "edge_low":
        return bool(values[0] > values[1])
    return bool(values[-1] > values[-2])


def _node(fits: FitsLike, optimum: Optimum, axis: Axis, resource: Resource) -> Node | None:
    assert optimum.x_opt is not None
    assert optimum.loss_opt is not None
    points = fits.selection.groups[optimum.arch, optimum.budget_flops]
    log_r = log_resource(points, axis, resource, optimum.x_opt)
    if log_r is None:
        return None
    return Node(
        budget_flops=optimum.budget_flops,
        log_r=log_r,
        log_loss=math.log(optimum.loss_opt),
        is_edge=optimum.is_bound,
        grows_beyond=optimum.is_bound and grows_beyond(points, axis, resource, optimum),
    )


def _drawn(
    name: str, nodes: Sequence[Node], resource: Resource, draws: Draws | None
) -> FrontierCurve | None:
    if draws is None or not nodes:
        return None
    keys = [(name, node.budget_flops) for node in nodes]
    by_group = draws.resource.get(resource, {})
    if not all(key in by_group and key in draws.loss_opt for key in keys):
        return None
    with np.errstate(invalid="ignore"):
        return FrontierCurve(
            log_r=np.log(np.stack([by_group[key] for key in keys], axis=1)),
            log_loss=np.log(np.stack([draws.loss_opt[key] for key in keys], axis=1)),
        )


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

DEFAULT_REFERENCES = ("swiglu", "mlp")


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """One row of compare.parquet."""

    arch: str
    reference: str
    budget_flops: float
    resource: Resource
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
    strict: Interval
    """The interval with every failed draw counted against a claim; not in the table."""
    axis: Axis
    method: Method
    frontier: str = "log_log"
    """ln loss linear in ln resource between neighbouring optima."""
    confidence: float
    bootstrap_kind: str | None
    n_boot: int | None
    n_failed: int | None
    """Draws in which either arm lost its optimum or the frontier was not monotone."""

    def row(self) -> dict[str, Any]:
        """Return the row of compare.parquet."""
        return {name: getattr(self, name) for name in COMPARE.names}

    @property
    def bounds(self) -> Interval:
        """The interval, (None, None) without one."""
        return self.ci_lo, self.ci_hi

    @property
    def meaning(self) -> str:
        """The status in words."""
        return MEANINGS[self.status]


def default_reference(archs: Sequence[str]) -> str | None:
    """Return swiglu where it is there, else mlp, else the first label of the alphabet."""
    labels = sorted(set(archs))
    return next((arch for arch in (*DEFAULT_REFERENCES, *labels) if arch in labels), None)


def pick_reference(archs: Sequence[str], reference: str | None) -> str | None:
    """Return the reference asked for, or the default one; None without any arch.

    Raises:
        UserError: the reference is not in the table.
    """
    if reference is None:
        return default_reference(archs)
    if reference not in archs:
        there = ", ".join(sorted(set(archs))) or "an arch (the table has none)"
        raise UserError("--reference", reference, f"one of {there}", "name an arch of the table")
    return reference


def compare_archs(
    fits: FitsLike,
    *,
    reference: str | None = None,
    axis: Axis = "n_params",
    method: Method = "parabola",
    confidence: float = 0.95,
    resources: Sequence[Resource] = RESOURCES,
) -> tuple[Comparison, ...]:
    """Compare every arch, the reference included, with the reference.

    Args:
        fits: the optima and their paired draws.
        reference: an arch of the table; None: see `default_reference`.
        axis: x axis of the optima, on which resources are read off.
        method: method of the optima.
        confidence: of the intervals.
        resources: along which to compare.

    Returns:
        Sorted by arch and budget, the resources in the order given.

    Raises:
        UserError: the reference is not in the table.
    """
    optima = optima_by_group(fits, axis, method)
    chosen = pick_reference([arch for arch, _ in optima], reference)
    if chosen is None:
        return ()
    compare = _Compare(fits, axis, method, confidence, chosen)
    return tuple(
        compare.row(optimum, resource) for optimum in optima.values() for resource in resources
    )


class _Compare:
    """What all rows of one comparison share."""

    def __init__(
        self, fits: FitsLike, axis: Axis, method: Method, confidence: float, reference: str
    ) -> None:
        self._fits, self._axis, self._method = fits, axis, method
        self._confidence, self._name = confidence, reference
        self._draws: Draws | None = fits.draws.get((axis, method))
        self._references: dict[Resource, Reference] = {}

    def row(self, optimum: Optimum, resource: Resource) -> Comparison:
        reference = self._reference(resource)
        log_r = self._log_resource(optimum, resource)
        found = self._value(optimum, resource, log_r, reference)
        draws = self._drawn(optimum, resource, reference) if found.status == "estimate" else None
        bounds: Interval = interval(draws, self._confidence)
        strict = strict_interval(draws, self._confidence)
        return Comparison(
            arch=optimum.arch,
            reference=self._name,
            budget_flops=optimum.budget_flops,
            resource=resource,
            multiplier=found.multiplier,
            ci_lo=bounds[0],
            ci_hi=bounds[1],
            local_slope=found.local_slope,
            extrapolated=found.extrapolated,
            status=found.status,
            order_claimed=order(strict, 1.0),
            strict=strict,
            axis=self._axis,
            method=self._method,
            confidence=self._confidence,
            bootstrap_kind=None if draws is None or self._draws is None else self._draws.kind,
            n_boot=None if draws is None else len(draws),
            n_failed=num_failed(draws),
        )

    def _reference(self, resource: Resource) -> Reference:
        if resource not in self._references:
            self._references[resource] = make_reference(
                self._fits, self._name, self._axis, self._method, resource, self._draws
            )
        return self._references[resource]

    def _log_resource(self, optimum: Optimum, resource: Resource) -> float | None:
        if optimum.x_opt is None:
            return None
        points = self._fits.selection.groups[optimum.arch, optimum.budget_flops]
        return log_resource(points, self._axis, resource, optimum.x_opt)

    def _value(
        self, optimum: Optimum, resource: Resource, log_r: float | None, reference: Reference
    ) -> _Found:
        if optimum.x_opt is None or optimum.loss_opt is None or optimum.loss_opt <= 0:
            return _Found(status="no_optimum")
        if log_r is None or reference.lacks_data:
            return _Found(status="no_data")
        if not reference.nodes:
            return _Found(status="no_reference")
        return self._on_frontier(optimum, resource, log_r, reference)

    def _on_frontier(
        self, optimum: Optimum, resource: Resource, log_r: float, reference: Reference
    ) -> _Found:
        assert optimum.loss_opt is not None
        log_loss = math.log(optimum.loss_opt)
        if optimum.is_bound and self._grows_beyond(optimum, resource):
            return _Found(status="no_optimum")
        if len(reference.nodes) == 1:
            return _against_single(log_loss, log_r, reference, is_bound=optimum.is_bound)
        if not reference.curve.is_monotone[0]:
            return _Found(status="not_monotone")
        inverse, touched = reference.invert(log_loss)
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

    def _grows_beyond(self, optimum: Optimum, resource: Resource) -> bool:
        points = self._fits.selection.groups[optimum.arch, optimum.budget_flops]
        return grows_beyond(points, self._axis, resource, optimum)

    def _drawn(self, optimum: Optimum, resource: Resource, reference: Reference) -> Floats | None:
        """Return the multiplier in every draw; None without draws of either arm."""
        key = (optimum.arch, optimum.budget_flops)
        curve = reference.drawn
        if self._draws is None or curve is None or key not in self._draws.loss_opt:
            return None
        own = self._draws.resource.get(resource, {}).get(key)
        if own is None:
            return None
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            log_loss = np.log(self._draws.loss_opt[key])
            return np.asarray(np.exp(curve.invert(log_loss).log_r - np.log(own)))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Found:
    status: CompareStatus
    multiplier: float | None = None
    local_slope: float | None = None
    extrapolated: bool | None = None


def _against_single(
    log_loss: float, log_r: float, reference: Reference, *, is_bound: bool
) -> _Found:
    """Against one optimum of the reference: its frontier falls, so the side of it is known."""
    node = reference.nodes[0]
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


def _exp(log_factor: float) -> float | None:
    # Far extrapolations of a flat frontier overflow: no number is better than infinity.
    return math.exp(log_factor) if abs(log_factor) < 700 else None

"""The reference's side of a comparison: its optima along one resource, and their draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from isoflop.analysis.compare_interval import FitsLike, optima_by_group
from isoflop.analysis.frontier_curve import FrontierCurve, Inverse
from isoflop.analysis.optima import Method, Optimum, profile_of
from isoflop.analysis.points import Axis, Point
from isoflop.analysis.resample import Draws, Resource, resource_at


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

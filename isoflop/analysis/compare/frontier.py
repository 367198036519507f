"""A family's frontier along a resource, from its optima: estimated, and in every draw.

An optimum at the edge of its grid is a bound on the loss; frontiers hold it apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from isoflop.analysis.compare.frontier_curve import FrontierCurve, Inverse, draw_floors
from isoflop.analysis.optima import Optimum
from isoflop.analysis.points import profile_of
from isoflop.analysis.resources import RESOURCES, resource_at
from isoflop.analysis.result import Fits

# Relative; where nothing tells of the noise of the losses.
_UNKNOWN_ERROR = 0.002

SLACK = math.log(1.05)
"""How far beyond the reference's optima, in ln of the resource, losses still count as measured at
equal resource: budgets of the same name are spent to within a few percent."""


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
class Frontier:
    """The frontier of the reference along one resource."""

    arch: str
    resource: str
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


def _node(fits: Fits, optimum: Optimum, resource: str) -> Node | None:
    assert optimum.loss_opt is not None
    log_r = log_resource(fits, optimum, resource)
    if log_r is None:
        return None
    return Node(
        budget_flops=optimum.budget_flops,
        log_r=log_r,
        log_loss=math.log(optimum.loss_opt),
        is_edge=optimum.is_bound,
        grows_beyond=optimum.is_bound and grows_beyond(fits, optimum, resource),
    )


def _loss_error(fits: Fits, arch: str) -> float:
    """Return the standard error of ln loss at an optimum of an arch, of all its budgets together.

    From the scatter about the curves alone, so that an estimate does not depend on the draws.
    Nine quarters of the variance of a mean: what the height of a parabola has at its middle.
    """
    squares, dof, per_run = 0.0, 0.0, []
    for optimum in fits.optima_of(arch):
        if optimum.is_point:
            lack = fits.scatter_of((arch, optimum.budget_flops)).lack_of_fit
            squares, dof = squares + lack.value * lack.dof, dof + lack.dof
            per_run.append(2.25 / optimum.n_points)
    if not dof:
        return _UNKNOWN_ERROR
    return math.sqrt(squares / dof * float(np.mean(per_run)))


def _floor_share(nodes: Sequence[Node], error: float) -> float:
    """Return the floor of the estimated frontier as a share of its lowest loss."""
    if not nodes:
        return 0.0
    log_loss = np.array([[node.log_loss for node in nodes]])
    log_r = np.array([[node.log_r for node in nodes]])
    floor = draw_floors(log_r, log_loss, np.full(len(nodes), error))
    return float(floor[0] / np.exp(log_loss.min()))


def _curve(nodes: Sequence[Node], share: float) -> FrontierCurve:
    log_loss = np.array([[node.log_loss for node in nodes]])
    return FrontierCurve(
        log_r=np.array([[node.log_r for node in nodes]]),
        log_loss=log_loss,
        floor=share * np.exp(log_loss.min(axis=1)) if nodes else None,
    )


def _drawn_curve(
    fits: Fits, arch: str, resource: str, nodes: Sequence[Node], error: float
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


def log_resource(fits: Fits, optimum: Optimum, resource: str) -> float | None:
    """Return ln of the resource at an optimum, between the group's runs; None without data."""
    assert optimum.x_opt is not None
    if resource == optimum.axis:
        return math.log(optimum.x_opt)
    points = fits.groups[optimum.arch, optimum.budget_flops]
    value = resource_at(profile_of(points, optimum.axis), resource, np.array([optimum.x_opt]))
    return None if value is None else math.log(value[0])


def grows_beyond(fits: Fits, optimum: Optimum, resource: str) -> bool:
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

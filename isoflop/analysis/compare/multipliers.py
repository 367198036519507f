"""The effective compute multiplier of each family over a reference, along every resource.

m = R_ref(L*) / R: the resource that the reference's frontier needs for the loss that the family
reaches at its own optimum of a budget, over what the family's optimum takes. Above 1 the family is
better. Along FLOPs it is the compute-efficiency gain (effective speed-up) of the literature.

Each arm is taken at its own optimum. Draw i of one belongs with draw i of the other, so the
interval is that of the ratio. An optimum at the edge of its grid is a bound on the loss, and gives
a bound on m or nothing.

An order is claimed from losses at equal resource alone: the family's against the reference's
frontier at what the family takes, where the reference was measured. m itself may lie beyond, and
then rests on the form of the frontier; which side of 1 it is on does not. Orders along FLOPs are
claimed together (claims.py): wrong in any of them with 1 − confidence. Those along the other
resources are claimed together with all, so that looking at more of them makes none more likely.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from isoflop.analysis.compare.claims import (
    Interval,
    JointClaims,
    Order,
    agreeing,
    deciding,
    exp_interval,
    interval,
    joint_claims,
    num_failed,
    stretched,
    strict_interval,
)
from isoflop.analysis.compare.frontier import (
    SLACK,
    Frontier,
    Node,
    frontier_along,
    grows_beyond,
    log_resource,
)
from isoflop.analysis.optima import Optimum
from isoflop.analysis.points import AXES, Axis
from isoflop.analysis.resources import RESOURCES
from isoflop.analysis.result import Fits
from isoflop.arrays import Floats, exp_or_none
from isoflop.tables import NOT_A_COLUMN, schema_of

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
    """Of all estimates along FLOPs together; along another resource, of all."""
    ci_hi_simultaneous: float | None
    local_slope: float | None
    """d loss / d ln resource of the reference there, in the unit of the loss: an error of the loss
    divided by it is the relative error of the multiplier."""
    extrapolated: bool | None
    """Whether the loss lies beyond the reference's measured optima."""
    status: CompareStatus
    order_claimed: Order
    """Whether the loss is below that of the reference's frontier at equal resource (`higher`) or
    above it (`lower`), all comparisons taken together."""
    strict: Interval = field(metadata=NOT_A_COLUMN)
    """The simultaneous interval with every failed draw counted against a claim."""
    axis: Axis
    method: str
    """Of the optima; envelope where there are none (isoflop.analysis.envelope)."""
    frontier: Literal["floored", "envelope"] = "floored"
    """Floored: ln (loss − floor) linear in ln resource between neighbouring optima, the floor
    drawn; envelope: L_inf + A · C^−α through the runs that no cheaper run beats."""
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
    frontiers = {name: frontier_along(fits, reference, name) for name in _measured_with(resources)}
    arms = {name: _arms(fits, frontier) for name, frontier in frontiers.items()}
    claims = {"flops": joint_claims(_gaps(arms, ["flops"]), fits.options.confidence)}
    if set(arms) != {"flops"}:
        claims |= _claimed_with_all(arms, fits.options.confidence)
    place = {resource: index for index, resource in enumerate(resources)}
    rows = [
        (index, place[name], _comparison(fits, arm, frontiers[name], claimed, claims[name]))
        for name in resources
        for index, (arm, claimed) in enumerate(zip(arms[name], claims[name].orders, strict=True))
    ]
    return tuple(row for _, _, row in sorted(rows, key=lambda entry: entry[:2]))


def compared_along(fits: Fits, resource: str) -> tuple[Comparison, ...]:
    """Return the comparisons along one resource: those of a fit that was compared, else new ones.

    Raises:
        UserError: the reference is not in the table.
    """
    rows = fits.compare or compare_archs(fits, resources=(resource,))
    return tuple(row for row in rows if row.resource == resource)


def _measured_with(resources: Sequence[str]) -> Sequence[str]:
    """Return the resources whose comparisons decide what is claimed along some of them."""
    return resources if set(resources) <= {"flops"} else tuple(RESOURCES)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Arm:
    """One optimum against the reference's frontier."""

    optimum: Optimum
    found: _Found
    log_multipliers: Floats | None
    """[n_boot]; None where there is no estimate or there are no draws."""
    gaps: Floats | None
    """ln of the reference's loss at equal resource over the arch's [n_boot]; None likewise."""


def _arms(fits: Fits, frontier: Frontier) -> list[_Arm]:
    arms = []
    for optimum in fits.optima_by_group().values():
        found = _multiplier(fits, optimum, frontier)
        is_estimate = found.status == "estimate"
        is_other = optimum.arch != frontier.arch and found.status in ("estimate", "too_far")
        arms.append(
            _Arm(
                optimum=optimum,
                found=found,
                log_multipliers=_drawn_multipliers(fits, optimum, frontier)
                if is_estimate
                else None,
                gaps=_drawn_gaps(fits, optimum, frontier) if is_other else None,
            )
        )
    return arms


def _gaps(arms: Mapping[str, Sequence[_Arm]], names: Iterable[str]) -> list[Floats | None]:
    return [arm.gaps for name in names for arm in arms.get(name, ())]


def _claimed_with_all(
    arms: Mapping[str, Sequence[_Arm]], confidence: float
) -> dict[str, JointClaims]:
    """Return the claims along each resource but FLOPs, all resources taken together."""
    together = joint_claims(_gaps(arms, arms), confidence)
    claims, start = {}, 0
    for name, of_name in arms.items():
        orders = together.orders[start : start + len(of_name)]
        start += len(of_name)
        if name != "flops":
            claims[name] = replace(together, orders=orders)
    return claims


def _comparison(
    fits: Fits, arm: _Arm, frontier: Frontier, claimed: Order, claims: JointClaims
) -> Comparison:
    options, optimum, found, drawn = fits.options, arm.optimum, arm.found, arm.log_multipliers
    single = interval(drawn, options.confidence)
    strict = deciding(stretched(drawn, strict_interval(drawn, options.confidence), claims), claimed)
    together = agreeing(stretched(drawn, single, claims), claimed)
    (low, high), (low_all, high_all) = exp_interval(single), exp_interval(together)
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
        strict=exp_interval(strict),
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


def _multiplier(fits: Fits, optimum: Optimum, frontier: Frontier) -> _Found:
    if optimum.x_opt is None or optimum.loss_opt is None or optimum.loss_opt <= 0:
        return _Found(status="no_optimum")
    log_r = log_resource(fits, optimum, frontier.resource)
    if log_r is None or frontier.lacks_data:
        return _Found(status="no_data")
    if not frontier.nodes:
        return _Found(status="no_reference")
    log_loss = math.log(optimum.loss_opt)
    if optimum.is_bound and grows_beyond(fits, optimum, frontier.resource):
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
        multiplier=exp_or_none(float(inverse.log_r[0]) - log_r),
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


def _against_single(log_loss: float, log_r: float, node: Node, *, is_bound: bool) -> _Found:
    """Compare with a reference of one optimum: its frontier falls, so the side of it is known."""
    ratio = exp_or_none(node.log_r - log_r)
    if node.is_edge and (is_bound or node.grows_beyond or log_loss < node.log_loss):
        return _Found(status="no_optimum")
    if log_loss == node.log_loss and not is_bound and not node.is_edge:
        return _Found(status="estimate", multiplier=ratio, extrapolated=False)
    if log_loss <= node.log_loss:
        return _Found(status="lower_bound", multiplier=ratio, extrapolated=False)
    if is_bound:
        return _Found(status="no_overlap")
    return _Found(status="upper_bound", multiplier=ratio, extrapolated=False)

"""What families are compared along: FLOPs, time, parameters, tokens, memory; one record each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter

import numpy as np

from isoflop.analysis.points import Point, Profile
from isoflop.arrays import Floats


@dataclass(frozen=True, kw_only=True, slots=True)
class Resource:
    """Something that a run takes, and that one family may need less of than another."""

    name: str
    """In tables and in the rules of hypotheses."""
    words: str
    """In a sentence: one family needs 1.8 times the ... of another."""
    label: str
    """On the axis of a figure, without the unit."""
    unit: str = ""
    measure: Callable[[Point], float | None]
    """What one run takes, in that unit; None where the table does not say."""
    is_budget: bool = False
    """Whether a budget fixes it: then it is the same at every size."""

    @property
    def axis_label(self) -> str:
        """The label with the unit."""
        return f"{self.label} ({self.unit})" if self.unit else self.label


RESOURCES: dict[str, Resource] = {
    resource.name: resource
    for resource in (
        Resource(
            name="flops",
            words="compute",
            label="Training FLOPs",
            measure=attrgetter("flops"),
            is_budget=True,
        ),
        Resource(
            name="wall_s",
            words="training time",
            label="Training time",
            unit="s",
            measure=attrgetter("wall_s"),
        ),
        Resource(
            name="n_active",
            words="active parameters",
            label="Active parameters",
            measure=attrgetter("n_active"),
        ),
        Resource(
            name="n_params",
            words="parameters",
            label="Parameters",
            measure=attrgetter("n_params"),
        ),
        Resource(
            name="n_tokens",
            words="training tokens",
            label="Training tokens",
            measure=attrgetter("n_tokens"),
        ),
        Resource(
            name="peak_mem_bytes",
            words="peak memory",
            label="Peak memory",
            unit="bytes",
            measure=attrgetter("peak_mem_bytes"),
        ),
    )
}
"""By name, in the order of the report. A comparison is made along each."""


def resource_at(profile: Profile, name: str, x: Floats) -> Floats | None:
    """Return a resource at some x of a profile, interpolated in ln resource over ln x.

    Points of one size count with their geometric mean. None where a point lacks the resource; NaN
    stays NaN.
    """
    values = [RESOURCES[name].measure(point) for point in profile.points]
    if not values or None in values:
        return None
    log_values = np.log(np.array(values, dtype=np.float64))
    sizes, size_of = np.unique(profile.log_x, return_inverse=True)
    means = np.bincount(size_of, weights=log_values) / np.bincount(size_of)
    return np.asarray(np.exp(np.interp(np.log(x), sizes, means)))

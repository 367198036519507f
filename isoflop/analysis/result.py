"""What a fit is: the options it was made with, and all that one table of runs yields."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from isoflop.analysis.bootstrap import Draws, Requested
from isoflop.analysis.laws import LawAxis, PowerLaw
from isoflop.analysis.optima import Optimum
from isoflop.analysis.optima_methods import Method
from isoflop.analysis.points import Axis, Excluded, GroupKey, Point, Selection

if TYPE_CHECKING:
    from isoflop.analysis.compare.differences import ExponentDifference
    from isoflop.analysis.compare.multipliers import Comparison
    from isoflop.analysis.parametric import ParametricFit
    from isoflop.analysis.validity import Validity


@dataclass(frozen=True, kw_only=True, slots=True)
class FitOptions:
    """What the user may choose; everything has a default."""

    n_boot: int = 1000
    """Bootstrap draws; 0 makes no intervals."""
    method: Method = "parabola"
    """The method of optima that laws, comparisons and plots show first; all are fitted."""
    axis: Axis = "n_params"
    """The x axis that comparisons and plots use."""
    reference: str | None = None
    """The arch that others are compared with; None: chosen by the comparison."""
    bootstrap: Requested = "auto"
    confidence: float = 0.95
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Fits:
    """All that one table of runs yields."""

    selection: Selection
    options: FitOptions
    optima: tuple[Optimum, ...]
    """Sorted by arch and budget; all axes and methods each."""
    laws: tuple[PowerLaw, ...]
    """Sorted by method, arch and axis; a law without values says that it is missing."""
    draws: dict[tuple[Axis, Method], Draws] = field(compare=False)
    """By (axis, method); empty where n_boot is 0."""
    parametric: tuple[ParametricFit, ...] = ()
    compare: tuple[Comparison, ...] = ()
    exponents: tuple[ExponentDifference, ...] = ()
    """Differences to the reference of the comparisons."""
    validity: Validity | None = None

    @property
    def excluded(self) -> tuple[Excluded, ...]:
        """The rows that entered no fit, each with its reason."""
        return self.selection.excluded

    @property
    def groups(self) -> dict[GroupKey, tuple[Point, ...]]:
        """The points of each (arch, budget)."""
        return self.selection.groups

    @property
    def archs(self) -> list[str]:
        """Sorted labels of all families in the table."""
        return sorted({arch for arch, _ in self.groups})

    @property
    def budgets(self) -> list[float]:
        """Sorted budgets in training FLOPs."""
        return sorted({budget for _, budget in self.groups})

    def optima_of(
        self, arch: str, axis: Axis | None = None, method: Method | None = None
    ) -> list[Optimum]:
        """Return the arch's optima, smallest budget first; axis and method as in the options."""
        axis, method = axis or self.options.axis, method or self.options.method
        return [o for o in self.optima if o.arch == arch and o.axis == axis and o.method == method]

    def optima_of_all(
        self, axis: Axis | None = None, method: Method | None = None
    ) -> list[Optimum]:
        """Return the optima of all archs; axis and method as in the options."""
        return [optimum for arch in self.archs for optimum in self.optima_of(arch, axis, method)]

    def law(self, arch: str, axis: LawAxis, method: Method | None = None) -> PowerLaw:
        """Return the arch's law; KeyError for an arch that is not in the table."""
        method = method or self.options.method
        for law in self.laws:
            if (law.arch, law.axis, law.method) == (arch, axis, method):
                return law
        raise KeyError((arch, axis, method))

    def draws_of(self, axis: Axis | None = None, method: Method | None = None) -> Draws | None:
        """Return the draws of an axis and method (as in the options); None without any."""
        return self.draws.get((axis or self.options.axis, method or self.options.method))

"""Power laws through the interior optima of a family: N*(C), D*(C), active*(C) and L*(C).

Each law is y = coefficient · C^exponent with C the budget in training FLOPs, fitted by ordinary
least squares of ln y on ln C. The loss law has no irreducible term: it describes the budgets
measured and is no basis for extrapolation far beyond them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from isoflop.analysis.optima import METHOD, Optimum
from isoflop.analysis.points import AXES

LawAxis = Literal["n_params", "n_tokens", "n_active", "loss"]
LAW_AXES: tuple[LawAxis, ...] = (*AXES, "loss")


@dataclass(frozen=True, kw_only=True, slots=True)
class PowerLaw:
    """A power law of one family, or the record that there are too few optima for one."""

    arch: str
    axis: LawAxis
    """What the law gives; the loss is that of the parabolas over n_params."""
    exponent: float | None
    """None with fewer than two interior optima."""
    log_coefficient: float | None
    """Natural logarithm of the coefficient."""
    n_points: int
    """Interior optima used, one per budget."""
    rmse: float | None
    """Root mean square of the residuals in ln y; None for two points or fewer (no residual)."""
    budget_lo: float | None
    budget_hi: float | None

    @property
    def coefficient(self) -> float | None:
        """The coefficient; None when there is no law or no float64 can hold it."""
        if self.log_coefficient is None or abs(self.log_coefficient) > 700.0:
            return None
        return math.exp(self.log_coefficient)

    def at(self, budget_flops: float) -> float:
        """Return the law's value at a budget; ValueError when there is no law."""
        if self.exponent is None or self.log_coefficient is None:
            raise ValueError(f"no power law for {self.arch} on {self.axis}")
        return math.exp(self.log_coefficient + self.exponent * math.log(budget_flops))

    def rows(self) -> list[dict[str, Any]]:
        """Return the law's two rows of fits.parquet; a law that is missing has null values."""
        values = {"exponent": self.exponent, "coefficient": self.coefficient}
        return [
            {
                "arch": self.arch,
                "form": "power_law",
                "axis": self.axis,
                "method": METHOD,
                "parameter": parameter,
                "value": value,
                "ci_lo": None,
                "ci_hi": None,
                "objective": None,
                "n_points": self.n_points,
                "n_starts": None,
                "share_of_starts_at_optimum": None,
                "bootstrap_kind": None,
                "n_boot": None,
                "n_failed": None,
                "rmse": self.rmse,
                "heldout_error": None,
            }
            for parameter, value in values.items()
        ]


def fit_laws(optima: Iterable[Optimum]) -> tuple[PowerLaw, ...]:
    """Return one law per arch and axis, archs sorted; only interior optima enter.

    An arch whose optima are all bounds still gets its laws, with null values.
    """
    by_arch: dict[str, list[Optimum]] = {}
    for optimum in optima:
        by_arch.setdefault(optimum.arch, []).append(optimum)
    return tuple(
        _fit_law(arch, axis, _law_points(by_arch[arch], axis))
        for arch in sorted(by_arch)
        for axis in LAW_AXES
    )


def _law_points(optima: Sequence[Optimum], axis: LawAxis) -> list[tuple[float, float]]:
    """Return (budget, value) of the interior optima, smallest budget first."""
    source = "n_params" if axis == "loss" else axis
    values = (
        (optimum.budget_flops, optimum.loss_opt if axis == "loss" else optimum.x_opt)
        for optimum in optima
        if optimum.axis == source and optimum.is_point
    )
    # A vertex of scattered losses can dip below zero, where no power law passes.
    return sorted((budget, value) for budget, value in values if value is not None and value > 0)


def _fit_law(arch: str, axis: LawAxis, points: Sequence[tuple[float, float]]) -> PowerLaw:
    line = _line([(math.log(budget), math.log(value)) for budget, value in points])
    exponent, log_coefficient, rmse = (None, None, None) if line is None else line
    return PowerLaw(
        arch=arch,
        axis=axis,
        exponent=exponent,
        log_coefficient=log_coefficient,
        n_points=len(points),
        rmse=rmse,
        budget_lo=points[0][0] if points else None,
        budget_hi=points[-1][0] if points else None,
    )


def _line(points: Sequence[tuple[float, float]]) -> tuple[float, float, float | None] | None:
    """Return (slope, intercept, rmse) of the least-squares line; None without two distinct x."""
    if len({x for x, _ in points}) < 2:
        return None
    num = len(points)
    mean_x = math.fsum(x for x, _ in points) / num
    mean_y = math.fsum(y for _, y in points) / num
    slope = math.fsum((x - mean_x) * (y - mean_y) for x, y in points) / math.fsum(
        (x - mean_x) ** 2 for x, _ in points
    )
    intercept = mean_y - slope * mean_x
    if num == 2:
        return slope, intercept, None
    squares = math.fsum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in points)
    return slope, intercept, math.sqrt(squares / num)

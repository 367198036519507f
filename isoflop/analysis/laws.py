"""Power laws through the interior optima of a family: N*(C), D*(C), active*(C) and L*(C).

Each law is y = coefficient · C^exponent with C the budget in training FLOPs, fitted by ordinary
least squares of ln y on ln C. The loss law has no irreducible term: it describes the budgets
measured and is no basis for extrapolation far beyond them. Intervals are percentiles of the laws
through the drawn optima of isoflop.analysis.bootstrap.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from isoflop.analysis.bootstrap import Draws
from isoflop.analysis.optima import Optimum
from isoflop.analysis.optima_methods import METHODS, Method
from isoflop.analysis.points import AXES, Axis
from isoflop.arrays import Floats, percentiles
from isoflop.tables import schema_of

LawAxis = Literal["n_params", "n_tokens", "n_active", "loss"]
LAW_AXES: tuple[LawAxis, ...] = (*AXES, "loss")

Budget = Literal["nominal", "achieved"]
Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class LawRow:
    """One row of fits.parquet: a parameter of a law."""

    arch: str
    form: str
    """power_law, or one of the parametric laws."""
    axis: str | None
    method: str
    parameter: str
    value: float | None
    ci_lo: float | None
    ci_hi: float | None
    objective: float | None = None
    n_points: int
    n_starts: int | None = None
    share_of_starts_at_optimum: float | None = None
    bootstrap_kind: str | None
    n_boot: int | None
    n_failed: int | None
    rmse: float | None
    heldout_error: float | None = None
    """Relative error at the largest budget, by the law of the others."""
    confidence: float | None
    budget_lo: float | None
    budget_hi: float | None
    settings: str | None
    status: str


FITS = schema_of("fits", LawRow)


@dataclass(frozen=True, kw_only=True, slots=True)
class PowerLaw:
    """A power law of one family, or the record that there are too few optima for one."""

    arch: str
    axis: LawAxis
    """What the law gives; the loss is that of the optima over n_params."""
    method: Method = "parabola"
    """How the optima were found."""
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
    budget: Budget = "nominal"
    """Whether C is the nominal budget or the mean of the FLOPs achieved."""
    exponent_ci: Interval | None = None
    log_coefficient_ci: Interval | None = None
    confidence: float | None = None
    bootstrap_kind: str | None = None
    n_boot: int | None = None
    n_failed: int | None = None
    """Draws in which an optimum of the law was not interior; they give no law."""

    @property
    def coefficient(self) -> float | None:
        """The coefficient; None when there is no law or no float64 can hold it."""
        return None if self.log_coefficient is None else _exp(self.log_coefficient)

    def at(self, budget_flops: float) -> float:
        """Return the law's value at a budget; ValueError when there is no law."""
        if self.exponent is None or self.log_coefficient is None:
            raise ValueError(f"no power law for {self.arch} on {self.axis}")
        return math.exp(self.log_coefficient + self.exponent * math.log(budget_flops))

    def rows(self) -> list[LawRow]:
        """Return the law's two rows of fits.parquet; a law that is missing has null values."""
        coefficient_ci = None
        if self.log_coefficient_ci is not None:
            coefficient_ci = tuple(_exp(end) for end in self.log_coefficient_ci)
        return [
            self._row("exponent", self.exponent, self.exponent_ci),
            self._row("coefficient", self.coefficient, coefficient_ci),
        ]

    def _row(
        self, parameter: str, value: float | None, ci: Sequence[float | None] | None
    ) -> LawRow:
        return LawRow(
            arch=self.arch,
            form="power_law",
            axis=self.axis,
            method=self.method,
            parameter=parameter,
            value=value,
            ci_lo=None if ci is None else ci[0],
            ci_hi=None if ci is None else ci[1],
            n_points=self.n_points,
            bootstrap_kind=self.bootstrap_kind,
            n_boot=self.n_boot,
            n_failed=self.n_failed,
            rmse=self.rmse,
            confidence=self.confidence,
            budget_lo=self.budget_lo,
            budget_hi=self.budget_hi,
            settings=f"least squares of ln y on ln C; C {self.budget}; interior optima only",
            status="too_few" if self.exponent is None else "ok",
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LawDraws:
    """One law in every draw; NaN in the draws that failed. Draw i belongs with every other i."""

    exponent: Floats
    log_coefficient: Floats


def law_source(axis: LawAxis) -> Axis:
    """Return the axis whose optima give a law: the loss is that of the optima over parameters."""
    return "n_params" if axis == "loss" else axis


def fit_laws(
    optima: Iterable[Optimum],
    draws: Mapping[tuple[Axis, Method], Draws] | None = None,
    *,
    confidence: float = 0.95,
    budget: Budget = "nominal",
) -> tuple[PowerLaw, ...]:
    """Return one law per method, arch and axis, in this order; only interior optima enter.

    An arch whose optima are all bounds still gets its laws, with null values. Without draws, or
    where an optimum of the law has none, a law has no interval.
    """
    by_arch: dict[tuple[Method, str], list[Optimum]] = {}
    for optimum in optima:
        by_arch.setdefault((optimum.method, optimum.arch), []).append(optimum)
    order = list(METHODS)
    keys = sorted(by_arch, key=lambda key: (order.index(key[0]), key[1]))
    return tuple(
        _fit_law(by_arch[method, arch], arch, axis, method, draws or {}, confidence, budget)
        for method, arch in keys
        for axis in LAW_AXES
    )


def law_draws(optima: Sequence[Optimum], draws: Draws, arch: str, axis: LawAxis) -> LawDraws | None:
    """Return an arch's law in every draw, through the optima that are interior in the estimate.

    ``optima`` may hold any optima; those of the arch, the draws' method and the law's axis are
    used. None when there are fewer than two or one of them was not drawn.
    """
    used = _used([o for o in optima if o.arch == arch and o.method == draws.method], axis)
    source = draws.loss_opt if axis == "loss" else draws.x_opt
    keys = [(optimum.arch, optimum.budget_flops) for optimum, _ in used]
    if len(used) < 2 or any(key not in source for key in keys):
        return None
    x = np.log(np.array([budget for _, budget in keys]))
    values = np.stack([source[key] for key in keys], axis=1)
    # A vertex of scattered losses can dip below zero, where no power law passes.
    log_y = np.log(np.where(values > 0, values, np.nan))
    exponent, log_coefficient = fit_lines(x, log_y)
    return LawDraws(exponent=exponent, log_coefficient=log_coefficient)


def fit_lines(x: Floats, y_BK: Floats) -> tuple[Floats, Floats]:
    """Return the least-squares slope and intercept [B] of each row over x [K].

    NaN for a row with a NaN; K must be at least 2.
    """
    off = x - x.mean()
    slope = (y_BK @ off) / (off @ off)
    return slope, y_BK.mean(axis=1) - slope * x.mean()


def _used(optima: Sequence[Optimum], axis: LawAxis) -> list[tuple[Optimum, float]]:
    """Return the optima of one arch and method that enter a law, with their value, by budget."""
    source = law_source(axis)
    values = (
        (optimum, optimum.loss_opt if axis == "loss" else optimum.x_opt)
        for optimum in optima
        if optimum.axis == source and optimum.is_point
    )
    known = [(optimum, value) for optimum, value in values if value is not None and value > 0]
    return sorted(known, key=lambda pair: pair[0].budget_flops)


def _fit_law(
    optima: Sequence[Optimum],
    arch: str,
    axis: LawAxis,
    method: Method,
    draws: Mapping[tuple[Axis, Method], Draws],
    confidence: float,
    budget: Budget,
) -> PowerLaw:
    used = [(o, value) for o, value in _used(optima, axis) if _flops_of(o, budget) is not None]
    points = sorted((float(_flops_of(o, budget) or 0.0), value) for o, value in used)
    line = _line([(math.log(flops), math.log(value)) for flops, value in points])
    exponent, log_coefficient, rmse = (None, None, None) if line is None else line
    drawn = draws.get((law_source(axis), method))
    interval: dict[str, Any] = {}
    if drawn is not None and line is not None and budget == "nominal":
        interval = _interval(law_draws(optima, drawn, arch, axis), drawn, confidence)
    return PowerLaw(
        arch=arch,
        axis=axis,
        method=method,
        exponent=exponent,
        log_coefficient=log_coefficient,
        n_points=len(points),
        rmse=rmse,
        budget_lo=points[0][0] if points else None,
        budget_hi=points[-1][0] if points else None,
        budget=budget,
        **interval,
    )


def _flops_of(optimum: Optimum, budget: Budget) -> float | None:
    return optimum.budget_flops if budget == "nominal" else optimum.mean_flops


def _interval(laws: LawDraws | None, draws: Draws, confidence: float) -> dict[str, Any]:
    if laws is None:
        return {}
    return {
        "exponent_ci": percentiles(laws.exponent, confidence),
        "log_coefficient_ci": percentiles(laws.log_coefficient, confidence),
        "confidence": confidence,
        "bootstrap_kind": draws.kind,
        "n_boot": draws.n_boot,
        "n_failed": int(np.count_nonzero(np.isnan(laws.exponent))),
    }


def _exp(log_value: float) -> float | None:
    return None if abs(log_value) > 700.0 else math.exp(log_value)


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

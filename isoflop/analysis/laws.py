"""Power laws through the interior optima of a family: N*(C), D*(C), other sizes, and L*(C).

Each law is y = coefficient · C^exponent, fitted by least squares of ln y on ln C. C is in
training FLOPs and of two kinds: the nominal budget, and the mean of the FLOPs that the runs of an
optimum achieved. Both laws are fitted; ``default_budget`` says which one is shown, compared and
predicted from. The loss law has no irreducible term: it describes the budgets measured and is no
basis for extrapolation far beyond them.

An optimum that is much less sure than the others has less weight in the laws of sizes
(``weighed``). That of the loss gives all the same: it bends, and other weights were another law.

Intervals are percentiles of the laws through the drawn optima of isoflop.analysis.bootstrap. In
each draw the law goes through the optima that the draw has, at least two, so that an optimum which
is often lost widens the interval and does not remove it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from isoflop.analysis.bootstrap import Draws
from isoflop.analysis.optima import Optimum
from isoflop.analysis.optima_methods import DEFAULT_METHOD, METHODS, Method
from isoflop.analysis.points import AXES, Axis
from isoflop.arrays import Floats, exp_or_none, percentiles, row_patterns
from isoflop.tables import schema_of

LawAxis = str
"""What a law gives: an axis of sizes, or the loss."""
LAW_AXES: tuple[LawAxis, ...] = (*AXES, "loss")
"""Those of every fit."""

Budget = Literal["nominal", "achieved"]
"""What C of a law is: the nominal budget, or the mean of the FLOPs achieved."""
BUDGETS: tuple[Budget, ...] = ("nominal", "achieved")
Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class LawRow:
    """One row of fits.parquet: a parameter of a law."""

    arch: str
    form: str
    """power_law, or one of the parametric laws."""
    axis: str | None
    method: str
    budget: Budget | None = None
    """What C is; null where a law has no C."""
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


MAX_VARIANCE = 2.0
"""Times the median variance of ln x: beyond it an optimum has less weight in its law."""

MIN_OPTIMA = 2
"""Optima that a law needs, in the estimate and in a draw."""

FITS = schema_of("fits", LawRow, version=4)


@dataclass(frozen=True, kw_only=True, slots=True)
class PowerLaw:
    """A power law of one family, or the record that there are too few optima for one."""

    arch: str
    axis: LawAxis
    """What the law gives; the loss is that of the optima over n_params."""
    method: Method = DEFAULT_METHOD
    """How the optima were found."""
    exponent: float | None
    """None with fewer than two interior optima, or where their C is not known or all the same."""
    log_coefficient: float | None
    """Natural logarithm of the coefficient."""
    n_points: int
    """Interior optima used, one per budget."""
    rmse: float | None
    """Root mean square of the residuals in ln y; None for two points or fewer (no residual)."""
    budget_lo: float | None
    budget_hi: float | None
    budget: Budget = "nominal"
    exponent_ci: Interval | None = None
    log_coefficient_ci: Interval | None = None
    confidence: float | None = None
    bootstrap_kind: str | None = None
    n_boot: int | None = None
    n_failed: int | None = None
    """Draws that left fewer than two optima of the law; they give none."""

    is_weighted: bool = False
    """Whether an optimum has less weight than the others."""

    @property
    def coefficient(self) -> float | None:
        """The coefficient; None when there is no law or no float64 can hold it."""
        return None if self.log_coefficient is None else exp_or_none(self.log_coefficient)

    def at(self, budget_flops: float) -> float:
        """Return the law's value at a budget; ValueError when there is no law."""
        if self.exponent is None or self.log_coefficient is None:
            raise ValueError(f"no power law for {self.arch} on {self.axis}")
        return math.exp(self.log_coefficient + self.exponent * math.log(budget_flops))

    @property
    def status(self) -> str:
        """`ok`, or why there is no law: `too_few`, `flops_unknown`, `degenerate` (one C only)."""
        if self.exponent is not None:
            return "ok"
        if self.n_points < MIN_OPTIMA:
            return "too_few"
        return "flops_unknown" if self.budget_lo is None else "degenerate"

    def rows(self) -> list[LawRow]:
        """Return the law's two rows of fits.parquet; a law that is missing has null values."""
        coefficient_ci = None
        if self.log_coefficient_ci is not None:
            coefficient_ci = tuple(exp_or_none(end) for end in self.log_coefficient_ci)
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
            budget=self.budget,
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
            settings="least squares of ln y on ln C; interior optima only"
            + ("; unsure ones with less weight" if self.is_weighted else ""),
            status=self.status,
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LawDraws:
    """One law in every draw; NaN in the draws that failed. Draw i belongs with every other i."""

    exponent: Floats
    log_coefficient: Floats


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DrawnOptima:
    """The optima of one law in every draw, smallest budget first."""

    log_flops: Floats
    """ln C [K]."""
    log_y: Floats
    """ln of what the law gives [n_boot, K]; NaN where a draw lost the optimum."""
    weight: Floats
    """[K]"""

    def law(self) -> LawDraws:
        """Return the line through the optima of each draw."""
        exponent, log_coefficient = fit_known_lines(self.log_flops, self.log_y, self.weight)
        return LawDraws(exponent=exponent, log_coefficient=log_coefficient)

    def without(self, is_lost: npt.NDArray[np.bool_]) -> DrawnOptima:
        """Return the same with more of the optima lost, named by [n_boot, K]."""
        return replace(self, log_y=np.where(is_lost, np.nan, self.log_y))


def law_axes(axes: Iterable[Axis]) -> tuple[LawAxis, ...]:
    """Return what laws there are of optima along some axes, in the order of the tables."""
    return (*AXES, *sorted(set(axes).difference(AXES)), "loss")


def law_source(axis: LawAxis) -> Axis:
    """Return the axis whose optima give a law: the loss is that of the optima over parameters."""
    return "n_params" if axis == "loss" else axis


def flops_of(optimum: Optimum, budget: Budget) -> float | None:
    """Return C of an optimum in training FLOPs; None where a run does not tell what it achieved."""
    return optimum.budget_flops if budget == "nominal" else optimum.mean_flops


def default_budget(optima: Iterable[Optimum]) -> Budget:
    """Return the kind of C that laws are shown, compared and predicted with.

    Achieved, where every interior optimum tells it and more was achieved at every larger budget;
    else nominal. One kind for all optima, so that families are compared at the same. Budgets are
    met in whole steps and sizes, and what was not spent bought no loss: the eight exponents that
    Beck et al. 2025 (arXiv 2510.02228) publish are met to six digits with the mean FLOPs achieved,
    and missed by 0.0008 to 0.0022 with the nominal budgets.
    """
    achieved: dict[tuple[str, Axis, Method], dict[float, float]] = {}
    for optimum in optima:
        if not optimum.is_point:
            continue
        if optimum.mean_flops is None:
            return "nominal"
        group = achieved.setdefault((optimum.arch, optimum.axis, optimum.method), {})
        group[optimum.budget_flops] = optimum.mean_flops
    rising = (list(dict(sorted(group.items())).values()) for group in achieved.values())
    is_known = achieved and all(
        low < high for flops in rising for low, high in itertools.pairwise(flops)
    )
    return "achieved" if is_known else "nominal"


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
    found = list(optima)
    axes = law_axes(optimum.axis for optimum in found)
    by_arch: dict[tuple[Method, str], list[Optimum]] = {}
    for optimum in found:
        by_arch.setdefault((optimum.method, optimum.arch), []).append(optimum)
    order = list(METHODS)
    keys = sorted(by_arch, key=lambda key: (order.index(key[0]), key[1]))
    return tuple(
        _fit_law(by_arch[method, arch], arch, axis, method, draws or {}, confidence, budget)
        for method, arch in keys
        for axis in axes
    )


def drawn_optima(
    optima: Sequence[Optimum], draws: Draws, arch: str, axis: LawAxis, budget: Budget
) -> DrawnOptima | None:
    """Return the optima of an arch's law in every draw, those that are interior in the estimate.

    ``optima`` may hold any optima; those of the arch, the draws' method and the law's axis are
    used. None when there are fewer than two, or one of them was not drawn or does not tell its C.
    """
    used = _used([o for o in optima if o.arch == arch and o.method == draws.method], axis)
    source = draws.loss_opt if axis == "loss" else draws.x_opt
    flops = [flops_of(optimum, budget) for optimum, _ in used]
    keys = [(optimum.arch, optimum.budget_flops) for optimum, _ in used]
    if len(used) < MIN_OPTIMA or None in flops or any(key not in source for key in keys):
        return None
    values = np.stack([source[key] for key in keys], axis=1)
    # A vertex of scattered losses can dip below zero, where no power law passes.
    log_y = np.log(np.where(values > 0, values, np.nan))
    return DrawnOptima(
        log_flops=np.log(np.array(flops, dtype=np.float64)),
        log_y=log_y,
        weight=np.array([_weight(optimum, axis) for optimum, _ in used]),
    )


def law_draws(
    optima: Sequence[Optimum], draws: Draws, arch: str, axis: LawAxis, budget: Budget
) -> LawDraws | None:
    """Return an arch's law in every draw; None where ``drawn_optima`` has none."""
    drawn = drawn_optima(optima, draws, arch, axis, budget)
    return None if drawn is None else drawn.law()


def weighed(
    optima: Iterable[Optimum], draws: Mapping[tuple[Axis, Method], Draws]
) -> tuple[Optimum, ...]:
    """Return the optima with their weights in the laws of their sizes, from their draws.

    An optimum whose variance is more than ``MAX_VARIANCE`` times the median of its law's counts by
    the inverse of its variance, all others alike: laws of optima about equally sure are ordinary
    least squares. With one budget of four seven times as noisy as the others the interval of the
    exponent is half as wide so and holds the truth in 95 % for 90 %; with equal noise, 96.7 % both.

    The draws of ln N weigh all axes, so that the exponents of N* and D* add up to 1 where C = 6ND.
    Drawn cases weigh nothing: their spread says how few the points are.
    """
    found = list(optima)
    laws: dict[tuple[str, Axis, Method], list[int]] = {}
    for place, optimum in enumerate(found):
        if optimum.is_point and _drawn_x(optimum, draws) is not None:
            laws.setdefault((optimum.arch, optimum.axis, optimum.method), []).append(place)
    for places in laws.values():
        drawn = [x for place in places if (x := _drawn_x(found[place], draws)) is not None]
        for place, weight in zip(places, _weights(drawn), strict=True):
            if weight < 1:
                found[place] = replace(found[place], law_weight=weight)
    return tuple(found)


def _drawn_x(optimum: Optimum, draws: Mapping[tuple[Axis, Method], Draws]) -> Floats | None:
    axis: Axis = "n_params" if ("n_params", optimum.method) in draws else optimum.axis
    drawn = draws.get((axis, optimum.method))
    if drawn is None or drawn.kind == "case":
        return None
    return drawn.x_opt.get((optimum.arch, optimum.budget_flops))


def _weights(drawn_x: Sequence[Floats]) -> list[float]:
    variances = np.array([_log_variance(x) for x in drawn_x])
    limit = MAX_VARIANCE * float(np.median(variances))
    return [1.0 if value <= limit else limit / value for value in variances.tolist()]


def _log_variance(x: Floats) -> float:
    """Return the variance of ln x by its central 68 %, which no tail spoils.

    Draws that lost the optimum would have been the far ones: the fewer are left, the larger.
    """
    known = np.log(x[np.isfinite(x)])
    if len(known) < 2:
        return math.inf
    low, high = np.quantile(known, [0.1587, 0.8413])
    return float(((high - low) / 2 / (len(known) / len(x))) ** 2)


def _weight(optimum: Optimum, axis: LawAxis) -> float:
    return 1.0 if axis == "loss" or optimum.law_weight is None else optimum.law_weight


def fit_known_lines(x: Floats, y_BK: Floats, weight: Floats | None = None) -> tuple[Floats, Floats]:
    """Return slope and intercept [B] of each row over x [K], its NaN left out; NaN without two.

    ``weight`` [K] is the same in all rows; None weighs all alike.
    """
    slope, intercept = (np.full(len(y_BK), np.nan) for _ in range(2))
    is_known = np.isfinite(y_BK)
    # Draws that lost the same optima are fitted together.
    for known, of_pattern in row_patterns(is_known):
        rows = np.flatnonzero(of_pattern)
        share = np.ones(len(x))[known] if weight is None else weight[known]
        if np.count_nonzero(share) < MIN_OPTIMA:
            continue
        share = share / share.sum()
        middle = share @ x[known]
        off = x[known] - middle
        squares = share @ off**2
        if squares == 0:
            continue
        y = y_BK[np.ix_(rows, known)]
        slope[rows] = (y @ (share * off)) / squares
        intercept[rows] = y @ share - slope[rows] * middle
    return slope, intercept


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
    used = _used(optima, axis)
    flops = [flops_of(optimum, budget) for optimum, _ in used]
    points = sorted(
        (c, y, _weight(optimum, axis))
        for c, (optimum, y) in zip(flops, used, strict=True)
        if c is not None
    )
    if len(points) < len(used):
        points = []
    line = _line([(math.log(c), math.log(y), weight) for c, y, weight in points])
    exponent, log_coefficient, rmse = (None, None, None) if line is None else line
    drawn = draws.get((law_source(axis), method))
    interval: dict[str, Any] = {}
    if drawn is not None and line is not None:
        interval = _interval(law_draws(optima, drawn, arch, axis, budget), drawn, confidence)
    return PowerLaw(
        arch=arch,
        axis=axis,
        method=method,
        exponent=exponent,
        log_coefficient=log_coefficient,
        n_points=len(used),
        rmse=rmse,
        budget_lo=points[0][0] if points else None,
        budget_hi=points[-1][0] if points else None,
        budget=budget,
        is_weighted=any(weight < 1 for *_, weight in points),
        **interval,
    )


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


def _line(
    points: Sequence[tuple[float, float, float]],
) -> tuple[float, float, float | None] | None:
    """Return (slope, intercept, rmse) of the line through (x, y, weight); None with one x only."""
    if len({x for x, _, _ in points}) < 2:
        return None
    num = len(points)
    total = math.fsum(w for _, _, w in points)
    mean_x = math.fsum(w * x for x, _, w in points) / total
    mean_y = math.fsum(w * y for _, y, w in points) / total
    slope = math.fsum(w * (x - mean_x) * (y - mean_y) for x, y, w in points) / math.fsum(
        w * (x - mean_x) ** 2 for x, _, w in points
    )
    intercept = mean_y - slope * mean_x
    if num == 2:
        return slope, intercept, None
    squares = math.fsum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y, _ in points)
    return slope, intercept, math.sqrt(squares / num)

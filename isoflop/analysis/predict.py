"""What a study at a budget that was not run yet would measure, with prediction intervals.

Prediction intervals are wider than those of laws: they hold what the *new study* measures, so that
they carry the noise of its optimum too. That is taken to be as noisy as the optimum of the largest
budget measured, of as many sizes and seeds at the same spacing. All is computed draw by draw:

- N* and D*: the line of ln x* on ln C through the drawn optima, plus the noise of the new optimum.
  Relative noise of the loss moves a minimum by L / (L − L_inf) as much, since the profile about it
  is shallower the nearer the loss is to its floor; so the noise is scaled by that from the largest
  budget to the new one. The bias of a method is a constant factor along C on grids of one width,
  so that the line carries it over to what the new study measures.
- loss: L_inf + A · C^−α with the floor drawn (``draw_floors``), plus the noise of the new optimum.
- multiplier: the reference's drawn frontier, inverted at the family's loss there, both of them with
  the noise of a new optimum. No order is ever claimed.

Simulated studies (tests/benchmarks/predictions.py) say how far this holds: up to ``MAX_RATIO``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from isoflop.analysis.axes import axis_mark
from isoflop.analysis.compare.frontier_curve import draw_floors
from isoflop.analysis.laws import DrawnOptima, LawAxis, drawn_optima, flops_of
from isoflop.analysis.optima import Optimum
from isoflop.analysis.points import Axis
from isoflop.analysis.result import Fits
from isoflop.arrays import Floats, percentiles
from isoflop.errors import UserError, shown
from isoflop.numbers import format_count, format_flops
from isoflop.tables import schema_of

Quantity = str
"""An axis of sizes, or one of loss, learning_rate and multiplier."""
Status = Literal[
    "ok", "too_few", "no_intervals", "too_far", "off_law", "draws_failed", "no_law", "no_reference"
]

MEANINGS: Mapping[Status, str] = {
    "ok": "predicted",
    "too_few": "the family has minima inside their grids at fewer than 3 budgets",
    "no_intervals": "an optimum has no draws (0 bootstrap draws, or too few runs)",
    "too_far": "the largest budget at which the family has a minimum is too far below",
    "off_law": "the optima do not lie on a power law within their errors",
    "draws_failed": "more than 1 draw in 20 gave no value, where noise moves minima off their "
    "grids or the loss does not fall with compute",
    "no_law": "there is no law of it, which needs runs with several learning rates at each budget",
    "no_reference": "the reference has no prediction of its loss",
}

# The largest ratio of the new budget to the largest one measured: as far as coverage was measured.
MAX_RATIO = 10.0

# Two points leave no residual that could show a line to be wrong, and the floor of a frontier open.
MIN_BUDGETS = 3

MAX_FAILED_SHARE = 0.05
# A line that its optima miss by this much has one chance in a hundred.
LACK_OF_FIT_P = 0.01

SIZE_AXES: tuple[Axis, ...] = ("n_params", "n_tokens")
REGISTERED: tuple[Quantity, ...] = (*SIZE_AXES, "loss", "learning_rate", "multiplier")
"""What can be registered, and scored by a report."""
_STREAM = 60_493


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """What a new study would measure of one family: a row of predictions.parquet."""

    arch: str
    budget_flops: float
    quantity: Quantity
    value: float | None
    """Median of what a new study would measure: parameters, tokens, nats per token (or the unit of
    the table), or the reference's compute over the family's. None unless the status is ok."""
    pi_lo: float | None
    """Ends of the prediction interval: of what is measured, not of what is true."""
    pi_hi: float | None
    ratio: float | None
    """The budget over the largest one at which the family has a minimum inside its grid."""
    law: str | None
    """What it was extrapolated by."""
    status: Status
    confidence: float
    method: str
    """How optima were found, and are to be found in the new study."""
    n_points: int
    """Optima that the law passes through."""
    n_boot: int | None
    n_failed: int | None
    """Draws without a value."""

    @property
    def is_predicted(self) -> bool:
        """Whether there is a value."""
        return self.status == "ok"

    @property
    def name(self) -> str:
        """The quantity as people write it."""
        return _WRITTEN[self.quantity][0] if self.quantity in _WRITTEN else axis_mark(self.quantity)

    def written(self, value: float) -> str:
        """Return a value of the quantity, predicted or measured, as people write it."""
        return (_WRITTEN[self.quantity][1] if self.quantity in _WRITTEN else format_count)(value)


PREDICTIONS = schema_of("predictions", Prediction, version=4)

# Of what is no size.
_WRITTEN: Mapping[Quantity, tuple[str, Callable[[float], str]]] = {
    "loss": ("loss", "{:.4f}".format),
    "learning_rate": ("learning rate", "{:.3g}".format),
    "multiplier": ("multiplier", "{:.3f}".format),
}
_LAWS: Mapping[Quantity, str] = {
    "loss": "power law with a floor",
    "multiplier": "frontiers with floors",
}


def size_axes(axis: Axis) -> tuple[Axis, ...]:
    """Return what sizes are predicted along: parameters, tokens and the axis asked for."""
    return tuple(dict.fromkeys((*SIZE_AXES, axis)))


def predict(fits: Fits, budget_flops: float, archs: Sequence[str] = ()) -> tuple[Prediction, ...]:
    """Return what a new study would measure at a budget, family by family.

    Args:
        fits: optima over parameters and tokens with their draws, by the method of the options;
            along the axis of the options, too, where that is to be predicted.
        budget_flops: training FLOPs of a run, at most ``MAX_RATIO`` times the largest measured.
        archs: families; all where none is given. The multiplier is over the reference of the fits.

    Returns:
        Per family its N*, D*, optimum along another axis, loss, learning rate, and multiplier
        unless it is the reference. What cannot be predicted has a status that says why, and no
        value.

    Raises:
        UserError: a family that the table does not have, a budget below the smallest or too far
            beyond the largest measured, or no family with minima at enough budgets.
    """
    budget_flops = float(budget_flops)
    for arch in archs:
        if arch not in fits.archs:
            there = ", ".join(fits.archs) or "an arch (the table has none)"
            raise UserError("--arch", arch, f"one of {there}", "name an arch of the table")
    reference = fits.reference
    families = {arch: _Family(fits, arch, budget_flops) for arch in fits.archs}
    _check_budget(list(families.values()), budget_flops)
    fitted = {optimum.axis for optimum in fits.optima}
    axes = [axis for axis in size_axes(fits.options.axis) if axis in fitted]
    rows: list[Prediction] = []
    for arch in archs or fits.archs:
        family = families[arch]
        rows += [family.size(axis) for axis in axes]
        rows += [family.row("loss", family.loss()), family.row("learning_rate", "no_law")]
        if reference is not None and arch != reference:
            rows.append(family.row("multiplier", family.multiplier(families[reference])))
    return tuple(rows)


def _check_budget(families: Sequence[_Family], budget_flops: float) -> None:
    """Refuse a budget that nothing measured speaks for."""
    known = [budget for family in families for budget in family.budgets]
    if not any(len(family.budgets) >= MIN_BUDGETS for family in families):
        most = max((len(family.budgets) for family in families), default=0)
        raise UserError(
            "table",
            shown(f"minima inside their grids at {most} budgets at most"),
            f"one with such minima at {MIN_BUDGETS} budgets or more in one family",
            "run more budgets; `isoflop refine` proposes sizes for those at an edge",
        )
    lowest, largest = min(known), max(known)
    if not lowest * (1 - 1e-9) <= budget_flops <= MAX_RATIO * largest * (1 + 1e-9):
        raise UserError(
            "--budget",
            shown(format_flops(budget_flops)),
            f"from {format_flops(lowest)} to {format_flops(MAX_RATIO * largest)}, {MAX_RATIO:g} "
            f"times the largest budget with a minimum ({format_flops(largest)})",
            "choose one of these; to go further, measure a budget in between first",
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Frontier:
    """L = floor + exp(intercept) · C^slope in every draw, and the noise of a new optimum on it."""

    floor: Floats
    slope: Floats
    intercept: Floats
    noise: Floats
    """Of a new optimal loss, as a difference of its logarithm [draws]."""

    def excess(self, log_c: float) -> Floats:
        """Return the loss above the floor."""
        with np.errstate(over="ignore"):
            return np.asarray(np.exp(self.intercept + self.slope * log_c))

    def steepness(self, log_c: float) -> Floats:
        """Return L / (L − L_inf): how much relative noise of the loss moves a minimum."""
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            return np.asarray(1 + self.floor / self.excess(log_c))

    def log_c_of(self, loss: Floats) -> Floats:
        """Return ln C at which each draw reaches a loss; NaN where it never does."""
        return np.asarray((np.log(loss - self.floor) - self.intercept) / self.slope)


class _Family:
    """The optima of one family in every draw, and what follows from them at a new budget."""

    def __init__(self, fits: Fits, arch: str, budget_flops: float) -> None:
        self._fits = fits
        self._options = fits.options
        self._arch = arch
        self._budget_flops = budget_flops
        optima = self._optima("n_params")
        self.budgets = [optimum.budget_flops for optimum in optima]
        # What a run of the new budget achieves of it: as much as those of the largest one.
        share = math.exp(self._log_flops(optima)[-1]) / self.budgets[-1] if optima else 1.0
        self._log_c = math.log(share * budget_flops)

    def row(self, quantity: Quantity, drawn: Floats | Status) -> Prediction:
        """Return the row of one quantity from its draws, or from why there are none."""
        status: Status = "ok"
        value, interval, num_failed = None, None, None
        if isinstance(drawn, str):
            status = drawn
        else:
            num_failed = int(np.count_nonzero(~np.isfinite(drawn)))
            interval = percentiles(drawn, self._options.confidence)
            if interval is None or num_failed > MAX_FAILED_SHARE * len(drawn):
                status, interval = "draws_failed", None
            else:
                value = float(np.nanmedian(drawn))
        return Prediction(
            arch=self._arch,
            budget_flops=self._budget_flops,
            quantity=quantity,
            value=value,
            pi_lo=None if interval is None else interval[0],
            pi_hi=None if interval is None else interval[1],
            ratio=self._ratio,
            law=_LAWS.get(quantity, "power law") if status == "ok" else None,
            status=status,
            confidence=self._options.confidence,
            method=self._options.method,
            n_points=len(self.budgets),
            n_boot=None if num_failed is None else self._options.n_boot,
            n_failed=num_failed,
        )

    def size(self, axis: Axis) -> Prediction:
        """Return the row of N*, of D* or of another count."""
        return self.row(axis, self._drawn_size(axis))

    def loss(self) -> Floats | Status:
        """Return the loss that a new study measures at its optimum, in every draw."""
        if isinstance(self._frontier, str):
            return self._frontier
        frontier = self._frontier
        with np.errstate(over="ignore", invalid="ignore"):
            smooth = frontier.floor + frontier.excess(self._log_c)
            return np.asarray(smooth * np.exp(frontier.noise))

    def multiplier(self, reference: _Family) -> Floats | Status:
        """Return the reference's compute for the family's loss, over the budget, in every draw."""
        loss, base = self.loss(), reference._frontier
        if isinstance(loss, str):
            return loss
        if isinstance(base, str):
            return "no_reference"
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            # The reference is measured anew as well: its noise over its elasticity there.
            elasticity = base.slope / base.steepness(self._log_c)
            log_m = base.log_c_of(loss) - self._log_c - base.noise / elasticity
            return np.asarray(np.exp(log_m))

    @property
    def _ratio(self) -> float | None:
        return self._budget_flops / self.budgets[-1] if self.budgets else None

    def _optima(self, axis: Axis) -> list[Optimum]:
        """Return the optima that a law passes through; a vertex may dip below a loss of 0."""
        found = self._fits.optima_of(self._arch, axis)
        used = (
            optimum
            for optimum in found
            if optimum.is_point
            and (optimum.loss_opt or 0.0) > 0
            and flops_of(optimum, self._fits.law_budget) is not None
        )
        return sorted(used, key=lambda optimum: optimum.budget_flops)

    def _log_flops(self, optima: Sequence[Optimum]) -> Floats:
        """Return ln C of optima, nominal or achieved as the laws have it."""
        flops = [flops_of(optimum, self._fits.law_budget) for optimum in optima]
        return np.log(np.array(flops, dtype=np.float64))

    def _refusal(self, optima: Sequence[Optimum]) -> Status | None:
        """Return why nothing is predicted from some optima; None where there is no such reason."""
        if len(optima) < MIN_BUDGETS:
            return "too_few"
        if self._budget_flops > MAX_RATIO * optima[-1].budget_flops * (1 + 1e-9):
            return "too_far"
        draws = self._fits.draws_of(optima[0].axis)
        keys = [(o.arch, o.budget_flops) for o in optima]
        if draws is None or any(key not in draws.x_opt for key in keys):
            return "no_intervals"
        if not all(np.isfinite(draws.x_opt[key]).any() for key in keys):
            return "draws_failed"
        return None

    def _drawn_size(self, axis: Axis) -> Floats | Status:
        """Return x* of a new study in every draw."""
        optima = self._optima(axis)
        refusal = self._refusal(optima)
        if refusal is not None:
            return refusal
        if isinstance(self._frontier, str):
            return self._frontier
        drawn = self._drawn(optima, axis)
        log_x = np.log(np.array([o.x_opt for o in optima], dtype=np.float64))
        if _lack_of_fit_p(drawn, log_x) < LACK_OF_FIT_P:
            return "off_law"
        law, log_c = drawn.law(), float(drawn.log_flops[-1])
        with np.errstate(invalid="ignore", over="ignore"):
            growth = self._frontier.steepness(self._log_c) / self._frontier.steepness(log_c)
            noise = growth * self._measured_anew(drawn.log_y[:, -1] - log_x[-1])
            return np.asarray(np.exp(law.log_coefficient + law.exponent * self._log_c + noise))

    def _drawn(self, optima: Sequence[Optimum], axis: LawAxis) -> DrawnOptima:
        draws = self._fits.draws_of(optima[0].axis)
        assert draws is not None
        drawn = drawn_optima(optima, draws, self._arch, axis, self._fits.law_budget)
        assert drawn is not None
        assert drawn.log_y.shape[1] == len(optima)
        return drawn

    @functools.cached_property
    def _frontier(self) -> _Frontier | Status:
        optima = self._optima("n_params")
        refusal = self._refusal(optima)
        if refusal is not None:
            return refusal
        drawn = self._drawn(optima, "loss")
        log_c = np.broadcast_to(drawn.log_flops, drawn.log_y.shape)
        log_loss = np.log(np.array([o.loss_opt for o in optima], dtype=np.float64))
        sd = np.nanstd(drawn.log_y, axis=0)
        floor = draw_floors(log_c, drawn.log_y, sd, seed=self._options.seed)
        slope, intercept = _lines_above(floor, drawn, sd)
        return _Frontier(
            floor=floor,
            slope=np.where(slope < 0, slope, np.nan),
            intercept=intercept,
            noise=self._measured_anew(drawn.log_y[:, -1] - log_loss[-1]),
        )

    def _measured_anew(self, errors: Floats) -> Floats:
        """Return the errors of an optimum in another order: those of a study of its own.

        The order is the same for all families and quantities, so that paired errors stay paired.
        """
        order = np.random.default_rng((_STREAM, self._options.seed)).permutation(len(errors))
        return errors[order]


def _lack_of_fit_p(drawn: DrawnOptima, log_x: Floats) -> float:
    """Return how often optima on a line lie as far off it, by chance, as these do.

    The squares of residuals, each over the variance of its optimum, are compared with those of the
    draws, whose errors about the estimate are those of optima on a line.
    """
    errors = drawn.log_y - log_x
    errors = errors[np.isfinite(errors).all(axis=1)]
    if not len(errors):
        return 1.0
    variance = np.maximum(errors.var(axis=0), 1e-300)

    def misfit(values: Floats) -> Floats:
        law = replace(drawn, log_y=values).law()
        line = law.exponent[:, None] * drawn.log_flops + law.log_coefficient[:, None]
        return np.asarray(((values - line) ** 2 / variance).sum(axis=1))

    return float(np.mean(misfit(errors) >= misfit(log_x[None])[0]))


def _lines_above(floor: Floats, drawn: DrawnOptima, sd_K: Floats) -> tuple[Floats, Floats]:
    """Return slope and intercept of ln(loss − floor) on ln C in each draw, weighted by errors.

    Through the optima that the draw has; NaN for a draw with fewer than two.
    """
    there = np.isfinite(drawn.log_y)
    there &= (there.sum(axis=1) > 1)[:, None]
    loss = np.exp(np.where(there, drawn.log_y, 0.0))
    excess = np.where(there, loss - floor[:, None], 1.0)
    log_excess = np.log(excess)
    weight = np.where(there, (excess / (loss * np.maximum(sd_K, 1e-12))) ** 2, 0.0)
    total = np.where(there.any(axis=1), weight.sum(axis=1), np.nan)
    mean_c = (weight @ drawn.log_flops) / total
    mean_y = (weight * log_excess).sum(axis=1) / total
    off = drawn.log_flops - mean_c[:, None]
    slope = (weight * off * log_excess).sum(axis=1) / (weight * off**2).sum(axis=1)
    return slope, mean_y - slope * mean_c

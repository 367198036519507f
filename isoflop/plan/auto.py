"""`sizes = "auto"`: rungs centred where the recipe's prior expects the optimum. An estimate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from isoflop.accounting import Ledger
from isoflop.errors import UserError, shown
from isoflop.numbers import format_count, format_flops
from isoflop.plan.models import Model, Models
from isoflop.recipe import get_recipe
from isoflop.study import SIZES_AUTO, Study
from isoflop.validate import CLOSED, Count, ReadBy

# The grid reaches this factor in parameters to either side of the expected optimum: wide enough to
# bracket it, narrow enough that three coefficients describe the losses (the published grids reach
# 3 to 8; at 16 it takes a fourth, and the optimum is no sharper than at 4).
REACH = 4.0
MOST_RUNGS = 7
# Where rungs are so far apart that fewer fit into the reach, the grid grows to as many as the
# published ones have.
LEAST_RUNGS = 5
# An optimum with fewer rungs than this on one side is near the edge of its grid.
RUNGS_TO_EDGE = 2
_TOP = 2**20


def _as_written(size: Any) -> Any:
    """Refuse a whole number, which would be written as another text than it was read from."""
    if type(size) is int:
        raise UserError("size", size, "a number with a decimal point", "restore it")
    return size


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpectedOptimum:
    """Where the prior expects the best model of an arch at a budget: an estimate, frozen."""

    __pydantic_config__: ClassVar = CLOSED

    budget_flops: Count
    arch: str
    size: Annotated[float, ReadBy(function=_as_written)]
    """In rungs, interpolated; outside the ladder it is extrapolated."""


def prior_params(ledger: Ledger) -> float:
    """Return active parameters outside embedding, norms and biases, by their products' FLOPs."""
    return ledger.flops("attn_proj", "experts", "router") / 2


class Grid:
    """The rungs to train of one arch at one budget."""

    def __init__(self, study: Study, models: Models, budget_flops: int, arch: str) -> None:
        self._models = models
        self._recipe = get_recipe(study.recipe)
        self._arch = arch
        self._budget_flops = budget_flops
        self._seq_len = study.seq_len or self._recipe.batch_and_seq_len(budget_flops)[1]
        self._top = self._recipe.max_size or _TOP

    def expected(self) -> ExpectedOptimum:
        """Return where tokens per parameter cross the prior's: fewer of them above, more below.

        Raises:
            UserError: the ladder has an impossible shape, or a variant sets all that grows.
        """
        above = 2
        while above < self._top and self._excess(above) > 0:
            above = min(2 * above, self._top)
        below = max(1, above // 2)
        while above - below > 1:
            middle = (above + below) // 2
            below, above = (middle, above) if self._excess(middle) > 0 else (below, middle)
        first, second = self._excess(below), self._excess(above)
        if first <= second:
            raise UserError(
                "sizes",
                SIZES_AUTO,
                f"a list of rungs for {self._arch}, which does not grow with size",
                "name the sizes",
            )
        rung = below + (above - below) * first / (first - second)
        return ExpectedOptimum(
            arch=self._arch, budget_flops=self._budget_flops, size=round(rung, 3)
        )

    def rung_of(self, n_params: float) -> float:
        """Return the rung of a number of parameters, interpolated between whole rungs.

        Raises:
            UserError: the ladder ends before, or begins above.
        """
        below, above = 1, 2
        while above < self._top and self._num_params(above) < n_params:
            below, above = above, min(2 * above, self._top)
        while above - below > 1:
            middle = (above + below) // 2
            below, above = (
                (middle, above) if self._num_params(middle) < n_params else (below, middle)
            )
        low, high = self._num_params(below), self._num_params(above)
        if not low <= n_params <= high:
            raise UserError(
                "sizes",
                shown(f"{format_count(n_params)} parameters"),
                f"within the ladder of {self._arch} under recipe {self._recipe.name} (size "
                f"{below if n_params < low else above} has "
                f"{format_count(low if n_params < low else high)})",
                "take another budget or recipe",
            )
        return below + math.log(n_params / low) / math.log(high / low) * (above - below)

    def sizes(self, num_sizes: int | None, expected: float | None = None) -> tuple[int, ...]:
        """Return rungs, evenly spaced in the logarithm of parameters as far as whole rungs allow.

        Args:
            num_sizes: as many; None: up to 7 within the reach, never fewer than 5, and two on
                either side of the optimum where the ladder has them.
            expected: the optimum's rung; None: where the prior expects it.

        Raises:
            UserError: the ladder has fewer rungs.
        """
        most, least = (MOST_RUNGS, LEAST_RUNGS) if num_sizes is None else (num_sizes, num_sizes)
        if least > self._top:
            allowed = f"at most {self._top} under recipe {self._recipe.name}"
            raise UserError("num_sizes", num_sizes, allowed, "lower it")
        expected = self.expected().size if expected is None else expected
        centre = self._log_params(expected)
        reach = math.log(REACH)
        ideal = [centre + reach * (2 * i / (most - 1) - 1) for i in range(most)]
        rungs = {self._nearest_rung(point) for point in ideal}
        while len(rungs) < most and (rung := self._missing_rung(rungs, expected, least)):
            rungs.add(rung)
        return tuple(sorted(rungs))

    def _missing_rung(self, rungs: set[int], expected: float, least: int) -> int | None:
        """Return the rung next to the grid that it needs most; None if it is complete."""
        low = min(rungs) - 1 or None
        high = max(rungs) + 1 if max(rungs) < self._top else None
        below, above = _rungs_around(expected, rungs)
        if low is not None and below < RUNGS_TO_EDGE:
            return low
        if high is not None and above < RUNGS_TO_EDGE:
            return high
        if len(rungs) >= least:
            return None
        if low is None or high is None:
            return low or high
        # On the side where the grid reaches less far.
        centre = self._log_params(expected)
        below_by, above_by = centre - self._log_params(low), self._log_params(high) - centre
        return low if below_by < above_by else high

    def _model(self, rung: int) -> Model:
        return self._models.before_matching(self._arch, rung, self._seq_len)

    def _num_params(self, rung: int) -> int:
        """Return all parameters of the model that is trained."""
        return self._models.model(self._arch, rung, self._seq_len).ledger.num_params

    def _excess(self, rung: int) -> float:
        """Log of the tokens that the budget buys, over those that the prior asks for."""
        model = self._model(rung)
        bought = math.log(self._budget_flops) - math.log(self._models.flops_per_token(model))
        asked = self._recipe.prior.tokens_per_param * prior_params(model.ledger)
        return bought - math.log(asked)

    def _log_params(self, rung: float) -> float:
        """Log of the parameters at a rung, interpolated and extrapolated linearly in the rung."""
        below = min(max(1, math.floor(rung)), self._top - 1)
        low = math.log(prior_params(self._model(below).ledger))
        high = math.log(prior_params(self._model(below + 1).ledger))
        return low + (rung - below) * (high - low)

    def _nearest_rung(self, log_params: float) -> int:
        low, high = 1, 2
        while high < self._top and self._log_params(high) < log_params:
            low, high = high, min(2 * high, self._top)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._log_params(middle) < log_params else (low, middle)
        return min(low, high, key=lambda rung: abs(self._log_params(rung) - log_params))


def _rungs_around(expected: float, sizes: Iterable[int]) -> tuple[int, int]:
    """Return how many rungs are below the expected optimum, and how many above."""
    sizes = tuple(sizes)
    return sum(rung < expected for rung in sizes), sum(rung > expected for rung in sizes)


def expected_optima(study: Study, models: Models) -> tuple[ExpectedOptimum, ...]:
    """Return where the optima of an `auto` study are expected, by budget and arch.

    Raises:
        UserError: the ladder has an impossible shape.
    """
    return tuple(
        Grid(study, models, budget, arch).expected()
        for budget in study.budgets
        for arch in study.archs
    )


def edge_warning(expected: ExpectedOptimum, sizes: Sequence[int]) -> str | None:
    """Return a warning to the reviewer where the expected optimum is near an edge of its grid."""
    below, above = _rungs_around(expected.size, sizes)
    if min(below, above) >= RUNGS_TO_EDGE:
        return None
    where = (
        "outside its grid"
        if min(below, above) == 0
        else f"within one rung of the {'lower' if below < above else 'upper'} edge of its grid"
    )
    return (
        f"{expected.arch} at {format_flops(expected.budget_flops)}: the optimum is expected at "
        f"size {expected.size:g}, {where} ({', '.join(map(str, sizes))})"
    )

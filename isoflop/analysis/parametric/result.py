"""What a parametric fit found, or why there is none, and its rows of fits.parquet."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from isoflop.analysis.parametric.terms import Floats
from isoflop.analysis.resample import percentiles
from isoflop.tables import FITS

Status = Literal[
    "ok",
    "single_start",
    "at_bound",
    "too_few",
    "degenerate",
    "sparsity_not_varied",
    "ill_conditioned",
    "not_converged",
]
"""The verdict on a fit. The first three come with values, the others with null:

- ``ok``;
- ``single_start``: only one start reached the best objective, which may be no global optimum;
- ``at_bound``: the constant went to zero or an exponent is not positive: these data do not support
  the form, and the values describe them only where they were measured;
- ``too_few``: fewer distinct points than the form needs;
- ``degenerate``: the inputs of all points lie on one line (one budget, one size or one ratio);
- ``sparsity_not_varied``: the share of active parameters does not vary beside the other inputs;
- ``ill_conditioned``: another set of parameters fits as well to rounding;
- ``not_converged``: no start settled.
"""

WITH_VALUES: tuple[Status, ...] = ("ok", "single_start", "at_bound")


@dataclass(frozen=True, kw_only=True, slots=True)
class ParametricFit:
    """One law of one arch."""

    arch: str
    form: str
    """chinchilla | frontier | joint."""
    method: str
    """huber | vpnls; for a frontier the method of its optima."""
    axis: str | None = None
    """loss for a frontier; None for the others."""
    parameters: tuple[str, ...]
    """Names of the rows, derived ones included."""
    status: Status
    reason: str | None = None
    """The status in words; None for ok."""
    values: Mapping[str, float] = field(default_factory=dict)
    """By parameter, coefficients in the table's units; empty where there is no fit."""
    draws: Mapping[str, Floats] = field(default_factory=dict, compare=False)
    """By parameter, one value per bootstrap draw; NaN where it failed. Draw i is one law."""
    objective: float | None = None
    """Sum over points: Huber of ln L residuals (huber), or squares of L residuals."""
    n_points: int
    n_starts: int | None = None
    share_of_starts_at_optimum: float | None = None
    rmse: float | None = None
    """Root mean square of the residuals in ln L."""
    bootstrap_kind: str | None = None
    n_boot: int | None = None
    confidence: float = 0.95
    budget_lo: float | None = None
    budget_hi: float | None = None
    settings: str | None = None
    """The criterion and the numbers that define it."""

    @property
    def has_values(self) -> bool:
        """Whether the fit gave parameters; the status says how far to trust them."""
        return self.status in WITH_VALUES

    def interval(self, parameter: str) -> tuple[float, float] | None:
        """Return the percentile interval of a parameter; None without (enough) draws."""
        if parameter not in self.draws:
            return None
        return percentiles(self.draws[parameter], self.confidence)

    def n_failed(self, parameter: str) -> int | None:
        """Return how many draws gave no finite value; None without a bootstrap."""
        if parameter not in self.draws:
            return None
        return int(np.count_nonzero(~np.isfinite(self.draws[parameter])))

    def rows(self) -> list[dict[str, Any]]:
        """Return a row of fits.parquet per parameter; values are null where there is no fit."""
        return [self._row(parameter) for parameter in self.parameters]

    def _row(self, parameter: str) -> dict[str, Any]:
        value = self.values.get(parameter)
        lo, hi = self.interval(parameter) or (None, None)
        return FITS.row(
            arch=self.arch,
            form=self.form,
            axis=self.axis,
            method=self.method,
            parameter=parameter,
            value=value if value is not None and math.isfinite(value) else None,
            ci_lo=lo,
            ci_hi=hi,
            objective=self.objective,
            n_points=self.n_points,
            n_starts=self.n_starts,
            share_of_starts_at_optimum=self.share_of_starts_at_optimum,
            bootstrap_kind=self.bootstrap_kind,
            n_boot=self.n_boot,
            n_failed=self.n_failed(parameter),
            rmse=self.rmse,
            confidence=None if lo is None else self.confidence,
            budget_lo=self.budget_lo,
            budget_hi=self.budget_hi,
            settings=self.settings,
            status=self.status,
        )

"""From the points of one arch to a `ParametricFit`: refusals, solution, draws, rows of a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from isoflop.analysis.bootstrap import Resampling, draw_losses, kind_for_law
from isoflop.analysis.laws import Budget, LawRow
from isoflop.analysis.parametric.solve import (
    WITH_VALUES,
    Solution,
    Status,
    is_on_a_line,
    log_rmse,
    refit_each,
    solve,
)
from isoflop.analysis.parametric.terms import (
    FREE,
    Constraints,
    Criterion,
    Form,
    Problem,
    make_problem,
    predict,
)
from isoflop.analysis.shared_noise import NOTHING_SHARED, SharedNoise, TrunkKey
from isoflop.arrays import Floats, percentiles

_C_OF_LAWS: Mapping[str, Budget] = {"frontier": "nominal", "envelope": "achieved"}


def settings_of(method: Criterion, constraints: Constraints = FREE) -> str:
    """Return the criterion of a fit in words, and what is not free in it."""
    words = ["sum of squares of L residuals"]
    if method == "huber":
        words = [f"sum of Huber({constraints.huber_delta:g}) of ln L residuals"]
    if constraints.tied:
        words.append("alpha = beta")
    if constraints.fixed_e is not None:
        words.append(f"E = {constraints.fixed_e:g} given")
    return "; ".join(words)


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """Points of one arch in the form's inputs, in an order that rows of the table do not set."""

    arch: str
    inputs: tuple[tuple[Floats, ...], ...]
    """Per term of the form, a positive (n,) array per exponent."""
    losses: Floats
    budgets: tuple[float, ...]
    cells: tuple[object, ...]
    """The cell of each point; repeats of a cell share it."""
    trunks: tuple[TrunkKey | None, ...] = ()
    """The trunk of each point; empty where none shares any."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ParametricFit:
    """One law of one arch."""

    arch: str
    form: str
    """chinchilla | frontier | envelope | joint | routed."""
    method: str
    """huber | vpnls; least_squares of routed and envelope; of a frontier that of its optima."""
    axis: str | None = None
    """loss for a frontier and an envelope; None for the others."""
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
    """Sum over points: Huber of ln L residuals (huber), or squares of L residuals (of ln L for
    least_squares)."""
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
    given: tuple[str, ...] = ()
    """Parameters that were given or follow from what was, and so have no interval."""
    problem: Problem | None = field(default=None, compare=False, repr=False)
    """The points as they were fitted; None where there is no fit, and of frontier and routed."""
    trunks: tuple[TrunkKey | None, ...] = field(default=(), compare=False, repr=False)
    """The trunk of each of these points."""
    shared: SharedNoise = field(default=NOTHING_SHARED, compare=False, repr=False)

    @property
    def has_values(self) -> bool:
        """Whether the fit gave parameters; the status says how far to trust them."""
        return self.status in WITH_VALUES

    def interval(self, parameter: str) -> tuple[float, float] | None:
        """Return the percentile interval of a parameter; None without (enough) draws."""
        if parameter not in self.draws or parameter in self.given:
            return None
        return percentiles(self.draws[parameter], self.confidence)

    def n_failed(self, parameter: str) -> int | None:
        """Return how many draws gave no finite value; None without a bootstrap."""
        if parameter not in self.draws:
            return None
        return int(np.count_nonzero(~np.isfinite(self.draws[parameter])))

    def rows(self) -> list[LawRow]:
        """Return a row of fits.parquet per parameter; values are null where there is no fit."""
        return [self._row(parameter) for parameter in self.parameters]

    def _row(self, parameter: str) -> LawRow:
        value = self.values.get(parameter)
        lo, hi = self.interval(parameter) or (None, None)
        return LawRow(
            arch=self.arch,
            form=self.form,
            axis=self.axis,
            method=self.method,
            budget=None if self.axis is None else _C_OF_LAWS[self.form],
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


def fit_law(
    data: Data,
    form: Form,
    method: Criterion,
    resampling: Resampling,
    *,
    derive: Callable[[Mapping[str, Floats]], dict[str, Floats]] | None = None,
    derived: tuple[str, ...] = (),
    refuse: Callable[[Data], tuple[Status, str] | None] | None = None,
    constraints: Constraints = FREE,
) -> ParametricFit:
    """Fit a form, under constraints, to data; never raises for data that do not allow it.

    ``derive`` maps the form's parameters, one array per name, to the ``derived`` ones. ``refuse``
    says why data with enough points do not allow the form.
    """
    known = context_of(
        form.name,
        form.parameters,
        arch=data.arch,
        method=method,
        budgets=data.budgets,
        confidence=resampling.confidence,
        settings=settings_of(method, constraints),
    )
    known.update(parameters=form.parameters + derived, given=_given(form, derived, constraints))
    refusal = _refusal(data, form, constraints, refuse)
    if refusal is not None:
        return ParametricFit(**known, status=refusal[0], reason=refusal[1])
    problem = make_problem(form, method, data.inputs, data.losses, constraints)
    solution = solve_into(known, problem, derive)
    if solution is None:
        return ParametricFit(**known)
    known.update(rmse=log_rmse(problem, solution.theta), problem=problem)
    known.update(trunks=data.trunks, shared=resampling.shared)
    if resampling.n_boot:
        kind = kind_for_law(data.cells, resampling.kind, data.trunks)
        drawn = draw_losses(
            problem.target,
            predict(problem, solution.theta[None])[0][0],
            data.cells,
            kind,
            resampling,
            num_coefficients=len(solution.theta) - constraints.num,
            arch=data.arch,
            trunks=data.trunks,
        )
        theta = refit_each(problem, solution.theta, *drawn)
        known.update(
            draws=natural_values(problem, theta, derive),
            bootstrap_kind=kind,
            n_boot=resampling.n_boot,
        )
    return ParametricFit(**known)


def context_of(
    form: str,
    parameters: tuple[str, ...],
    *,
    arch: str,
    method: str,
    budgets: Sequence[float],
    confidence: float,
    settings: str,
) -> dict[str, Any]:
    """Return the fields of a ParametricFit on what is fitted, with or without success."""
    return {
        "arch": arch,
        "form": form,
        "method": method,
        "parameters": parameters,
        "n_points": len(budgets),
        "confidence": confidence,
        "budget_lo": min(budgets, default=None),
        "budget_hi": max(budgets, default=None),
        "settings": settings,
    }


def solve_into(
    known: dict[str, Any],
    problem: Problem,
    derive: Callable[[Mapping[str, Floats]], dict[str, Floats]] | None = None,
) -> Solution | None:
    """Solve a problem and add the fields of a ParametricFit on it; return None without values."""
    solution = solve(problem)
    known.update(solution.verdict)
    if solution.status not in WITH_VALUES:
        return None
    natural = natural_values(problem, solution.theta[None], derive)
    known.update(
        values={name: float(value[0]) for name, value in natural.items()},
        objective=problem.objective(solution.value),
    )
    return solution


def natural_values(
    problem: Problem,
    theta_BP: Floats,
    derive: Callable[[Mapping[str, Floats]], dict[str, Floats]] | None = None,
) -> dict[str, Floats]:
    """Return the form's parameters and the derived ones of each vector."""
    natural = problem.natural(theta_BP)
    return natural if derive is None else {**natural, **derive(natural)}


def _given(form: Form, derived: tuple[str, ...], constraints: Constraints) -> tuple[str, ...]:
    """Return the parameters that no data move: a given constant, exponents that tied ones fix."""
    constant = form.parameters[-1:] if constraints.fixed_e is not None else ()
    return constant + (derived if constraints.tied else ())


def _refusal(
    data: Data,
    form: Form,
    constraints: Constraints,
    refuse: Callable[[Data], tuple[Status, str] | None] | None,
) -> tuple[Status, str] | None:
    """Return why no fit is tried. One point more than free parameters leaves one residual."""
    needed = len(form.parameters) - constraints.num + 1
    distinct = len(set(data.cells))
    if distinct < needed:
        return "too_few", f"{distinct} distinct points; {form.name} needs {needed}"
    own = refuse(data) if refuse is not None else None
    if own is not None:
        return own
    if is_on_a_line([array for term in data.inputs for array in term]):
        return "degenerate", "all points lie on a line: one budget, one size or one ratio"
    return None

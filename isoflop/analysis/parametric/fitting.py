"""From the points of one arch to a `ParametricFit`: refusals, solution, bootstrap."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from isoflop.analysis.parametric.bootstrap import Resampling, choose_kind, refit
from isoflop.analysis.parametric.result import WITH_VALUES, ParametricFit, Status
from isoflop.analysis.parametric.solve import is_on_a_line, log_rmse, solve
from isoflop.analysis.parametric.terms import (
    HUBER_DELTA,
    Floats,
    Form,
    Method,
    Problem,
    make_problem,
)

SETTINGS: dict[Method, str] = {
    "huber": f"sum of Huber({HUBER_DELTA:g}) of ln L residuals",
    "vpnls": "sum of squares of L residuals",
}


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


def fit_law(
    data: Data,
    form: Form,
    method: Method,
    resampling: Resampling,
    *,
    derive: Callable[[Mapping[str, Floats]], dict[str, Floats]] | None = None,
    derived: tuple[str, ...] = (),
    refuse: Callable[[Data], tuple[Status, str] | None] | None = None,
) -> ParametricFit:
    """Fit a form to data; never raises for data that do not allow it.

    ``derive`` maps the form's parameters, one array per name, to the ``derived`` ones. ``refuse``
    says why data with enough points do not allow the form.
    """
    names = form.parameters + derived
    known = _known(data, form, method, names, resampling.confidence)
    refusal = _refusal(data, form, refuse)
    if refusal is not None:
        return ParametricFit(**known, status=refusal[0], reason=refusal[1])
    problem = make_problem(form, method, data.inputs, data.losses)
    solution = solve(problem)
    known.update(solution.verdict)
    if solution.status not in WITH_VALUES:
        return ParametricFit(**known)
    known.update(
        values={
            name: float(value[0])
            for name, value in natural_values(problem, solution.theta[None], derive).items()
        },
        objective=problem.objective(solution.value),
        rmse=log_rmse(problem, solution.theta),
    )
    if resampling.n_boot:
        kind = choose_kind(problem, data.cells, resampling.kind)
        theta = refit(problem, solution.theta, data.cells, kind, resampling, arch=data.arch)
        known.update(
            draws=natural_values(problem, theta, derive),
            bootstrap_kind=kind,
            n_boot=resampling.n_boot,
        )
    return ParametricFit(**known)


def natural_values(
    problem: Problem,
    theta_BP: Floats,
    derive: Callable[[Mapping[str, Floats]], dict[str, Floats]] | None = None,
) -> dict[str, Floats]:
    """Return the form's parameters and the derived ones of each vector."""
    natural = problem.natural(theta_BP)
    return natural if derive is None else {**natural, **derive(natural)}


def _known(
    data: Data, form: Form, method: Method, names: tuple[str, ...], confidence: float
) -> dict[str, Any]:
    """Return what a fit says of its data, whether or not it succeeds."""
    return {
        "arch": data.arch,
        "form": form.name,
        "method": method,
        "parameters": names,
        "n_points": len(data.losses),
        "confidence": confidence,
        "budget_lo": min(data.budgets, default=None),
        "budget_hi": max(data.budgets, default=None),
        "settings": SETTINGS[method],
    }


def _refusal(
    data: Data, form: Form, refuse: Callable[[Data], tuple[Status, str] | None] | None
) -> tuple[Status, str] | None:
    """Return why no fit is tried. One point more than parameters leaves one residual."""
    needed = len(form.parameters) + 1
    distinct = len(set(data.cells))
    if distinct < needed:
        return "too_few", f"{distinct} distinct points; {form.name} needs {needed}"
    own = refuse(data) if refuse is not None else None
    if own is not None:
        return own
    if is_on_a_line([array for term in data.inputs for array in term]):
        return "degenerate", "all points lie on a line: one budget, one size or one ratio"
    return None

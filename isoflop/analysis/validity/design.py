"""What the design can carry: seed noise, achieved budgets, centred grids, distinct sizes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from isoflop.analysis.bootstrap import seed_noise
from isoflop.analysis.compare.claims import rejected_together
from isoflop.analysis.compare.one_size import has_no_shared_budget
from isoflop.analysis.laws import MIN_OPTIMA
from isoflop.analysis.noise import equality_p, lack_of_fit_p
from isoflop.analysis.optima import Optimum
from isoflop.analysis.optima_methods import METHODS
from isoflop.analysis.points import Point, profile_of
from isoflop.analysis.result import Fits
from isoflop.analysis.shared_noise import SharedNoise, shared_noise
from isoflop.analysis.validity.finding import Check, Finding, FindingStatus
from isoflop.ingest.budgets import near_budgets
from isoflop.numbers import format_flops

# At a slope of −0.2 nats per e-fold of compute, 5 % of the budget are 0.01 nats.
MAX_BUDGET_ERROR = 0.05

# Share of the half grid: beyond it a minimum has much more of the grid on one side. The same
# share, wandered from the smallest to the largest budget, is a drift.
MAX_OFF_CENTRE = 0.5

_MOST_LISTED = 4


def noise_findings(fits: Fits) -> list[Finding]:
    """Return the pooled standard deviation of ln loss between seeds, over all and by arch.

    With its χ² interval, and the degrees of freedom as ``n_points``. Then, of a table with trunks,
    the correlation that the draws give to runs of one trunk.
    """
    shared = shared_noise(fits.selection)
    found = [_noise(fits, arch) for arch in (None, *fits.archs)]
    return [*found, _shared(shared, fits.options.confidence)] if shared.trunk_of else found


def _shared(shared: SharedNoise, confidence: float) -> Finding:
    low, high = shared.correlation.interval(confidence)
    num = len(set(shared.trunk_of.values()))
    return Finding(
        check="shared_noise",
        quantity="correlation",
        status="info",
        value=shared.correlation.value,
        ci_lo=low,
        ci_hi=high,
        n_points=shared.num_pairs,
        detail=f"{len(shared.trunk_of)} runs in {num} trunks; {shared.words}",
    )


def _noise(fits: Fits, arch: str | None) -> Finding:
    noise = seed_noise(fits.selection, arch)
    is_measured = noise.dof > 0
    low, high = _sd_interval(noise.relative_sd, noise.effective_dof, fits.options.confidence)
    return Finding(
        check="seed_noise",
        quantity="log_loss_sd",
        status="info" if is_measured else "not_measured",
        arch=arch,
        value=noise.relative_sd if is_measured else None,
        ci_lo=low,
        ci_hi=high,
        n_points=noise.dof,
        detail=f"{noise.n_cells} repeated cells" if is_measured else "no cell is repeated",
    )


def scatter_findings(fits: Fits) -> list[Finding]:
    """Return whether curves fit within the repeats of cells, and whether budgets scatter alike.

    `lack_of_fit`: the F test of the scatter of sizes about the curve against that of repeats, by
    budget, claimed for all budgets together. `unequal_noise`: Bartlett's tests that all budgets
    of all families scatter alike, between repeats of one cell and between sizes, both together.
    """
    least, axis = METHODS[fits.options.method].min_sizes, fits.options.axis
    scatter = {
        key: fits.scatter_of(key)
        for key, points in fits.groups.items()
        if profile_of(points, axis).num_sizes >= least
    }
    p_values = [lack_of_fit_p(one) for one in scatter.values()]
    level = 1 - fits.options.confidence
    findings = [
        _p_value("lack_of_fit", p, is_rejected, arch=arch, budget_flops=budget)
        for (arch, budget), p, is_rejected in zip(
            scatter, p_values, rejected_together(p_values, level), strict=True
        )
        if p is not None
    ]
    # Families without repeats are in the second alone. Budgets that share trunks scatter more alike
    # than by chance, so that of them the test finds less.
    squares = {
        "between runs": [one.pure_error for one in scatter.values()],
        "between sizes": [one.lack_of_fit for one in scatter.values()],
    }
    equal = [equality_p(of_kind) for of_kind in squares.values()]
    findings += [
        _p_value("unequal_noise", p, is_rejected, variant=words)
        for words, p, is_rejected in zip(
            squares, equal, rejected_together(equal, level), strict=True
        )
        if p is not None
    ]
    return findings


def _p_value(check: Check, p: float, is_rejected: bool, **where: Any) -> Finding:
    status: FindingStatus = "attention" if is_rejected else "ok"
    return Finding(check=check, quantity="p_value", status=status, value=p, **where)


def _sd_interval(sd: float, dof: float, confidence: float) -> tuple[float | None, float | None]:
    if dof == 0:
        return None, None
    from scipy.special import gammaincinv

    tail = (1 - confidence) / 2
    squares = [2 * float(gammaincinv(dof / 2, share)) for share in (1 - tail, tail)]
    return sd * math.sqrt(dof / squares[0]), sd * math.sqrt(dof / squares[1])


def budget_findings(fits: Fits) -> list[Finding]:
    """Return, per group, the mean of achieved over nominal FLOPs, minus 1."""
    return [
        _achieved(arch, budget, points, fits.budgets)
        for (arch, budget), points in fits.groups.items()
        if points
    ]


def _achieved(
    arch: str, budget: float, points: Sequence[Point], budgets: Sequence[float]
) -> Finding:
    ratios = achieved_ratios(points, budget)
    status: FindingStatus = "not_measured"
    detail = "the table does not state the FLOPs achieved"
    if ratios:
        status = "ok"
        detail = f"from {min(ratios) - 1:+.4f} to {max(ratios) - 1:+.4f}"
        if max(abs(ratio - 1) for ratio in ratios) > MAX_BUDGET_ERROR:
            status = "attention"
        if num_nearer_elsewhere(points, budget, budgets):
            status, detail = "attention", f"{detail}; a run is nearer to another budget"
    return Finding(
        check="achieved_budget",
        quantity="achieved_over_nominal_minus_1",
        status=status,
        arch=arch,
        budget_flops=budget,
        value=math.fsum(ratios) / len(ratios) - 1 if ratios else None,
        n_points=len(ratios),
        detail=detail,
    )


def achieved_ratios(points: Sequence[Point], budget: float) -> list[float]:
    """Return achieved over nominal FLOPs of the points that state what they spent."""
    return [point.flops / budget for point in points if point.flops is not None]


def num_nearer_elsewhere(points: Sequence[Point], budget: float, budgets: Sequence[float]) -> int:
    """Return how many points of a budget spent what is nearer to another of the sorted budgets."""
    place = budgets.index(budget)
    # The geometric means with the neighbours bound what is nearest to a budget.
    low = math.sqrt(budgets[place - 1] * budget) if place else 0.0
    high = math.sqrt(budget * budgets[place + 1]) if place + 1 < len(budgets) else math.inf
    spent = [point.flops for point in points if point.flops is not None]
    return sum(not low <= flops <= high for flops in spent)


def near_budget_findings(fits: Fits) -> list[Finding]:
    """Return each set of budgets that may be one; see `near_sets`."""
    return [
        Finding(
            check="near_budget",
            quantity="distinct_budgets",
            status="attention",
            budget_flops=near[0],
            value=float(len(near)),
            detail=_listed(near),
        )
        for near in near_sets(fits)
    ]


def near_sets(fits: Fits) -> list[tuple[float, ...]]:
    """Return the sets of budgets that `near_budgets` takes for one, ascending.

    Beside isoFLOP curves only those nearer than budgets are met: farther ones are a design.
    """
    sizes: dict[float, dict[str, frozenset[float]]] = {}
    for (arch, budget), points in fits.groups.items():
        sizes.setdefault(budget, {})[arch] = frozenset(point.n_params for point in points)
    widest = math.inf if has_no_shared_budget(fits.selection) else 1 + MAX_BUDGET_ERROR
    groups = near_budgets(fits.budgets, sizes)
    return [near for near in groups if len(near) > 1 and near[-1] <= widest * near[0]]


def _listed(budgets: Sequence[float]) -> str:
    # As many digits as make what is told apart look apart, up to those of a float64.
    for digits in range(5, 18):
        shown = [format_flops(budget, digits) for budget in budgets[:_MOST_LISTED]]
        if len(set(shown)) == len(shown):
            break
    return ", ".join(shown) + (" and more" if len(budgets) > _MOST_LISTED else "")


def centre_findings(fits: Fits) -> list[Finding]:
    """Return where each interior optimum lies in its grid, and its drift per decade of compute.

    −1 and 1 are the ends of the grid in ln x. A constant shift biases the coefficient of a power
    law only, a drift biases its exponent.
    """
    findings = []
    for arch in fits.archs:
        interior = [o for o in fits.optima_of(arch) if o.is_point]
        places = [(o.budget_flops, place) for o in interior if (place := _place(o)) is not None]
        findings += [_centre(fits, arch, budget, place) for budget, place in places]
        if len(places) > 1:
            findings.append(_drift(fits, arch, places))
    return findings


def _place(optimum: Optimum) -> float | None:
    if optimum.x_opt is None or optimum.grid_lo is None or optimum.grid_hi is None:
        return None
    low, high = math.log(optimum.grid_lo), math.log(optimum.grid_hi)
    return (2 * math.log(optimum.x_opt) - low - high) / (high - low)


def _centre(fits: Fits, arch: str, budget: float, place: float) -> Finding:
    return Finding(
        check="off_centre",
        quantity="place_in_grid",
        status="ok" if abs(place) <= MAX_OFF_CENTRE else "attention",
        arch=arch,
        axis=fits.options.axis,
        method=fits.options.method,
        budget_flops=budget,
        value=place,
    )


def _drift(fits: Fits, arch: str, places: Sequence[tuple[float, float]]) -> Finding:
    decades, where = np.log10([b for b, _ in places]), np.array([place for _, place in places])
    slope = float(np.polyfit(decades, where, 1)[0])
    wandered = abs(slope) * float(decades.max() - decades.min())
    return Finding(
        check="off_centre",
        quantity="drift_per_decade",
        status="ok" if wandered <= MAX_OFF_CENTRE else "attention",
        arch=arch,
        axis=fits.options.axis,
        method=fits.options.method,
        value=slope,
        n_points=len(places),
    )


def selected_findings(fits: Fits) -> list[Finding]:
    """Return the families of whose laws optima at edges were left out, and what that does.

    Next to such a budget an optimum is in the law only if its noise kept it inside the grid: it is
    too large near the lower end of the grid, too small near the upper one. With one ladder of sizes
    for all budgets and noise of 1 %, exponents of N* came out 0.07 too low.
    """
    findings = []
    for arch in fits.archs:
        optima = fits.optima_of(arch)
        left_out = [o for o in optima if o.is_bound]
        used = [math.log(o.budget_flops) for o in optima if o.is_point]
        if left_out and len(used) >= MIN_OPTIMA:
            findings.append(_selected(fits, arch, left_out, used))
    return findings


def _selected(
    fits: Fits, arch: str, left_out: Sequence[Optimum], log_budgets: Sequence[float]
) -> Finding:
    middle = sum(log_budgets) / len(log_budgets)
    # Survivors near the lower end are too large; that lowers the exponent at small budgets.
    pulls = {(o.status == "edge_low") == (math.log(o.budget_flops) > middle) for o in left_out}
    way = "either way" if len(pulls) > 1 else "upwards" if True in pulls else "downwards"
    where = ", ".join(
        f"{'lower' if o.status == 'edge_low' else 'upper'} at {format_flops(o.budget_flops)}"
        for o in left_out
    )
    return Finding(
        check="selected_optima",
        quantity="optima_left_out",
        status="attention",
        arch=arch,
        axis=fits.options.axis,
        method=fits.options.method,
        variant=way,
        value=float(len(left_out)),
        n_points=len(log_budgets),
        detail=f"edges: {where}; the exponent is biased {way} by little",
    )


def duplicate_findings(fits: Fits) -> list[Finding]:
    """Return the groups in which a size occurs more than once with one seed.

    They count as repeats of one cell; with other tokens at the same parameters a group is no
    isoFLOP slice.
    """
    findings = []
    for (arch, budget), points in fits.groups.items():
        repeats = Counter((point.n_params, point.seed) for point in points)
        repeated = sorted({size for (size, _), count in repeats.items() if count > 1})
        if repeated:
            findings.append(
                Finding(
                    check="duplicate_size",
                    quantity="repeated_sizes",
                    status="attention",
                    arch=arch,
                    budget_flops=budget,
                    value=float(len(repeated)),
                    n_points=len(points),
                    detail="n_params " + ", ".join(f"{size:.6g}" for size in repeated),
                )
            )
    return findings

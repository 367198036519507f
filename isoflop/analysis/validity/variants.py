"""The same answers from other rows, methods and FLOP conventions, held against those of the fit.

Under another convention the runs stay in their groups and their optima stay where they are: what
changes is the price of each optimum. The runs of a group then no longer cost the same (`spread`),
so its minimum is the best of a tilted slice: no lower than that convention's frontier, for every
family alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from isoflop.accounting import COMPONENT_NAMES, CONVENTIONS, stored_ledger
from isoflop.analysis.compare.claims import interval
from isoflop.analysis.compare.differences import Exponent, PairOrder, exponent
from isoflop.analysis.compare.multipliers import Comparison, compared_along
from isoflop.analysis.laws import LAW_AXES, LawAxis, fit_laws, law_source
from isoflop.analysis.optima import find_optima
from isoflop.analysis.optima_methods import METHODS, Method
from isoflop.analysis.points import AXES, Axis, GroupKey, entering_rows, select_points
from isoflop.analysis.result import Fits
from isoflop.analysis.validity.finding import Check, Finding, FindingStatus

Rows = Sequence[Mapping[str, Any]]


def refit_rows(rows: Iterable[Mapping[str, Any]], fits: Fits) -> Fits:
    """Return the optima of other rows, on the fit's axis and over parameters (for the loss).

    They have no draws, and keep of the fit its reference, the weights of its optima and what C of
    its laws is. Outliers and runs off their budget are not looked for: the rows are those that a
    variant means.
    """
    selection = select_points(rows, fits.options.repeats, screened=False, unit=fits.unit)
    axes: tuple[Axis, ...] = tuple(dict.fromkeys((fits.options.axis, law_source("loss"))))
    found = find_optima(selection.groups, axes=axes, methods=(fits.options.method,))
    weights = {
        (o.axis, o.arch, o.budget_flops): o.law_weight
        for axis in axes
        for o in fits.optima_by_group(axis).values()
    }
    return Fits(
        selection=selection,
        options=replace(fits.options, reference=fits.reference, law_budget=fits.law_budget),
        optima=tuple(
            replace(o, law_weight=weights.get((o.axis, o.arch, o.budget_flops))) for o in found
        ),
    )


def multipliers(fits: Fits) -> dict[GroupKey, Comparison]:
    """Return the comparison along FLOPs by (arch, budget), the reference left out."""
    if fits.options.reference not in (None, *fits.archs):
        return {}
    rows = compared_along(fits, "flops")
    return {(row.arch, row.budget_flops): row for row in rows if row.arch != row.reference}


def against(
    value: float | None, baseline: float | None, bounds: tuple[float | None, float | None]
) -> FindingStatus:
    """Return whether a value stays within the interval of the fit itself."""
    low, high = bounds
    if value is None or baseline is None or low is None or high is None:
        return "not_measured"
    return "ok" if low <= value <= high else "moves"


def exponent_finding(
    fits: Fits,
    check: Check,
    variant: str,
    arch: str,
    axis: LawAxis,
    found: Exponent,
    method: Method | None = None,
) -> Finding:
    """Return how an exponent of the arch, by a method, compares with that of the fit itself."""
    base = exponent(fits, arch, axis)
    low, high = interval(found.drawn, fits.options.confidence)
    return Finding(
        check=check,
        quantity="exponent",
        status=against(found.value, base.value, interval(base.drawn, fits.options.confidence)),
        arch=arch,
        axis=axis,
        method=method or fits.options.method,
        variant=variant,
        value=found.value,
        ci_lo=low,
        ci_hi=high,
        baseline=base.value,
    )


def multiplier_findings(
    fits: Fits, check: Check, variant: str, found: Mapping[GroupKey, Comparison]
) -> list[Finding]:
    """Return how every multiplier along FLOPs of a variant compares with that of the fit."""
    base = multipliers(fits)
    return [
        Finding(
            check=check,
            quantity="multiplier",
            status=against(
                row.multiplier, base[key].multiplier, (base[key].ci_lo, base[key].ci_hi)
            ),
            arch=row.arch,
            reference=row.reference,
            axis=row.axis,
            method=row.method,
            budget_flops=row.budget_flops,
            variant=variant,
            value=row.multiplier,
            ci_lo=row.ci_lo,
            ci_hi=row.ci_hi,
            baseline=base[key].multiplier,
            detail=None if row.status == "estimate" else row.meaning,
        )
        for key, row in found.items()
        if key in base
    ]


def ranking_findings(
    fits: Fits,
    check: Check,
    variant: str,
    found: Mapping[GroupKey, Comparison],
    claims: Sequence[PairOrder],
) -> list[Finding]:
    """Return, per budget, the order by multiplier and whether it keeps the orders claimed.

    ``moves`` names a claimed pair that turns round; without any claim, there is nothing to keep.
    """
    reference = fits.reference
    assert reference is not None
    findings = []
    for budget in sorted({budget for _, budget in found}):
        known = {
            arch: row.multiplier
            for (arch, b), row in found.items()
            if b == budget and row.status == "estimate" and row.multiplier is not None
        }
        known[reference] = 1.0
        order = sorted(known, key=lambda arch: (-known[arch], arch))
        claimed = [p for p in claims if p.budget_flops == budget and p.claimed]
        testable = [p for p in claimed if p.better in known and p.worse in known]
        turned = [p for p in testable if known[p.better] < known[p.worse]]
        findings.append(
            Finding(
                check=check,
                quantity="ranking",
                status="moves" if turned else "ok" if testable else "not_measured",
                reference=reference,
                budget_flops=budget,
                variant=variant,
                value=float(len(turned)),
                baseline=float(len(claimed)),
                n_points=len(known),
                detail=" > ".join(order)
                + "".join(f"; {p.better} over {p.worse} turns round" for p in turned),
            )
        )
    return findings


VARIANT = "excluded rows let in"


def selection_findings(rows: Rows, fits: Fits) -> list[Finding]:
    """Return a finding per excluded row, then the with/without lines.

    Let in are excluded rows that have a usable loss, parameters and tokens, outliers and runs off
    their budget included; a row that repeats another stays out, as do repeats that no seed tells
    apart. The lines' baseline is the fit without them.
    """
    findings = [
        Finding(
            check="selection",
            quantity="excluded_loss",
            status="info",
            arch=row.arch,
            budget_flops=row.budget_flops,
            variant=row.reason,
            value=row.loss,
            detail=" ".join(part for part in (row.run_id, row.detail) if part) or None,
        )
        for row in fits.excluded
    ]
    return findings + _with_without(rows, fits)


def _with_without(rows: Rows, fits: Fits) -> list[Finding]:
    other = refit_rows([_let_in(row) for row in rows], fits)
    before = sum(map(len, fits.groups.values()))
    added = sum(map(len, other.groups.values())) - before
    if added == 0:
        note = "no excluded row has a usable loss, parameters and tokens"
        return [
            Finding(
                check="selection",
                quantity="rows_let_in",
                status="info",
                variant=VARIANT,
                value=0.0,
                detail=note,
            )
        ]
    axes: tuple[LawAxis, ...] = tuple(dict.fromkeys((fits.options.axis, "loss")))
    exponents = [
        exponent_finding(fits, "selection", VARIANT, arch, axis, exponent(other, arch, axis))
        for arch in fits.archs
        for axis in axes
    ]
    count = Finding(
        check="selection",
        quantity="rows_let_in",
        status="info",
        variant=VARIANT,
        value=float(added),
        baseline=float(before),
    )
    return [count, *exponents, *multiplier_findings(fits, "selection", VARIANT, multipliers(other))]


def _let_in(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, "status": "done", "excluded_reason": None}


def method_findings(fits: Fits, claims: tuple[PairOrder, ...]) -> list[Finding]:
    """Return exponents by method, then multipliers and rankings by axis and method.

    An exponent is held against its own axis under the fit's method; a multiplier and a ranking
    against the fit's axis and method.
    """
    pairs = sorted({(o.axis, o.method) for o in fits.optima}, key=_order)
    findings = [
        exponent_finding(
            fits,
            "method",
            f"{axis}/{method}",
            arch,
            axis,
            exponent(fits.under(method=method), arch, axis),
            method,
        )
        for arch in fits.archs
        for axis in LAW_AXES
        for source, method in pairs
        if source == law_source(axis)
    ]
    for source, method in pairs:
        variant = f"{source}/{method}"
        found = multipliers(fits.under(axis=source, method=method))
        findings += multiplier_findings(fits, "method", variant, found)
        findings += ranking_findings(fits, "method", variant, found, claims)
    return findings


def _order(pair: tuple[Axis, Method]) -> tuple[int, int]:
    return AXES.index(pair[0]), list(METHODS).index(pair[1])


_LEDGER_COLUMNS = (
    "n_params",
    "n_active",
    "n_nonembed",
    "n_layers",
    "n_heads",
    "seq_len",
    "n_tokens",
    *(f"flops_{name}" for name in COMPONENT_NAMES if name not in ("norms", "other")),
)

Price = Callable[[Mapping[str, Any]], float | None]

# 6 FLOPs per parameter and token (Kaplan et al. 2020), for tables without component FLOPs.
_SIMPLE = {"6nd": "n_params", "6nd_active": "n_active", "6nd_nonembed": "n_nonembed"}


def convention_findings(rows: Rows, fits: Fits, claims: tuple[PairOrder, ...]) -> list[Finding]:
    """Return multipliers, rankings, exponents and the spread of groups under each convention.

    With the component FLOPs of runs.parquet: all conventions of isoflop.accounting. Otherwise 6ND
    with the parameters that the table has.
    """
    findings: list[Finding] = []
    options = fits.options
    points = entering_rows(rows, options.repeats, screened=options.screen, unit=fits.unit)
    for name, price in _prices(points).items():
        priced = [{**row, "flops": price(row)} for row in points]
        if any(row["flops"] is None for row in priced):
            continue
        repriced = refit_rows(priced, fits)
        found = multipliers(repriced)
        variant = f"{name} (the table's own)" if _is_own(points, price) else name
        findings += multiplier_findings(fits, "convention", variant, found)
        findings += ranking_findings(fits, "convention", variant, found, claims)
        findings += _exponents(repriced, fits, variant)
        findings.append(_spread(repriced, variant))
    return findings


def _prices(points: Rows) -> dict[str, Price]:
    if not points:
        return {}
    if all(_has_ledger(row) for row in points):
        return {name: _by_ledger(name) for name in CONVENTIONS}
    return {name: _by_count(column) for name, column in _SIMPLE.items()}


def _by_ledger(name: str) -> Price:
    def price(row: Mapping[str, Any]) -> float | None:
        return float(CONVENTIONS[name](stored_ledger(row))) * float(row["n_tokens"])

    return price


def _has_ledger(row: Mapping[str, Any]) -> bool:
    """Return whether the row holds the counts of a transformer as isoflop.accounting makes them."""
    if any(row.get(column) is None for column in _LEDGER_COLUMNS):
        return False
    scores, seq_len = float(row["flops_attn_scores"]), float(row["seq_len"])
    # Half of the scores of T tokens, which is a whole number of FLOPs.
    return seq_len >= 1 and (scores * (seq_len + 1)) % (2 * seq_len) == 0


def _by_count(column: str) -> Price:
    def price(row: Mapping[str, Any]) -> float | None:
        count = row.get(column)
        flops = math.nan if count is None else 6.0 * float(count) * float(row["n_tokens"])
        return flops if math.isfinite(flops) and flops > 0 else None

    return price


def _is_own(points: Rows, price: Price) -> bool:
    """Return whether the convention gives the FLOPs that the table states."""
    stated = [(row.get("flops"), price(row)) for row in points]
    return bool(stated) and all(
        own is not None and other is not None and abs(other / own - 1) < 1e-9
        for own, other in stated
    )


def _exponents(repriced: Fits, fits: Fits, variant: str) -> list[Finding]:
    """Return exponents in the mean FLOPs of each group under the convention."""
    return [
        exponent_finding(
            fits,
            "convention",
            variant,
            law.arch,
            law.axis,
            Exponent(value=law.exponent, drawn=None),
        )
        for law in fit_laws(repriced.optima, budget="achieved")
        if law.axis in (fits.options.axis, "loss")
    ]


def _spread(fits: Fits, variant: str) -> Finding:
    """Return the widest group: its dearest run over its cheapest."""
    spreads = []
    for points in fits.groups.values():
        flops = [point.flops for point in points if point.flops is not None]
        if flops:
            spreads.append(max(flops) / min(flops))
    widest = max(spreads, default=None)
    return Finding(
        check="convention",
        quantity="spread",
        status="info",
        variant=variant,
        value=widest,
        detail="dearest over cheapest run of the widest group, in FLOPs of this convention",
    )

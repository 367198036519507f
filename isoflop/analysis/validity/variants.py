"""The same answers from other rows and methods, held against those of the fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from isoflop.analysis.compare.claims import interval
from isoflop.analysis.compare.differences import Exponent, PairOrder, exponent
from isoflop.analysis.compare.multipliers import Comparison, compared_along
from isoflop.analysis.laws import LawAxis, law_axes, law_source
from isoflop.analysis.optima import find_optima
from isoflop.analysis.optima_methods import METHODS, Method
from isoflop.analysis.points import Axis, GroupKey, select_points
from isoflop.analysis.result import Fits
from isoflop.analysis.validity.finding import Check, Finding, FindingStatus

Rows = Sequence[Mapping[str, Any]]


def refit_rows(rows: Iterable[Mapping[str, Any]], fits: Fits) -> Fits:
    """Return the optima of other rows, on the fit's axis and over parameters (for the loss).

    They have no draws, and keep of the fit its reference, the weights of its optima and what C of
    its laws is. Outliers and runs off their budget are not looked for: the rows are those that a
    variant means.
    """
    selection = select_points(
        rows, fits.options.repeats, screened=False, unit=fits.unit, axis=fits.options.axis
    )
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
    axes = law_axes(o.axis for o in fits.optima)
    pairs = [
        (axis, method)
        for axis in axes
        for method in METHODS
        if any((o.axis, o.method) == (axis, method) for o in fits.optima)
    ]
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
        for axis in axes
        for source, method in pairs
        if source == law_source(axis)
    ]
    for source, method in pairs:
        variant = f"{source}/{method}"
        found = multipliers(fits.under(axis=source, method=method))
        findings += multiplier_findings(fits, "method", variant, found)
        findings += ranking_findings(fits, "method", variant, found, claims)
    return findings

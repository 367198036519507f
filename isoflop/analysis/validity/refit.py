"""The same answers from other rows or other settings: exponents, multipliers and their order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from isoflop.analysis.compare import Comparison, compare_archs
from isoflop.analysis.compare_exponents import Exponent, exponent
from isoflop.analysis.compare_interval import FitsLike, interval
from isoflop.analysis.compare_orders import PairOrder
from isoflop.analysis.laws import LawAxis, law_source
from isoflop.analysis.optima import Method, Optimum, find_optima
from isoflop.analysis.points import Axis, GroupKey, Point, Selection, select_points
from isoflop.analysis.resample import Draws
from isoflop.analysis.validity.finding import Check, Finding, FindingStatus

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What a check compares with, and how."""

    fits: FitsLike
    reference: str
    axis: Axis
    method: Method
    confidence: float

    @property
    def archs(self) -> list[str]:
        """Sorted labels."""
        return sorted({arch for arch, _ in self.fits.selection.groups})

    def multipliers(
        self, fits: FitsLike, axis: Axis | None = None, method: Method | None = None
    ) -> dict[GroupKey, Comparison]:
        """Return the comparison along FLOPs by (arch, budget), the reference left out."""
        if self.reference not in {arch for arch, _ in fits.selection.groups}:
            return {}
        rows = compare_archs(
            fits,
            reference=self.reference,
            axis=axis or self.axis,
            method=method or self.method,
            confidence=self.confidence,
            resources=("flops",),
        )
        return {(row.arch, row.budget_flops): row for row in rows if row.arch != self.reference}


@dataclass(frozen=True, kw_only=True, slots=True)
class PointFits:
    """Optima of other rows, without draws."""

    selection: Selection
    optima: tuple[Optimum, ...]
    draws: dict[tuple[Axis, Method], Draws] = field(default_factory=dict)


def refit_rows(rows: Iterable[Mapping[str, Any]], setting: Setting) -> PointFits:
    """Return the optima of the rows, on the setting's axis and over parameters (for the loss)."""
    return refit(select_points(rows).groups, setting)


def refit(groups: Mapping[GroupKey, Sequence[Point]], setting: Setting) -> PointFits:
    """As `refit_rows`, of points that are selected already."""
    kept = {key: tuple(points) for key, points in groups.items()}
    axes: tuple[Axis, ...] = tuple(dict.fromkeys((setting.axis, law_source("loss"))))
    return PointFits(
        selection=Selection(groups=kept, excluded=()),
        optima=find_optima(kept, axes=axes, methods=(setting.method,)),
    )


def against(
    value: float | None, baseline: float | None, bounds: tuple[float | None, float | None]
) -> FindingStatus:
    """Return whether a value stays within the interval of the fit itself."""
    low, high = bounds
    if value is None or baseline is None or low is None or high is None:
        return "not_measured"
    return "ok" if low <= value <= high else "moves"


def exponent_finding(
    setting: Setting,
    check: Check,
    variant: str,
    arch: str,
    found: Exponent,
    *,
    axis: LawAxis,
    method: Method,
) -> Finding:
    """Return how an exponent of the arch compares with that of the fit itself."""
    base = exponent(setting.fits, arch, axis, setting.method)
    low, high = interval(found.drawn, setting.confidence)
    return Finding(
        check=check,
        quantity="exponent",
        status=against(found.value, base.value, interval(base.drawn, setting.confidence)),
        arch=arch,
        axis=axis,
        method=method,
        variant=variant,
        value=found.value,
        ci_lo=low,
        ci_hi=high,
        baseline=base.value,
    )


def multiplier_findings(
    setting: Setting,
    check: Check,
    variant: str,
    found: Mapping[GroupKey, Comparison],
    *,
    axis: Axis | None = None,
    method: Method | None = None,
) -> list[Finding]:
    """Return how every multiplier along FLOPs compares with that of the fit itself."""
    base = setting.multipliers(setting.fits)
    return [
        Finding(
            check=check,
            quantity="multiplier",
            status=against(
                row.multiplier, base[key].multiplier, (base[key].ci_lo, base[key].ci_hi)
            ),
            arch=row.arch,
            reference=setting.reference,
            axis=axis or setting.axis,
            method=method or setting.method,
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
    setting: Setting,
    check: Check,
    variant: str,
    found: Mapping[GroupKey, Comparison],
    claims: Sequence[PairOrder],
) -> list[Finding]:
    """Return, per budget, the order by multiplier and whether it keeps the orders claimed.

    ``moves`` names a claimed pair that turns round; without any claim, there is nothing to keep.
    """
    findings = []
    for budget in sorted({budget for _, budget in found}):
        known = {
            arch: row.multiplier
            for (arch, b), row in found.items()
            if b == budget and row.status == "estimate" and row.multiplier is not None
        }
        known[setting.reference] = 1.0
        order = sorted(known, key=lambda arch: (-known[arch], arch))
        claimed = [p for p in claims if p.budget_flops == budget and p.claimed]
        testable = [p for p in claimed if p.better in known and p.worse in known]
        turned = [p for p in testable if known[p.better] < known[p.worse]]
        findings.append(
            Finding(
                check=check,
                quantity="ranking",
                status="moves" if turned else "ok" if testable else "not_measured",
                reference=setting.reference,
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

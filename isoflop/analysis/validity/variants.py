"""The same answers from other rows, methods and FLOP conventions, held against those of the fit.

Under another convention the runs stay in their groups and their optima stay where they are: what
changes is the price of each optimum. The runs of a group then no longer cost the same (`spread`),
so its minimum is the best of a tilted slice: no lower than that convention's frontier, for every
family alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from isoflop.accounting import COMPONENT_NAMES, CONVENTIONS, stored_ledger
from isoflop.analysis.bootstrap import Draws
from isoflop.analysis.compare.claims import FitsLike, interval
from isoflop.analysis.compare.differences import Exponent, PairOrder, exponent
from isoflop.analysis.compare.multipliers import Comparison, compare_archs
from isoflop.analysis.laws import LAW_AXES, LawAxis, fit_laws, law_source
from isoflop.analysis.optima import Optimum, find_optima
from isoflop.analysis.optima_methods import METHODS, Method
from isoflop.analysis.points import AXES, Axis, GroupKey, Point, Selection, select_points
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


VARIANT = "excluded rows let in"


def selection_findings(rows: Rows, setting: Setting) -> list[Finding]:
    """Return a finding per excluded row, then the with/without lines.

    Let in are excluded rows that have a usable loss, parameters and tokens; a row that repeats
    another stays out. The lines' baseline is the fit without them.
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
        for row in setting.fits.selection.excluded
    ]
    return findings + _with_without(rows, setting)


def _with_without(rows: Rows, setting: Setting) -> list[Finding]:
    other = refit_rows([_let_in(row) for row in rows], setting)
    before = sum(map(len, setting.fits.selection.groups.values()))
    added = sum(map(len, other.selection.groups.values())) - before
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
    axes: tuple[LawAxis, ...] = tuple(dict.fromkeys((setting.axis, "loss")))
    exponents = [
        exponent_finding(
            setting,
            "selection",
            VARIANT,
            arch,
            exponent(other, arch, axis, setting.method),
            axis=axis,
            method=setting.method,
        )
        for arch in setting.archs
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
    found = setting.multipliers(other)
    return [count, *exponents, *multiplier_findings(setting, "selection", VARIANT, found)]


def _let_in(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, "status": "done", "excluded_reason": None}


def method_findings(setting: Setting, claims: tuple[PairOrder, ...]) -> list[Finding]:
    """Return exponents by method, then multipliers and rankings by axis and method.

    An exponent is held against its own axis under the fit's method; a multiplier and a ranking
    against the fit's axis and method.
    """
    pairs = sorted({(o.axis, o.method) for o in setting.fits.optima}, key=_order)
    findings = [
        exponent_finding(
            setting,
            "method",
            f"{axis}/{method}",
            arch,
            exponent(setting.fits, arch, axis, method),
            axis=axis,
            method=method,
        )
        for arch in setting.archs
        for axis in LAW_AXES
        for source, method in pairs
        if source == law_source(axis)
    ]
    for axis, method in pairs:
        found = setting.multipliers(setting.fits, axis, method)
        variant = f"{axis}/{method}"
        findings += multiplier_findings(setting, "method", variant, found, axis=axis, method=method)
        findings += ranking_findings(setting, "method", variant, found, claims)
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
    *(f"flops_{name}" for name in COMPONENT_NAMES if name != "norms"),
)

Price = Callable[[Mapping[str, Any]], float | None]

# 6 FLOPs per parameter and token (Kaplan et al. 2020), for tables without component FLOPs.
_SIMPLE = {"6nd": "n_params", "6nd_active": "n_active", "6nd_nonembed": "n_nonembed"}


def convention_findings(
    rows: Rows, setting: Setting, claims: tuple[PairOrder, ...]
) -> list[Finding]:
    """Return multipliers, rankings, exponents and the spread of groups under each convention.

    With the component FLOPs of runs.parquet: all conventions of isoflop.accounting. Otherwise 6ND
    with the parameters that the table has.
    """
    findings: list[Finding] = []
    points = [row for row in rows if not select_points([row]).excluded]
    for name, price in _prices(points).items():
        priced = [{**row, "flops": price(row)} for row in points]
        if any(row["flops"] is None for row in priced):
            continue
        repriced = refit_rows(priced, setting)
        found = setting.multipliers(repriced)
        variant = f"{name} (the table's own)" if _is_own(points, price) else name
        findings += multiplier_findings(setting, "convention", variant, found)
        findings += ranking_findings(setting, "convention", variant, found, claims)
        findings += _exponents(repriced, setting, variant)
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


def _exponents(repriced: PointFits, setting: Setting, variant: str) -> list[Finding]:
    """Return exponents in the mean FLOPs of each group under the convention."""
    laws = fit_laws(repriced.optima, budget="achieved")
    return [
        exponent_finding(
            setting,
            "convention",
            variant,
            law.arch,
            Exponent(value=law.exponent, drawn=None),
            axis=law.axis,
            method=law.method,
        )
        for law in laws
        if law.axis in (setting.axis, "loss")
    ]


def _spread(fits: PointFits, variant: str) -> Finding:
    """Return the widest group: its dearest run over its cheapest."""
    spreads = []
    for points in fits.selection.groups.values():
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

"""Convention sensitivity: the multipliers when every run's FLOPs are counted another way.

The runs stay in their groups and their optima stay where they are: what changes is the price of
each optimum. Under another convention the runs of a group no longer cost the same (`spread`), so
its minimum is the best of a tilted slice: no lower than that convention's frontier, for every
family alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from isoflop.accounting import COMPONENT_NAMES, CONVENTIONS, stored_ledger
from isoflop.analysis.compare_exponents import Exponent
from isoflop.analysis.compare_orders import PairOrder
from isoflop.analysis.laws import fit_laws
from isoflop.analysis.points import select_points
from isoflop.analysis.validity.finding import Finding
from isoflop.analysis.validity.refit import (
    PointFits,
    Rows,
    Setting,
    exponent_finding,
    multiplier_findings,
    ranking_findings,
    refit_rows,
)

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

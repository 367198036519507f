"""The same answers under other FLOP conventions, held against those of the fit.

Under another convention the runs stay in their groups and their optima stay where they are: what
changes is the price of each optimum. The runs of a group then no longer cost the same (`spread`),
so its minimum is the best of a tilted slice: no lower than that convention's frontier, for every
family alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from isoflop.accounting import (
    COMPONENT_NAMES,
    CONVENTIONS,
    Ledger,
    causal,
    six_n,
    six_n_total,
    stored_ledger,
)
from isoflop.analysis.compare.differences import Exponent, PairOrder
from isoflop.analysis.laws import fit_laws
from isoflop.analysis.points import entering_rows
from isoflop.analysis.result import Fits
from isoflop.analysis.validity.finding import Finding
from isoflop.analysis.validity.variants import (
    Rows,
    exponent_finding,
    multiplier_findings,
    multipliers,
    ranking_findings,
    refit_rows,
)
from isoflop.errors import UserError

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

# A counted model's FLOPs per token are rounded up to whole ones.
_ROUNDED = 1e-6
_WITHOUT_PARTS = (
    "FLOPs of some families are declared, so that those of their parts are not known: no "
    "convention that counts parts can be applied"
)
_NOT_SHOWN = "not known: the table does not tell of counted models what it counts"

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
    is_own = any(row.get("declared") is not None for row in points)
    if is_own and not all(_has_components(row) for row in points):
        findings.append(_not_known("parts of the model", _WITHOUT_PARTS))
    for name, price in _prices(points).items():
        priced = [{**row, "flops": price(row)} for row in points]
        if any(row["flops"] is None for row in priced):
            if is_own:
                findings.append(_not_known(name, _NOT_SHOWN))
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
    if all(_has_components(row) for row in points):
        prices = {name: _where_known(name) for name in CONVENTIONS}
        # The table has the forward pass of counted models: what training takes follows from it
        # where it then is what the table states.
        if any(_is_own(points, price, _ROUNDED) for price in prices.values()):
            return prices
        return {name: _by_parameters(name, CONVENTIONS[name]) for name in CONVENTIONS}
    return {name: _by_count(column) for name, column in _SIMPLE.items()}


def _by_ledger(name: str) -> Price:
    def price(row: Mapping[str, Any]) -> float | None:
        return float(CONVENTIONS[name](stored_ledger(row))) * float(row["n_tokens"])

    return price


def _where_known(name: str) -> Price:
    """Return the price by a convention; of what the table does not tell of a model, None."""
    by_ledger = _by_ledger(name)

    def price(row: Mapping[str, Any]) -> float | None:
        # Whether a module of one's own scored every pair of tokens is not in the table.
        is_own = row.get("declared") is False
        if is_own and CONVENTIONS[name] is causal and row.get("flops_attn_scores"):
            return None
        try:
            return by_ledger(row)
        except UserError:
            return None

    return price


def _by_parameters(name: str, count: Callable[[Ledger], int]) -> Price:
    """Return the price by a convention of parameters alone; that of any other is not known."""
    by_ledger = _by_ledger(name)
    return by_ledger if count in (six_n, six_n_total) else lambda _: None


def _has_components(row: Mapping[str, Any]) -> bool:
    """Return whether the row holds counted FLOPs by component: of any family, or of a module."""
    is_counted = row.get("declared") is False and any(
        row.get(f"flops_{name}") for name in COMPONENT_NAMES
    )
    return is_counted or _has_ledger(row)


def _not_known(variant: str, why: str) -> Finding:
    return Finding(
        check="convention", quantity="recount", status="not_measured", variant=variant, detail=why
    )


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


def _is_own(points: Rows, price: Price, error: float = 1e-9) -> bool:
    """Return whether the convention gives the FLOPs that the table states, but for an error."""
    stated = [(row.get("flops"), price(row)) for row in points]
    return bool(stated) and all(
        own is not None and other is not None and abs(other / own - 1) < error
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

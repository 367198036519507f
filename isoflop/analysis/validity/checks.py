"""All checks of validity of one fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from isoflop.analysis.compare import pick_reference
from isoflop.analysis.compare_interval import FitsLike
from isoflop.analysis.compare_orders import PairOrder, pair_orders
from isoflop.analysis.optima import Method
from isoflop.analysis.points import Axis
from isoflop.analysis.validity.conventions import convention_findings
from isoflop.analysis.validity.design import (
    budget_findings,
    centre_findings,
    duplicate_findings,
    noise_findings,
)
from isoflop.analysis.validity.finding import Check, Finding
from isoflop.analysis.validity.held_out import held_out_findings, heldout_error
from isoflop.analysis.validity.methods import method_findings
from isoflop.analysis.validity.refit import Rows, Setting
from isoflop.analysis.validity.selection import selection_findings

_VARIANTS: tuple[Check, ...] = ("selection", "method", "convention")


@dataclass(frozen=True, kw_only=True, slots=True)
class Validity:
    """The findings of all checks."""

    findings: tuple[Finding, ...]

    def of(self, check: Check, quantity: str | None = None) -> tuple[Finding, ...]:
        """Return the findings of one check, of one quantity where it is named."""
        return tuple(
            f for f in self.findings if f.check == check and quantity in (None, f.quantity)
        )

    @property
    def varied(self) -> tuple[Finding, ...]:
        """Answers of variants of the fit that could be held against its own."""
        return tuple(
            f for f in self.findings if f.check in _VARIANTS and f.status in ("ok", "moves")
        )

    @property
    def moved(self) -> tuple[Finding, ...]:
        """Variants in which an answer leaves its interval, or a claimed order turns round."""
        return tuple(f for f in self.findings if f.status == "moves")

    def heldout_error(self, arch: str, axis: str | None) -> float | None:
        """Return the column of fits.parquet: see held_out.heldout_error."""
        return heldout_error(self.findings, arch, axis)

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of validity.parquet."""
        return [finding.row() for finding in self.findings]


def validity(
    rows: Rows,
    fits: FitsLike,
    *,
    reference: str | None = None,
    axis: Axis = "n_params",
    method: Method = "parabola",
    confidence: float = 0.95,
) -> Validity:
    """Check the fit of some rows; the same arguments as for the comparison.

    Args:
        rows: the rows that were fitted, excluded ones and all columns included.
        fits: their fit.
        reference: an arch of the table; None: see compare.default_reference.
        axis: of the comparison.
        method: of the comparison.
        confidence: of the intervals.

    Raises:
        UserError: the reference is not in the table.
    """
    chosen = pick_reference([arch for arch, _ in fits.selection.groups], reference)
    if chosen is None:
        return Validity(findings=())
    setting = Setting(fits=fits, reference=chosen, axis=axis, method=method, confidence=confidence)
    pairs = pair_orders(fits, axis=axis, method=method, confidence=confidence)
    return Validity(
        findings=(
            *selection_findings(rows, setting),
            *held_out_findings(setting),
            *method_findings(setting, pairs),
            *convention_findings(rows, setting, pairs),
            *noise_findings(setting),
            *budget_findings(setting),
            *centre_findings(setting),
            *duplicate_findings(setting),
            *_pair_findings(pairs, axis, method),
        )
    )


def _pair_findings(pairs: tuple[PairOrder, ...], axis: Axis, method: Method) -> list[Finding]:
    """Return the orders by loss: status ok where the order is claimed."""
    return [
        Finding(
            check="ranking",
            quantity="log_loss_ratio",
            status="ok" if pair.claimed else "not_measured" if pair.ci_lo is None else "info",
            arch=pair.better,
            reference=pair.worse,
            axis=axis,
            method=method,
            budget_flops=pair.budget_flops,
            variant="claimed" if pair.claimed else "not claimed",
            value=pair.log_ratio,
            ci_lo=pair.ci_lo,
            ci_hi=pair.ci_hi,
        )
        for pair in pairs
    ]

"""How far the answers of a fit depend on choices that were made: one long table of findings."""

from __future__ import annotations

from isoflop.analysis.compare.differences import PairOrder, pair_orders
from isoflop.analysis.result import Fits
from isoflop.analysis.validity.conventions import convention_findings
from isoflop.analysis.validity.design import (
    budget_findings,
    centre_findings,
    duplicate_findings,
    near_budget_findings,
    noise_findings,
    scatter_findings,
    selected_findings,
)
from isoflop.analysis.validity.finding import VALIDITY, Finding, Validity
from isoflop.analysis.validity.held_out import held_out_findings
from isoflop.analysis.validity.variants import (
    Rows,
    method_findings,
    selection_findings,
)

__all__ = ["VALIDITY", "Finding", "Validity", "validity"]


def validity(rows: Rows, fits: Fits) -> Validity:
    """Check the fit of some rows, excluded ones and all columns included.

    Raises:
        UserError: the reference is not in the table.
    """
    if fits.reference is None:
        return Validity(findings=())
    pairs = pair_orders(fits)
    return Validity(
        findings=(
            *selection_findings(rows, fits),
            *held_out_findings(fits),
            *method_findings(fits, pairs),
            *convention_findings(rows, fits, pairs),
            *noise_findings(fits),
            *scatter_findings(fits),
            *budget_findings(fits),
            *near_budget_findings(fits),
            *centre_findings(fits),
            *selected_findings(fits),
            *duplicate_findings(fits),
            *_pair_findings(fits, pairs),
        )
    )


def _pair_findings(fits: Fits, pairs: tuple[PairOrder, ...]) -> list[Finding]:
    """Return the orders by loss: status ok where the order is claimed."""
    return [
        Finding(
            check="ranking",
            quantity="log_loss_ratio",
            status="ok" if pair.claimed else "not_measured" if pair.ci_lo is None else "info",
            arch=pair.better,
            reference=pair.worse,
            axis=fits.options.axis,
            method=fits.options.method,
            budget_flops=pair.budget_flops,
            variant="claimed" if pair.claimed else "not claimed",
            value=pair.log_ratio,
            ci_lo=pair.ci_lo,
            ci_hi=pair.ci_hi,
        )
        for pair in pairs
    ]

"""How far the answers of a fit depend on choices that were made: one long table of findings."""

from __future__ import annotations

from isoflop.analysis.compare.claims import FitsLike
from isoflop.analysis.compare.differences import PairOrder, pair_orders
from isoflop.analysis.compare.multipliers import pick_reference
from isoflop.analysis.optima_methods import Method
from isoflop.analysis.points import Axis
from isoflop.analysis.validity.design import (
    budget_findings,
    centre_findings,
    duplicate_findings,
    noise_findings,
)
from isoflop.analysis.validity.finding import Finding, Validity
from isoflop.analysis.validity.held_out import held_out_findings
from isoflop.analysis.validity.variants import (
    Rows,
    Setting,
    convention_findings,
    method_findings,
    selection_findings,
)

__all__ = ["Finding", "Validity", "validity"]


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

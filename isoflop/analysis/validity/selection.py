"""Run selection: each excluded row with its reason, and the answers with such rows let in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from isoflop.analysis.compare_exponents import exponent
from isoflop.analysis.laws import LawAxis
from isoflop.analysis.validity.finding import Finding
from isoflop.analysis.validity.refit import (
    Rows,
    Setting,
    exponent_finding,
    multiplier_findings,
    refit_rows,
)

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

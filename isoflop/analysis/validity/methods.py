"""Method sensitivity: the same answers by each method of optima and on each axis."""

from __future__ import annotations

from typing import get_args

from isoflop.analysis.compare_exponents import exponent
from isoflop.analysis.compare_orders import PairOrder
from isoflop.analysis.laws import LAW_AXES, law_source
from isoflop.analysis.optima import Method
from isoflop.analysis.points import Axis
from isoflop.analysis.validity.finding import Finding
from isoflop.analysis.validity.refit import (
    Setting,
    exponent_finding,
    multiplier_findings,
    ranking_findings,
)


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
    return get_args(Axis).index(pair[0]), get_args(Method).index(pair[1])

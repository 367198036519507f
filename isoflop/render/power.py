"""The power of a plan: the intervals to expect, for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from isoflop.numbers import format_flops
from isoflop.render.tables import new_table

if TYPE_CHECKING:
    from isoflop.analysis.power import PowerReport

MISSING = "-"


def power_table(report: PowerReport) -> Table:
    """Return what to expect for each arch: a row each."""
    budgets = sorted({b for power in report.archs for b in power.multipliers})
    outer = list(dict.fromkeys([*budgets[:1], *budgets[-1:]]))
    table = new_table(
        ("arch", "<"),
        ("runs", ">"),
        ("exponent a ±", ">"),
        *((f"multiplier at {format_flops(budget)} ×/÷", ">") for budget in outer),
        ("lost at edges %", ">"),
    )
    for power in report.archs:
        multipliers = [power.multipliers.get(budget) for budget in outer]
        is_reference = power.arch == report.reference
        table.add_row(
            power.arch,
            f"{power.num_runs:,}",
            _number(power.exponent_halfwidth),
            *("reference" if is_reference else _factor(value) for value in multipliers),
            f"{100 * power.edge_share:.1f}",
        )
    return table


def design_table(report: PowerReport) -> Table:
    """Return what one seed, size or budget more would buy: a row each, the widest of all archs."""
    table = new_table(
        ("design", "<"),
        ("runs", ">"),
        ("FLOPs", ">"),
        ("exponent a ±", ">"),
        ("multiplier ×/÷", ">"),
    )
    for design in report.designs:
        table.add_row(
            design.label,
            f"{design.num_runs:,}",
            f"× {design.cost:.2f}",
            _number(design.exponent_halfwidth),
            _factor(design.multiplier),
        )
    return table


def power_lines(report: PowerReport) -> list[str]:
    """Return what the tables of a power report mean and rest on."""
    return [
        "95 % intervals to expect (estimates): the exponent a of N* ∝ C^a is its value ±, the "
        f"compute multiplier against {report.reference} its value × or ÷",
        *(f"assumes: {text}" for text in report.assumptions),
    ]


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.4f}"


def _factor(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3f}" if value < 100 else "> 100"

"""The part of a report that compares families."""

from __future__ import annotations

from collections.abc import Sequence

from isoflop.analysis.compare.differences import ExponentDifference
from isoflop.analysis.compare.multipliers import Comparison
from isoflop.analysis.report.document import (
    ARCH,
    BUDGET,
    Block,
    Items,
    Picture,
    Section,
    bounded,
    interval,
    label_column,
    number_column,
    table,
    text_column,
)
from isoflop.analysis.report.statements import RESOURCES


def comparison_section(
    comparisons: Sequence[Comparison], differences: Sequence[ExponentDifference]
) -> Section:
    """Return the multipliers over the reference and the differences of exponents."""
    others = [row for row in comparisons if row.arch != row.reference]
    order = list(RESOURCES)
    others.sort(key=lambda row: (order.index(row.resource), row.arch, row.budget_flops))
    if not others:
        sentence = "There is one family or none, so nothing to compare."
        return Section(key="comparison", title="Comparison", blocks=(sentence,))
    found = {row.resource for row in others if row.multiplier is not None}
    statuses = sorted({row.status for row in others})
    meanings = {row.status: row.meaning for row in others}
    blocks: list[Block] = [
        f"A multiplier is what {others[0].reference} needs of a resource for the loss that a "
        "family reaches at its own optimum, over what the family's optimum takes: above 1 the "
        "family is better. The slope is the reference's d loss / d ln resource there; an error "
        "of the loss divided by it is the relative error of the multiplier. An order is claimed "
        "only where the whole interval is above or below 1.",
        Picture(stem="multipliers", caption="Compute multipliers as arrows between frontiers."),
        *([_multiplier_table([r for r in others if r.resource in found])] if found else []),
        Items(items=tuple(f"{s.replace('_', ' ')}: {meanings[s]}." for s in statuses)),
    ]
    absent = [words for name, words in RESOURCES.items() if name not in found]
    if absent:
        blocks.append(f"No multiplier at any budget: {', '.join(absent)}.")
    if differences:
        blocks.append(_difference_table(differences))
    blocks += [
        Picture(stem="resources", caption="Frontiers by each resource, with the optima."),
        Picture(stem="sparsity", caption="Perplexity against parameters per FLOP."),
    ]
    return Section(key="comparison", title="Comparison", blocks=tuple(blocks))


def _multiplier_table(rows: Sequence[Comparison]) -> Block:
    signs = {"lower_bound": "≥ ", "upper_bound": "≤ "}
    columns = [
        ARCH,
        BUDGET,
        label_column("resource", "Resource"),
        number_column("multiplier", "Multiplier"),
        number_column("interval", "Interval"),
        number_column("local_slope", "Slope", 3),
        text_column("order_claimed", "Order claimed"),
        text_column("extrapolated", "Extrapolated"),
        text_column("status", "Status"),
    ]
    return table(
        f"Multipliers over {rows[0].reference}",
        columns,
        [
            {
                **row.row(),
                "resource": RESOURCES[row.resource],
                "multiplier": bounded(signs.get(row.status, ""), row.multiplier, "{:.3f}".format),
                "interval": interval(row.ci_lo, row.ci_hi, "{:.3f}".format),
            }
            for row in rows
        ],
    )


def _difference_table(rows: Sequence[ExponentDifference]) -> Block:
    columns = [
        ARCH,
        label_column("axis", "Of"),
        number_column("difference", "Difference"),
        number_column("interval", "Interval"),
        text_column("order_claimed", "Order claimed"),
        text_column("status", "Status"),
    ]
    return table(
        f"Exponents minus those of {rows[0].reference}",
        columns,
        [
            {**row.row(), "interval": interval(row.ci_lo, row.ci_hi, "{:.4f}".format)}
            for row in rows
        ],
    )

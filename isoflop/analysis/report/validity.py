"""What a report says of the hypotheses, and of how far the answers depend on choices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from isoflop.analysis.hypotheses import Verdict
from isoflop.analysis.report.document import (
    Block,
    Section,
    flops_column,
    interval,
    label_column,
    number_column,
    table,
    text_column,
)
from isoflop.analysis.validity import Finding

_TITLES = {
    "selection": "Selection of runs: the fit with the excluded but usable runs back in",
    "held_out": "Held-out budgets (the largest eight at most): fitted on the smaller ones, scored "
    "on the next",
    "method": "Sensitivity to the method of finding optima",
    "convention": "Sensitivity to the FLOP convention",
    "seed_noise": "Seed noise, from repeated cells",
    "shared_noise": "Noise that runs of one trunk share at all of its budgets",
    "lack_of_fit": "Scatter of sizes about the curve against that of repeats (F test)",
    "unequal_noise": "Whether all budgets scatter alike (Bartlett's test)",
    "achieved_budget": "Budgets as achieved instead of nominal",
    "near_budget": "Budgets that nearly agree and are taken as different ones",
    "off_centre": "Optima off the centre of their grids",
    "selected_optima": "Optima at edges of their grids, which enter no law",
    "duplicate_size": "Sizes that occur more than once",
    "ranking": "Ranking of the families by loss",
}
_COLUMNS = (
    label_column("arch", "Family"),
    label_column("reference", "Reference"),
    label_column("axis", "Axis"),
    label_column("method", "Method"),
    flops_column("budget_flops", "Budget (FLOPs)"),
    label_column("variant", "Variant"),
    text_column("quantity", "Quantity"),
    number_column("value", "Value", 5),
    number_column("interval", "Interval"),
    number_column("baseline", "In the fit", 5),
    number_column("n_points", "Points"),
    text_column("status", "Status"),
    label_column("detail", "Detail"),
)
_ALWAYS = ("quantity", "value", "status")


def hypotheses_section(verdicts: Sequence[Verdict], *, has_study: bool) -> Section:
    """Return the verdict on each hypothesis that was frozen with the plan."""
    blocks: list[Block] = []
    if verdicts:
        columns = [
            label_column("id", "Id"),
            label_column("claim", "Claim"),
            label_column("decide", "Rule"),
            text_column("verdict", "Verdict"),
            label_column("detail", "Because"),
        ]
        blocks.append(table("Hypotheses", columns, [asdict(verdict) for verdict in verdicts]))
    elif has_study:
        blocks.append("The study states no hypothesis.")
    else:
        blocks.append("The table has no study around it, so no hypothesis was stated beforehand.")
    return Section(key="hypotheses", title="Hypotheses", blocks=tuple(blocks))


def validity_section(findings: Sequence[Finding]) -> Section:
    """Return one table per check, with the columns that it uses."""
    if not findings:
        sentence = "No check was made."
        return Section(key="validity", title="Validity", blocks=(sentence,))
    blocks: list[Block] = [
        "ok: the answer does not depend on it. moves: the answer leaves its interval, or a "
        "claimed order turns round. attention: a property of the design that biases or weakens "
        "the answer, or a prediction that failed. not measured: the table does not say. info: no "
        "judgement."
    ]
    moved = [finding for finding in findings if finding.status == "moves"]
    if moved:
        blocks.append(_table("Answers that move, from the tables below", moved))
    for check in dict.fromkeys(finding.check for finding in findings):
        title = _TITLES.get(check, check.replace("_", " "))
        blocks.append(_table(title, [finding for finding in findings if finding.check == check]))
    return Section(key="validity", title="Validity", blocks=tuple(blocks))


def _table(title: str, findings: Sequence[Finding]) -> Block:
    """Return a table of the columns that any of the findings uses; the check where they differ."""
    rows = [_row(finding) for finding in findings]
    used = [
        column
        for column in _COLUMNS
        if column.key in _ALWAYS or any(row[column.key] is not None for row in rows)
    ]
    checks = [text_column("check", "Check")] if len({row["check"] for row in rows}) > 1 else []
    return table(title, [*checks, *used], rows)


def _row(finding: Finding) -> dict[str, Any]:
    row = asdict(finding)
    has_interval = finding.ci_lo is not None and finding.ci_hi is not None
    ends = interval(finding.ci_lo, finding.ci_hi, "{:.4g}".format) if has_interval else None
    return {**row, "interval": ends}

"""What a report says of families against each other: the section, and the findings in words.

Each sentence is made from its numbers and is no stronger than they allow.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict

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
from isoflop.analysis.resources import RESOURCES
from isoflop.analysis.result import Fits
from isoflop.analysis.validity.attention import attention
from isoflop.numbers import format_flops, format_multiplier

_NO_ORDER = "no order is claimed"
_THREE_DECIMALS = functools.partial(format_multiplier, digits=3)
_AXIS = {
    "n_params": "N*",
    "n_tokens": "D*",
    "n_active": "active parameters",
    "loss": "the loss",
}


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
    absent = [one.words for one in RESOURCES.values() if one.name not in found]
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
                **asdict(row),
                "resource": RESOURCES[row.resource].words,
                "multiplier": bounded(signs.get(row.status, ""), row.multiplier, _THREE_DECIMALS),
                "interval": interval(row.ci_lo, row.ci_hi, _THREE_DECIMALS),
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
            {**asdict(row), "interval": interval(row.ci_lo, row.ci_hi, "{:.4f}".format)}
            for row in rows
        ],
    )


def comparison_sentence(row: Comparison) -> str:
    """Return what one multiplier says.

    For example: "At 1e18 FLOPs swiglu needs 1.80 times the compute of sgatlin for the same loss
    (95 % interval 1.60 to 2.00)."
    """
    place = f"At {format_flops(row.budget_flops)} FLOPs"
    start = f"{place} {row.arch}"
    resource = RESOURCES[row.resource].words
    if row.multiplier is None:
        return f"{start} has no multiplier over {row.reference} in {resource}: {row.meaning}."
    if row.status in ("lower_bound", "upper_bound"):
        side = "at least" if row.status == "lower_bound" else "at most"
        return (
            f"{start} against {row.reference}: the multiplier in {resource} is {side} "
            f"{format_multiplier(row.multiplier)} (a bound, since {_because(row)}); {_NO_ORDER}."
        )
    return f"{place} {_outcome(row.multiplier, row, resource)} ({_interval_words(row)})."


def _because(row: Comparison) -> str:
    reason, _, _ = row.meaning.partition(":")
    return reason


def _outcome(multiplier: float, row: Comparison, resource: str) -> str:
    ratio, better, worse = multiplier, row.arch, row.reference
    if multiplier < 1.0:
        ratio, better, worse = 1 / multiplier, row.reference, row.arch
    times = f"{format_multiplier(ratio)} times the {resource}"
    return f"{worse} needs {times} of {better} for the same loss"


def _interval_words(row: Comparison) -> str:
    if row.ci_lo is None or row.ci_hi is None:
        return f"no interval, so {_NO_ORDER}"
    ends = (row.ci_lo, row.ci_hi)
    if row.multiplier is not None and row.multiplier < 1.0:
        ends = (1 / row.ci_hi, 1 / row.ci_lo)
    words = f"{100 * row.confidence:g} % interval {' to '.join(map(format_multiplier, ends))}"
    if row.order_claimed == "none":
        words += f"; {_NO_ORDER}"
        if row.n_failed and not row.ci_lo <= 1.0 <= row.ci_hi:
            words += f", since {row.n_failed} of {row.n_boot} draws lost an optimum"
    if row.extrapolated:
        words += (
            f"; beyond {row.reference}'s measured losses, and the interval leaves out the error "
            "of extrapolating"
        )
    return words


def exponent_sentence(row: ExponentDifference) -> str:
    """Return whether two exponents differ.

    For example: "The exponent of N* of sgatlin is not shown to differ from swiglu's (difference
    -0.0100 to +0.0300)."
    """
    start = f"The exponent of {_AXIS[row.axis]} of {row.arch}"
    if row.difference is None:
        return f"{start} cannot be compared with {row.reference}'s: too few optima."
    if row.ci_lo is None or row.ci_hi is None:
        return (
            f"{start} is {row.difference:+.4f} away from {row.reference}'s, without an interval; "
            f"{_NO_ORDER}."
        )
    interval = f"difference {row.ci_lo:+.4f} to {row.ci_hi:+.4f}"
    if row.order_claimed == "none":
        return f"{start} is not shown to differ from {row.reference}'s ({interval})."
    word = "higher" if row.order_claimed == "higher" else "lower"
    return f"{start} is {word} than {row.reference}'s by {abs(row.difference):.4f} ({interval})."


def findings_section(sentences: Sequence[str], fits: Fits) -> Section:
    """Return the findings, and a sentence for every check of the fit that needs attention."""
    blocks: list[Block] = [Items(items=tuple(sentences))] if sentences else []
    if not sentences:
        alone = "There is one family or none, so nothing to compare."
        blocks.append(alone if len(fits.archs) < 2 else "No two families share a budget.")
    minded = attention(fits)
    if minded:
        blocks += ["What needs attention:", Items(items=minded)]
    return Section(key="findings", title="Findings", blocks=tuple(blocks))


def findings(
    comparisons: Sequence[Comparison], differences: Sequence[ExponentDifference]
) -> tuple[str, ...]:
    """Return the sentences on compute at every budget, on time at the largest, and on N*.

    The largest budget comes first: it is the one that people ask about.
    """
    others = [row for row in comparisons if row.arch != row.reference]
    others.sort(key=lambda row: (-row.budget_flops, row.arch))
    shown = [comparison_sentence(row) for row in others if row.resource == "flops"]
    timed = [row for row in others if row.resource == "wall_s" and row.status == "estimate"]
    largest = {row.arch: max(r.budget_flops for r in timed if r.arch == row.arch) for row in timed}
    shown += [comparison_sentence(row) for row in timed if row.budget_flops == largest[row.arch]]
    shown += [exponent_sentence(row) for row in differences if row.axis == "n_params"]
    return tuple(shown)

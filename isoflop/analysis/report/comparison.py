"""What a report says of families against each other: the section, and the findings in words.

Each sentence is made from its numbers and is no stronger than they allow.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from isoflop.analysis.axes import axis_name
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
from isoflop.analysis.result import Fits, source_notes
from isoflop.analysis.validity.attention import attention, budgets_beyond, claimed_notes
from isoflop.numbers import format_flops, format_multiplier
from isoflop.units import NATS, loss_name, measure_name

_NO_ORDER = "no order is claimed"
# Of multipliers along compute; of more, the table has the rest.
_MOST_SENTENCES = 24
_THREE_DECIMALS = functools.partial(format_multiplier, digits=3)


def comparison_section(
    comparisons: Sequence[Comparison], differences: Sequence[ExponentDifference], unit: str
) -> Section:
    """Return the multipliers over the reference and the differences of exponents."""
    loss = loss_name(unit)
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
        f"A multiplier is what {others[0].reference} needs of a resource for the {loss} that a "
        "family reaches at its own optimum, over what the family's optimum takes: above 1 the "
        f"family is better. The slope is the reference's d {loss} / d ln resource there; an error "
        f"of the {loss} divided by it is the relative error of the multiplier. An interval is of "
        "one multiplier alone; those for all together hold at once along a resource, and an order "
        "is claimed where they leave out 1. It rests on losses at equal resource, so that none is "
        "claimed beyond the reference's own range.",
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
        Picture(stem="sparsity", caption=f"{measure_name(unit)} against parameters per FLOP."),
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
        number_column("interval_together", "For all together"),
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
                "interval_together": interval(
                    row.ci_lo_simultaneous, row.ci_hi_simultaneous, _THREE_DECIMALS
                ),
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
        number_column("interval_together", "For all together"),
        text_column("order_claimed", "Order claimed"),
        text_column("status", "Status"),
    ]
    form = "{:.4f}".format
    return table(
        f"Exponents minus those of {rows[0].reference}",
        columns,
        [
            {
                **asdict(row),
                "interval": interval(row.ci_lo, row.ci_hi, form),
                "interval_together": interval(row.ci_lo_simultaneous, row.ci_hi_simultaneous, form),
            }
            for row in rows
        ],
    )


def comparison_sentence(row: Comparison, unit: str = NATS, *, is_beyond: bool = False) -> str:
    """Return what one multiplier says.

    For example: "At 1e18 FLOPs swiglu needs 1.80 times the compute of sgatlin for the same loss
    (95 % interval 1.60 to 2.00, for all together 1.50 to 2.20)."

    Args:
        row: the comparison.
        unit: of the losses.
        is_beyond: whether its budget lies beyond those of the reference (`budgets_beyond`).
    """
    place = f"At {format_flops(row.budget_flops)} FLOPs"
    start = f"{place} {row.arch}"
    resource, loss = RESOURCES[row.resource].words, loss_name(unit)
    if row.multiplier is None:
        none = f"{start} has no multiplier over {row.reference} in {resource}: {row.meaning}"
        return f"{none}{_order_at_equal(row, resource, loss)}."
    if row.status in ("lower_bound", "upper_bound"):
        side = "at least" if row.status == "lower_bound" else "at most"
        return (
            f"{start} against {row.reference}: the multiplier in {resource} is {side} "
            f"{format_multiplier(row.multiplier)} (a bound, since {_because(row)}); {_NO_ORDER}."
        )
    outcome = _outcome(row.multiplier, row, resource, loss)
    return f"{place} {outcome} ({_interval_words(row, loss, is_beyond)})."


def _order_at_equal(row: Comparison, resource: str, loss: str) -> str:
    """Return the order of the losses at equal resource, which needs no multiplier."""
    if row.order_claimed == "none":
        return ""
    side = "lower" if row.order_claimed == "higher" else "higher"
    return f"; at equal {resource} its {loss} is {side}"


def _because(row: Comparison) -> str:
    reason, _, _ = row.meaning.partition(":")
    return reason


def _outcome(multiplier: float, row: Comparison, resource: str, loss: str) -> str:
    ratio, better, worse = multiplier, row.arch, row.reference
    if multiplier < 1.0:
        ratio, better, worse = 1 / multiplier, row.reference, row.arch
    times = f"{format_multiplier(ratio)} times the {resource}"
    return f"{worse} needs {times} of {better} for the same {loss}"


def _interval_words(row: Comparison, loss: str, is_beyond: bool) -> str:
    if row.ci_lo is None or row.ci_hi is None:
        return f"no interval, so {_NO_ORDER}"
    words = f"{100 * row.confidence:g} % interval {_ends(row, row.ci_lo, row.ci_hi)}"
    if row.ci_lo_simultaneous is not None and row.ci_hi_simultaneous is not None:
        together = _ends(row, row.ci_lo_simultaneous, row.ci_hi_simultaneous)
        words += f", for all together {together}"
    if row.order_claimed == "none":
        words += f"; {_no_order_because(row, is_beyond)}"
    if row.extrapolated:
        words += f"; its {loss} is beyond those measured of {row.reference}"
    return words


def _ends(row: Comparison, low: float, high: float) -> str:
    """Return an interval, of the inverse where the sentence gives that of the multiplier."""
    ends = (low, high)
    if row.multiplier is not None and row.multiplier < 1.0:
        ends = (1 / high if high else math.inf, 1 / low if low else math.inf)
    return " to ".join(map(format_multiplier, ends))


def _no_order_because(row: Comparison, is_beyond: bool) -> str:
    if is_beyond:
        return f"beyond {row.reference}'s budgets: {_NO_ORDER}"
    low, high = row.bounds
    if low is not None and high is not None and not low <= 1.0 <= high:
        # What fails in more draws than a tail holds has no strict interval.
        tail = (1 - row.confidence) / 2 * (row.n_boot or 0)
        if (row.n_failed or 0) > tail:
            return f"{_NO_ORDER}, since {row.n_failed} of {row.n_boot} draws lost an optimum"
        return f"{_NO_ORDER} with all comparisons counted"
    return _NO_ORDER


def exponent_sentence(row: ExponentDifference) -> str:
    """Return whether two exponents differ.

    For example: "The exponent of N* of sgatlin is not shown to differ from swiglu's (difference
    -0.0100 to +0.0300)."
    """
    start = f"The exponent of {axis_name(row.axis)} of {row.arch}"
    if row.difference is None:
        return f"{start} cannot be compared with {row.reference}'s: too few optima."
    if row.ci_lo is None or row.ci_hi is None:
        return (
            f"{start} is {row.difference:+.4f} away from {row.reference}'s, without an interval; "
            f"{_NO_ORDER}."
        )
    interval = f"difference {row.ci_lo:+.4f} to {row.ci_hi:+.4f}"
    if row.order_claimed == "none":
        counted = "" if row.ci_lo <= 0 <= row.ci_hi else " with all differences counted"
        return f"{start} is not shown to differ from {row.reference}'s{counted} ({interval})."
    word = "higher" if row.order_claimed == "higher" else "lower"
    return f"{start} is {word} than {row.reference}'s by {abs(row.difference):.4f} ({interval})."


def findings_section(sentences: Sequence[str], fits: Fits) -> Section:
    """Return the findings, and a sentence for every check of the fit that needs attention."""
    blocks: list[Block] = [" ".join(source_notes(fits))] if source_notes(fits) else []
    blocks += [Items(items=tuple(sentences))] if sentences else []
    if not sentences:
        alone = "There is one family or none, so nothing to compare."
        blocks.append(alone if len(fits.archs) < 2 else "No two families share a budget.")
    minded = attention(fits)
    if minded:
        blocks += ["What needs attention:", Items(items=minded)]
    return Section(key="findings", title="Findings", blocks=tuple(blocks))


def findings(fits: Fits) -> tuple[str, ...]:
    """Return the sentences on compute at every budget, on time at the largest, and on sizes.

    Before those on compute, how many of them are claimed. The largest budget comes first: it is
    the one that people ask about. Of many budgets the largest that have a multiplier.
    """
    others = [row for row in fits.compare if row.arch != row.reference]
    others.sort(key=lambda row: (-row.budget_flops, row.arch))
    beyond = budgets_beyond(fits.compare)
    compute = [row for row in others if row.resource == "flops"]
    timed = [row for row in others if row.resource == "wall_s" and row.status == "estimate"]
    largest = {row.arch: max(r.budget_flops for r in timed if r.arch == row.arch) for row in timed}
    kept = _largest(compute)
    say = functools.partial(comparison_sentence, unit=fits.unit)
    return (
        *claimed_notes(fits),
        *(say(row, is_beyond=row.budget_flops in beyond) for row in kept),
        *_rest_sentences(compute, kept),
        *(
            say(row, is_beyond=row.budget_flops in beyond)
            for row in timed
            if row.budget_flops == largest[row.arch]
        ),
        *(
            exponent_sentence(row)
            for row in fits.exponents
            if row.axis in ("n_params", fits.options.axis)
        ),
    )


def _largest(rows: Sequence[Comparison]) -> list[Comparison]:
    """Return all rows, or of many those of each family's largest budgets with a multiplier."""
    if len(rows) <= _MOST_SENTENCES:
        return list(rows)
    most = max(1, _MOST_SENTENCES // len({row.arch for row in rows}))
    taken: Counter[str] = Counter()
    kept = []
    for row in rows:
        if row.multiplier is not None and taken[row.arch] < most:
            taken[row.arch] += 1
            kept.append(row)
    return kept


def _rest_sentences(rows: Sequence[Comparison], kept: Sequence[Comparison]) -> list[str]:
    """Return how many rows have no sentence of their own, and what they claim."""
    rest = [row for row in rows if row not in kept]
    if not rest:
        return []
    claimed = sum(row.order_claimed != "none" for row in rest)
    none = sum(row.multiplier is None for row in rest)
    return [
        f"Of {len(rest)} further pairs of a family and a budget, {claimed} claim an order and "
        f"{none} have no multiplier in compute: the table has all."
    ]

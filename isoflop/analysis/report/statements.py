"""The findings in words, each made from its numbers and no stronger than they allow."""

from __future__ import annotations

from collections.abc import Sequence

from isoflop.analysis.compare.differences import ExponentDifference
from isoflop.analysis.compare.multipliers import Comparison
from isoflop.numbers import format_flops

_NO_ORDER = "no order is claimed"
RESOURCES = {
    "flops": "compute",
    "wall_s": "training time",
    "n_active": "active parameters",
    "n_params": "parameters",
    "n_tokens": "training tokens",
    "peak_mem_bytes": "peak memory",
}
_AXIS = {
    "n_params": "N*",
    "n_tokens": "D*",
    "n_active": "active parameters",
    "loss": "the loss",
}


def comparison_sentence(row: Comparison) -> str:
    """Return what one multiplier says.

    For example: "At 1e18 FLOPs swiglu needs 1.80 times the compute of sgatlin for the same loss
    (95 % interval 1.60 to 2.00)."
    """
    place = f"At {format_flops(row.budget_flops)} FLOPs"
    start = f"{place} {row.arch}"
    resource = RESOURCES[row.resource]
    if row.multiplier is None:
        return f"{start} has no multiplier over {row.reference} in {resource}: {row.meaning}."
    if row.status in ("lower_bound", "upper_bound"):
        side = "at least" if row.status == "lower_bound" else "at most"
        return (
            f"{start} against {row.reference}: the multiplier in {resource} is {side} "
            f"{row.multiplier:.2f} (a bound, since {_because(row)}); {_NO_ORDER}."
        )
    return f"{place} {_outcome(row.multiplier, row, resource)} ({_interval_words(row)})."


def _because(row: Comparison) -> str:
    reason, _, _ = row.meaning.partition(":")
    return reason


def _outcome(multiplier: float, row: Comparison, resource: str) -> str:
    ratio, better, worse = multiplier, row.arch, row.reference
    if multiplier < 1.0:
        ratio, better, worse = 1 / multiplier, row.reference, row.arch
    return f"{worse} needs {ratio:.2f} times the {resource} of {better} for the same loss"


def _interval_words(row: Comparison) -> str:
    if row.ci_lo is None or row.ci_hi is None:
        return f"no interval, so {_NO_ORDER}"
    ends = (row.ci_lo, row.ci_hi)
    if row.multiplier is not None and row.multiplier < 1.0:
        ends = (1 / row.ci_hi, 1 / row.ci_lo)
    words = f"{100 * row.confidence:g} % interval {ends[0]:.2f} to {ends[1]:.2f}"
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

"""The optima as rows of text for a terminal, and the sentence on exclusions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from isoflop.numbers import format_count, format_flops

if TYPE_CHECKING:
    from isoflop.analysis.compare.multipliers import Comparison
    from isoflop.analysis.optima import Optimum
    from isoflop.analysis.result import Fits

MISSING = "-"


def optima_rows_for_display(fits: Fits) -> list[dict[str, str]]:
    """Return one row per arch and budget, by the method of the options.

    Keys: arch, budget, n_opt, n_ci, d_opt, loss, loss_ci, perplexity, status. N* comes from the
    profile over parameters, D* from the one over tokens, loss and perplexity from the one over
    parameters. ``<`` and ``>`` mark bounds, also of an interval that ends at the grid's end; ``-``
    is a value that does not exist. The status is that of the parameters, followed by that of the
    tokens where it differs in kind.
    """
    method = fits.options.method
    chosen = [optimum for optimum in fits.optima if optimum.method == method]
    tokens = {(o.arch, o.budget_flops): o for o in chosen if o.axis == "n_tokens"}
    return [
        _row(optimum, tokens[optimum.arch, optimum.budget_flops])
        for optimum in chosen
        if optimum.axis == "n_params"
    ]


def law_rows_for_display(fits: Fits) -> list[dict[str, str]]:
    """Return one row per power law that there is: arch, law, exponent, ci, coefficient, n, rmse."""
    names = {"n_params": "N*", "n_tokens": "D*", "n_active": "active*", "loss": "L*"}
    return [
        {
            "arch": law.arch,
            "law": names[law.axis],
            "exponent": f"{law.exponent:.4f}",
            "ci": MISSING
            if law.exponent_ci is None
            else "{:.4f} to {:.4f}".format(*law.exponent_ci),
            "coefficient": MISSING if law.coefficient is None else f"{law.coefficient:.4g}",
            "n": str(law.n_points),
            "rmse": MISSING if law.rmse is None else f"{law.rmse:.2g}",
        }
        for law in fits.laws
        if law.method == fits.options.method and law.exponent is not None
    ]


def interval_note(fits: Fits) -> str:
    """Return a sentence on the intervals: their level, how they were made, and failed draws."""
    options = fits.options
    drawn = fits.draws_of("n_params")
    if drawn is None:
        return "No intervals (0 bootstrap draws)."
    optima = fits.optima_by_group("n_params").values()
    failed = sum(o.n_failed or 0 for o in optima)
    num = sum(o.n_boot or 0 for o in optima)
    note = f"Intervals: {options.confidence:.0%}, {drawn.kind} bootstrap, {drawn.n_boot:,} draws"
    if num and failed:
        note += f"; {failed / num:.1%} of the draws gave no interior optimum"
    without = sum(o.is_point and o.ci_lo is None for o in optima)
    if without:
        note += (
            f"; {without} interior optim{'a have' if without > 1 else 'um has'} no interval "
            "(too few points, or half of the draws failed)"
        )
    return note + "."


def multiplier_rows_for_display(fits: Fits) -> list[dict[str, str]]:
    """Return one row per compute multiplier: arch, budget, multiplier, ci, claim.

    ``claim`` is better or worse where an order is claimed, - where none is, and why where there is
    no estimate.
    """
    signs = {"lower_bound": "≥ ", "upper_bound": "≤ "}
    return [
        {
            "arch": row.arch,
            "budget": format_flops(row.budget_flops),
            "multiplier": MISSING
            if row.multiplier is None
            else f"{signs.get(row.status, '')}{row.multiplier:.2f}",
            "ci": MISSING if row.ci_lo is None else f"{row.ci_lo:.2f} to {row.ci_hi:.2f}",
            "claim": _claim(row),
        }
        for row in fits.compare
        if row.resource == "flops" and row.arch != row.reference
    ]


def _claim(row: Comparison) -> str:
    if row.status != "estimate":
        return row.status.replace("_", " ")
    words = {"higher": "better", "lower": "worse", "none": MISSING}[row.order_claimed]
    return f"{words} (extrapolated)" if row.extrapolated else words


def reading_notes(fits: Fits) -> list[str]:
    """Return what the tables for a terminal mean: laws, multipliers, bounds, intervals."""
    notes = ["Laws: N*, D*, active* and L* = coefficient · C^exponent, C in FLOPs."]
    if not law_rows_for_display(fits):
        notes = ["No laws: they need minima inside their grids at two budgets or more."]
    compared = [row for row in fits.compare if row.arch != row.reference]
    if compared:
        reference = compared[0].reference
        notes.append(
            f"Multiplier: compute that {reference} needs for the loss of the arch's optimum, over "
            "the arch's own; above 1 the arch is better. Claimed where the whole interval is on "
            f"one side of 1. Extrapolated: beyond the losses measured of {reference}, and the "
            "interval leaves out the error of that."
        )
    num = sum(o.is_bound for o in fits.optima_by_group("n_params").values())
    if num:
        what = "1 optimum is a bound" if num == 1 else f"{num} optima are bounds"
        notes.append(
            f"{what} (< or >): the minimum lies beyond the sizes that were run; "
            "`isoflop refine` proposes more of them."
        )
    return [*notes, interval_note(fits)]


def excluded_note(fits: Fits) -> str:
    """Return a sentence such as "3 runs excluded: 2 diverged, 1 failed."."""
    counts = fits.selection.excluded_counts()
    if not counts:
        return "No runs excluded."
    total = sum(counts.values())
    reasons = ", ".join(f"{num} {reason.replace('_', ' ')}" for reason, num in counts.items())
    return f"{total} run{'s' if total > 1 else ''} excluded: {reasons}."


def excluded_lines(fits: Fits, most: int = 5) -> list[str]:
    """Return a line per excluded row that is not just missing, and how many more there are."""
    rows = [row for row in fits.excluded if row.reason != "missing"]
    lines = []
    for row in rows[:most]:
        budget = "no budget" if row.budget_flops is None else format_flops(row.budget_flops)
        size = "" if row.n_params is None else f", {format_count(row.n_params)} parameters"
        detail = "" if row.detail is None else f" ({row.detail})"
        lines.append(
            f"  {row.arch or 'no arch'} at {budget}{size}: {row.reason.replace('_', ' ')}{detail}"
        )
    if len(rows) > most:
        lines.append(f"  and {len(rows) - most} more, listed by `isoflop report`")
    return lines


def perplexity(loss: float) -> float:
    """Return exp(loss) for a loss in nats per token."""
    return math.exp(loss)


def _row(params: Optimum, tokens: Optimum) -> dict[str, str]:
    loss = params.loss_opt
    at_most = "< " if params.is_bound else ""
    # The token optimum of an upper edge in parameters lies at a lower edge: the same finding.
    same_kind = params.is_bound == tokens.is_bound and (
        params.is_bound or params.status == tokens.status
    )
    return {
        "arch": params.arch,
        "budget": format_flops(params.budget_flops),
        "n_opt": _bounded(params),
        "n_ci": _interval(params),
        "d_opt": _bounded(tokens),
        "loss": MISSING if loss is None else f"{at_most}{loss:.4f}",
        "loss_ci": MISSING
        if params.loss_ci_lo is None
        else f"{params.loss_ci_lo:.4f} to {params.loss_ci_hi:.4f}",
        "perplexity": MISSING if loss is None else f"{at_most}{perplexity(loss):.3f}",
        "status": params.status if same_kind else f"{params.status} (tokens: {tokens.status})",
    }


def _bounded(optimum: Optimum) -> str:
    if optimum.x_opt is None:
        return MISSING
    sign = {"edge_low": "< ", "edge_high": "> "}.get(optimum.status, "")
    return sign + format_count(optimum.x_opt)


def _interval(optimum: Optimum) -> str:
    if optimum.ci_lo is None or optimum.ci_hi is None:
        return MISSING
    low = "<" if optimum.ci_at_edge in ("low", "both") else ""
    high = ">" if optimum.ci_at_edge in ("high", "both") else ""
    return f"{low}{format_count(optimum.ci_lo)} to {high}{format_count(optimum.ci_hi)}"

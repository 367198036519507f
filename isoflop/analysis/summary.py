"""The optima as rows of text for a terminal, and the sentence on exclusions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from isoflop.numbers import format_count, format_flops

if TYPE_CHECKING:
    from isoflop.analysis.fit import Fits
    from isoflop.analysis.optima import Optimum

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
    """Return one row per power law of the options' method: arch, law, exponent, ci, n, rmse."""
    names = {"n_params": "N*", "n_tokens": "D*", "n_active": "active*", "loss": "L*"}
    return [
        {
            "arch": law.arch,
            "law": names[law.axis],
            "exponent": MISSING if law.exponent is None else f"{law.exponent:.4f}",
            "ci": MISSING
            if law.exponent_ci is None
            else "{:.4f} to {:.4f}".format(*law.exponent_ci),
            "coefficient": MISSING if law.coefficient is None else f"{law.coefficient:.4g}",
            "n": str(law.n_points),
            "rmse": MISSING if law.rmse is None else f"{law.rmse:.2g}",
        }
        for law in fits.laws
        if law.method == fits.options.method
    ]


def interval_note(fits: Fits) -> str:
    """Return a sentence on the intervals: their level, how they were made, and failed draws."""
    options = fits.options
    drawn = fits.draws_of("n_params")
    if drawn is None:
        return "No intervals (0 bootstrap draws)."
    optima = fits.optima_of_all(axis="n_params")
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


def excluded_note(fits: Fits) -> str:
    """Return a sentence such as "3 runs excluded: 2 diverged, 1 failed."."""
    counts = fits.selection.excluded_counts()
    if not counts:
        return "No runs excluded."
    total = sum(counts.values())
    reasons = ", ".join(f"{num} {reason.replace('_', ' ')}" for reason, num in counts.items())
    return f"{total} run{'s' if total > 1 else ''} excluded: {reasons}."


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

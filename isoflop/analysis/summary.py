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
    """Return one row per arch and budget: arch, budget, n_opt, d_opt, loss, perplexity, status.

    N* comes from the parabola over parameters, D* from the one over tokens, loss and perplexity
    from the one over parameters. ``<`` and ``>`` mark bounds; ``-`` is a value that does not
    exist. The status is that of the parameters, followed by that of the tokens where it differs
    in kind.
    """
    tokens = {(o.arch, o.budget_flops): o for o in fits.optima if o.axis == "n_tokens"}
    return [
        _row(optimum, tokens[optimum.arch, optimum.budget_flops])
        for optimum in fits.optima
        if optimum.axis == "n_params"
    ]


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
        "d_opt": _bounded(tokens),
        "loss": MISSING if loss is None else f"{at_most}{loss:.4f}",
        "perplexity": MISSING if loss is None else f"{at_most}{perplexity(loss):.3f}",
        "status": params.status if same_kind else f"{params.status} (tokens: {tokens.status})",
    }


def _bounded(optimum: Optimum) -> str:
    if optimum.x_opt is None:
        return MISSING
    sign = {"edge_low": "< ", "edge_high": "> "}.get(optimum.status, "")
    return sign + format_count(optimum.x_opt)

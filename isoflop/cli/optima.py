"""What `isoflop fit` shows of optima and of the power laws through them."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from isoflop.cli.tables import MISSING, between
from isoflop.numbers import format_count, format_flops
from isoflop.units import format_loss, has_perplexity, loss_column

if TYPE_CHECKING:
    from isoflop.analysis.laws import PowerLaw
    from isoflop.analysis.optima import Optimum
    from isoflop.analysis.result import Fits

LOSS_INTERVAL = "loss interval"

Row = dict[str, str]
"""Cells by the heading of their column."""


def optima_rows(fits: Fits) -> list[Row]:
    """Return one row per arch and budget, by the method of the options.

    N* comes from the profile over parameters, D* from the one over tokens, loss and perplexity from
    the one over parameters. Another axis that was asked for has a column too. The status is that of
    the parameters, followed by those of the tokens and that axis where they differ in kind.
    """
    axis = fits.options.axis
    further = {"tokens": fits.optima_by_group("n_tokens")}
    if axis not in ("n_params", "n_tokens"):
        further[axis] = fits.optima_by_group(axis)
    return [
        _optimum_row(o, {name: of_name[key] for name, of_name in further.items()}, fits.unit)
        for key, o in fits.optima_by_group("n_params").items()
    ]


def law_row(law: PowerLaw) -> Row:
    """Return the row of a law that there is."""
    from isoflop.analysis.axes import axis_mark

    low, high = law.exponent_ci or (None, None)
    return {
        "arch": law.arch,
        "law": axis_mark(law.axis),
        "exponent": f"{law.exponent:.4f}",
        "interval": between(low, high, "{:.4f}".format),
        "coefficient": MISSING if law.coefficient is None else f"{law.coefficient:.4g}",
        "budgets": str(law.n_points),
        "rmse": MISSING if law.rmse is None else f"{law.rmse:.2g}",
    }


def _optimum_row(params: Optimum, further: Mapping[str, Optimum], unit: str) -> Row:
    from isoflop.analysis.axes import axis_mark

    loss, tokens = params.loss_opt, further["tokens"]
    at_most = "< " if params.is_bound else ""
    # The token optimum of an upper edge in parameters lies at a lower edge: the same finding.
    others = [
        f"{name}: {other.status}"
        for name, other in further.items()
        if params.is_bound != other.is_bound
        or not (params.is_bound or params.status == other.status)
    ]
    return {
        "arch": params.arch,
        "budget": format_flops(params.budget_flops),
        "params N*": _bounded(params),
        "N* interval": _interval(params),
        "tokens D*": _bounded(tokens),
        **{axis_mark(n): _bounded(other) for n, other in further.items() if n != "tokens"},
        loss_column(unit): MISSING if loss is None else f"{at_most}{format_loss(loss, unit)}",
        LOSS_INTERVAL: between(
            params.loss_ci_lo, params.loss_ci_hi, functools.partial(format_loss, unit=unit)
        ),
        **({"perplexity": _perplexity(loss, at_most)} if has_perplexity(unit) else {}),
        "status": f"{params.status} ({', '.join(others)})" if others else params.status,
    }


def _perplexity(loss: float | None, at_most: str) -> str:
    return MISSING if loss is None else f"{at_most}{math.exp(loss):.3f}"


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

"""Tables of a fit for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from isoflop.numbers import format_count, format_flops
from isoflop.render.tables import fitted_table, new_table

if TYPE_CHECKING:
    from isoflop.analysis.result import Fits


# Left out of a terminal that is too narrow for all, the first ones first.
_LEAST_WANTED = ("perplexity", "loss interval", "coefficient", "rmse")
_TEXT = ("arch", "law", "status", "claimed")

Shown = tuple[Table, tuple[str, ...]]
"""A table, and the names of the columns that did not fit."""


def optima_table(fits: Fits, width: int) -> Shown:
    """Return the fitted optimum of each arch at each budget, with its intervals."""
    from isoflop.analysis.summary import optima_rows_for_display

    headings = {
        "arch": "arch",
        "budget": "budget",
        "n_opt": "params N*",
        "n_ci": "N* interval",
        "d_opt": "tokens D*",
        "loss": "loss",
        "loss_ci": "loss interval",
        "perplexity": "perplexity",
        "status": "status",
    }
    return _by_arch(headings, optima_rows_for_display(fits), width)


def seed_means_table(fits: Fits) -> Table:
    """Return the mean loss over the seeds of each arch that has one size at a budget."""
    from isoflop.analysis.compare.one_size import seed_means

    names = ("arch", "budget", "params", "tokens", "seeds", "loss", "sd")
    table = new_table(*((name, "<" if name == "arch" else ">") for name in names))
    for mean in seed_means(fits.selection):
        table.add_row(
            mean.arch,
            format_flops(mean.budget_flops),
            format_count(mean.n_params),
            format_count(mean.n_tokens),
            str(mean.n_seeds),
            f"{mean.loss:.4f}",
            "-" if mean.loss_sd is None else f"{mean.loss_sd:.4f}",
        )
    return table


def laws_table(fits: Fits, width: int) -> Shown:
    """Return the power laws of each arch, with the intervals of their exponents."""
    from isoflop.analysis.summary import law_rows_for_display

    headings = {
        "arch": "arch",
        "law": "law",
        "exponent": "exponent",
        "ci": "interval",
        "coefficient": "coefficient",
        "n": "budgets",
        "rmse": "rmse",
    }
    return _by_arch(headings, law_rows_for_display(fits), width)


def multipliers_table(fits: Fits, width: int) -> Shown:
    """Return the compute multiplier of each arch over the reference, at each budget."""
    from isoflop.analysis.summary import multiplier_rows_for_display

    headings = {
        "arch": "arch",
        "budget": "budget",
        "multiplier": "compute multiplier",
        "ci": "its interval",
        "claim": "claimed",
    }
    return _by_arch(headings, multiplier_rows_for_display(fits), width)


def _by_arch(headings: Mapping[str, str], rows: Sequence[Mapping[str, str]], width: int) -> Shown:
    if not rows:
        return new_table(), ()
    cells = [{label: row[key] for key, label in headings.items()} for row in rows]
    archs = [row["arch"] for row in rows]
    return fitted_table(cells, width, least_wanted=_LEAST_WANTED, text=_TEXT, groups=archs)

"""Tables that nothing can be learned from: a verdict, never a traceback, never a claim."""

from __future__ import annotations

import csv
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from simulated_studies import BUDGETS, REFERENCE, Family, Row, rows_of

from isoflop.analysis import FitOptions, fit_rows
from isoflop.analysis.load import load_rows
from isoflop.errors import UserError


def _two(family: Family) -> list[Row]:
    rng = np.random.default_rng(19)
    return rows_of(REFERENCE, family, rng) + rows_of("new", family, rng)


def _set(rows: list[Row], column: str, value: Any, every: int = 1) -> list[Row]:
    for row in rows[::every]:
        row[column] = value
    return rows


TABLES: dict[str, Callable[[], list[Row]]] = {
    "text in one loss": lambda: _set(_two(Family()), "loss", "a lot", 30),
    "NaN in every third loss": lambda: _set(_two(Family()), "loss", math.nan, 3),
    "NaN in every loss": lambda: _set(_two(Family()), "loss", math.nan),
    "infinite and negative losses": lambda: _set(
        _set(_two(Family()), "loss", math.inf, 3), "loss", -1.0, 5
    ),
    "one budget": lambda: _two(Family(budgets=BUDGETS[:1])),
    "one size": lambda: _two(Family(num_sizes=1)),
    "two sizes": lambda: _two(Family(num_sizes=2)),
    "all diverged": lambda: _set(_two(Family()), "status", "diverged"),
    "40 budgets": lambda: _two(Family(budgets=tuple(np.geomspace(1e16, 1e20, 40)), num_sizes=5)),
    "every row of the same loss": lambda: _set(_two(Family()), "loss", 3.0),
    "no rows of one family": lambda: [row for row in _two(Family()) if row["arch"] == REFERENCE],
    "names of 60 letters": lambda: [
        {**row, "arch": str(row["arch"]).ljust(60, "x")} for row in _two(Family())
    ],
}
"""By name; the families of all are equal, so that any claim is false."""


def hostile_verdicts() -> list[dict[str, Any]]:
    """Return the verdicts on all tables."""
    return [verdict_on(name) for name in TABLES]


def verdict_on(name: str) -> dict[str, Any]:
    """Read and fit a table as `isoflop fit` does; return how it ended and how many were claimed."""
    rows = TABLES[name]()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "runs.csv"
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        try:
            fits = fit_rows(load_rows(path), FitOptions(n_boot=100))
        except UserError as error:
            says = str(error).replace(folder, "")
            return {"table": name, "end": "refused", "claims": 0, "says": says}
        except Exception as error:
            return {"table": name, "end": "TRACEBACK", "claims": 0, "says": repr(error)}
    claims = [row for row in fits.compare if row.order_claimed != "none"]
    claims += [row for row in fits.exponents if row.order_claimed != "none"]
    counts = fits.selection.excluded_counts()
    statuses: dict[str, int] = {}
    for optimum in fits.optima_by_group().values():
        statuses[optimum.status] = statuses.get(optimum.status, 0) + 1
    return {
        "table": name,
        "end": "fitted",
        "claims": len(claims),
        "says": f"optima {statuses}, excluded {counts}",
    }

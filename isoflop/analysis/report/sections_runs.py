"""The part of a report that lists the runs, those excluded first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from isoflop.analysis.points import Excluded, Point
from isoflop.analysis.report.document import (
    ARCH,
    BUDGET,
    Block,
    Section,
    count_column,
    label_column,
    loss_column,
    number_column,
    table,
    text_column,
)
from isoflop.analysis.result import Fits
from isoflop.analysis.summary import excluded_note


def runs_section(fits: Fits) -> Section:
    """Return every run: those that entered the fits, and those excluded, each with its reason."""
    points = [point for group in fits.groups.values() for point in group]
    columns = [
        ARCH,
        BUDGET,
        count_column("n_params", "Parameters"),
        count_column("n_active", "Active"),
        count_column("n_tokens", "Tokens"),
        number_column("seed", "Seed"),
        loss_column("loss", "Loss"),
        number_column("perplexity", "Perplexity"),
        number_column("wall_s", "Time (s)"),
        label_column("run", "Run"),
    ]
    blocks: list[Block] = [excluded_note(fits)]
    if fits.excluded:
        blocks.append(_excluded_table(fits.excluded))
    blocks.append(table("Runs in the fits", columns, [_run_row(point) for point in points]))
    return Section(key="runs", title="Runs", blocks=tuple(blocks))


def _run_row(point: Point) -> dict[str, Any]:
    return {
        "arch": point.arch,
        "budget_flops": point.budget_flops,
        "n_params": point.n_params,
        "n_active": point.n_active,
        "n_tokens": point.n_tokens,
        "seed": point.seed,
        "loss": point.loss,
        "perplexity": math.exp(point.loss),
        "wall_s": point.wall_s,
        "run": None if point.run_id is None else point.run_id[:12],
    }


def _excluded_table(rows: Sequence[Excluded]) -> Block:
    columns = [
        ARCH,
        BUDGET,
        count_column("n_params", "Parameters"),
        loss_column("loss", "Loss"),
        text_column("reason", "Reason"),
        label_column("detail", "Detail"),
        label_column("run", "Run"),
    ]
    return table(
        "Excluded runs",
        columns,
        [
            {
                "arch": row.arch,
                "budget_flops": row.budget_flops,
                "n_params": row.n_params,
                "loss": row.loss,
                "reason": row.reason,
                "detail": row.detail,
                "run": None if row.run_id is None else row.run_id[:12],
            }
            for row in rows
        ],
    )

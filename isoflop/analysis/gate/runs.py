"""The runs that a gate judges, and how much runs of the reference scatter."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isoflop.analysis.compare.frontier import SLACK
from isoflop.analysis.points import loss_refusal, positive
from isoflop.analysis.result import Fits
from isoflop.arrays import Floats
from isoflop.units import NATS

# What makes two rows runs of one cell, and what makes them one run.
_CELL = ("arch", "budget_flops", "n_params", "n_tokens", "flops")
_REPEAT = ("run_id", "seed", "loss", "wall_s", "status", "excluded_reason")


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What is known of a run, or of the seeds of one cell."""

    run_id: str | None
    arch: str | None
    num_runs: int
    n_params: float | None
    n_tokens: float | None
    flops: float | None
    wall_s: float | None
    loss: float | None
    problem: str
    """Why the loss cannot be used; empty where it can."""


def cells_of(rows: Iterable[Mapping[str, Any]], unit: str = NATS) -> list[Run]:
    """Return the runs of a table in its order, the seeds of one cell as one run.

    Only runs whose seeds are known and differ are averaged: without, they may as well be the
    values of a sweep. A row that is there twice counts once.
    """
    by_cell: dict[object, list[Mapping[str, Any]]] = {}
    once = {tuple(row.get(name) for name in (*_CELL, *_REPEAT)): row for row in rows}
    for row in once.values():
        is_whole = not _problem(row, unit) and row.get("flops") and row.get("seed") is not None
        cell = tuple(row.get(name) for name in _CELL) if is_whole else len(by_cell)
        by_cell.setdefault(cell, []).append(row)
    runs = []
    for cell_rows in by_cell.values():
        if len({row.get("seed") for row in cell_rows}) == len(cell_rows):
            runs.append(_run(cell_rows, unit))
        else:
            runs += [_run([row], unit) for row in cell_rows]
    return runs


def _run(rows: Sequence[Mapping[str, Any]], unit: str) -> Run:
    first, problem = rows[0], _problem(rows[0], unit)
    names = [str(row["run_id"]) for row in rows if row.get("run_id")]
    times = [time for row in rows if (time := positive(row.get("wall_s")))]
    return Run(
        run_id=", ".join(names) or None,
        arch=first.get("arch"),
        num_runs=len(rows),
        n_params=positive(first.get("n_params")),
        n_tokens=positive(first.get("n_tokens")),
        flops=positive(first.get("flops")),
        wall_s=_geometric_mean(times) if len(times) == len(rows) else None,
        loss=None if problem else _geometric_mean([float(row["loss"]) for row in rows]),
        problem=problem,
    )


def _problem(row: Mapping[str, Any], unit: str) -> str:
    refusal = loss_refusal(row, unit)
    if refusal is None:
        return ""
    reason, detail = refusal
    return reason.replace("_", " ") + (f" ({detail})" if detail else "")


def _geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RunNoise:
    """How much ln loss scatters between single runs of the reference, by budget and draw."""

    log_flops: Floats
    """Of the budgets [K], ascending."""
    between_sizes: Floats
    """Variance of what all runs of one size share [draws, K]."""
    between_runs: Floats
    """Variance of what each run has alone [draws, K]."""

    def sd(self, flops: float | None, num_runs: int) -> Floats:
        """Return the noise of a mean of seeds at some FLOPs [draws].

        Between budgets ln of the variance is linear in ln C, beyond them it is that of the nearest.
        Without FLOPs it is the largest that there is.
        """
        log_variance = np.log(self.between_sizes + self.between_runs / num_runs)
        if flops is None:
            return np.asarray(np.exp(log_variance.max(axis=1) / 2))
        places = np.arange(len(self.log_flops))
        place = float(np.interp(math.log(flops), self.log_flops, places))
        left = min(int(place), max(len(places) - 2, 0))
        right = min(left + 1, len(places) - 1)
        share = place - left
        between = (1 - share) * log_variance[:, left] + share * log_variance[:, right]
        return np.asarray(np.exp(between / 2))


def noise_of_runs(fits: Fits, arch: str) -> RunNoise | None:
    """Return the noise that one run of a family has; None where the draws know of none."""
    draws = fits.draws_of()
    if draws is None:
        return None
    own = {budget: drawn for (label, budget), drawn in sorted(draws.noise.items()) if label == arch}
    if not own:
        return None
    return RunNoise(
        log_flops=np.log(np.array(list(own))),
        between_sizes=np.stack([drawn.between_sizes**2 for drawn in own.values()], axis=1),
        between_runs=np.stack([drawn.between_runs**2 for drawn in own.values()], axis=1),
    )


def size_ratio(fits: Fits, arch: str, n_params: float | None, flops: float | None) -> float | None:
    """Return parameters over the family's N* at some FLOPs, between its optima in logs."""
    optima = [o for o in fits.optima_of(arch, "n_params") if o.is_point and o.x_opt]
    if not optima or n_params is None or flops is None:
        return None
    log_c = [math.log(o.budget_flops) for o in optima]
    if not log_c[0] - SLACK <= math.log(flops) <= log_c[-1] + SLACK:
        return None
    log_n = [math.log(o.x_opt or 1.0) for o in optima]
    return n_params / math.exp(float(np.interp(math.log(flops), log_c, log_n)))

"""Which bootstrap a parametric fit gets, and its draws.

- ``case``: points drawn with replacement. The default from 60 points on; with few points a draw
  often lacks a size, and the intervals are too wide.
- ``residual``: fitted values plus drawn residuals, centred and widened by √(n / (n − p)) for the
  p parameters fitted. The default below 60 points.
- ``parametric``: fitted values plus Gaussian noise as large as the scatter of repeated cells (the
  same parameters and tokens, other seeds). On request; needs at least three spare repeats, and a
  table with fewer gets the residual bootstrap, under that name.

The first two kinds use the same random indices for every arch with as many points, so draw i of
one arch belongs with draw i of another; Gaussian noise is each arch's own. Noise is multiplied by
√(dof / χ²) per draw, the uncertainty of a variance estimated from few degrees of freedom.
"""

from __future__ import annotations

import math
import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from isoflop.analysis.parametric.solve import refit_each
from isoflop.analysis.parametric.terms import Problem, predict
from isoflop.arrays import Floats

Kind = Literal["case", "residual", "parametric"]
Asked = Literal["auto", "case", "residual", "parametric"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Resampling:
    """How intervals are made."""

    n_boot: int = 1000
    """Draws; 0 makes no intervals."""
    seed: int = 0
    kind: Asked = "auto"
    confidence: float = 0.95


DEFAULT_RESAMPLING = Resampling()

MIN_POINTS_FOR_CASES = 60
_MIN_SPARE_REPEATS = 3
_STREAM = 81_263


def choose_kind(problem: Problem, cells: Sequence[object], asked: Asked = "auto") -> Kind:
    """Return the kind of bootstrap; ``cells`` names the cell of each point, alike for repeats."""
    if asked == "case" or (asked == "auto" and problem.num_points >= MIN_POINTS_FOR_CASES):
        return "case"
    spare_repeats = len(cells) - len(set(cells))
    if asked == "parametric" and spare_repeats >= _MIN_SPARE_REPEATS:
        return "parametric"
    return "residual"


def refit(
    problem: Problem,
    theta_P: Floats,
    cells: Sequence[object],
    kind: Kind,
    resampling: Resampling,
    *,
    arch: str,
) -> Floats:
    """Return (n_boot, p) parameter vectors of draws, warm-started; NaN where one did not settle."""
    n_boot = resampling.n_boot
    # Seeds of two archs are no pairs: their Gaussian noise must not be the same numbers.
    own = (zlib.crc32(arch.encode()),) if kind == "parametric" else ()
    rng = np.random.default_rng((_STREAM, resampling.seed, *own))
    num = problem.num_points
    if kind == "case":
        drawn = rng.integers(0, num, (n_boot, num))
        weights = np.stack([np.bincount(draw, minlength=num) for draw in drawn]).astype(float)
        return refit_each(problem, theta_P, problem.target[None], weights)
    fitted = predict(problem, theta_P[None])[0]
    if kind == "residual":
        dof = num - len(theta_P)
        residuals = problem.target - fitted[0]
        residuals = (residuals - residuals.mean()) * math.sqrt(num / dof)
        noise = residuals[rng.integers(0, num, (n_boot, num))]
    else:
        dof = num - len(set(cells))
        noise = rng.normal(0.0, repeat_scatter(problem.target, cells), (n_boot, num))
    noise = noise * np.sqrt(dof / rng.chisquare(dof, (n_boot, 1)))
    return refit_each(problem, theta_P, fitted + noise, np.ones((1, num)))


def repeat_scatter(values: Floats, cells: Sequence[object]) -> float:
    """Return the pooled standard deviation within repeated cells."""
    by_cell: dict[object, list[float]] = defaultdict(list)
    for value, cell in zip(values.tolist(), cells, strict=True):
        by_cell[cell].append(value)
    squares = sum(float(np.var(group)) * len(group) for group in by_cell.values())
    return math.sqrt(squares / (len(values) - len(by_cell)))

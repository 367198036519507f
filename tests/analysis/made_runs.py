"""Rows of runs.parquet made from known curves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

FAMILIES = ("mlp", "swiglu", "moe", "peer", "sgatlin")


def row(
    arch: str = "mlp",
    budget: float | None = 1e17,
    n_params: float = 1e7,
    loss: float | None = 3.0,
    **others: Any,
) -> dict[str, Any]:
    """One finished run with D = C / 6N; without a budget the tokens must be given."""
    made: dict[str, Any] = {
        "run_id": None,
        "arch": arch,
        "budget_flops": None if budget is None else float(budget),
        "n_params": n_params,
        "n_tokens": None if budget is None else budget / (6 * n_params),
        "n_active": n_params / 2,
        "loss": loss,
        "status": "done",
        "status_reason": None,
        "excluded_reason": None,
    }
    return {**made, **others}


def curve(
    loss_of: Callable[[float], float],
    sizes: Iterable[float],
    arch: str = "mlp",
    budget: float = 1e17,
) -> list[dict[str, Any]]:
    """Runs of one family at one budget whose loss is loss_of(n_params)."""
    return [row(arch, budget, size, loss_of(size)) for size in sizes]


def parabola(centre: float, floor: float = 3.0, bend: float = 0.05) -> Callable[[float], float]:
    """loss = floor + bend · ln(N / centre)²."""
    return lambda size: floor + bend * math.log(size / centre) ** 2


def spaced(centre: float, num: int = 5, factor: float = 4.0) -> list[float]:
    """Sizes from centre / factor to centre · factor, evenly spaced in the logarithm."""
    return [centre * factor ** (2 * i / (num - 1) - 1) for i in range(num)]


def study(
    families: Iterable[str] = FAMILIES,
    budgets: Iterable[float] = (3e10, 1e11, 3e11),
    num: int = 5,
) -> list[dict[str, Any]]:
    """Families with N* = scale · C^0.5 and L* = 1.6 + level · C^-0.06, each at all budgets."""
    rows = []
    for index, arch in enumerate(families):
        for budget in budgets:
            best = 0.12 * (1 + index / 2) * budget**0.5
            floor = 1.6 + (9.4 - 0.5 * index) * budget**-0.06
            rows += curve(parabola(best, floor), spaced(best, num), arch, budget)
    return rows

"""A made table of runs with everything a report can show: seeds, resources, edges, exclusions."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from isoflop.analysis import fit as fitting
from isoflop.analysis import report as reporting

FAMILIES = ("mlp", "swiglu", "sgatlin", "peer <&\"'> $x_1$")
BUDGETS = (1e17, 1e18, 1e19, 1e20)

# Compute that a family saves over the first, and parameters it holds per active one.
_GAIN = (1.0, 1.2, 1.9, 1.5)
_SPARSITY = (1.0, 1.0, 6.0, 8.0)


def _loss(n_params: float, n_tokens: float, gain: float) -> float:
    """The Chinchilla surface of Besiroglu et al. (2024), with some of the compute for free."""
    root = math.sqrt(gain)
    return 1.8172 + 482.01 / (root * n_params) ** 0.3478 + 2085.43 / (root * n_tokens) ** 0.3658


def _run(family: int, budget: float, n_active: float, seed: int, noise: float) -> dict[str, Any]:
    tokens = budget / (6 * n_active)
    loss = _loss(n_active, tokens, _GAIN[family]) * math.exp(noise)
    return {
        "run_id": f"{family}-{budget:g}-{n_active:.0f}-{seed}",
        "arch": FAMILIES[family],
        "budget_flops": budget,
        "flops": 0.998 * budget,
        "n_params": n_active * _SPARSITY[family],
        "n_active": n_active,
        "n_nonembed": 0.9 * n_active * _SPARSITY[family],
        "n_tokens": tokens,
        "seed": seed,
        "loss": loss,
        "loss_se": 0.002,
        "wall_s": budget / 1e14 * (1 + 0.5 * (family > 1)),
        "peak_mem_bytes": 1e9 + 16 * n_active * _SPARSITY[family],
        "status": "done",
        "status_reason": None,
        "excluded_reason": None,
    }


def full_table() -> list[dict[str, Any]]:
    """Four families at four budgets, seven sizes, two seeds in the middle, noise of 0.1 %.

    The last family's largest budget has an edge; one run diverged, one was excluded by hand.
    """
    noise = random.Random(8)
    rows = []
    for family in range(len(FAMILIES)):
        for budget in BUDGETS:
            best = 0.09 * budget**0.5
            shift = 12.0 if (family, budget) == (3, BUDGETS[-1]) else 1.0
            for step in range(-3, 4):
                size = shift * best * 4 ** (step / 3)
                seeds = (0, 1) if step in (-1, 0, 1) else (0,)
                rows += [_run(family, budget, size, s, noise.gauss(0, 1e-3)) for s in seeds]
    rows[2].update(status="diverged", status_reason="loss was NaN", loss=None)
    rows[40].update(excluded_reason="learning rate of <another> study | wrong", loss=9.9)
    return rows


def draw_nothing(patch: pytest.MonkeyPatch) -> None:
    """Make `fit` and `report` write all but their figures, which take nearly all of the time."""

    class Pictures(dict[str, str]):
        def __missing__(self, stem: str) -> str:
            return "<svg/>"

    patch.setattr(fitting, "write_plots", lambda fits, folder: ())
    patch.setattr(reporting, "write_figures", lambda *arguments: ((), Pictures()))

"""Points of known laws, the published laws, and the Chinchilla data where they are at hand."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isoflop.analysis.load import load_rows
from isoflop.analysis.parametric import ChinchillaLaw
from isoflop.analysis.points import Point

DATA = Path(__file__).resolve().parents[4] / "shared" / "scaling-data"

# Czech, "Problems with Chinchilla Approach 2", tables 1-3.
SURFACES = {
    "symmetric": ChinchillaLaw(E=1.69, A=400.0, B=400.0, alpha=0.31, beta=0.31),
    "chinchilla": ChinchillaLaw(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28),
    "asymmetric": ChinchillaLaw(E=1.69, A=406.4, B=410.7, alpha=0.465, beta=0.155),
}
# Besiroglu et al. 2024, arXiv 2404.10102, table 1.
BESIROGLU = ChinchillaLaw(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658)

BUDGETS = (1e17, 3e17, 1e18, 3e18)


def point(arch: str = "dense", **values: Any) -> Point:
    return Point(**{"run_id": None, "arch": arch, "n_active": None, **values})


def studied(
    law: ChinchillaLaw = BESIROGLU,
    budgets: Sequence[float] = BUDGETS,
    *,
    num: int = 7,
    factor: float = 4.0,
    noise: float = 0.0,
    seed: int = 0,
    repeats: int = 1,
    arch: str = "dense",
) -> list[Point]:
    """Sizes from N*/factor to N*·factor at each budget, D = C / 6N, noise in ln L."""
    rng = np.random.default_rng(seed)
    points = []
    for budget in budgets:
        centre = float(law.optimum(budget)[0])
        for n_params in centre * np.geomspace(1 / factor, factor, num):
            for repeat in range(repeats):
                n_tokens = budget / 6 / n_params
                loss = law.loss(n_params, n_tokens) * np.exp(noise * rng.normal())
                points.append(
                    point(
                        arch,
                        budget_flops=budget,
                        n_params=float(n_params),
                        n_tokens=float(n_tokens),
                        loss=float(loss),
                        seed=repeat,
                    )
                )
    return points


def changed(points: Sequence[Point], **by: Callable[[float], float]) -> list[Point]:
    """The points with fields mapped, e.g. n_params=lambda n: n / 1e6."""
    fields = Point.__dataclass_fields__
    return [
        Point(
            **{
                name: by[name](getattr(old, name)) if name in by else getattr(old, name)
                for name in fields
            }
        )
        for old in points
    ]


def chinchilla_points(*, exclude: bool = True) -> list[Point]:
    """The 240 points of the published fit, or all 245."""
    return [
        point(
            budget_flops=row["budget_flops"] or row["flops"],
            n_params=row["n_params"],
            n_tokens=row["n_tokens"],
            loss=row["loss"],
        )
        for row in chinchilla_rows(exclude=exclude)
    ]


def chinchilla_rows(*, exclude: bool = True) -> list[dict[str, Any]]:
    """The rows of those points, a third of them without a budget."""
    table = load_rows(_need("chinchilla_epoch.csv"))
    lines = csv.DictReader((DATA / "chinchilla_epoch.csv").read_text().splitlines())
    dropped = [exclude and line["besiroglu_excluded"] == "True" for line in lines]
    return [row for row, is_out in zip(table, dropped, strict=True) if not is_out]


def chinchilla_published() -> dict[str, Any]:
    return json.loads(_need("chinchilla_epoch.published.json").read_text())


def _need(name: str) -> Path:
    if not (DATA / name).is_file():
        pytest.skip(f"{name} is not at hand")
    return DATA / name

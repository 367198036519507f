"""Figures of laws and comparisons look as their committed images."""

from __future__ import annotations

import dataclasses
import functools
import random
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.style
import pytest
from matplotlib.figure import Figure

from analysis.figures.images import check, page
from analysis.made_runs import row, study
from isoflop.analysis.compare.multipliers import compare_archs
from isoflop.analysis.figures import FIGURES
from isoflop.analysis.fit import FitOptions, Fits, fit_optima
from isoflop.analysis.optima_methods import DEFAULT_METHOD
from isoflop.analysis.points import select_points

LONG = [f"family-of-a-very-long-name-number-{i:02d}/and-a-variant-of-it" for i in range(30)]
FEW = ["mlp", "swiglu", "sgatlin"]


@functools.cache
def made(num_budgets: int, archs: tuple[str, ...], n_boot: int = 20) -> Fits:
    """Noisy optima with intervals, laws and multipliers; the first family ends in a bound."""
    noise = random.Random(5)
    budgets = [1e17 * 2.0**i for i in range(num_budgets)]
    rows: list[dict[str, Any]] = []
    for index, arch in enumerate(archs):
        last = study([arch], [2 * budgets[-1]], num=9)
        for one in [*study([arch], budgets), *(last if index else last[5:])]:
            loss = one["loss"] * (1 - 0.01 * index) * (1 + noise.gauss(0, 0.001))
            rows.append({**one, "flops": one["budget_flops"], "loss": loss})
    options = FitOptions(n_boot=n_boot)
    fits = fit_optima(select_points(rows), options, methods=[DEFAULT_METHOD])
    return dataclasses.replace(fits, compare=compare_archs(fits))


def sizes(archs: list[str]) -> Fits:
    rows = [
        row(arch, 1e17, 1e7, 3.0 + 0.1 * i + 0.02 * seed, seed=seed)
        for i, arch in enumerate(archs)
        for seed in (0, 1)
    ]
    options = FitOptions(n_boot=0)
    return fit_optima(select_points(rows), options, methods=[DEFAULT_METHOD], axes=["n_params"])


def test_pages_look_as_committed(tmp_path: Path) -> None:
    fits = made(3, tuple(FEW))
    check(page(fits, "frontier"), "frontier_3_budgets", tmp_path)
    check(page(fits, "multipliers"), "multipliers_3_budgets", tmp_path)


def test_two_figures_side_by_side_look_as_committed(tmp_path: Path) -> None:
    fits = made(3, tuple(FEW))
    with mpl.style.context("default"):
        figure = Figure(figsize=(9, 3.5), layout="constrained")
        left, right = figure.subplots(1, 2)
        FIGURES["frontier"](fits, ax=left, archs=["sgatlin", "mlp"], palette="Dark2")
        FIGURES["optimum_size"](fits, ax=right, hue="budget")
        check(figure, "side_by_side", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("num", [1, 10, 20, 40])
def test_any_number_of_budgets_looks_as_committed(num: int, tmp_path: Path) -> None:
    fits = made(num, ("mlp", "swiglu"), 5)
    for stem in ("frontier", "multipliers"):
        check(page(fits, stem), f"{stem}_{num}_budgets", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("stem", ["frontier", "multipliers", "sensitivity", "seed_means"])
def test_thirty_families_look_as_committed(stem: str, tmp_path: Path) -> None:
    fits = sizes(LONG) if stem == "seed_means" else made(2, tuple(LONG[1:] + LONG[:1]), 5)
    check(page(fits, stem), f"{stem}_30_archs", tmp_path, dpi=25)

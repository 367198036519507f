"""Figures of runs look as their committed images, at any number of budgets and families."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.style
import numpy as np
import pytest

from analysis.figures.images import TOLERANCE, check, difference, page
from analysis.made_report import full_table
from analysis.made_runs import study
from isoflop.analysis.figures import FIGURES
from isoflop.analysis.fit import FitOptions, Fits, fit_optima
from isoflop.analysis.points import select_points

LONG = [
    *(f"family-of-a-very-long-name-number-{i:02d}/and-a-variant-of-it-too"[:60] for i in range(28)),
    "_first $x$ and $y$",
    "dollar $ é ü",
]


def fitted(rows: list[dict[str, Any]]) -> Fits:
    for one in rows:
        one["flops"] = one["budget_flops"]
    options = FitOptions(n_boot=0, method="parabola")
    return fit_optima(select_points(rows), options, methods=["parabola"], axes=["n_params"])


@functools.cache
def made(num_budgets: int, num_archs: int) -> Fits:
    budgets = np.geomspace(1e17, 1e21, num_budgets) if num_budgets > 1 else [1e17]
    archs = ["mlp"] if num_archs == 1 else LONG[-num_archs:]
    return fitted(study(archs, [float(budget) for budget in budgets]))


def test_a_page_looks_as_committed(tmp_path: Path) -> None:
    check(page(made(3, 3), "isoflop_profiles"), "profiles_3_budgets_3_archs", tmp_path)
    check(page(made(12, 1), "isoflop_profiles"), "profiles_12_budgets_1_archs", tmp_path)


@pytest.mark.slow
def test_other_styles_look_as_committed(tmp_path: Path) -> None:
    fits = fitted(full_table())
    with mpl.style.context(["default", "dark_background"]):
        figure, _ = FIGURES["resources"](fits, archs=["swiglu", "sgatlin"], hue="budget")
        check(figure, "resources_dark", tmp_path, dpi=35)
    with mpl.rc_context({"font.size": 14, "axes.prop_cycle": mpl.cycler(color=["r", "b"])}):
        figure, _ = FIGURES["sparsity"](fits, budgets=[1e18], palette={a: "C0" for a in fits.archs})
        check(figure, "sparsity_14_points", tmp_path)


def test_a_legend_that_moved_is_noticed(tmp_path: Path) -> None:
    figure = page(made(3, 3), "isoflop_profiles")
    figure.legends[0].set_loc("outside lower right")
    found = difference(figure, "profiles_3_budgets_3_archs", tmp_path)
    assert found is not None
    assert float(re.search(r"RMS Value: ([\d.]+)", found)[1]) > 2 * TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("num", [1, 10, 20, 40])
def test_any_number_of_budgets_looks_as_committed(num: int, tmp_path: Path) -> None:
    check(page(made(num, 1), "isoflop_profiles"), f"profiles_{num}_budgets_1_archs", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("stem", ["isoflop_profiles", "resources"])
def test_thirty_families_look_as_committed(stem: str, tmp_path: Path) -> None:
    check(page(made(3, 30), stem), f"{stem}_30_archs", tmp_path, dpi=25)

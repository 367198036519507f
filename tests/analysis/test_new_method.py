"""A method of finding optima is one record: a new one goes through all of the analysis."""

from __future__ import annotations

import random
from functools import partial

import numpy as np
import pytest

from analysis.made_runs import curve, parabola, spaced
from isoflop.analysis import FitOptions, fit_rows
from isoflop.analysis.optima_methods import (
    ABOVE,
    BELOW,
    INTERIOR,
    METHODS,
    FitMethod,
    Minima,
    parabola_curve,
    size_means,
    smooth_everywhere,
)
from isoflop.arrays import Floats


def lowest_size(log_x: Floats, loss_BN: Floats, weight_BN: Floats | None = None) -> Minima:
    """Return the size with the lowest mean loss."""
    sizes, mean_BK = size_means(log_x, loss_BN, weight_BN)
    lowest = np.nanargmin(mean_BK, axis=1)
    code = np.where(lowest == 0, BELOW, np.where(lowest == len(sizes) - 1, ABOVE, INTERIOR))
    inside = code == INTERIOR
    return Minima(
        log_x=np.where(inside, sizes[lowest], np.nan),
        loss=np.where(inside, np.nanmin(mean_BK, axis=1), np.nan),
        code=code.astype(np.int8),
        curvature=np.full(len(code), np.nan),
    )


def test_a_new_method_is_one_record(monkeypatch: pytest.MonkeyPatch) -> None:
    method = FitMethod(
        name="lowest_size",
        find=lowest_size,
        curve=parabola_curve,
        smooth=partial(smooth_everywhere, curve=parabola_curve),
    )
    monkeypatch.setitem(METHODS, method.name, method)
    rng = random.Random(0)
    rows = [
        {**row, "loss": row["loss"] * (1 + rng.gauss(0, 1e-4))}
        for arch, factor in (("mlp", 1.0), ("swiglu", 1.05))
        for budget, best in ((1e17, 1e7), (1e18, 3e7), (1e19, 9e7))
        for row in curve(
            lambda n, best=best, factor=factor: factor * parabola(best)(n) * best**-0.02,
            spaced(best, 9),
            arch,
            budget,
        )
    ]
    fits = fit_rows(rows, FitOptions(n_boot=40, method="lowest_size"))
    found = fits.optima_of("mlp")
    assert [optimum.x_opt for optimum in found] == pytest.approx([1e7, 3e7, 9e7], rel=0.3)
    assert all(o.method == "lowest_size" and o.n_boot == 40 and o.ci_lo for o in found)
    law = fits.law("mlp", "n_params")
    assert law.exponent == pytest.approx(0.477, abs=0.1)
    assert law.exponent_ci is not None
    assert fits.draws["n_params", "lowest_size"].kind == "parametric"
    assert {row.method for row in fits.compare} == {"lowest_size"}
    assert fits.validity is not None
    assert {law.method for law in fits.laws} == set(METHODS)

"""What a size off the optimum costs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from analysis.parametric.made_laws import BESIROGLU, BUDGETS, studied
from isoflop.analysis import FitOptions, Fits
from isoflop.analysis.misallocation import misallocation
from isoflop.analysis.optima import find_optima
from isoflop.analysis.parametric import fit_parametric
from isoflop.analysis.points import Selection


def _fits(noise: float = 0.0, n_boot: int = 0, seed: int = 0, factor: float = 1.5) -> Fits:
    points = studied(noise=noise, seed=seed, factor=factor)
    groups = {
        ("dense", budget): tuple(p for p in points if p.budget_flops == budget)
        for budget in BUDGETS
    }
    selection = Selection(groups=groups, excluded=())
    optima = find_optima(groups, ("n_params",), ("parabola",))
    return Fits(
        selection=selection,
        options=FitOptions(method="parabola", n_boot=n_boot),
        optima=optima,
        parametric=fit_parametric(selection, n_boot=n_boot, optima=optima),
    )


def test_costs_are_those_of_the_true_surface() -> None:
    rows = misallocation(_fits())
    assert [(row.budget_flops, row.factor) for row in rows] == [
        (budget, factor) for budget in BUDGETS for factor in (0.5, 2.0, 4.0)
    ]
    for row in rows:
        n_params, n_tokens = BESIROGLU.optimum(row.budget_flops)
        loss = BESIROGLU.loss(n_params * row.factor, n_tokens / row.factor)
        best = BESIROGLU.optimal_loss(row.budget_flops)
        assert row.loss_cost == pytest.approx(loss - best, rel=1e-4)
        # With the compute that is not wasted the optimum has the loss of the wrong size.
        needed = row.budget_flops * (1 - row.compute_wasted)
        assert BESIROGLU.optimal_loss(needed) == pytest.approx(loss, rel=1e-5)
        assert row.loss_cost_lo is None


def test_near_the_optimum_the_profiles_curvature_says_the_same() -> None:
    for row in misallocation(_fits(), factors=(0.9, 1.1)):
        assert row.profile_loss_cost == pytest.approx(row.loss_cost, rel=0.06)
    (same, *_) = misallocation(_fits(), factors=(1.0,))
    assert (same.loss_cost, same.compute_wasted, same.profile_loss_cost) == (0.0, 0.0, 0.0)


def test_intervals_hold_the_truth_and_a_family_without_a_surface_has_no_row() -> None:
    fits = _fits(noise=0.004, n_boot=150, factor=4.0)
    held = []
    for row in misallocation(fits):
        n_params, n_tokens = BESIROGLU.optimum(row.budget_flops)
        loss = BESIROGLU.loss(n_params * row.factor, n_tokens / row.factor)
        truth = loss - BESIROGLU.optimal_loss(row.budget_flops)
        assert row.loss_cost_lo is not None
        assert row.loss_cost_hi is not None
        assert row.compute_wasted_lo is not None
        assert 0 < row.compute_wasted_lo < row.compute_wasted < (row.compute_wasted_hi or 0) < 1
        held.append(row.loss_cost_lo < truth < row.loss_cost_hi)
    assert np.mean(held) > 0.8
    assert misallocation(replace(fits, parametric=())) == ()

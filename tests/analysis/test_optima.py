"""The vertex of the parabola, and the word that says whether it is one."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest

from analysis.made_runs import curve, parabola, row, spaced
from isoflop.analysis import Optimum, select_points
from isoflop.analysis.optima import find_optima
from isoflop.analysis.optima_methods import METHODS, Method, window_of
from isoflop.analysis.points import AXES, Axis


def only(
    rows: list[dict[str, Any]], axis: Axis = "n_params", method: Method = "parabola"
) -> Optimum:
    """The one optimum of a table with one family and budget."""
    selection = select_points(rows, "seeds", screened=False)
    (optimum,) = find_optima(selection.groups, [axis], [method])
    return optimum


@pytest.mark.parametrize("num", [3, 4, 9])
@pytest.mark.parametrize("centre", [1e3, 2.5e7, 3e12])
def test_an_exact_parabola_is_recovered(centre: float, num: int) -> None:
    sizes = [0.7 * size for size in spaced(centre, num)]
    optimum = only(curve(parabola(centre, floor=2.75, bend=0.031), sizes))
    assert optimum.status == "interior"
    assert optimum.x_opt == pytest.approx(centre, rel=1e-9)
    assert optimum.loss_opt == pytest.approx(2.75, rel=1e-12)
    assert optimum.curvature == pytest.approx(0.031, rel=1e-9)
    assert (optimum.n_points, optimum.grid_lo, optimum.grid_hi) == (num, sizes[0], sizes[-1])


def test_narrow_sizes_are_as_well_conditioned() -> None:
    sizes = spaced(1e9, 5, factor=1.001)
    assert only(curve(parabola(1e9, bend=500.0), sizes)).x_opt == pytest.approx(1e9, rel=1e-9)


def test_the_three_axes_agree_where_they_are_proportional() -> None:
    rows = curve(parabola(1e7), spaced(1e7))
    assert only(rows, "n_tokens").x_opt == pytest.approx(1e17 / 6e7, rel=1e-9)
    assert only(rows, "n_active").x_opt == pytest.approx(5e6, rel=1e-9)
    for axis in AXES:
        assert only(rows, axis).loss_opt == pytest.approx(3.0, rel=1e-12)


STATUSES = {
    "interior": curve(parabola(1e7), spaced(1e7)),
    "edge_low": curve(parabola(1e6), spaced(1e7)),
    "edge_high": curve(parabola(1e8), spaced(1e7)),
    "not_convex": curve(parabola(1e7, bend=-0.05), spaced(1e7)),
    "flat": curve(lambda _: 3.0, spaced(1e7)),
    "too_few": curve(parabola(1e7), [1e7, 2e7]),
}


@pytest.mark.parametrize("status", STATUSES)
def test_each_status_arises(status: str) -> None:
    optimum = only(STATUSES[status])
    assert optimum.status == status
    assert optimum.is_point == (status == "interior")
    assert optimum.is_bound == (status in ("edge_low", "edge_high"))
    if status in ("not_convex", "flat", "too_few"):
        assert optimum.x_opt is None
        assert optimum.loss_opt is None


def test_an_edge_gives_the_size_and_the_mean_loss_measured_there() -> None:
    rows = [*STATUSES["edge_low"], row(n_params=spaced(1e7)[0], loss=3.05)]
    optimum = only(rows)
    assert optimum.status == "edge_low"
    assert optimum.x_opt == optimum.grid_lo == spaced(1e7)[0]
    assert optimum.loss_opt == pytest.approx((rows[0]["loss"] + 3.05) / 2, rel=1e-15)
    assert only(STATUSES["edge_high"]).x_opt == spaced(1e7)[-1]


def test_an_edge_low_in_parameters_is_an_edge_high_in_tokens() -> None:
    assert only(STATUSES["edge_low"], "n_tokens").status == "edge_high"


@pytest.mark.parametrize("slope", [0.3, -0.3])
def test_a_straight_line_has_no_vertex_whatever_its_rounding(slope: float) -> None:
    for offset in range(20):
        sizes = [(1 + offset / 7) * size for size in spaced(1e7, 7)]
        optimum = only(curve(lambda n: 9 + slope * math.log(n), sizes))
        assert optimum.status == "not_convex"


def test_rounding_in_float32_is_flat() -> None:
    rng = random.Random(0)
    rows = curve(lambda _: 3.0 * (1 + 1e-7 * rng.uniform(-1, 1)), spaced(1e7, 9))
    assert only(rows).status == "flat"


def test_seeds_of_two_sizes_do_not_make_three() -> None:
    rows = [row(n_params=n, loss=3 + s / 100) for n in (1e7, 2e7) for s in range(5)]
    optimum = only(rows)
    assert (optimum.status, optimum.n_points) == ("too_few", 10)


def test_seeds_add_points_and_weight() -> None:
    sizes = spaced(1e7)
    rows = curve(parabola(1e7), sizes)
    noisy = [row(n_params=sizes[0], loss=rows[0]["loss"] + d) for d in (-0.01, 0.01)]
    assert only(rows + noisy).x_opt == pytest.approx(1e7, rel=1e-9)
    assert only(rows + noisy).n_points == 7
    heavier = [row(n_params=sizes[0], loss=rows[0]["loss"] + 0.02, seed=s) for s in range(3)]
    once = only(rows + heavier[:1]).x_opt
    thrice = only(rows + heavier).x_opt
    assert once is not None
    assert thrice is not None
    assert thrice > once > 1e7


@pytest.mark.parametrize("method", METHODS)
def test_every_method_finds_the_minimum_of_an_exact_parabola(method: Method) -> None:
    optimum = only(curve(parabola(1e7), [0.9 * n for n in spaced(1e7, 9)]), method=method)
    assert (optimum.status, optimum.method) == ("interior", method)
    # Akima's spline only passes through the points, and two power laws bend otherwise; the others
    # are the parabola itself. Tolerances of size, loss and curvature:
    other = {"akima": (0.02, 1e-4, 0.3), "two_powers": (0.001, 1e-3, 0.1)}
    tolerance, of_loss, of_curvature = other.get(method, (1e-9, 1e-9, 1e-6))
    assert optimum.x_opt == pytest.approx(1e7, rel=tolerance)
    assert optimum.loss_opt == pytest.approx(3.0, rel=of_loss)
    assert optimum.curvature == pytest.approx(0.05, rel=of_curvature)
    assert optimum.off_centre == pytest.approx(-math.log(0.9), abs=tolerance)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("status", STATUSES)
def test_each_status_arises_by_every_method(status: str, method: Method) -> None:
    optimum = only(STATUSES[status], method=method)
    if status == "not_convex" and method == "akima":
        # The lowest measured point of a profile that bends down is an end of it.
        assert optimum.status in ("edge_low", "edge_high")
    else:
        assert optimum.status == status


@pytest.mark.parametrize("method", METHODS)
def test_order_and_repetition_change_no_method(method: Method) -> None:
    rng = random.Random(5)
    rows = curve(lambda n: parabola(1e7)(n) + rng.gauss(0, 0.003), spaced(1e7, 7))
    rows += curve(lambda n: parabola(1e7)(n) + rng.gauss(0, 0.003), spaced(1e7, 3))
    assert only(rng.sample(rows, len(rows)), method=method) == only(rows, method=method)
    assert only(rows * 2, method=method) == only(rows, method=method)


@pytest.mark.parametrize("method", METHODS)
def test_the_unit_of_the_size_moves_the_optimum_with_it(method: Method) -> None:
    rows = curve(lambda n: parabola(1e7)(n) + 0.002 * math.sin(n), spaced(1e7, 7))
    before = only(rows, method=method).x_opt
    after = only([{**r, "n_params": 1024 * r["n_params"]} for r in rows], method=method).x_opt
    assert before is not None
    assert after == pytest.approx(1024 * before, rel=1e-6)


def test_one_bad_loss_hardly_moves_the_robust_parabola() -> None:
    rows = curve(lambda n: parabola(1e7)(n) + 0.001 * math.sin(n), spaced(1e7, 9))
    bad = [dict(r) for r in rows]
    bad[7]["loss"] += 0.15

    def moved(method: Method) -> float:
        shift = [only(table, method=method).x_opt for table in (rows, bad)]
        return abs(math.log(shift[1] / shift[0]))

    assert moved("parabola") > 0.15
    assert moved("parabola_robust") < 0.25 * moved("parabola")


def test_the_window_ignores_what_lies_far_off() -> None:
    sizes = spaced(1e7, 13, factor=64.0)
    steep = [
        {**r, "loss": r["loss"] + (0.5 if r["n_params"] > 5e7 else 0.0)}
        for r in curve(parabola(1e7), sizes)
    ]
    assert only(steep, method="parabola_window").x_opt == pytest.approx(1e7, rel=1e-9)
    assert only(steep).x_opt != pytest.approx(1e7, rel=0.05)


def test_the_window_keeps_five_sizes_and_those_at_its_very_end() -> None:
    wide = np.log(spaced(1e7, 7, factor=1e3))
    assert window_of(wide, wide, 3).tolist() == [False, True, True, True, True, True, False]
    assert window_of(wide, wide, 0).sum() == 5
    narrow = np.log(spaced(1e7, 9, factor=4.0))
    assert window_of(narrow, narrow, 4).all()


def test_the_flops_achieved_are_told_where_all_points_know_them() -> None:
    rows = [{**r, "flops": f} for r, f in zip(STATUSES["interior"], range(1, 6), strict=True)]
    assert only(rows).mean_flops == 3.0
    assert only([*rows[1:], {**rows[0], "flops": None}]).mean_flops is None


def test_an_axis_without_values_is_too_few_and_the_others_stand() -> None:
    rows = [{**r, "n_active": None} for r in STATUSES["interior"]]
    optimum = only(rows, "n_active")
    assert (optimum.status, optimum.n_points, optimum.grid_lo) == ("too_few", 0, None)
    assert only(rows).status == "interior"

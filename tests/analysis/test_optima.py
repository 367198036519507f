"""The vertex of the parabola, and the word that says whether it is one."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from analysis.made_runs import curve, parabola, row, spaced
from isoflop.analysis import Optimum, fit_rows
from isoflop.analysis.points import AXES, Axis
from isoflop.tables import OPTIMA


def only(rows: list[dict[str, Any]], axis: Axis = "n_params") -> Optimum:
    """The one optimum of a table with one family and budget."""
    (optimum,) = (o for o in fit_rows(rows).optima if o.axis == axis)
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
    heavier = [row(n_params=sizes[0], loss=rows[0]["loss"] + 0.02)] * 3
    once = only(rows + heavier[:1]).x_opt
    thrice = only(rows + heavier).x_opt
    assert once is not None
    assert thrice is not None
    assert thrice > once > 1e7


def test_an_axis_without_values_is_too_few_and_the_others_stand() -> None:
    rows = [{**r, "n_active": None} for r in STATUSES["interior"]]
    optimum = only(rows, "n_active")
    assert (optimum.status, optimum.n_points, optimum.grid_lo) == ("too_few", 0, None)
    assert only(rows).status == "interior"


def test_the_fields_are_the_columns_of_the_table() -> None:
    assert tuple(Optimum.__dataclass_fields__) == OPTIMA.names

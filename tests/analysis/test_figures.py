"""The plots: same bytes each time, something to see in every case, labels apart."""

from __future__ import annotations

import math
import random
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.made_runs import curve, parabola, row, spaced, study
from isoflop import plot_style
from isoflop.analysis import excluded_note
from isoflop.analysis.figures import draw_page, write_plots
from isoflop.analysis.figures.laws import frontier, optimum_size
from isoflop.analysis.figures.profiles import evenly
from isoflop.analysis.figures.residuals import relative_residuals
from isoflop.analysis.fit import FitOptions, Fits, fit_optima
from isoflop.analysis.fit import fit_rows as fit_all
from isoflop.analysis.optima_methods import DEFAULT_METHOD, METHODS, Method
from isoflop.analysis.points import select_points
from isoflop.numbers import format_count, format_flops
from isoflop.plot_style import (
    FONT_SIZE,
    family_mark,
    log_ticks,
    math_flops,
    padded,
)
from isoflop.plot_texts import shortened, text_width

EDGES = [
    *curve(parabola(1e6), spaced(1e8), "sgatlin/gelu", 1e17),
    *curve(parabola(1e9), spaced(1e7), "peer", 1e17),
]
CASES: dict[str, list[dict[str, Any]]] = {
    "edges and excluded": [
        *study(["mlp"], [1e17, 1e18]),
        *EDGES,
        row("mlp", 1e17, 5e7, 9.0, status="diverged"),
        row("mlp", 1e17, 5e7, None, status="failed"),
        row("mlp", 1e17, 5e7, 0.01, excluded_reason="too good"),
    ],
    "only edges": EDGES,
    "one budget": study(["mlp"], [1e17]),
    "one arch, label with math signs": study(["my $x$ $_{ arch"], [1e17, 1e18]),
    "no optimum": study(["mlp"], [1e17], num=2),
    "one point": [row()],
    "all excluded": [row(status="failed", loss=None)],
    "nothing": [],
}


def fit_rows(rows: list[dict[str, Any]]) -> Fits:
    """Fit without intervals, which most of these figures do not need."""
    return fit_all(rows, FitOptions(n_boot=0))


def text_of(figure: Any) -> str:
    """All words in a figure."""
    from matplotlib.text import Text

    return "\n".join(t.get_text() for t in figure.findobj(Text))


SLOW_CASES = {"only edges", "one budget", "one arch, label with math signs", "no optimum"}


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=[pytest.mark.slow] if c in SLOW_CASES else []) for c in CASES],
)
def test_every_case_gives_something_to_see(case: str, tmp_path: Path) -> None:
    paths = write_plots(fit_rows(CASES[case]), tmp_path)
    one_size = case in ("one point", "all excluded")
    assert [path.stem for path in paths[::2]] == (
        ["seed_means"] if one_size else ["isoflop_profiles", "frontier", "optimum_size"]
    )
    for path in paths:
        start = b"\x89PNG" if path.suffix == ".png" else b"<?xml"
        assert path.read_bytes().startswith(start)
        assert path.stat().st_size > 5000


@pytest.mark.slow
def test_the_bytes_are_the_same_each_time(tmp_path: Path) -> None:
    fits = fit_rows(CASES["edges and excluded"])
    one = write_plots(fits, tmp_path / "one")
    other = write_plots(fits, tmp_path / "other")
    assert [p.name for p in one] == [p.name for p in other]
    assert [p.read_bytes() for p in one] == [p.read_bytes() for p in other]


@pytest.mark.slow
def test_a_changed_setting_of_matplotlib_does_not_change_the_bytes(tmp_path: Path) -> None:
    import matplotlib

    fits = fit_rows(study(["mlp"], [1e17]))
    one = write_plots(fits, tmp_path / "one")
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "savefig.dpi": 20}):
        other = write_plots(fits, tmp_path / "other")
    assert [p.read_bytes() for p in one] == [p.read_bytes() for p in other]


def test_bounds_and_excluded_runs_are_named() -> None:
    fits = fit_rows(CASES["edges and excluded"])
    profiles = text_of(draw_page(fits, "isoflop_profiles"))
    assert profiles.count("bound\n") == 2
    assert "bound: minimum lies beyond" in profiles
    assert "3 runs excluded: 1 diverged, 1 excluded in table, 1 failed." in profiles
    for draw in (frontier, optimum_size):
        words = text_of(draw(fits).figure)
        assert "Hollow: bound only" in words
        assert "3 runs excluded" in words
        assert all(arch in words for arch in fits.archs)


def lines_of(fits: Any) -> list[Any]:
    """The lines of the frontier that join optima."""
    axes = frontier(fits)
    return [line for line in axes.lines if len(line.get_xdata()) > 2]


def test_a_law_is_drawn_over_interior_optima_only() -> None:
    assert not lines_of(fit_rows(CASES["only edges"]))
    rows = [
        *study(["mlp"], [1e17, 1e18]),
        *curve(parabola(1.0), spaced(1e9), "mlp", 1e19),
    ]
    (line,) = lines_of(fit_rows(rows))
    assert max(line.get_xdata()) == pytest.approx(1e18)


def test_the_frontier_shows_perplexities() -> None:
    fits = fit_rows(study(["mlp"], [1e17]))
    loss = fits.optima_of("mlp")[0].loss_opt
    assert loss is not None
    axes = frontier(fits)
    assert axes.lines[0].get_ydata()[0] == pytest.approx(math.exp(loss), rel=1e-12)


def test_a_family_without_an_optimum_is_named_in_the_note() -> None:
    fits = fit_rows([*study(["mlp"], [1e17]), *study(["peer"], [1e17], num=2)])
    assert "No minimum found: peer." in text_of(frontier(fits).figure)


def test_empty_figures_say_why() -> None:
    failed = fit_rows(CASES["all excluded"])
    assert "No finished runs to draw. 1 run excluded: 1 failed." in text_of(
        draw_page(failed, "isoflop_profiles")
    )
    assert "no curve has a minimum" in text_of(frontier(failed).figure)
    assert excluded_note(fit_rows([])) == "No runs excluded."


def test_the_first_families_differ_in_every_mark() -> None:
    marks = [family_mark(i) for i in range(5)]
    for values in ([m.colour for m in marks], [m.marker for m in marks], [m.line for m in marks]):
        assert len(set(values)) == 5


@given(st.floats(1e-3, 1e26), st.floats(1, 1e9), st.integers(4, 9))
def test_ticks_lie_in_the_range_and_are_few_but_not_none(
    low: float, ratio: float, most: int
) -> None:
    low, high = padded(low, low * ratio, 0.1)
    ticks = log_ticks(low, high, most)
    assert 1 <= len(ticks) <= most + 2
    assert all(low <= tick <= high for tick in ticks)
    assert ticks == sorted(set(ticks))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (8e3, 4e5, [1e4, 2e4, 5e4, 1e5, 2e5]),
        (9e7, 2.2e8, [1e8, 1.25e8, 1.5e8, 1.75e8, 2e8]),
        (4.7, 14.0, [6.0, 8.0, 10.0, 12.0, 14.0]),
        (1e3, 1e26, [1e3, 1e7, 1e11, 1e15, 1e19, 1e23]),
        (31.0, 47.0, [35.0, 40.0, 45.0]),
    ],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert log_ticks(low, high, 6) == pytest.approx(expected)


def test_numbers_are_written_short() -> None:
    assert [format_flops(f) for f in (3e10, 1e11, 1.5e19, 1e26)] == [
        "3e10",
        "1e11",
        "1.5e19",
        "1e26",
    ]
    assert math_flops(3e10) == r"$3\times 10^{10}$"
    assert math_flops(1e11) == "$10^{11}$"
    counts = [950, 12345, 999999, 1.05e6, 7e9, 100000, 2e15, 0.25]
    assert [format_count(c) for c in counts] == [
        "950",
        "12.3k",
        "1M",
        "1.05M",
        "7B",
        "100k",
        "2e+15",
        "0.25",
    ]


LONG = [
    f"family-of-a-very-long-name-number-{i:02d}/and-a-variant-of-it-too-long" for i in range(14)
]


def test_names_fit_a_width_and_stay_apart() -> None:
    short = shortened([*LONG, "mlp", "W" * 60, "$x_1$"], 2.0, FONT_SIZE, bold=True)
    assert len(set(short)) == len(short)
    assert max(text_width(name, FONT_SIZE, bold=True) for name in short) <= 2.0
    assert short[-3] == "mlp"
    assert short[-1] == "$x_1$"
    assert all(f"{i:02d}" in name for i, name in enumerate(short[:14]))
    (middle,) = shortened(["abcdefgh" * 8], 1.0, FONT_SIZE)
    assert re.fullmatch("abc.*….*fgh", middle)
    assert shortened([], 1.0, FONT_SIZE) == []


def test_values_are_chosen_evenly_with_both_ends() -> None:
    chosen = evenly(list(range(40)), 10)
    assert (len(chosen), chosen[0], chosen[-1]) == (10, 0, 39)
    assert {b - a for a, b in pairwise(chosen)} <= {4, 5}
    assert evenly([1, 2], 10) == [1, 2]


def test_many_budgets_and_families_are_drawn_in_part_and_the_note_says_so() -> None:
    rows = study(LONG, [1e17])
    rows += [one for i in range(40) for one in study(LONG[:1], [1e17 * 1.2 ** (i + 1)])]
    with plot_style.style():
        figure = draw_page(optima_of(rows, DEFAULT_METHOD), "isoflop_profiles")
    words = text_of(figure)
    assert "40 budgets of a family at most, evenly chosen of up to 41" in words
    assert "Drawn: 11 of 14 families, the reference among them." in words
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["minimum of the curve"]
    assert figure.axes[-1].get_ylabel() == "Compute (FLOPs)"
    assert figure.get_figheight() < 9.0
    titles = [axes.get_title(loc="left") for axes in figure.axes[:11]]
    assert len(set(titles)) == 11


def optima_of(rows: list[dict[str, Any]], method: Method) -> Fits:
    options = FitOptions(n_boot=0, method=method)
    return fit_optima(select_points(rows), options, methods=[method], axes=["n_params"])


def test_residuals_are_those_of_the_method_named() -> None:
    on_parabola = curve(parabola(1e8), spaced(1e8))
    residuals = [r for _, r in relative_residuals(optima_of(on_parabola, "parabola"), "mlp")]
    assert residuals == pytest.approx([0.0] * 5, abs=1e-12)
    residuals = [r for _, r in relative_residuals(optima_of(on_parabola, "two_powers"), "mlp")]
    assert 1e-5 < max(map(abs, residuals)) < 1e-3
    # A spline leaves no residual of single runs; of repeats it leaves half of what they differ by.
    assert relative_residuals(optima_of(on_parabola, "akima"), "mlp") == []
    repeated = [{**r, "seed": seed} for r in on_parabola for seed in (0, 1)]
    repeated = [{**r, "loss": r["loss"] * (1 + 0.02 * r["seed"])} for r in repeated]
    residuals = [r for _, r in relative_residuals(optima_of(repeated, "akima"), "mlp")]
    assert [abs(r) for r in residuals] == pytest.approx([0.01 / 1.01] * 10, rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_three_points_leave_no_residual(method: Method) -> None:
    three = optima_of(curve(parabola(1e8), spaced(1e8, num=3)), method)
    assert relative_residuals(three, "mlp") == []


def test_points_outside_the_window_have_no_residual() -> None:
    wide = optima_of(curve(parabola(1e8), spaced(1e8, num=13, factor=64.0)), "parabola_window")
    sizes = [point.n_params for point, _ in relative_residuals(wide, "mlp")]
    assert sizes == pytest.approx(spaced(1e8, num=5, factor=4.0))


@pytest.mark.parametrize("method", METHODS)
def test_the_curve_drawn_is_that_of_the_method(method: Method) -> None:
    rng = random.Random(7)
    rows = [
        {**r, "loss": r["loss"] * (1 + rng.gauss(0, 0.003))}
        for r in curve(parabola(1.6e8), spaced(1e8, num=9, factor=16.0))
    ]
    fits = optima_of(rows, method)
    figure = draw_page(fits, "isoflop_profiles")
    drawn = [line for line in figure.axes[0].lines if len(line.get_xdata()) > len(rows)]
    x, losses = (np.asarray(values) for values in (drawn[0].get_xdata(), drawn[0].get_ydata()))
    (optimum,) = fits.optima
    lowest = int(np.nanargmin(losses))
    assert len(drawn) == 1
    assert losses[lowest] == pytest.approx(optimum.loss_opt, rel=1e-4)
    assert abs(math.log(x[lowest] / optimum.x_opt)) <= math.log(x[1] / x[0])

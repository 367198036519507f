"""Profiles, residuals, resources and sparsity in figures, axes and styles that are the user's."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
import warnings
from typing import Any

import matplotlib as mpl
import pytest
from matplotlib.colors import same_color, to_hex
from matplotlib.figure import Figure

from analysis.made_runs import curve, parabola, row, spaced, study
from isoflop import plot_style, plot_texts
from isoflop.analysis.figures import FIGURES
from isoflop.analysis.fit import FitOptions, Fits, fit_optima
from isoflop.analysis.points import select_points
from isoflop.errors import UserError

NAMES = ["_first 日本", "mlp", "swiglu", "two $a$ and $b$" + "x" * 45]
BUDGETS = [1e17, 1e18, 1e19]
PANELS = ("isoflop_profiles", "residuals", "resources", "sparsity")


def fitted(rows: list[dict[str, Any]]) -> Fits:
    told = [{"flops": one["budget_flops"], **one} for one in rows]
    options = FitOptions(n_boot=0, method="parabola")
    return fit_optima(select_points(told), options, methods=["parabola"], axes=["n_params"])


@pytest.fixture(scope="module")
def fits() -> Fits:
    return fitted(study(NAMES, BUDGETS, 7))


@pytest.fixture(scope="module")
def loose() -> Fits:
    """A family with budgets, and one of runs without any."""
    free = [row("free", None, size, 3.2, n_tokens=2e9) for size in (1e7, 3e7)]
    return fitted([*study(["mlp"], BUDGETS), *free])


def entries(figure: Any) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def titles(panels: Any) -> list[str]:
    return [axes.get_title(loc=mpl.rcParams["axes.titlelocation"]) for axes in panels]


def curves(axes: Any) -> list[Any]:
    return [line for line in axes.get_lines() if len(line.get_xdata()) > 20]


def test_panels_are_families_and_colours_budgets_in_the_order_asked_for(fits: Fits) -> None:
    archs = ["swiglu", "mlp"]
    _, panels = FIGURES["isoflop_profiles"](fits, archs=archs, budgets=[1e19, "1e17"])
    assert titles(panels) == archs
    for axes in panels:
        assert len(curves(axes)) == 2
        handles, labels = axes.get_legend_handles_labels()
        assert labels == [r"$10^{19}$ FLOPs", r"$10^{17}$ FLOPs"]
        assert {to_hex(h.get_color()) for h in handles} == {
            to_hex(line.get_color()) for line in curves(axes)
        }


def test_panels_are_budgets_where_colours_are_families(fits: Fits) -> None:
    palette = {"mlp": "red", "swiglu": "blue"}
    _, panels = FIGURES["isoflop_profiles"](fits, hue="arch", archs=list(palette), palette=palette)
    assert titles(panels) == [rf"$10^{{{power}}}$ FLOPs" for power in (17, 18, 19)]
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        assert labels == list(palette)
        assert [to_hex(handle.get_color()) for handle in handles] == ["#ff0000", "#0000ff"]


def test_more_than_six_budgets_have_a_colour_bar_in_order_of_compute() -> None:
    for num, has_bar in ((6, False), (7, True)):
        budgets = [1e17 * 2**i for i in range(num)]
        figure, panels = FIGURES["isoflop_profiles"](fitted(study(["mlp"], budgets)))
        assert len(figure.axes) == len(panels) + has_bar
        assert sum("FLOPs" in text for text in entries(figure)) == (0 if has_bar else num)
        lines = curves(panels[0])
        # Fainter to stronger: towards black on a white page.
        light = [sum(line.get_color()[:3]) for line in lines]
        assert len(lines) == num
        assert light == sorted(light, reverse=True)


@pytest.mark.parametrize("stem", PANELS)
def test_an_axes_that_is_given_gets_one_panel(stem: str, fits: Fits) -> None:
    figure = Figure(layout="constrained", figsize=(8, 4))
    given, _ = figure.subplots(1, 2)
    before = figure.get_children()
    _, panels = FIGURES[stem](fits, archs="mlp", ax=given)
    assert panels.tolist() == [given]
    assert figure.get_children() == before
    assert given.has_data()
    assert given.get_xlabel()
    assert given.get_ylabel()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"archs": ["mlp", "swiglu"], "ax": True}, "ax = an axes: must be left out, for there"),
        ({"archs": "mlp", "figure": True, "ax": True}, "ax = an axes: must be left out beside"),
        ({"figure": True}, "figure = 1 × 1 inches: must be at least"),
        ({"archs": ["mlp", "MLP"]}, "archs = 'MLP': must be of _first"),
        ({"budgets": [1e17, "1e17x"]}, "budgets = '1e17x'"),
        ({"budgets": math.nan}, "budgets = nan"),
        ({"palette": ["red", "no colour"]}, "palette = 'no colour'"),
        ({"palette": []}, "palette = []"),
        ({"palette": {1e17: "red"}}, "palette = ['1e+17']: must be a colour for 1e18"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(options: dict[str, Any], said: str, fits: Fits) -> None:
    small = Figure(figsize=(1, 1))
    given = {"figure": small, "ax": small.subplots()}
    taken = {key: given[key] if value is True else value for key, value in options.items()}
    with pytest.raises(UserError) as caught:
        FIGURES["isoflop_profiles"](fits, **taken)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [5, 20])
def test_names_and_sizes_give_no_warning_and_stay_in_the_figure(size: int, fits: Fits) -> None:
    settings = {"font.size": size, "axes.prop_cycle": mpl.cycler(color=["red", "blue"])}
    with mpl.rc_context(settings), warnings.catch_warnings():
        warnings.simplefilter("error")
        figure, _ = FIGURES["resources"](fits)
        figure.draw_without_rendering()
    box = figure.get_tightbbox()
    assert min(box.x0, box.y0) > -0.02
    assert box.x1 < figure.get_figwidth() + 0.02
    assert box.y1 < figure.get_figheight() + 0.02
    names = entries(figure)
    assert len(set(names)) == len(NAMES)
    assert names[0].endswith("_first U+65E5U+672C")
    marks = {(line.get_color(), line.get_marker()) for line in figure.axes[0].get_lines()}
    assert len({marker for _, marker in marks if marker != "None"}) == len(NAMES)


def test_a_small_figure_keeps_its_size_and_says_what_it_leaves_out() -> None:
    many = fitted(study([f"family {i:02d}" for i in range(30)], BUDGETS[:2]))
    figure = Figure(figsize=(7, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FIGURES["resources"](many, figure=figure)
        figure.draw_without_rendering()
    assert figure.get_size_inches().tolist() == [7, 4]
    names = entries(figure)
    assert names[-1] == f"and {30 - len(names) + 1} more"
    assert figure._supxlabel.get_text().endswith(" …")
    assert min(axes.get_window_extent().height for axes in figure.axes) > 20


def test_in_a_figure_that_nothing_lays_out_an_axes_keeps_to_its_place() -> None:
    figure = Figure(figsize=(8, 4))
    given, other = figure.subplots(1, 2)
    budgets = [1e17 * 2**i for i in range(8)]
    names = [f"family {i}" for i in range(6)]
    FIGURES["isoflop_profiles"](fitted(study(["mlp"], budgets)), ax=given)
    FIGURES["residuals"](fitted(study(names, budgets[:2])), ax=other)
    figure.draw_without_rendering()
    assert given.get_tightbbox().x1 < other.get_tightbbox().x0
    assert other.get_legend().get_window_extent().x1 <= other.get_window_extent().x1
    assert "Compute (FLOPs)" in [axes.get_ylabel() for axes in figure.axes]


def test_runs_without_a_budget_are_among_resources_alone(loose: Fits) -> None:
    figure, panels = FIGURES["resources"](loose)
    assert entries(figure) == ["mlp", "free"]
    (axes,) = [one for one in panels if one.get_xlabel() == "Parameters"]
    (marks,) = [line for line in axes.get_lines() if line.get_label() == "free"]
    assert sorted(marks.get_xdata()) == [1e7, 3e7]
    figure, _ = FIGURES["resources"](loose, hue="budget")
    assert "free" in entries(figure)
    figure, panels = FIGURES["isoflop_profiles"](loose)
    assert titles(panels) == ["mlp"]
    figure, _ = FIGURES["resources"](loose, budgets=[1e17])
    assert entries(figure) == ["mlp"]


def test_notes_may_be_left_out_and_artists_changed(fits: Fits) -> None:
    figure, panels = FIGURES["residuals"](fits, notes=False)
    assert figure._supxlabel.get_text() == ""
    (marks,) = [line for line in panels[0].get_lines() if line.get_label() == "mlp"]
    marks.set_color("magenta")
    figure.legends[0].set_bbox_to_anchor((0.5, 0.5))
    figure.legends[0].remove()
    figure.draw_without_rendering()
    assert same_color(marks.get_color(), "magenta")
    assert figure.legends == []


def test_many_bounds_are_named_in_the_legend_alone() -> None:
    budgets = [1e17 * 3**i for i in range(8)]
    rows = [one for b in budgets for one in curve(parabola(1.0), spaced(1e9), "mlp", b)]
    figure, panels = FIGURES["isoflop_profiles"](fitted(rows))
    assert not panels[0].texts
    assert entries(figure) == ["bound: minimum lies beyond"]


def test_the_words_of_few_bounds_do_not_lie_over_many_curves() -> None:
    budgets = [1e17 * 3**i for i in range(8)]
    rows = [one for b in budgets[:7] for one in curve(parabola(1e9), spaced(1e9), "mlp", b)]
    rows += curve(parabola(1.0), spaced(1e9), "mlp", budgets[7])
    figure, panels = FIGURES["isoflop_profiles"](fitted(rows))
    assert not panels[0].texts
    assert "bound: minimum lies beyond" in entries(figure)
    _, panels = FIGURES["isoflop_profiles"](fitted(rows), hue="arch", budgets=budgets[7])
    assert not panels[0].texts


def test_sparsity_says_how_many_budgets_it_leaves_out() -> None:
    budgets = [1e17 * 3**i for i in range(8)]
    rows = [
        {**one, "flops": b} for b in budgets for one in curve(parabola(1e9), spaced(1e9), "mlp", b)
    ]
    figure, panels = FIGURES["sparsity"](fitted(rows))
    assert len(panels) == 6
    assert "Drawn: the largest 6 of 8 budgets." in figure._supxlabel.get_text()


def test_a_name_is_shown_as_it_is() -> None:
    assert plot_texts.literal("a$b") == "a$b"
    assert plot_texts.literal("$a$ _b") == r"\$a\$ _b"
    assert plot_texts.literal("_a") == "\u200b_a"
    assert plot_texts.literal("é日\t") == "éU+65E5U+0009"


def test_importing_figures_imports_no_pyplot() -> None:
    code = (
        "import sys, isoflop.analysis.figures.profiles, isoflop.analysis.figures.canvas;"
        "assert not [name for name in sys.modules if name.startswith('matplotlib')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_ticks_of_budgets_stand_apart() -> None:
    budgets = [1e17, 2.1544347e17, 4.6415888e17, 1e18]
    for width in (1.5, 2.2, 3.5, 7.0):
        axes = Figure((width, 1.5)).subplots()
        axes.set(xscale="log", xlim=(5e16, 2e18))
        plot_style.set_budget_ticks(axes, budgets)
        axes.figure.draw_without_rendering()
        boxes = [label.get_window_extent() for label in axes.get_xticklabels()]
        assert all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes)), width
    assert [label.get_text() for label in axes.get_xticklabels()][1] == r"$2.15\times 10^{17}$"


def test_a_legend_of_profiles_lies_over_no_run() -> None:
    axes = Figure(figsize=(4, 3), layout="constrained").subplots()
    budgets = [1e17, 3e17, 1e18]
    rows = [
        one
        for b in budgets
        for one in curve(parabola(1e9 * (b / 1e17) ** 0.5, b**-0.05), spaced(1e9), "mlp", b)
    ]
    FIGURES["isoflop_profiles"](fitted(rows), ax=axes)
    axes.figure.draw_without_rendering()
    box = axes.get_legend().get_window_extent()
    assert box.x0 >= axes.bbox.x1

"""Figures of laws and comparisons in axes, figures and styles that are the user's."""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import same_color, to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

from analysis.made_report import full_table
from analysis.made_runs import curve, parabola, row, spaced, study
from isoflop.analysis.compare.multipliers import compare_archs
from isoflop.analysis.figures import FIGURES
from isoflop.analysis.figures.marks import collect_tips
from isoflop.analysis.fit import FitOptions, Fits, fit_optima
from isoflop.analysis.optima_methods import DEFAULT_METHOD
from isoflop.analysis.points import select_points
from isoflop.errors import UserError

ONE_PANEL = ("frontier", "optimum_size", "optimum_tokens", "seed_means")
PANELS = ("sensitivity", "multipliers")
AGAINST_COMPUTE = ONE_PANEL[:3]
LONG = [f"family-of-a-very-long-name-number-{i:02d}/and-a-variant-of-it$_" for i in range(30)]


def fitted(rows: list[dict[str, Any]], unit: str = "nats_per_token", n_boot: int = 0) -> Fits:
    """Return optima, laws and multipliers by one method."""
    told = [{"flops": one["budget_flops"], **one} for one in rows]
    selection = select_points(told, unit=unit)
    fits = fit_optima(selection, FitOptions(n_boot=n_boot), methods=[DEFAULT_METHOD])
    return dataclasses.replace(fits, compare=compare_archs(fits))


def one_size_rows(archs: list[str], budgets: list[float]) -> list[dict[str, Any]]:
    """Two seeds of one size per family and budget."""
    return [
        row(arch, budget, 1e7, 3.0 + 0.1 * i + 0.01 * seed, seed=seed)
        for i, arch in enumerate(archs)
        for budget in budgets
        for seed in (0, 1)
    ]


@pytest.fixture(scope="module")
def fits() -> Fits:
    return fitted(full_table(), n_boot=20)


@pytest.fixture(scope="module")
def sizes() -> Fits:
    return fitted(one_size_rows(["swiglu", "mlp", "peer"], [1e17, 1e18]))


@pytest.fixture(scope="module")
def poor() -> list[Fits]:
    """Tables from which no optimum and no mean follows."""
    two_sizes = curve(parabola(1e8), spaced(1e8, 2))
    return [fitted([]), fitted([row(loss=None)]), fitted(two_sizes)]


@pytest.fixture(autouse=True)
def _no_windows() -> Iterator[None]:
    yield
    plt.close("all")


def table_of(name: str, fits: Fits, sizes: Fits) -> Fits:
    return sizes if name == "seed_means" else fits


def axes_of(result: Any) -> list[Any]:
    """The axes of what a figure's function returned."""
    return list(result[1]) if isinstance(result, tuple) else [result]


def legend_of(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.legend().get_texts()]


@pytest.mark.parametrize("name", [*ONE_PANEL, *PANELS])
def test_an_axes_that_is_given_gets_everything(name: str, fits: Fits, sizes: Fits) -> None:
    figure = Figure(layout="constrained")
    given, other = figure.subplots(1, 2)
    before = figure.get_children()
    result = FIGURES[name](table_of(name, fits, sizes), ax=given)
    assert axes_of(result) == [given]
    assert figure.get_children() == before
    assert figure._suptitle is None
    assert figure._supxlabel is None
    assert given.has_data()
    assert given.get_xlabel()
    assert given.get_title(loc=mpl.rcParams["axes.titlelocation"])
    assert not other.has_data()
    assert not plt.get_fignums()


@pytest.mark.parametrize("name", [*ONE_PANEL, *PANELS])
def test_a_part_of_a_figure_gets_panels_and_notes(name: str, fits: Fits, sizes: Fits) -> None:
    figure = Figure(layout="constrained", figsize=(12, 6))
    left, right = figure.subfigures(1, 2)
    result = FIGURES[name](table_of(name, fits, sizes), figure=left)
    figure.draw_without_rendering()
    assert {axes.figure for axes in axes_of(result)} == {left}
    assert figure.get_size_inches().tolist() == [12, 6]
    assert not right.get_children()[1:]
    assert "excluded" in left._supxlabel.get_text()


def test_two_studies_in_one_axes_are_both_in_view_and_in_the_legend(fits: Fits) -> None:
    other = fitted(study(["moe", "mlp"], [1e19, 1e22]))
    axes = Figure(layout="constrained").subplots()
    FIGURES["frontier"](fits, ax=axes, archs="mlp", palette=["red"])
    FIGURES["frontier"](other, ax=axes, palette=["lime", "blue"])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["mlp", "moe"]
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    for line in axes.get_lines():
        assert left < min(line.get_xdata()) <= max(line.get_xdata()) < right
        assert low < min(line.get_ydata()) <= max(line.get_ydata()) < high


@pytest.mark.parametrize("name", AGAINST_COMPUTE)
def test_every_optimum_that_is_drawn_tells_its_values(name: str, fits: Fits) -> None:
    figure = FIGURES[name](fits, archs=["sgatlin", fits.archs[1]], budgets=[1e18, 1e20]).figure
    texts = [text for group in collect_tips(figure).values() for text in group]
    assert len(texts) == 4
    assert sum(text.startswith("sgatlin at 1e18 FLOPs: optimum\n") for text in texts) == 1
    assert sum(": bound\n" in text for text in texts) == 1


def test_a_budget_alone_has_no_law_and_marks_with_names(fits: Fits) -> None:
    axes = FIGURES["frontier"](fits, budgets=1e18)
    assert all(len(line.get_xdata()) == 1 for line in axes.get_lines())
    assert legend_of(axes)[0] == "mlp"
    assert len(legend_of(axes)) == len(fits.archs)


def test_without_notes_there_are_none(fits: Fits) -> None:
    axes = FIGURES["frontier"](fits, notes=False)
    words = [text.get_text() for text in axes.figure.findobj(mpl.text.Text)]
    assert not any("excluded" in word for word in words)


def test_a_figure_of_ones_own_is_pyplots_and_of_the_style_s_size(fits: Fits) -> None:
    with mpl.rc_context({"figure.figsize": (5.0, 4.0)}):
        axes = FIGURES["optimum_size"](fits)
    assert plt.gcf() is axes.figure
    assert axes.figure.get_figwidth() == 5.0
    # What stands below the panel comes on top.
    assert 4.0 < axes.figure.get_figheight() < 7.0


@pytest.mark.parametrize("name", ["frontier", "optimum_size", "optimum_tokens", "seed_means"])
def test_the_title_of_a_single_panel_is_replaced_by_another(
    name: str, fits: Fits, sizes: Fits
) -> None:
    axes = FIGURES[name](table_of(name, fits, sizes))
    assert axes.get_title()
    assert axes.figure.get_suptitle() == ""
    axes.set_title("mine")
    assert [text.get_text() for text in axes.figure.findobj(Text)].count("mine") == 1


@pytest.mark.parametrize("name", AGAINST_COMPUTE)
def test_families_and_budgets_are_drawn_in_the_order_asked_for(name: str, fits: Fits) -> None:
    axes = FIGURES[name](fits, archs=["swiglu", "mlp"], budgets=[1e19, 1e17])
    assert legend_of(axes) == ["swiglu", "mlp"]
    drawn = {x for line in axes.get_lines() for x in line.get_xdata()}
    assert min(drawn) == pytest.approx(0.998e17, rel=1e-6)
    assert max(drawn) == pytest.approx(0.998e19, rel=1e-6)
    assert sum(len(line.get_xdata()) == 2 for line in axes.get_lines()) == 2


def test_panels_and_rows_are_in_the_order_asked_for(fits: Fits, sizes: Fits) -> None:
    _, panels = FIGURES["multipliers"](fits, archs=["sgatlin", "mlp"])
    assert [axes.get_title() for axes in panels] == ["sgatlin", "mlp"]
    _, (axes, _) = FIGURES["sensitivity"](fits, archs=["swiglu", "mlp"])
    assert legend_of(axes) == ["swiglu", "mlp"]
    axes = FIGURES["seed_means"](sizes, archs=["peer", "mlp"], budgets=[1e18, 1e17])
    rows = [label.get_text() for label in axes.get_yticklabels()]
    assert rows == ["peer, 1e18", "peer, 1e17", "mlp, 1e18", "mlp, 1e17"]


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"archs": ["mlp", "mplp"]}, "archs = 'mplp': must be of mlp"),
        ({"archs": []}, "archs = "),
        ({"budgets": [1e17, 3e17]}, "budgets = 3e"),
        ({"hue": "seed"}, "hue = 'seed'"),
        ({"palette": "no such map"}, "palette = 'no such map'"),
        ({"palette": {"mlp": "red"}}, "palette"),
        ({"palette": 3}, "palette = 3: must be the name of a colormap"),
        ({"ax": np.array([])}, "ax = 'ndarray': must be an axes"),
        ({"figure": 3}, "figure = 'int': must be a figure"),
    ],
)
def test_what_is_not_known_is_one_line_and_no_figure(
    option: dict[str, Any], said: str, fits: Fits
) -> None:
    with pytest.raises(UserError) as caught:
        FIGURES["frontier"](fits, **option)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not plt.get_fignums()


def colours_of(axes: Any, label: str) -> set[str]:
    return {to_hex(line.get_color()) for line in axes.get_lines() if line.get_label() == label}


def test_a_palette_is_a_mapping_a_list_or_a_name(fits: Fits) -> None:
    archs = ["mlp", "swiglu"]
    for palette in (
        {"mlp": "red", "swiglu": "#00f"},
        ["red", (0.0, 0.0, 1.0)],
    ):
        axes = FIGURES["frontier"](fits, archs=archs, palette=palette)
        assert colours_of(axes, "mlp") == {"#ff0000"}
        assert colours_of(axes, "swiglu") == {"#0000ff"}
    axes = FIGURES["frontier"](fits, archs=archs, palette=mpl.colormaps["Set1"])
    assert colours_of(axes, "mlp") == {to_hex(mpl.colormaps["Set1"](0))}
    axes = FIGURES["frontier"](fits, archs=archs, palette="tab10")
    assert colours_of(axes, "mlp") == {"#1f77b4"}


def test_colours_are_of_the_cycle_and_the_same_in_a_part_of_the_families(fits: Fits) -> None:
    with mpl.rc_context({"axes.prop_cycle": mpl.cycler(color=["red", "lime"])}):
        every = FIGURES["frontier"](fits)
        some = FIGURES["optimum_tokens"](fits, archs=["swiglu"])
    assert colours_of(every, "mlp") == {"#ff0000"}
    assert colours_of(every, "swiglu") == colours_of(some, "swiglu") == {"#00ff00"}


def test_colours_of_budgets(fits: Fits) -> None:
    axes = FIGURES["frontier"](fits, hue="budget", palette="viridis")
    names = legend_of(axes)
    assert sum("FLOPs" in name for name in names) == len(fits.budgets)
    assert {"mlp", "swiglu"} < set(names)
    marks = [line for line in axes.get_lines() if "10^{17}" in str(line.get_label())]
    assert same_color(marks[0].get_color(), mpl.colormaps["viridis"](0.0))


def test_a_seed_has_a_colour_and_an_entry(sizes: Fits) -> None:
    axes = FIGURES["seed_means"](sizes, palette={"seed 0": "red", "seed 1": "blue"})
    assert legend_of(axes) == ["seed 0", "seed 1"]
    assert colours_of(axes, "seed 1") == {"#0000ff"}
    axes = FIGURES["seed_means"](sizes, hue="arch", palette=["red", "lime", "blue"])
    assert legend_of(axes) == sizes.archs


@pytest.mark.parametrize("name", [*AGAINST_COMPUTE, "sensitivity"])
def test_a_legend_has_one_entry_a_family_and_a_change_stays(name: str, fits: Fits) -> None:
    axes = axes_of(FIGURES[name](fits))[0]
    plain = [arch.replace("$x_1$", r"\$x_1\$") for arch in fits.archs]
    assert legend_of(axes) == plain
    for line in axes.get_lines():
        line.set_color("magenta")
    axes.set_xlabel("compute")
    axes.figure.draw_without_rendering()
    assert all(same_color(line.get_color(), "magenta") for line in axes.get_lines())
    assert axes.get_xlabel() == "compute"


@pytest.mark.parametrize(
    ("unit", "label"), [("bits_per_byte", "Loss (bits per byte)"), ("val_err", "val_err")]
)
def test_axes_name_the_unit(unit: str, label: str) -> None:
    fits = fitted(study(["mlp", "swiglu"], [1e17, 1e18]), unit, n_boot=10)
    assert FIGURES["frontier"](fits).get_ylabel() == label
    _, panels = FIGURES["multipliers"](fits)
    assert panels[0].get_ylabel() == label
    sizes = fitted(one_size_rows(["mlp", "swiglu"], [1e17]), unit)
    assert FIGURES["seed_means"](sizes).get_xlabel() == label


@pytest.mark.parametrize("name", [*ONE_PANEL, *PANELS])
def test_where_there_is_nothing_an_axes_says_so(name: str, poor: list[Fits]) -> None:
    for nothing in poor:
        figure = Figure(layout="constrained")
        given, _ = figure.subplots(1, 2)
        (axes,) = axes_of(FIGURES[name](nothing, ax=given))
        (own,) = axes_of(FIGURES[name](nothing))
        for one in (axes, own):
            assert "excluded" in " ".join(text.get_text() for text in one.texts)


STYLES: list[Any] = [
    ["dark_background", {"font.size": 18.0}],
    ["ggplot", {"font.size": 6.0, "figure.constrained_layout.use": True}],
    [{"axes.prop_cycle": mpl.cycler(color=["red", "blue"]), "font.size": 12.0}],
]


def assert_whole(figure: Any) -> None:
    """Nothing that is drawn runs out of the figure, and no panel is squeezed away."""
    figure.draw_without_rendering()
    box = figure.get_tightbbox()
    assert min(box.x0, box.y0) > -0.05
    assert box.x1 < figure.get_figwidth() + 0.05
    assert box.y1 < figure.get_figheight() + 0.05
    for axes in figure.axes:
        extent = axes.get_window_extent()
        assert extent.width > 8
        assert extent.height > 30


@pytest.mark.slow
@pytest.mark.parametrize("style", STYLES, ids=["dark", "ggplot", "two colours"])
@pytest.mark.parametrize("name", ["frontier", "seed_means", *PANELS])
def test_every_style_leaves_a_figure_whole(name: str, style: Any, fits: Fits, sizes: Fits) -> None:
    with mpl.style.context(["default", *style]), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_whole(axes_of(FIGURES[name](table_of(name, fits, sizes)))[0].figure)


@pytest.mark.slow
@pytest.mark.parametrize(("num_archs", "num_budgets"), [(1, 1), (2, 40), (30, 2)])
def test_many_families_and_budgets_leave_every_figure_whole(
    num_archs: int, num_budgets: int
) -> None:
    budgets = [1e17 * 1.5**i for i in range(num_budgets)]
    many = fitted(study(LONG[:num_archs], budgets), n_boot=2)
    small = fitted(one_size_rows(LONG[:num_archs], budgets))
    for name in (*ONE_PANEL, *PANELS):
        for options in ({}, {"hue": "budget"}):
            if name == "sensitivity" and options:
                continue
            figure = axes_of(FIGURES[name](table_of(name, many, small), **options))[0].figure
            assert_whole(figure)
            plt.close(figure)


def test_numbers_beside_arrows_keep_their_distance() -> None:
    fits = fitted(study(["mlp", "swiglu"], [1e17 * 1.1**i for i in range(16)]), n_boot=3)
    figure, (axes,) = FIGURES["multipliers"](fits)
    figure.draw_without_rendering()
    numbers = [text for text in axes.texts if text.get_text()]
    boxes = sorted((text.get_window_extent() for text in numbers), key=lambda box: box.y0)
    assert 4 < len(boxes) < 16
    assert all(b.y0 > a.y0 + 0.7 * a.height for a, b in itertools.pairwise(boxes))
    assert "have no number" in figure._supxlabel.get_text()

"""The report's figures: something to see in every case, legible, the same bytes, safe in a page."""

from __future__ import annotations

import dataclasses
import re
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from analysis.made_report import full_table
from analysis.made_runs import curve, parabola, row, spaced, study
from analysis.report.made_document import made_svg
from isoflop import plot_style
from isoflop.analysis.compare.multipliers import compare_archs
from isoflop.analysis.figures import FIGURES, draw_page, marks
from isoflop.analysis.figures.resources import hull, params_per_flop
from isoflop.analysis.fit import FitOptions, Fits, fit_optima, fit_rows
from isoflop.analysis.optima_methods import DEFAULT_METHOD
from isoflop.analysis.points import select_points
from isoflop.analysis.report.figures import inline

# Half a minute of drawing; tests/analysis/test_figures.py draws in the first target.
pytestmark = pytest.mark.slow

QUICK = FitOptions(n_boot=0)
POOR = {
    "only edges": curve(parabola(1.0), spaced(1e9)),
    "one point": [row()],
    "all excluded": [row(status="failed", loss=None)],
    "nothing": [],
}


@pytest.fixture(scope="module")
def fits() -> Fits:
    optima = fit_optima(select_points(full_table()), FitOptions(n_boot=50))
    return dataclasses.replace(optima, compare=compare_archs(optima))


def words(figure: Any) -> str:
    from matplotlib.text import Text

    return "\n".join(text.get_text() for text in figure.findobj(Text))


@pytest.mark.parametrize("case", POOR)
def test_a_poor_table_gives_every_figure(case: str) -> None:
    poor = fit_rows(POOR[case], QUICK)
    for stem in FIGURES:
        with plot_style.style():
            assert "excluded" in words(draw_page(poor, stem)), stem


@pytest.mark.parametrize("stem", FIGURES)
def test_figures_fit_a_page_and_their_words_can_be_read(stem: str, fits: Fits) -> None:
    from matplotlib.text import Text

    with plot_style.style():
        figure = draw_page(fits, stem)
        figure.canvas.draw()
    long_label = stem in ("frontier", "optimum_size", "optimum_tokens")
    assert figure.get_figwidth() <= (4.5 if long_label else plot_style.PAGE_WIDTH)
    shown = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
    assert min(text.get_fontsize() for text in shown) >= 7.0
    # Nothing that is drawn runs out of the figure (inches).
    box = figure.get_tightbbox()
    assert min(box.x0, box.y0) > -0.02
    assert box.x1 < figure.get_figwidth() + 0.02
    assert box.y1 < figure.get_figheight() + 0.02


def test_many_long_names_and_budgets_leave_every_figure_whole() -> None:
    names = [f"family-of-a-very-long-name-number-{i:02d}/and-a-variant-of-it" for i in range(12)]
    rows = study(names, [1e17, 1e18]) + study(names[:1], [1e17 * 1.2**i for i in range(1, 30)])
    for one in rows:
        one["wall_s"] = 5.0
        one["flops"] = 1e18
    made = fit_optima(select_points(rows), FitOptions(n_boot=20), methods=(DEFAULT_METHOD, "akima"))
    many = dataclasses.replace(made, compare=compare_archs(made))
    for stem in ("isoflop_profiles", "frontier", "multipliers", "resources", "seed_means"):
        with plot_style.style():
            figure = draw_page(many, stem)
            figure.canvas.draw()
        box = figure.get_tightbbox()
        assert min(box.x0, box.y0) > -0.02, stem
        assert box.x1 < figure.get_figwidth() + 0.02, stem
        assert box.y1 < figure.get_figheight() + 0.02, stem
        assert figure.get_figheight() < 15, stem


def test_short_labels_fit_a_column() -> None:
    narrow = fit_rows(study(["mlp", "sgatlin"], [1e17, 1e18]), QUICK)
    for stem in ("frontier", "optimum_size", "optimum_tokens"):
        with plot_style.style():
            assert draw_page(narrow, stem).get_figwidth() <= plot_style.COLUMN_WIDTH + 1e-9


@pytest.mark.parametrize("stem", ["multipliers"])
def test_the_bytes_are_the_same_each_time(stem: str, fits: Fits, tmp_path: Path) -> None:
    files = []
    for name in ("one", "other"):
        with plot_style.style():
            folder = tmp_path / name
            figure = draw_page(fits, stem)
            marks.collect_tips(figure)
            paths = plot_style.save(figure, folder, stem, ("png", "svg", "pdf"))
        files.append([path.read_bytes() for path in paths])
    assert files[0] == files[1]
    assert files[0][2].startswith(b"%PDF")


def test_every_run_and_optimum_tells_its_values(fits: Fits) -> None:
    with plot_style.style():
        tips = marks.collect_tips(draw_page(fits, "isoflop_profiles"))
    texts = [text for group in tips.values() for text in group]
    points = [point for group in fits.groups.values() for point in group]
    drawn = [o for arch in fits.archs for o in fits.optima_of(arch) if o.x_opt is not None]
    assert len(texts) == len(points) + len(drawn)
    assert sum(": bound\n" in text for text in texts) == 1
    assert any(re.search(r"parameters [\d.]+M \([\d.]+M to [\d.]+M\)", text) for text in texts)


def test_an_inlined_figure_is_safe_and_has_its_own_ids() -> None:
    svg, tips = made_svg()
    page = inline(svg, "dots", tips, plot_style.family_colours())
    root = ET.fromstring(page)
    ids = Counter(e.get("id") for e in root.iter() if e.get("id"))
    assert max(ids.values()) == 1
    assert all(name.startswith("dots-") for name in ids if name)
    targets = re.findall(r'(?:href="#|url\(#)([^")]+)', page)
    assert targets
    assert set(targets) <= set(ids)
    assert "http" not in page.replace("http://www.w3.org", "")
    assert "second &lt;b&gt;" in page
    assert "var(--family-0)" in page
    assert "#0072b2" not in page.lower()


def test_the_hull_keeps_what_nothing_beats() -> None:
    points = [(1.0, 3.0), (2.0, 3.5), (2.0, 2.5), (4.0, 2.5), (8.0, 1.0)]
    assert hull(points) == [(1.0, 3.0), (2.0, 2.5), (8.0, 1.0)]
    assert hull([]) == []


def test_parameters_per_flop_of_a_dense_model_are_a_half(fits: Fits) -> None:
    """C = 6 N D is 2 N forward FLOPs per token."""
    points = [p for (arch, _), group in fits.groups.items() if arch == "mlp" for p in group]
    assert all(params_per_flop(p) == pytest.approx(0.5 / 0.998) for p in points)

"""The figures of `Results.plot`: methods with the signatures and the help of their functions."""

from __future__ import annotations

import inspect
from pathlib import Path

import matplotlib.pyplot as plt

import isoflop
from isoflop.analysis.figures import FIGURES

QUICK = Path(__file__).resolve().parents[1] / "results" / "quickstart"
SHOWN_ARGUMENTS = ("figure", "ax", "archs", "budgets", "hue", "palette", "notes", "axis")


def test_a_figure_is_a_method_with_its_function_s_signature() -> None:
    plot = isoflop.load(QUICK).plot
    names = {name for name in dir(plot) if not name.startswith("_")}
    assert names == {stem.removeprefix("isoflop_") for stem in FIGURES}
    for stem, draw in FIGURES.items():
        method = getattr(plot, stem.removeprefix("isoflop_"))
        arguments = list(inspect.signature(draw).parameters)[1:]
        assert list(inspect.signature(method).parameters) == arguments
        explained = [
            line.split(":")[0] for line in method.__doc__.split("Args:\n")[1].split("\n    ")
        ]
        assert [name.strip() for name in explained] == [
            n for n in SHOWN_ARGUMENTS if n in arguments and (n, stem) != ("axis", "sensitivity")
        ]
        assert method.__doc__.startswith(draw.__doc__.splitlines()[0])
    figure, axes = plt.subplots()
    assert plot.frontier(ax=axes, archs=["mlp", "peer"]) is axes
    assert {"mlp", "peer"} <= set(axes.get_legend_handles_labels()[1])
    plt.close(figure)
